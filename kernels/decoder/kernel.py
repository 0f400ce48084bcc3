r"""Anchors decoded into Gaussians: forward in one launch, backward in two, and a sum.

kernels/reference/decoder.py has the equations. A program takes BLOCK anchors after BLOCK anchors,
with the weights in shared memory. A matrix has a row per anchor; its columns are the numbers of all
offsets as they lie in memory, 3 j + c or 4 j + c for number c of offset j, in a power of two. So a
net is

    hidden   relu(features W1f + aug W1a)     aug = (d, 1, 0, ..): direction and bias as 16 columns
    output   hidden W2 + b2                   of the rows of W2 that the columns name

and nothing between the parameters and the Gaussians goes through memory, but what the backward
needs of it: hidden layers, directions, and the lengths of quaternions.

Products are of operands rounded to bfloat16, which has float32's range, with float32 sums. In exact
mode they are three TF32 products each, which is float32 to rounding, and so is the hidden layer
always: whether a relu passes must not hang on rounding.

In the backward PROGRAMS programs walk through the anchors, and each keeps the sums for the weights
in registers; each writes a row in the end, and the rows are added in order: equal calls have equal
gradients. All of a net at once is what registers allow, so there is a launch for shapes, with
positions, and one for opacities and colours, which adds to the features' gradients. An anchor
belongs to one program of each, so that its own gradients need no atomics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..reference.decoder import HEADS, MIN_LENGTH, Decoded, n_weights
from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import empty, launch, zeros
from .backward import decode_look_bwd_kernel, decode_shape_bwd_kernel
from .forward import decode_fwd_kernel


class Tiling(NamedTuple):
    """How a launch is cut; which does not change with the GPU, and so neither do sums."""

    block: int
    """Anchors at a time."""
    warps: int
    programs: int


class Tilings(NamedTuple):
    forward: Tiling
    shape: Tiling
    look: Tiling


TILINGS = Tilings(Tiling(64, 4, 528), Tiling(64, 8, 264), Tiling(64, 4, 264))
SLOW = Tilings(*[Tiling(16, 4, 264)] * 3)  # exact, or of large matrices, which leave no registers


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        features: Tensor,
        offsets: Tensor,
        scales: Tensor,
        weights: Tensor,
        rows: Tensor,
        center: Tensor,
        off: Tensor | None,
        sees: bool,
        exact: bool,
    ) -> tuple[Tensor, ...]:
        n_places, (_, k, _) = len(rows), offsets.shape
        places, n_features = n_places * k, features.shape[1]
        device = anchors.device
        out = [empty((places, n), torch.float32, device) for n in (3, 4, 3, 1, 3)]
        out[3] = out[3].view(places)
        inverses = empty((places,), torch.float32, device)
        width, dtype = 3 * n_features + 8, torch.float32 if exact else torch.float16
        kept = empty((n_places, width), dtype, device)
        tensors = (anchors, features, offsets, scales, weights, rows, center, off)
        constants = _constants(n_features, k, sees, exact)
        tilings = SLOW if exact or k > 10 or n_features > 32 else TILINGS
        tiling = tilings.forward
        n_programs = _programs(tiling, n_places)
        launch(
            decode_fwd_kernel,
            (n_programs,),
            *tensors,
            *out,
            inverses,
            kept,
            n_places,
            n_programs,
            num_warps=tiling.warps,
            **constants(tiling),
            MIN_LENGTH=MIN_LENGTH,
        )
        _, quats, sizes, opacities, colors = out
        made = quats, sizes, opacities, colors, inverses, kept
        ctx.save_for_backward(features, offsets, scales, weights, rows, *made)
        ctx.off, ctx.constants, ctx.tilings = off, constants, tilings
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs, made = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        features, offsets, scales, weights, rows = inputs
        quats, sizes, opacities, colors, inverses, kept = made
        v_means, v_quats, v_sizes, v_opacities, v_colors = (x.contiguous() for x in v_out)
        own = [zeros(x.shape, torch.float32, features.device) for x in (features, offsets, scales)]
        _, shape, look = ctx.tilings
        n_places = len(rows)
        n_programs = _programs(shape, n_places)
        partial = empty((n_programs, len(weights)), torch.float32, features.device)
        launch(
            decode_shape_bwd_kernel,
            (n_programs,),
            *inputs,
            quats,
            sizes,
            inverses,
            kept,
            v_means,
            v_quats,
            v_sizes,
            *own,
            partial,
            n_places,
            n_programs,
            num_warps=shape.warps,
            **ctx.constants(shape),
        )
        launch(
            decode_look_bwd_kernel,
            (n_programs,),
            features,
            weights,
            rows,
            opacities,
            colors,
            kept,
            ctx.off,
            v_opacities,
            v_colors,
            own[0],
            partial,
            n_places,
            n_programs,
            num_warps=look.warps,
            **ctx.constants(look),
        )
        return None, *own, partial.sum(0), *[None] * 5


def _programs(tiling: Tiling, n_places: int) -> int:
    return max(min(-(-n_places // tiling.block), tiling.programs), 1)


def _constants(
    n_features: int, k: int, sees: bool, exact: bool
) -> Callable[[Tiling], dict[str, object]]:
    first, second, _ = n_weights(n_features, k)

    def of(tiling: Tiling) -> dict[str, object]:
        return {
            "SEES": sees,
            "H": n_features,
            "K": k,
            "HEAD1": first,
            "HEAD2": first + second,
            "BLOCK": tiling.block,
            "PRECISION": "tf32x3" if exact else "fp16",
        }

    return of


def decode(
    anchors: Tensor,
    features: Tensor,
    offsets: Tensor,
    scales: Tensor,
    weights: Tensor,
    rows: Tensor,
    center: Tensor,
    off: Tensor | None,
    sees: bool,
    exact: bool,
) -> Decoded:
    """As kernels.decode; `sees` says whether all nets see the direction."""
    assert HEADS == (1, 7, 3)  # what the kernels are written for
    if max(len(anchors), len(rows)) * max(features.shape[1], 4 * offsets.shape[1]) >= 2**31:
        raise ValueError(f"anchors: {len(anchors)} are too many for offsets of 32 bits")
    tensors = (x.contiguous() for x in (features, offsets, scales, weights, rows, center))
    off = None if off is None else off.contiguous()
    out = apply(_Decode, anchors.detach().contiguous(), *tensors, off, sees, exact)
    return Decoded(*cast("tuple[Tensor, ...]", out))
