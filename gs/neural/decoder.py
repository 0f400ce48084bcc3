"""The decoder's parameters: one vector for each net, and a row for each training image.

    mlp_opacity, mlp_cov, mlp_color     W1 [F, I], b1 [F], W2 [out, F], b2 [out], end to end
    appearance                          [images, A], where there is any

I = F + 3, and F + 3 + A for colour. `kernels.decode` has nets of F + 3 inputs: an image's numbers
are the same for all anchors, so that their part of W1 goes into b1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels import n_weights

from ..seeds import derive_seed
from .config import NeuralConfig

VIEW = 3
NETS = {"mlp_opacity": 1, "mlp_cov": 7, "mlp_color": 3}  # numbers per offset


def net_sizes(config: NeuralConfig, name: str) -> tuple[int, int, int]:
    """Inputs, hidden and output numbers of a net."""
    extra = config.appearance_dim if name == "mlp_color" else 0
    hidden = config.feature_dim
    return hidden + VIEW + extra, hidden, NETS[name] * config.offsets


def split_net(
    weights: Tensor, sizes: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W1, b1, W2 and b2 of a net, which share memory with its vector.

    Raises:
        ValueError: the vector is longer or shorter.
    """
    n_in, n_hidden, n_out = sizes
    lengths = (n_hidden * n_in, n_hidden, n_out * n_hidden, n_out)
    if weights.shape != (sum(lengths),):
        raise ValueError(f"weights: expected [{sum(lengths)}], got {list(weights.shape)}")
    w1, b1, w2, b2 = weights.split(lengths)
    return w1.view(n_hidden, n_in), b1, w2.view(n_out, n_hidden), b2


def fresh_decoder(config: NeuralConfig, n_images: int, seed: int) -> dict[str, Tensor]:
    """Random weights, uniform within 1 / sqrt(inputs) of a layer, and standard normal tables."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "decoder"))
    found: dict[str, Tensor] = {}
    for name in NETS:
        n_in, n_hidden, n_out = net_sizes(config, name)
        layers = ((n_hidden, n_in), (n_hidden,), (n_out, n_hidden), (n_out,))
        found[name] = torch.cat(
            [
                (2.0 * torch.rand(math.prod(shape), generator=generator) - 1.0) / math.sqrt(fan)
                for shape, fan in zip(layers, (n_in, n_in, n_hidden, n_hidden), strict=True)
            ]
        )
    if config.appearance_dim:
        shape = max(n_images, 1), config.appearance_dim
        found["appearance"] = torch.randn(shape, generator=generator)
    return found


def kernel_weights(
    config: NeuralConfig,
    nets: tuple[Tensor, Tensor, Tensor],
    appearance: Tensor | None,  # [images, A]
    exposure: Tensor,  # [1] int32
) -> Tensor:  # [P]
    """The vector that `kernels.decode` takes, differentiable in nets and table.

    Args:
        config: Shape of the nets.
        nets: Of opacity, scale and rotation, colour.
        appearance: What is learnt for each image; None for nothing.
        exposure: The image's row in it, on the device; the mean over all where it is none.
    """
    if appearance is None:
        return torch.cat(nets)
    w1, b1, w2, b2 = split_net(nets[2], net_sizes(config, "mlp_color"))
    n_images, seen = len(appearance), config.feature_dim + VIEW
    known = (exposure >= 0) & (exposure < n_images)
    row = appearance[exposure.long().clamp(0, n_images - 1)][0]
    row = torch.where(known, row, appearance.mean(0))
    bias = b1 + w1[:, seen:] @ row
    color = torch.cat([w1[:, :seen].flatten(), bias, w2.flatten(), b2])
    assert len(color) == n_weights(config.feature_dim, config.offsets)[2]
    return torch.cat([*nets[:2], color])
