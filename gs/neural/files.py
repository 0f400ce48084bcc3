"""Neural Gaussians as files, in the layout of Scaffold-GS: a .ply, and the decoder beside it.

    point_cloud.ply     binary little-endian float32, one vertex per anchor:
        x y z  nx ny nz  f_offset_0..3k-1  f_anchor_feat_0..F-1  opacity  scale_0..5  rot_0..3
    opacity_mlp.pt, cov_mlp.pt, color_mlp.pt, embedding_appearance.pt     TorchScript modules
    neural.json         what the published files do not say

79 properties for k = 10 and F = 32. Normals are zero; f_offset is axis-major (x of all offsets,
then y, then z); scales are logarithms; opacity is logit(0.1) and rot is (1, 0, 0, 0): neither is
ever read. Where offsets are switched off there is one property more, off_bits (uint), which
published readers pass over. The modules are read for their weights and are not run.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import SplatrimError
from ..files import atomic_write
from ..model.gaussians import INITIAL_OPACITY
from ..model.ply import MIP, offset_comments
from ..schema import fields, listed, number, read_checked, text
from .config import NeuralConfig
from .decoder import net_sizes, split_net

DETAILS = "neural.json"
FILES = {"mlp_opacity": "opacity_mlp.pt", "mlp_cov": "cov_mlp.pt", "mlp_color": "color_mlp.pt"}
APPEARANCE = "embedding_appearance.pt"
OFF_BITS = "off_bits"
_DETAILS = fields(
    {
        "view_input": text,
        "voxel_size": number(0, 1e30),
        "appearance": listed(text),
    },
    needs=("view_input", "voxel_size", "appearance"),
)


def property_names(n_features: int, n_offsets: int) -> list[str]:
    """Properties of a vertex in file order: 79 for 32 features and 10 offsets."""
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_offset_{i}" for i in range(3 * n_offsets)),
        *(f"f_anchor_feat_{i}" for i in range(n_features)),
        "opacity",
        *(f"scale_{i}" for i in range(6)),
        *(f"rot_{i}" for i in range(4)),
    ]


def save_anchors(
    path: Path,
    tensors: Mapping[str, Tensor],
    off: Tensor,  # [N, k] bool
    shared: Mapping[str, Tensor],
    config: NeuralConfig,
    names: Sequence[str],
    world_offset: tuple[float, float, float],
    *,
    antialiased: bool = False,
) -> None:
    """Write a model's .ply and the files beside it, each atomically; the .ply last.

    Args:
        path: The .ply; missing folders are made.
        tensors: anchors [N,3], features [N,F], offsets [N,k,3], scales [N,6] (log).
        off: Offsets that are switched off.
        shared: mlp_opacity, mlp_cov, mlp_color, appearance and grid, as gs.neural.decoder says.
        config: Shape of the nets.
        names: Of the training images, by their row of `appearance`.
        world_offset: What was subtracted from the world's coordinates.
        antialiased: Whether it is to be drawn so; a comment.

    Raises:
        SplatrimError: one cannot be written.
    """
    for name, file in FILES.items():
        weights = shared[name].detach().cpu()
        _save_module(path.with_name(file), _net_module(weights, net_sizes(config, name), name))
    if config.appearance_dim:
        table = shared["appearance"].detach().cpu()
        embedding = nn.Embedding.from_pretrained(table, freeze=False)
        _save_module(path.with_name(APPEARANCE), _Lookup(embedding))
    details = {
        "view_input": config.view_input,
        "voxel_size": float(shared["grid"]),
        "appearance": list(names) if config.appearance_dim else [],
    }
    with atomic_write(path.with_name(DETAILS)) as file:
        file.write((json.dumps(details, indent=1) + "\n").encode())

    p, n, k = tensors, len(off), config.offsets
    rotation = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(n, 4)
    columns = [
        p["anchors"].cpu(),
        torch.zeros(n, 3),
        p["offsets"].cpu().transpose(1, 2).reshape(n, 3 * k),
        p["features"].cpu(),
        torch.full((n, 1), math.log(INITIAL_OPACITY / (1 - INITIAL_OPACITY))),
        p["scales"].cpu(),
        rotation,
    ]
    names = property_names(config.feature_dim, k)
    types = [(name, "<f4") for name in names]
    lines = [f"property float {name}" for name in names]
    bits = _pack_bits(off.cpu())
    if bits.any():
        types.append((OFF_BITS, "<u4"))
        lines.append(f"property uint {OFF_BITS}")
    table = np.zeros(n, dtype=types)
    for name, column in zip(names, torch.cat(columns, 1).float().T.numpy(), strict=True):
        table[name] = column
    if bits.any():
        table[OFF_BITS] = bits
    head = ["ply", "format binary_little_endian 1.0", *offset_comments(world_offset)]
    head += [f"comment {MIP}"] if antialiased else []
    head += [f"element vertex {n}", *lines, "end_header", ""]
    with atomic_write(path) as file:
        file.write("\n".join(head).encode("ascii"))
        file.write(table.tobytes())


def _pack_bits(off: Tensor) -> NDArray[np.uint32]:  # [N, k] bool -> [N]
    """Bit j of a row is its offset j."""
    bits = (off.long() << torch.arange(off.shape[1])).sum(1)
    return bits.numpy().astype(np.uint32)


def read_details(path: Path) -> dict[str, Any]:
    """What neural.json says; the defaults where there is none. Raises SplatrimError."""
    if not path.is_file():  # of Scaffold-GS
        return {"view_input": "all", "voxel_size": NeuralConfig.voxel_size, "appearance": []}
    details = read_checked(path, _DETAILS)
    if details["view_input"] not in ("all", "color"):
        raise SplatrimError(f"{path} is broken: view_input is {details['view_input']!r:.40}")
    return details


class _Lookup(nn.Module):
    """The published table: a module with an embedding."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, index: Tensor) -> Tensor:
        return self.embedding(index)


