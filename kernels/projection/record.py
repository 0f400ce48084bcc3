r"""The record that projection makes of a Gaussian that a camera sees: 16 float32, columns by name.

     0 MEAN           mx, my                 pixels
     2 CONIC          A, B, C                of sigma = (A dx^2 + C dy^2) / 2 + B dx dy
     5 LOG2_OPACITY   log2 o
     6 MASK           m
     7 DEPTH          z                      camera space
     8 COLOR          red, green, blue       zeros without spherical harmonics
    11 DEPTH_FEATURE  z again                the channel that is blended behind the colours
    12 HALVES         eight fp16: 1, log2 o, and each colour's high and low half

Gradients of records have the same columns, but for 12 ABSGRAD: the sums over pixels of the absolute
gradients of mx and my. COLOR and DEPTH_FEATURE hold the gradients of up to four blended features.

Kernels use the constants, which are constexprs; what runs on the host uses the functions below.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.linalg import Sym2, Vec3
from ..device.transpose import high_and_low_half, join16, load4x3, pack_halves, split4x3
from ..runtime.launch import empty, launch

RECORD_SIZE = tl.constexpr(16)
MEAN = tl.constexpr(0)
CONIC = tl.constexpr(2)
LOG2_OPACITY = tl.constexpr(5)
MASK = tl.constexpr(6)
DEPTH = tl.constexpr(7)
COLOR = tl.constexpr(8)
DEPTH_FEATURE = tl.constexpr(11)
HALVES = tl.constexpr(12)
ABSGRAD = tl.constexpr(12)

SPREAD = 512  # Gaussians per program that only copies


class RecordGradient(NamedTuple):
    """Gradients of a record's columns, but for MEAN, which means2d carries."""

    conic: Sym2
    log2_opacity: tl.tensor
    mask: tl.tensor
    depth: tl.tensor
    color: Vec3
    depth_feature: tl.tensor


@triton.jit
def store_record(
    records_ptr, row, mx, my, A, B, C, log2_opacity, mask, depth, red, green, blue, there
):
    """Write rows [BLOCK] of records, where `there`."""
    record = (mx, my, A, B, C, log2_opacity, mask, depth, red, green, blue, depth)
    record = record + (
        pack_halves(1.0 + 0.0 * log2_opacity, log2_opacity),
        high_and_low_half(red),
        high_and_low_half(green),
        high_and_low_half(blue),
    )
    column = tl.arange(0, RECORD_SIZE)[None, :]
    at = row.to(tl.int64)[:, None] * RECORD_SIZE + column
    tl.store(records_ptr + at, join16(record), mask=there[:, None])


@triton.jit
def load_gradient(v_records_ptr, row, mask):
    """What `split_gradient` takes apart, by loads that are on their way together."""
    return load4x3(v_records_ptr + row * RECORD_SIZE, mask)


@triton.jit
def split_gradient(loaded):
    """The gradients of rows [BLOCK] as a RecordGradient."""
    _, _, A, B, C, log2_opacity, mask, depth, red, green, blue, feature = split4x3(loaded)
    color = Vec3(red, green, blue)
    return RecordGradient(Sym2(A, B, C), log2_opacity, mask, depth, color, feature)


@triton.jit(do_not_specialize=["n"])
def _spread_kernel(
    rows_ptr,  # [n]
    v_records_ptr,  # [R, 16]
    out_ptr,  # [n, 2] out
    n,
    COLUMN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Two columns of v_records for every camera and Gaussian, 0 where culled."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    row = tl.load(rows_ptr + i, mask=inside, other=-1).to(tl.int64)
    v_ptr = v_records_ptr + row * RECORD_SIZE + COLUMN
    x = tl.load(v_ptr, mask=row >= 0, other=0.0)
    y = tl.load(v_ptr + 1, mask=row >= 0, other=0.0)
    at = i[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(out_ptr + at, tl.join(x, y), mask=inside[:, None])


def record_means(records: Tensor) -> Tensor:  # [..., 16] -> [..., 2]
    return _columns(records, MEAN, 2)


def record_conics(records: Tensor) -> Tensor:  # [..., 16] -> [..., 3]
    return _columns(records, CONIC, 3)


def record_log2_opacities(records: Tensor) -> Tensor:  # [..., 16] -> [...]
    return records[..., LOG2_OPACITY.value]


def record_opacities(records: Tensor) -> Tensor:  # [..., 16] -> [...]
    return record_log2_opacities(records).exp2()


def record_masks(records: Tensor) -> Tensor:  # [..., 16] -> [...]
    return records[..., MASK.value]


def record_depths(records: Tensor) -> Tensor:  # [..., 16] -> [...]
    return records[..., DEPTH.value]


def record_colors(records: Tensor) -> Tensor:  # [..., 16] -> [..., 3]
    return record_features(records, COLOR, 3)


def record_features(records: Tensor, first: tl.constexpr, n: int) -> Tensor:  # -> [..., n]
    """n channels from COLOR or DEPTH_FEATURE on."""
    return _columns(records, first, n)


def record_absgrads(v_records: Tensor) -> Tensor:  # [..., 16] -> [..., 2]
    return _columns(v_records, ABSGRAD, 2)


def _columns(records: Tensor, first: tl.constexpr, n: int) -> Tensor:
    return records[..., first.value : first.value + n]


def spread_pairs(
    rows: Tensor,  # [C, N]
    v_records: Tensor,  # [R, 16]
    column: tl.constexpr,
) -> Tensor:  # [C, N, 2]
    """MEAN or ABSGRAD of every camera and Gaussian, 0 where culled."""
    C, N = rows.shape
    out = empty((C, N, 2), torch.float32, rows.device)
    launch(
        _spread_kernel,
        (-(-C * N // SPREAD),),
        rows,
        v_records,
        out,
        C * N,
        COLUMN=column.value,
        BLOCK=SPREAD,
    )
    return out


def spread(x: Tensor, rows: Tensor) -> Tensor:
    """x [R, ...] for every camera and Gaussian [C, N, ...], 0 where culled; differentiable."""
    seen = (rows >= 0).view(*rows.shape, *[1] * (x.dim() - 1))
    return torch.where(seen, x[rows.clamp(min=0).long()], 0)
