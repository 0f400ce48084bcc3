r"""Anchors decoded into Gaussians: forward in one launch, backward in three.

kernels/reference/decoder.py has the equations. A program owns BLOCK anchors; a matrix [BLOCK, 16]
holds one number of each of their offsets (a column is an offset, up to 16), so that a net is

    hidden   relu(features W1f + aug W1a)     aug = (d, 1, 0, ..): direction and bias as 16 columns
    output   hidden W2_c + b2_c               for each number c of an offset, a product [H, 16]

and nothing between the parameters and the Gaussians goes through memory. Products are in TF32, with
float32 sums; in exact mode, and for the hidden layer always, in three TF32 products each, which is
float32 to rounding: whether a relu passes must not hang on it.

Backward computes the hidden layer again. PROGRAMS programs walk through the anchors, and each adds
the gradients of the weights to a row of its own, which stays in the L2 cache; then the rows are
added in order: equal calls have equal gradients. In registers these sums spill, 1.3 KB a thread: as
matrices [64, H] of four numbers per offset, in two launches, the whole took two thirds of the time,
but compiles in half a minute and spills 18 KB in exact mode, as chained products have one layout.
A launch takes one net: that of scale and rotation first, with positions, then opacity, then colour,
each adding to the features' gradient. An anchor belongs to one program, so that its own gradients
need no atomics.
"""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.decoder import HEADS, MIN_LENGTH, Decoded, n_weights
from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import empty, launch, zeros
from .backward import PROGRAMS, decode_look_bwd_kernel, decode_shape_bwd_kernel
from .nets import direction_columns, hidden_layer, output, place_of

BLOCK = 64  # anchors per program
BACKWARD_BLOCK = 32  # with 64 the operands of transposed products spill
BACKWARD_WARPS = 4