def _net_module(weights: Tensor, sizes: tuple[int, int, int], name: str) -> nn.Module:
    """A net as the published code has it: two layers, with the activation of its output."""
    n_in, n_hidden, n_out = sizes
    ends = {"mlp_opacity": [nn.Tanh()], "mlp_color": [nn.Sigmoid()]}
    net = nn.Sequential(
        nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out), *ends.get(name, [])
    )
    nn.utils.vector_to_parameters(
        torch.cat([x.flatten() for x in split_net(weights, sizes)]), net.parameters()
    )
    return net


def _save_module(path: Path, module: nn.Module) -> None:
    buffer = io.BytesIO()
    first = next(iter(module.parameters()))
    is_table = isinstance(module, _Lookup)
    example = torch.zeros(1, dtype=torch.long) if is_table else torch.zeros(1, first.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the published format is old
        torch.jit.save(torch.jit.trace(module, example), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _load_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise SplatrimError(f"no such file: {path}; the decoder belongs beside its anchors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except (RuntimeError, ValueError, OSError) as error:
        raise SplatrimError(f"{path} is cut short or not a decoder's net") from error
    if not all(bool(x.isfinite().all()) for x in state.values()):
        raise SplatrimError(f"{path} is damaged: it has values that are not finite")
    return state


def read_net(path: Path, sizes: tuple[int, int, int]) -> Tensor:  # [p]
    """The vector of a net in a file. Raises SplatrimError where it is none of these sizes."""
    n_in, n_hidden, n_out = sizes
    shapes = {
        "0.weight": (n_hidden, n_in),
        "0.bias": (n_hidden,),
        "2.weight": (n_out, n_hidden),
        "2.bias": (n_out,),
    }
    state = _load_state(path)
    got = {name: tuple(x.shape) for name, x in state.items()}
    if got != shapes:
        raise SplatrimError(f"{path} does not fit its anchors: expected {shapes}, got {got}")
    return torch.cat([state[name].float().flatten() for name in shapes])


def read_appearances(path: Path) -> Tensor:  # [images, A]
    """The appearances in a file. Raises SplatrimError."""
    tables = [x for x in _load_state(path).values() if x.dim() == 2 and len(x)]
    if len(tables) != 1:
        raise SplatrimError(f"{path} is no table of appearances")
    return tables[0].float()


def find_appearances(path: Path) -> Tensor | None:
    """That of Scaffold-GS, which does not name its images: all views get the mean."""
    return read_appearances(path) if path.is_file() else None
