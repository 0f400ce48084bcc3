r"""Anchors decoded into Gaussians: forward in one launch, backward in two, and a sum.

kernels/reference/decoder.py has the equations. A program takes some anchors after others, with the
weights in shared memory. A matrix has a row per anchor; its columns are the numbers of all offsets
as they lie in memory, 3 j + c or 4 j + c for number c of offset j, up to a power of two. A net is

    hidden   relu(features W1f + aug W1a)     aug = (d, 1, 0, ..): direction and bias as 16 columns
    output   hidden W2 + aug b2               of the rows of W2 that the columns name

and nothing between the parameters and the Gaussians goes through memory, but what the backward
needs of it: hidden layers, aug, and 1 / the lengths of quaternions.

Products are of operands rounded to float16, with float32 sums: twice as precise as TF32 where that
cuts off, in half the space, and in a layout that can be transposed. In exact mode they are three
TF32 products each, which is float32 to rounding, and so is the hidden layer always: whether a relu
passes must not hang on rounding. Gradients are divided by a unit first, a power of two that grows
with the largest so far: what is below 2^-20 of that loses digits, and below 2^-30 is nothing.

The backward is of two launches, as registers have room for the sums of one or two nets: that of
shapes, with positions, then those of opacity and colour, which adds to the features' gradient. In
each, programs walk through the anchors with the sums for the weights in registers, and write a row
of them in the end; the rows are added in order, so that equal calls have equal gradients. Sums for
two layers are side by side, as an operand of 64 rows is read from shared memory, and one of fewer
from registers. An anchor belongs to one program of each, so that its own gradients need no atomics.
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
    """How launches are cut; it does not change with the GPU, and so neither do sums.

    Each is anchors at a time, warps, and registers per thread at most.
    """

    forward: tuple[int, int, int | None]
    shape: tuple[int, int, int | None]
    look: tuple[int, int, int | None]
    forward_programs: int
    backward_programs: int


FAST = Tiling((64, 4, None), (64, 8, None), (64, 4, None), 528, 264)
# exact, or of large matrices, which leave no registers for more anchors
SMALL = Tiling((16, 4, None), (16, 4, None), (16, 4, None), 528, 264)


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
        tiling = SMALL if exact or k > 10 or n_features > 32 else FAST
        constants = _constants(n_features, k, sees, exact)
        n_programs = _programs(tiling.forward[0], tiling.forward_programs, n_places)
        launch(
            decode_fwd_kernel,
            (n_programs,),
            *tensors,
            *out,
            inverses,
            kept,
            n_places,
            n_programs,
            **constants(tiling.forward),
            MIN_LENGTH=MIN_LENGTH,
        )
        _, quats, sizes, opacities, colors = out
        made = quats, sizes, opacities, colors, inverses, kept
        ctx.save_for_backward(features, offsets, scales, weights, rows, *made)
        ctx.off, ctx.constants, ctx.tiling = off, constants, tiling
        ctx.exact = exact
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs, made = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        features, offsets, scales, weights, rows = inputs
        quats, sizes, opacities, colors, inverses, kept = made
        v_means, v_quats, v_sizes, v_opacities, v_colors = (x.contiguous() for x in v_out)
        own = [zeros(x.shape, torch.float32, features.device) for x in (features, offsets, scales)]
        tiling, n_places = ctx.tiling, len(rows)
        # columns of a hidden layer, and of three numbers per offset: what are side by side
        wide = 32 if offsets.shape[1] <= 10 and features.shape[1] <= 32 else 64
        n_programs = _programs(tiling.shape[0], tiling.backward_programs, n_places)
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
            **ctx.constants(tiling.shape),
            WIDE=wide,
            SUMS="tf32x3" if ctx.exact else "tf32",
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
            **ctx.constants(tiling.look),
            WIDE=wide,
        )
        return None, *own, partial.sum(0), *[None] * 5


def _programs(block: int, most: int, n_places: int) -> int:
    return max(min(-(-n_places // block), most), 1)


def _constants(n_features: int, k: int, sees: bool, exact: bool) -> Callable[..., dict[str, Any]]:
    """What a launch is told by name, by how it is cut."""
    first, second, _ = n_weights(n_features, k)

    def of(cut: tuple[int, int, int | None]) -> dict[str, Any]:
        block, warps, registers = cut
        return {
            "num_warps": warps,
            "maxnreg": registers,
            "SEES": sees,
            "H": n_features,
            "K": k,
            "HEAD1": first,
            "HEAD2": first + second,
            "BLOCK": block,
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
    width = max(3 * features.shape[1] + 8, 4 * offsets.shape[1])
    if max(len(anchors), len(rows)) * width >= 2**31:
        raise ValueError(f"anchors: {len(anchors)} are too many for offsets of 32 bits")
    tensors = (x.contiguous() for x in (features, offsets, scales, weights, rows, center))
    off = None if off is None else off.contiguous()
    out = apply(_Decode, anchors.detach().contiguous(), *tensors, off, sees, exact)
    return Decoded(*cast("tuple[Tensor, ...]", out))
