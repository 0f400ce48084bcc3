"""Gradients of all images' rows and of lenses, from sums over an image's pixels, in two launches.

Of one image and its lens they are those sums, followed back from M to z; of the others nothing; and
of all those of the regulariser (kernels/reference/light.py). First a program per number adds up the
partial sums, or the rows of all images, in one order. Then programs of one warp, which waits for no
other, read those as scalars and write gradients, each of some images and lenses.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import light as reference
from ..runtime.launch import launch
from .homography import BLUE, GREEN, GREY, RED, homography_vjp, offset

SUMS = {reference.AFFINE: 12, reference.PPISP: 24}
"""Sums over pixels, by numbers of a row."""
AFFINE = tl.constexpr(reference.AFFINE)
LENS = tl.constexpr(reference.LENS_NUMBERS)
WIDE = tl.constexpr(16)  # columns of a table, and some that are none
COLUMNS = tl.constexpr(512)  # partial sums at a time
PLACES = 32  # images, and lenses, per program
MEAN, MEAN_BEND = tl.constexpr(reference.MEAN), tl.constexpr(reference.MEAN_BEND)
PULL, PULL_BEND = tl.constexpr(reference.PULL), tl.constexpr(reference.PULL_BEND)
COLOR = tl.constexpr(reference.COLOR)
OFFSET, OFFSET_BEND = tl.constexpr(reference.OFFSET), tl.constexpr(reference.OFFSET_BEND)
CENTRE, BRIGHTER = tl.constexpr(reference.CENTRE), tl.constexpr(reference.BRIGHTER)
CHANNELS = tl.constexpr(reference.CHANNELS)


@triton.jit
def _slope(x, bend):
    """Derivative of smooth L1."""
    return tl.minimum(tl.maximum(x / bend, -1.0), 1.0)


@triton.jit
def _in_row(first, z0, z1, z2, z3, z4, z5, z6, z7):
    """Nine numbers as a row. [WIDE]"""
    k = tl.arange(0, WIDE)
    row = tl.where(k == 0, first, 0.0)
    row += tl.where(k == 1, z0, 0.0) + tl.where(k == 2, z1, 0.0)
    row += tl.where(k == 3, z2, 0.0) + tl.where(k == 4, z3, 0.0)
    row += tl.where(k == 5, z4, 0.0) + tl.where(k == 6, z5, 0.0)
    return row + tl.where(k == 7, z6, 0.0) + tl.where(k == 8, z7, 0.0)


@triton.jit
def _still(PPISP: tl.constexpr):
    """A row that changes nothing. [WIDE]"""
    k = tl.arange(0, WIDE)
    if PPISP:
        return tl.where(k < 0, 1.0, 0.0)
    else:
        return tl.where((k % 5 == 0) & (k < AFFINE), 1.0, 0.0)


@triton.jit
def _of_mean(sums_ptr, n, PPISP: tl.constexpr):
    """The regulariser's gradient of the mean row, from the sums over rows. [WIDE]"""
    if PPISP:
        # of an offset's slope, and back by the same matrix
        b0, b1 = offset(tl.load(sums_ptr + 1) / n, tl.load(sums_ptr + 2) / n, BLUE)
        r0, r1 = offset(tl.load(sums_ptr + 3) / n, tl.load(sums_ptr + 4) / n, RED)
        g0, g1 = offset(tl.load(sums_ptr + 5) / n, tl.load(sums_ptr + 6) / n, GREEN)
        n0, n1 = offset(tl.load(sums_ptr + 7) / n, tl.load(sums_ptr + 8) / n, GREY)
        b0, b1 = offset(_slope(b0, OFFSET_BEND), _slope(b1, OFFSET_BEND), BLUE)
        r0, r1 = offset(_slope(r0, OFFSET_BEND), _slope(r1, OFFSET_BEND), RED)
        g0, g1 = offset(_slope(g0, OFFSET_BEND), _slope(g1, OFFSET_BEND), GREEN)
        n0, n1 = offset(_slope(n0, OFFSET_BEND), _slope(n1, OFFSET_BEND), GREY)
        first = _slope(tl.load(sums_ptr) / n, MEAN_BEND) * MEAN
        row = _in_row(0.0, b0, b1, r0, r1, g0, g1, n0, n1) * (OFFSET / 8.0)
        row += tl.where(tl.arange(0, WIDE) == 0, first, 0.0)
    else:
        k = tl.arange(0, WIDE)
        mean = tl.load(sums_ptr + k, mask=k < AFFINE, other=0.0) / n
        row = _slope(mean - _still(PPISP), MEAN_BEND) * (MEAN / AFFINE)
    return row


@triton.jit(do_not_specialize=["n", "n_images"])
def _sums_kernel(
    partials_ptr,  # [12 or 24, n]
    rows_ptr,  # [I, 12] or [I, 9]
    sums_ptr,  # [12 or 24, and 12 or 9 where regularised] out
    n,
    n_images,
    NUMBERS: tl.constexpr,
    N_SUMS: tl.constexpr,
):
    """Sums over pixels, and over the rows of all images."""
    number = tl.program_id(0)
    is_row = number >= N_SUMS
    ptr = rows_ptr + number - N_SUMS if is_row else partials_ptr + number * n
    step = tl.where(is_row, NUMBERS, 1)
    count = tl.where(is_row, n_images, n)
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, count, COLUMNS):
        column = first + columns
        total += tl.load(ptr + column * step, mask=column < count, other=0.0)
    tl.store(sums_ptr + number, tl.sum(total))


