"""Gradients of all images' rows and of lenses, from sums over an image's pixels, in one launch.

Of one image and its lens they are those sums, followed back from M to z; of the others nothing; and
of all those of the regulariser (kernels/reference/light.py). One program does it, so that sums have
one order; it takes a row of numbers in one go, COLUMNS partials or rows at a time.
"""

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
COLUMNS = tl.constexpr(128)
MEAN, MEAN_BEND = tl.constexpr(reference.MEAN), tl.constexpr(reference.MEAN_BEND)
PULL, PULL_BEND = tl.constexpr(reference.PULL), tl.constexpr(reference.PULL_BEND)
COLOR = tl.constexpr(reference.COLOR)
OFFSET, OFFSET_BEND = tl.constexpr(reference.OFFSET), tl.constexpr(reference.OFFSET_BEND)
CENTRE, BRIGHTER = tl.constexpr(reference.CENTRE), tl.constexpr(reference.BRIGHTER)
CHANNELS = tl.constexpr(reference.CHANNELS)


@triton.jit
def _at(x, k):
    """Element k of a vector."""
    return tl.sum(tl.where(tl.arange(0, x.shape[0]) == k, x, 0.0))


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
def _of_mean(mean, PPISP: tl.constexpr):
    """The regulariser's gradient of the mean row. [WIDE]"""
    if PPISP:
        # of an offset's slope, and back by the same matrix
        b0, b1 = offset(_at(mean, 1), _at(mean, 2), BLUE)
        r0, r1 = offset(_at(mean, 3), _at(mean, 4), RED)
        g0, g1 = offset(_at(mean, 5), _at(mean, 6), GREEN)
        n0, n1 = offset(_at(mean, 7), _at(mean, 8), GREY)
        b0, b1 = offset(_slope(b0, OFFSET_BEND), _slope(b1, OFFSET_BEND), BLUE)
        r0, r1 = offset(_slope(r0, OFFSET_BEND), _slope(r1, OFFSET_BEND), RED)
        g0, g1 = offset(_slope(g0, OFFSET_BEND), _slope(g1, OFFSET_BEND), GREEN)
        n0, n1 = offset(_slope(n0, OFFSET_BEND), _slope(n1, OFFSET_BEND), GREY)
        first = _slope(_at(mean, 0), MEAN_BEND) * MEAN
        row = _in_row(0.0, b0, b1, r0, r1, g0, g1, n0, n1) * (OFFSET / 8.0)
        row += tl.where(tl.arange(0, WIDE) == 0, first, 0.0)
    else:
        row = _slope(mean - _still(PPISP), MEAN_BEND) * (MEAN / AFFINE)
    return row


@triton.jit(do_not_specialize=["n", "n_images", "n_lenses"])
def _light_gradients_kernel(
    partials_ptr,  # [12 or 24, n]
    rows_ptr,  # [I, 12] or [I, 9]
    lenses_ptr,  # [L, 15] or None
    lens_of_ptr,  # [I] or None
    index_ptr,  # [1]
    v_rows_ptr,  # [I, 12] or [I, 9] out
    v_lenses_ptr,  # [L, 15] or None, out
    n,
    n_images,
    n_lenses,
    PPISP: tl.constexpr,
    NUMBERS: tl.constexpr,
    N_SUMS: tl.constexpr,
    N_ROWS: tl.constexpr,
    REGULARISED: tl.constexpr,
):
    index = tl.load(index_ptr)
    columns, k = tl.arange(0, COLUMNS), tl.arange(0, WIDE)
    number = tl.arange(0, N_ROWS)[:, None]
    total = tl.zeros([N_ROWS, COLUMNS], tl.float32)
    for first in range(0, n, COLUMNS):
        column = first + columns[None, :]
        mask = (number < N_SUMS) & (column < n)
        total += tl.load(partials_ptr + number * n + column, mask=mask, other=0.0)
    sums = tl.sum(total, axis=1)
    if PPISP:
        z0, z1, z2, z3, z4, z5, z6, z7 = homography_vjp(
            rows_ptr + index * NUMBERS + 1,
            _at(sums, 16),
            _at(sums, 17),
            _at(sums, 18),
            _at(sums, 19),
            _at(sums, 20),
            _at(sums, 21),
            _at(sums, 22),
            _at(sums, 23),
        )
        own = _in_row(_at(sums, 0), z0, z1, z2, z3, z4, z5, z6, z7)
    else:
        own = sums
    v_mean = tl.zeros([WIDE], tl.float32)
    if REGULARISED:
        mean = tl.zeros([WIDE], tl.float32)
        for first in range(0, n_images, COLUMNS):
            image = first + columns[:, None]
            mask = (image < n_images) & (k[None, :] < NUMBERS)
            at = rows_ptr + image * NUMBERS + k[None, :]
            mean += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
        v_mean = _of_mean(mean / n_images, PPISP) / n_images
        row = tl.load(rows_ptr + index * NUMBERS + k, mask=k < NUMBERS, other=0.0)
        unit = tl.where(k == 0, 1.0, COLOR) if PPISP else 1.0
        own += _slope((row - _still(PPISP)) * unit, PULL_BEND) * (PULL * unit)
    for first in range(0, n_images, COLUMNS):
        image = first + columns[:, None]
        mask = (image < n_images) & (k[None, :] < NUMBERS)
        value = v_mean[None, :] + tl.where(image == index, own[None, :], 0.0)
        tl.store(v_rows_ptr + image * NUMBERS + k[None, :], value, mask=mask)
    if PPISP:
        lens = tl.load(lens_of_ptr + index)
        # number j of a lens is the sum j + 1
        j = tl.arange(0, N_ROWS)
        shifted = tl.where((j[:, None] == k[None, :] + 1) & (k[None, :] < LENS), sums[:, None], 0.0)
        own = tl.sum(shifted, axis=0)
        for first in range(0, n_lenses, COLUMNS):
            place = first + columns[:, None]
            mask = (place < n_lenses) & (k[None, :] < LENS)
            value = tl.where(place == lens, own[None, :], 0.0)
            if REGULARISED:
                at = lenses_ptr + place * LENS + k[None, :]
                x = tl.load(at, mask=mask, other=0.0)
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
    memory = partials, rows, lenses, lens_of, index, v_rows, v_lenses
    sizes = partials.shape[1], len(rows), 0 if lenses is None else len(lenses)
    n_sums = SUMS[rows.shape[1]]
    options = {"NUMBERS": rows.shape[1], "N_SUMS": n_sums, "N_ROWS": triton.next_power_of_2(n_sums)}
    options |= {"PPISP": lenses is not None, "REGULARISED": regularised}
    launch(_light_gradients_kernel, (1,), *memory, *sizes, **options)
    return v_rows, v_lenses