@triton.jit(do_not_specialize=["V"])
def decode_fwd_kernel(
    anchors_ptr,  # [N, 3]
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    center_ptr,  # [3]
    off_ptr,  # [N, K] or None
    means_ptr,  # [V K, 3] out
    quats_ptr,  # [V K, 4] out
    sizes_ptr,  # [V K, 3] out
    opacities_ptr,  # [V K] out
    colors_ptr,  # [V K, 3] out
    V,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    MIN_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, full = place_of(rows_ptr, v, V)
    features = tl.load(
        features_ptr + row[:, None] * H + tl.arange(0, H)[None, :], mask=full[:, None], other=0.0
    )
    aug = direction_columns(anchors_ptr, center_ptr, row, full, True, BLOCK)
    blind = aug
    if not SEES:
        blind = direction_columns(anchors_ptr, center_ptr, row, full, False, BLOCK)
    j = tl.arange(0, 16)[None, :]
    inside = (v < V)[:, None] & (j < K)
    live = full[:, None] & (j < K)
    out = v[:, None] * K + j
    offset_ptr = offsets_ptr + (row[:, None] * K + j) * 3
    scale_ptr = scales_ptr + row * 6

    hidden = hidden_layer(features, blind, weights_ptr, H)
    hidden = tl.maximum(hidden, 0.0)
    opacity = output(hidden, weights_ptr, 0, 1, H, K, PRECISION)
    opacity = 2.0 / (1.0 + tl.exp(-2.0 * opacity)) - 1.0  # tanh
    opacity = tl.where(full[:, None], opacity, 0.0)
    if off_ptr is not None:
        gone = tl.load(off_ptr + row[:, None] * K + j, mask=live, other=0)
        opacity = tl.where(gone != 0, 0.0, opacity)
    tl.store(opacities_ptr + out, opacity, mask=inside)

    hidden = hidden_layer(features, blind, weights_ptr + HEAD1, H)
    hidden = tl.maximum(hidden, 0.0)
    for c in tl.static_range(3):
        x = tl.load(anchors_ptr + row * 3 + c, mask=full, other=0.0)
        stretch = tl.exp(tl.load(scale_ptr + c, mask=full, other=0.0))
        o = tl.load(offset_ptr + c, mask=live, other=0.0)
        tl.store(means_ptr + out * 3 + c, x[:, None] + o * stretch[:, None], mask=inside)
        g = output(hidden, weights_ptr + HEAD1, c, 7, H, K, PRECISION)
        size = tl.exp(tl.load(scale_ptr + 3 + c, mask=full, other=0.0))
        tl.store(sizes_ptr + out * 3 + c, size[:, None] / (1.0 + tl.exp(-g)), mask=inside)
    qw = output(hidden, weights_ptr + HEAD1, 3, 7, H, K, PRECISION)
    qx = output(hidden, weights_ptr + HEAD1, 4, 7, H, K, PRECISION)
    qy = output(hidden, weights_ptr + HEAD1, 5, 7, H, K, PRECISION)
    qz = output(hidden, weights_ptr + HEAD1, 6, 7, H, K, PRECISION)
    length = tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    inverse = 1.0 / tl.maximum(length, MIN_LENGTH)
    # empty places are turned by nothing, as no zero quaternion may be
    tl.store(quats_ptr + out * 4, tl.where(full[:, None], qw * inverse, 1.0), mask=inside)
    tl.store(quats_ptr + out * 4 + 1, qx * inverse, mask=inside)
    tl.store(quats_ptr + out * 4 + 2, qy * inverse, mask=inside)
    tl.store(quats_ptr + out * 4 + 3, qz * inverse, mask=inside)

    hidden = hidden_layer(features, aug, weights_ptr + HEAD2, H)
    hidden = tl.maximum(hidden, 0.0)
    for c in tl.static_range(3):
        b = output(hidden, weights_ptr + HEAD2, c, 3, H, K, PRECISION)
        tl.store(colors_ptr + out * 3 + c, 1.0 / (1.0 + tl.exp(-b)), mask=inside)


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
        places = n_places * k
        device = anchors.device
        out = [empty((places, n), torch.float32, device) for n in (3, 4, 3, 1, 3)]
        out[3] = out[3].view(places)
        tensors = (anchors, features, offsets, scales, weights, rows, center, off)
        kinds = _constants(features.shape[1], k, sees, exact)
        grid = (-(-n_places // BLOCK),)
        launch(decode_fwd_kernel, grid, *tensors, *out, n_places, **kinds(BLOCK))
        _, quats, sizes, opacities, colors = out
        ctx.save_for_backward(*tensors[:7], quats, sizes, opacities, colors)
        ctx.off, ctx.kinds = off, kinds
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (quats, sizes, opacities, colors) = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        _, features, offsets, scales, weights, rows, _ = inputs
        v_means, v_quats, v_sizes, v_opacities, v_colors = (x.contiguous() for x in v_out)
        device, n_places = features.device, len(rows)
        v_features, v_offsets, v_scales = (
            zeros(x.shape, torch.float32, device) for x in (features, offsets, scales)
        )
        n_programs = max(min(-(-n_places // BACKWARD_BLOCK), PROGRAMS), 1)
        partial = zeros((n_programs, len(weights)), torch.float32, device)
        grid, kinds = (n_programs,), ctx.kinds(BACKWARD_BLOCK)
        ends = partial, n_places, n_programs, 3
        launch(
            decode_shape_bwd_kernel,
            grid,
            *inputs,
            quats,
            sizes,
            v_means,
            v_quats,
            v_sizes,
            v_features,
            v_offsets,
            v_scales,
            *ends,
            num_warps=BACKWARD_WARPS,
            **kinds,
        )
        for values, v_values, off, own in (
            (opacities, v_opacities, ctx.off, {"START": 0, "C": 1}),
            (colors, v_colors, None, {"START": kinds["HEAD2"], "C": 3, "SEES": True}),
        ):
            ends = partial, n_places, n_programs, own["C"]
            launch(
                decode_look_bwd_kernel,
                grid,
                *inputs,
                values,
                v_values,
                v_features,
                off,
                *ends,
                num_warps=BACKWARD_WARPS,
                **{"START": 0, "C": 1} | kinds | own,
            )
        v_weights = partial.sum(0)
        return None, v_features, v_offsets, v_scales, v_weights, *[None] * 5


def _constants(n_features: int, k: int, sees: bool, exact: bool) -> Any:
    first, second, _ = n_weights(n_features, k)

    def at(block: int) -> dict[str, object]:
        return {
            "SEES": sees,
            "H": n_features,
            "K": k,
            "HEAD1": first,
            "HEAD2": first + second,
            "MIN_LENGTH": MIN_LENGTH,
            "BLOCK": block,
            "PRECISION": "tf32x3" if exact else "tf32",
        }

    return at


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