@triton.jit(do_not_specialize=["n_images", "n_lenses"])
def _light_gradients_kernel(
    sums_ptr,  # as _sums_kernel leaves them
    rows_ptr,  # [I, 12] or [I, 9]
    lenses_ptr,  # [L, 15] or None
    lens_of_ptr,  # [I] or None
    index_ptr,  # [1]
    v_rows_ptr,  # [I, 12] or [I, 9] out
    v_lenses_ptr,  # [L, 15] or None, out
    n_images,
    n_lenses,
    PPISP: tl.constexpr,
    NUMBERS: tl.constexpr,
    N_SUMS: tl.constexpr,
    REGULARISED: tl.constexpr,
    PLACES: tl.constexpr,
):
    index, k = tl.load(index_ptr), tl.arange(0, WIDE)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)[:, None]
    if PPISP:
        z0, z1, z2, z3, z4, z5, z6, z7 = homography_vjp(
            rows_ptr + index * NUMBERS + 1,
            tl.load(sums_ptr + 16),
            tl.load(sums_ptr + 17),
            tl.load(sums_ptr + 18),
            tl.load(sums_ptr + 19),
            tl.load(sums_ptr + 20),
            tl.load(sums_ptr + 21),
            tl.load(sums_ptr + 22),
            tl.load(sums_ptr + 23),
        )
        own = _in_row(tl.load(sums_ptr), z0, z1, z2, z3, z4, z5, z6, z7)
    else:
        own = tl.load(sums_ptr + k, mask=k < NUMBERS, other=0.0)
    v_mean = tl.zeros([WIDE], tl.float32)
    if REGULARISED:
        v_mean = _of_mean(sums_ptr + N_SUMS, n_images, PPISP) / n_images
        row = tl.load(rows_ptr + index * NUMBERS + k, mask=k < NUMBERS, other=0.0)
        unit = tl.where(k == 0, 1.0, COLOR) if PPISP else 1.0
        own += _slope((row - _still(PPISP)) * unit, PULL_BEND) * (PULL * unit)
    value = v_mean[None, :] + tl.where(place == index, own[None, :], 0.0)
    mask = (place < n_images) & (k[None, :] < NUMBERS)
    tl.store(v_rows_ptr + place * NUMBERS + k[None, :], value, mask=mask)
    if PPISP:
        # number j of a lens is the sum j + 1
        own = tl.load(sums_ptr + 1 + k, mask=k < LENS, other=0.0)
        value = tl.where(place == tl.load(lens_of_ptr + index), own[None, :], 0.0)
        mask = (place < n_lenses) & (k[None, :] < LENS)
        if REGULARISED:
            x = tl.load(lenses_ptr + place * LENS + k[None, :], mask=mask, other=0.0)
            at = lenses_ptr + place * LENS + k[None, :] % 5
            alike = tl.load(at, mask=mask, other=0.0) + tl.load(at + 5, mask=mask, other=0.0)
            alike = (alike + tl.load(at + 10, mask=mask, other=0.0)) / 3.0
            value += (x - alike) * (2.0 * CHANNELS / 15.0) / n_lenses
            is_centre = k[None, :] % 5 < 2
            brighter = tl.where(x > 0.0, BRIGHTER / 9.0, 0.0)
            value += tl.where(is_centre, x * (2.0 * CENTRE / 3.0), brighter) / n_lenses
        tl.store(v_lenses_ptr + place * LENS + k[None, :], value, mask=mask)


def light_gradients(
    partials: Tensor,  # [12 or 24, n]
    rows: Tensor,  # [I, 12] or [I, 9]
    lenses: Tensor | None,  # [L, 15]
    lens_of: Tensor | None,  # [I]
    index: Tensor,  # [1]
    *,
    regularised: bool,
) -> tuple[Tensor, Tensor | None]:  # [I, 12] or [I, 9], [L, 15]
    """The gradients of rows and of lenses."""
    v_rows = torch.empty_like(rows)
    v_lenses = None if lenses is None else torch.empty_like(lenses)
    n_images, n_numbers = rows.shape
    n_lenses = 0 if lenses is None else len(lenses)
    n_sums = SUMS[n_numbers] + (n_numbers if regularised else 0)
    sums = torch.empty(n_sums, device=rows.device)
    options: dict[str, Any] = {"NUMBERS": n_numbers, "N_SUMS": SUMS[n_numbers]}
    launch(_sums_kernel, (n_sums,), partials, rows, sums, partials.shape[1], n_images, **options)
    memory = sums, rows, lenses, lens_of, index, v_rows, v_lenses
    grid = (-(-max(n_images, n_lenses) // PLACES),)
    options |= {"PPISP": lenses is not None, "REGULARISED": regularised, "PLACES": PLACES}
    launch(_light_gradients_kernel, grid, *memory, n_images, n_lenses, num_warps=1, **options)
    return v_rows, v_lenses
