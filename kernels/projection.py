r"""EWA projection of 3D Gaussians to one record per camera and Gaussian, forward and backward.

    t      = R_view mean + t_view                       camera space, OpenCV axes
    mean2d = (fx tx/tz + cx, fy ty/tz + cy)             pixels, pixel centres at +0.5
    U      = J R_view, rows fx/tz (r0 - u r2), fy/tz (r1 - v r2)      u, v: clamped tx/tz, ty/tz
    H      = U R S, rows hx, hy                         R S S R^T: covariance of the Gaussian
    cov2d  = H H^T + eps2d I,   conic = cov2d^-1,   t2 = 2 ln(255 o)
    o      = opacity sqrt(det / det_blurred) when antialiased, with det = |hx x hy|^2

With G the symmetric gradient of cov2d: v_H = 2 G H, v_U = v_H (R S)^T, v_(R S) = U^T v_H. The vjp
of det is 2 (hy x n, n x hx) with n = hx x hy, which keeps its digits where a Gaussian is a needle.
A Gaussian is culled unless near < z < far, o >= 1/255, the conic is positive definite and its
extent meets the image. See EWA Volume Splatting (Zwicker et al. 2001), equation 31.

One lane holds one Gaussian. Fused with it: exp and sigmoid of raw parameters, spherical harmonics
(loaded for visible lanes only), the mask draw, and the exact number of tiles. The backward loops
over cameras, so that every gradient is written once and without atomics, zeros included.

Only visible pairs of camera and Gaussian get a row, numbered in ascending camera and Gaussian by a
running sum over programs (lookback.py), so that a tie in depth keeps that order. Rows beyond the
capacity R are not written; rows beyond the visible ones sort last and touch no tile.

    means2d [C N 2] float32, radii [C N 2] int32, rows [C N] int32: the row, or -1
    records [R 16], depth_keys, tile_counts, gaussian_ids (camera N + Gaussian) [R] int32
    workspace int32, zeros before: 0 rows, 1 intersections (by binning.py), 2 Gaussians that are
                                   not finite, 4.. words of running sums
    record [16] float32: 0 mx, 1 my, 2 A, 3 B, 4 C, 5 log2 o, 6 mask, 7 z, 8..10 colour, 11 z,
                         12..15 eight fp16: 1, log2 o, and each colour's high and low half
"""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import constants
from .ellipse import cutoff, row_range, row_span
from .launch import launch
from .linalg import Sym2, Vec3, add3, cross3, dot3, load3, normalize3, quat_to_rotmat, sym2_inverse
from .lookback import OWN, RUNNING, publish, scan_programs, sum_before
from .projection_backward import project_bwd_kernel
from .projection_parts import (
    CULLED_KEY,
    center_offset,
    load_camera,
    load_covariance,
    load_ids,
    load_logit,
    load_quat,
    load_sh,
    perspective,
    times_columns,
    to_camera,
)
from .rows import high_and_low_half, join16, pack_halves
from .sampling import hard_mask, load_seed, logistic_noise, split_seed
from .spherical_harmonics import sh_color

FWD_BLOCK = 64  # Gaussians per program, one per lane
FWD_WARPS = 2
TAIL_BLOCK = 1024  # rows per program of those that are left over
BWD_BLOCK = 64
BWD_WARPS = 2

TILE = constants.TILE_SIZE
ALPHA_MIN = tl.constexpr(constants.ALPHA_MIN)
# Extents grow by this much, so that rounding never loses a pixel of the support.
EXTENT_SLACK = tl.constexpr(1e-3)
COUNTERS = 4  # int32 of the workspace before its running sums


@triton.jit
def _count_tiles(visible, mx, my, A, B, C, t2, tiles_x, tiles_y):
    """Tiles that each ellipse touches, row by row as kernels/binning.py lists them."""
    y_max = tl.sqrt(t2 * A / tl.maximum(A * C - B * B, 1e-20))
    row, last = row_range(my, y_max, tiles_y)
    last = tl.where(visible, last, -1)
    row = tl.where(visible, row, 0)
    n = tl.zeros_like(row)
    for _ in range(tl.max(last - row, 0) + 1):
        x0, x1 = row_span(row, mx, my, A, B, C, t2, tiles_x)
        n += tl.where(row <= last, tl.maximum(x1 - x0 + 1, 0), 0)
        row += 1
    return n


@triton.jit
def _write_tail(depth_keys_ptr, tile_counts_ptr, gaussian_ids_ptr, r, there):
    """Rows that nothing visible needs."""
    zero = tl.zeros_like(r)
    tl.store(depth_keys_ptr + r, zero + CULLED_KEY, mask=there)
    tl.store(tile_counts_ptr + r, zero, mask=there)
    if gaussian_ids_ptr is not None:
        tl.store(gaussian_ids_ptr + r, zero, mask=there)


@triton.jit(
    do_not_specialize=[
        "N",
        "R",
        "n_blocks",
        "n_programs",
        "width",
        "height",
        "seed_low",
        "seed_high",
    ]
)
def _project_fwd_kernel(
    means_ptr,  # [N, 3]
    quats_ptr,  # [N, 4]
    scales_ptr,  # [N, 3]
    covars_ptr,  # [N, 3, 3] in place of quats and scales, or None
    opacities_ptr,  # [N]
    sh0_ptr,  # [N, stride0]
    shN_ptr,  # [N, strideN] or None
    viewmats_ptr,  # [C, 4, 4]
    Ks_ptr,  # [C, 3, 3]
    masks_ptr,  # [N] in, or out with mask_logits, or None
    mask_logits_ptr,  # [N] or [N, 2] or None
    mask_ids_ptr,  # [N] or None
    seed_ptr,  # [2] in place of seed_low and seed_high, or None
    means2d_ptr,  # [C, N, 2] out
    radii_ptr,  # [C, N, 2] out
    rows_ptr,  # [C, N] out
    records_ptr,  # [R, 16] out
    depth_keys_ptr,  # [R] out
    tile_counts_ptr,  # [R] out
    gaussian_ids_ptr,  # [R] out or None
    workspace_ptr,  # in and out
    N,
    R,
    n_blocks,  # programs per camera
    n_programs,  # of all cameras; the others write the rows left over
    width,
    height,
    near_plane,
    far_plane,
    eps2d,
    seed_low,
    seed_high,
    stride0: tl.constexpr,
    strideN: tl.constexpr,
    DEGREE: tl.constexpr,
    LOGITS: tl.constexpr,
    RAW: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    words_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + 2
    if pid >= n_programs:
        n_rows = sum_before(words_ptr, n_programs).to(tl.int32)
        r = (pid - n_programs) * TAIL_BLOCK + tl.arange(0, TAIL_BLOCK)
        there = (r >= n_rows) & (r < R)
        _write_tail(depth_keys_ptr, tile_counts_ptr, gaussian_ids_ptr, r, there)
        return
    c = pid // n_blocks
    i = (pid - c * n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    camera = load_camera(viewmats_ptr, Ks_ptr, c, width, height)
    mean = load3(means_ptr + i * 3, inside)
    opacity = tl.load(opacities_ptr + i, mask=inside, other=0.0)
    # Zero, or NaN once any parameter is not finite.
    probe = 0.0 * mean.x + 0.0 * mean.y + 0.0 * mean.z + 0.0 * opacity

    mask = tl.full([BLOCK], 1.0, tl.float32)
    if LOGITS > 0:
        logit = load_logit(mask_logits_ptr, i, inside, LOGITS)
        probe += 0.0 * logit
        ids = load_ids(mask_ids_ptr, i, inside)
        low, high = load_seed(seed_ptr, seed_low, seed_high)
        mask = hard_mask(logit + logistic_noise(low, high, ids))
        tl.store(masks_ptr + i, mask, mask=inside & (c == 0))
    elif masks_ptr is not None:
        mask = tl.load(masks_ptr + i, mask=inside, other=0.0)
        probe += 0.0 * mask

    t = to_camera(camera, mean)
    slopes = perspective(camera, t)
    if covars_ptr is None:
        qw, qx, qy, qz = load_quat(quats_ptr, i, inside)
        scale = load3(scales_ptr + i * 3, inside)
        probe += 0.0 * qw + 0.0 * qx + 0.0 * qy + 0.0 * qz
        probe += 0.0 * scale.x + 0.0 * scale.y + 0.0 * scale.z
        if NORMALIZE:
            inverse = 1.0 / tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
            qw, qx, qy, qz = qw * inverse, qx * inverse, qy * inverse, qz * inverse
        rotation = quat_to_rotmat(qw, qx, qy, qz)
        if RAW:
            scale = Vec3(tl.exp(scale.x), tl.exp(scale.y), tl.exp(scale.z))
        hx = times_columns(slopes.row_x, rotation, scale)
        hy = times_columns(slopes.row_y, rotation, scale)
        xx, xy, yy = dot3(hx, hx), dot3(hx, hy), dot3(hy, hy)
        n = cross3(hx, hy)
        det = dot3(n, n)
    else:
        covariance = load_covariance(covars_ptr, i, inside)
        one = Vec3(1.0, 1.0, 1.0)
        hx = times_columns(slopes.row_x, covariance, one)
        hy = times_columns(slopes.row_y, covariance, one)
        probe += 0.0 * (dot3(hx, hx) + dot3(hy, hy))
        xx, xy, yy = dot3(slopes.row_x, hx), dot3(slopes.row_x, hy), dot3(slopes.row_y, hy)
        det = xx * yy - xy * xy
    det_blurred = det + eps2d * (xx + yy) + eps2d * eps2d
    xx += eps2d
    yy += eps2d
    conic = sym2_inverse(Sym2(xx, xy, yy), det_blurred)
    if RAW:
        opacity = 1.0 / (1.0 + tl.exp(-opacity))
    if ANTIALIASED:
        ratio = tl.where(det > 0.0, det / det_blurred, 0.0)
        opacity *= tl.sqrt(ratio)

    mx = camera.fx * slopes.x + camera.cx
    my = camera.fy * slopes.y + camera.cy
    lo = tl.log2(tl.maximum(opacity, ALPHA_MIN))
    t2 = cutoff(lo)
    extent_x = tl.ceil(tl.sqrt(t2 * xx) * (1.0 + EXTENT_SLACK) + EXTENT_SLACK)
    extent_y = tl.ceil(tl.sqrt(t2 * yy) * (1.0 + EXTENT_SLACK) + EXTENT_SLACK)
    finite = probe == 0.0
    # Comparisons with NaN are false, so these also cull whatever overflowed.
    visible = inside & finite & (t.z > near_plane) & (t.z < far_plane)
    visible = visible & (det_blurred > 0.0) & (xx > 0.0) & (yy > 0.0) & (opacity >= ALPHA_MIN)
    visible = visible & (mx + extent_x > 0.0) & (mx - extent_x < width)
    visible = visible & (my + extent_y > 0.0) & (my - extent_y < height)
    visible = visible & (0.0 * (conic.xx + conic.xy + conic.yy + extent_x + extent_y) == 0.0)

    mx = tl.where(visible, mx, 0.0)
    my = tl.where(visible, my, 0.0)
    A = tl.where(visible, conic.xx, 0.0)
    B = tl.where(visible, conic.xy, 0.0)
    C = tl.where(visible, conic.yy, 0.0)
    has_row = visible.to(tl.int32)
    n_rows = tl.sum(has_row, 0)
    # Told before the colours are loaded, and known before tiles are counted, which takes long
    # where a Gaussian is large: later programs seldom wait.
    publish(words_ptr, pid, n_rows, OWN)

    color = Vec3(tl.zeros_like(mx), tl.zeros_like(mx), tl.zeros_like(mx))
    if DEGREE >= 0:
        # mean - center, with center = -R_view^T t_view
        d = add3(mean, center_offset(camera))
        d, inverse_d = normalize3(d)
        coeffs = load_sh(
            sh0_ptr, shN_ptr, i, visible, stride0, strideN, DEGREE, shN_ptr is not None
        )
        color = sh_color(d, coeffs, DEGREE)
        # A row is taken already; it sorts last.
        finite = finite & ((0.0 * (color.x + color.y + color.z) == 0.0) | (visible == 0))
        visible = visible & finite
        color = Vec3(tl.maximum(color.x, 0.0), tl.maximum(color.y, 0.0), tl.maximum(color.z, 0.0))

    first = sum_before(words_ptr, pid).to(tl.int32)
    publish(words_ptr, pid, first + n_rows, RUNNING)
    if pid == n_programs - 1:
        tl.store(workspace_ptr, first + n_rows)
    row = first + tl.cumsum(has_row, 0) - has_row
    stored = (has_row != 0) & (row < R)
    depth = tl.where(visible, t.z, 0.0)
    t2 = tl.where(visible, t2, 0.0)
    tiles_x = (width + TILE - 1) // TILE
    tiles_y = (height + TILE - 1) // TILE
    n_tiles = _count_tiles(visible, mx, my, A, B, C, t2, tiles_x, tiles_y)
    log_o = tl.where(visible, lo, 0.0)
    red = tl.where(visible, color.x, 0.0)
    green = tl.where(visible, color.y, 0.0)
    blue = tl.where(visible, color.z, 0.0)
    record = (mx, my, A, B, C, log_o, tl.where(visible, mask, 0.0), depth)
    record = record + (
        red,
        green,
        blue,
        depth,
        pack_halves(1.0 + 0.0 * log_o, log_o),
        high_and_low_half(red),
        high_and_low_half(green),
        high_and_low_half(blue),
    )
    column = tl.arange(0, 16)[None, :]
    at = row.to(tl.int64)[:, None] * 16 + column
    tl.store(records_ptr + at, join16(record), mask=stored[:, None])
    gaussian = c.to(tl.int64) * N + i
    pair = gaussian[:, None] * 2 + tl.arange(0, 2)[None, :]
    mean2d = tl.join(tl.where(visible, mx, 0.0), tl.where(visible, my, 0.0))
    tl.store(means2d_ptr + pair, mean2d, mask=inside[:, None])
    radius_x = tl.where(visible, tl.minimum(extent_x, 1073741824.0), 0.0).to(tl.int32)
    radius_y = tl.where(visible, tl.minimum(extent_y, 1073741824.0), 0.0).to(tl.int32)
    tl.store(radii_ptr + pair, tl.join(radius_x, radius_y), mask=inside[:, None])
    tl.store(rows_ptr + gaussian, tl.where(visible & stored, row, -1), mask=inside)
    key = tl.where(visible, depth.to(tl.int32, bitcast=True), CULLED_KEY)
    tl.store(depth_keys_ptr + row, key, mask=stored)
    tl.store(tile_counts_ptr + row, tl.where(visible, n_tiles, 0), mask=stored)
    if gaussian_ids_ptr is not None:
        tl.store(gaussian_ids_ptr + row, gaussian.to(tl.int32), mask=stored)
    n_bad = tl.sum((inside & (finite == 0)).to(tl.int32), 0)
    if n_bad > 0:
        if c == 0:
            tl.atomic_add(workspace_ptr + 2, n_bad, sem="relaxed")


class Projected(NamedTuple):
    """What projection hands on; see the module for rows and the columns of a record."""

    means2d: Tensor  # [C, N, 2] pixels, 0 where culled
    records: Tensor  # [R, 16]
    masks: Tensor | None  # [N] as given or as drawn
    radii: Tensor  # [C, N, 2] int32 half extents in pixels, 0 = culled
    rows: Tensor  # [C, N] int32, -1 = culled or without room
    depth_keys: Tensor  # [R] int32 bits of z, those of infinity in rows left over
    tile_counts: Tensor  # [R] int32
    gaussian_ids: Tensor | None  # [R] int32, camera N + Gaussian
    workspace: Tensor  # int32


class _Buffers(NamedTuple):
    """Integers that the forward writes; autograd need not know them."""

    radii: Tensor
    rows: Tensor
    depth_keys: Tensor
    tile_counts: Tensor
    gaussian_ids: Tensor | None
    workspace: Tensor


class _Settings(NamedTuple):
    width: int
    height: int
    near_plane: float
    far_plane: float
    eps2d: float
    degree: int  # -1: no spherical harmonics
    antialiased: bool
    raw: bool
    normalize: bool
    seed: tuple[int, int]


def _row_stride(sh: Tensor | None) -> int:
    return 0 if sh is None else sh.stride(0)


def _packed_rows(sh: Tensor | None) -> Tensor | None:
    """Coefficients [N, K, 3] whose rows are contiguous; the rows may be spaced."""
    if sh is None or sh.shape[1] == 0:
        return None
    return sh if sh.stride(2) == 1 and sh.stride(1) == 3 else sh.contiguous()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor | None,
        scales: Tensor | None,
        covars: Tensor | None,
        opacities: Tensor,
        sh0: Tensor | None,
        shN: Tensor | None,
        viewmats: Tensor,
        masks: Tensor | None,
        mask_logits: Tensor | None,
        Ks: Tensor,
        mask_ids: Tensor | None,
        seed: Tensor | None,
        s: _Settings,
        out: _Buffers,
    ) -> tuple[Tensor | None, ...]:
        N, C, device = means.shape[0], viewmats.shape[0], means.device
        R = out.depth_keys.shape[0]
        means2d = torch.empty((C, N, 2), device=device)
        records = torch.empty((R, 16), device=device)
        sampled = None if mask_logits is None else torch.empty(N, device=device)
        logits = 0 if mask_logits is None else mask_logits.dim()
        n_blocks = -(-N // FWD_BLOCK)
        launch(
            _project_fwd_kernel, (C * n_blocks + -(-R // TAIL_BLOCK),),
            means, quats, scales, covars, opacities, sh0, shN, viewmats, Ks,
            masks if sampled is None else sampled, mask_logits, mask_ids, seed,
            means2d, out.radii, out.rows, records, out.depth_keys, out.tile_counts,
            out.gaussian_ids, out.workspace,
            N, R, n_blocks, C * n_blocks,
            s.width, s.height, s.near_plane, s.far_plane, s.eps2d, *s.seed,
            stride0=_row_stride(sh0), strideN=_row_stride(shN), DEGREE=s.degree,
            LOGITS=logits, RAW=s.raw, ANTIALIASED=s.antialiased, NORMALIZE=s.normalize,
            TILE=TILE, BLOCK=FWD_BLOCK, TAIL_BLOCK=TAIL_BLOCK, num_warps=FWD_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(
            means, quats, scales, covars, opacities, sh0, shN, viewmats, mask_logits, Ks,
            mask_ids, seed, records,
        )  # fmt: skip
        ctx.settings, ctx.rows = s, out.rows
        ctx.set_materialize_grads(False)
        return means2d, records, sampled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *v_outputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        v_means2d, v_records, v_masks = v_outputs[:3]
        s: _Settings = ctx.settings
        means, quats, scales, covars, opacities, sh0, shN, viewmats, mask_logits = (
            ctx.saved_tensors[:9]
        )
        Ks, mask_ids, seed, records = ctx.saved_tensors[9:]
        needs = ctx.needs_input_grad
        N, C = means.shape[0], viewmats.shape[0]
        if v_records is None:
            v_records = torch.zeros_like(records)
        v_records = v_records.contiguous()
        if v_masks is not None:
            v_masks = v_masks.contiguous()
        stride_v_means2d = 2
        if v_means2d is not None:
            stride_v_means2d = v_means2d.stride(1)
            if v_means2d.stride(2) != 1 or (C > 1 and v_means2d.stride(0) != N * stride_v_means2d):
                v_means2d, stride_v_means2d = v_means2d.contiguous(), 2

        def like(x: Tensor | None, needed: bool) -> Tensor | None:
            # Contiguous even where x has spaced rows.
            return torch.empty(x.shape, device=x.device) if needed and x is not None else None

        v_means, v_opacities = torch.empty_like(means), torch.empty_like(opacities)
        v_quats, v_scales = like(quats, needs[1]), like(scales, needs[2])
        v_covars = like(covars, needs[3])
        v_sh0, v_shN = like(sh0, needs[5]), like(shN, needs[6])
        v_mask_inputs = torch.empty(N, device=means.device) if needs[8] else None
        if needs[9]:
            v_mask_inputs = torch.empty_like(mask_logits)
        n_programs = -(-N // BWD_BLOCK)
        partials = torch.empty((n_programs, C, 3, 4), device=means.device) if needs[7] else None
        launch(
            project_bwd_kernel, (n_programs,),
            means, quats, scales, covars, opacities, sh0, shN, viewmats, Ks,
            mask_logits, mask_ids, seed, records, ctx.rows, v_means2d, v_records, v_masks,
            v_means, v_quats, v_scales, v_covars, v_opacities, v_sh0, v_shN, partials,
            v_mask_inputs,
            N, s.width, s.height, s.eps2d, *s.seed,
            C=C, stride0=_row_stride(sh0), strideN=_row_stride(shN),
            stride_v_means2d=stride_v_means2d, WIDTH0=0 if sh0 is None else 3 * sh0.shape[1],
            WIDTHN=0 if shN is None else 3 * shN.shape[1],
            DEGREE=s.degree, LOGITS=0 if mask_logits is None else mask_logits.dim(),
            RAW=s.raw, ANTIALIASED=s.antialiased, NORMALIZE=s.normalize,
            BLOCK=BWD_BLOCK, num_warps=BWD_WARPS,
        )  # fmt: skip
        v_viewmats = None
        if partials is not None:
            v_viewmats = torch.zeros_like(viewmats)
            v_viewmats[:, :3] = partials.sum(0)
        v_given, v_logits = (v_mask_inputs, None) if needs[8] else (None, v_mask_inputs)
        return (
            v_means, v_quats, v_scales, v_covars, v_opacities, v_sh0, v_shN, v_viewmats,
            v_given, v_logits, None, None, None, None, None,
        )  # fmt: skip


def project(
    means: Tensor,  # [N, 3]
    quats: Tensor | None,  # [N, 4]
    scales: Tensor | None,  # [N, 3]
    opacities: Tensor,  # [N]
    sh0: Tensor | None,  # [N, 1, 3], or [N, K, 3] without shN
    shN: Tensor | None,  # [N, K - 1, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = constants.NEAR_PLANE,
    far_plane: float = constants.FAR_PLANE,
    eps2d: float = constants.EPS2D,
    sh_degree: int | None = None,
    antialiased: bool = False,
    masks: Tensor | None = None,  # [N]
    mask_logits: Tensor | None = None,  # [N] or [N, 2] (keep, drop)
    mask_seed: int | Tensor = 0,  # or [2] int32
    mask_ids: Tensor | None = None,  # [N] int32
    raw: bool = False,
    covars: Tensor | None = None,  # [N, 3, 3]
    normalize_quats: bool = True,
    max_rows: int | None = None,
    with_ids: bool = True,
) -> Projected:
    """Project Gaussians into every camera; differentiable in all float inputs but Ks.

    Arguments are those of `kernels.rasterization`, float32 and not validated here.

    Args:
        sh0: Spherical harmonics, all of them when shN is None. Rows may be spaced: no copy is made.
        mask_seed: An integer, or the two words of sampling.split_seed on the device.
        sh_degree: Degree that is evaluated; None leaves the colours of records at zero.
        near_plane: Not negative.
        raw: `scales` are logarithms and `opacities` logits; exp and sigmoid are fused.
        covars: World covariances in place of quats and scales; with raw, opacities only are raw.
        normalize_quats: False uses quaternions as they are.
        max_rows: Rows R to make room for, at least 1; None: C N. `workspace` says how many there
            should be.
        with_ids: Also write `gaussian_ids`.

    Returns:
        Records and what binning needs. `masks` is differentiable when drawn from mask_logits.
    """
    seed = mask_seed if isinstance(mask_seed, Tensor) else None
    words = (0, 0) if isinstance(mask_seed, Tensor) else split_seed(mask_seed)
    settings = _Settings(
        width, height, near_plane, far_plane, eps2d, -1 if sh_degree is None else sh_degree,
        antialiased, raw, normalize_quats, words,
    )  # fmt: skip
    if covars is not None:
        quats, scales, covars = None, None, covars.contiguous()
    else:
        assert quats is not None and scales is not None
        quats, scales = quats.contiguous(), scales.contiguous()
    if sh_degree is None:
        sh0 = shN = None
    N, C = means.shape[0], viewmats.shape[0]
    R = max(C * N, 1) if max_rows is None else max_rows
    integers: dict[str, Any] = {"dtype": torch.int32, "device": means.device}
    out = _Buffers(
        torch.empty((C, N, 2), **integers), torch.empty((C, N), **integers),
        torch.empty(R, **integers), torch.empty(R, **integers),
        torch.empty(R, **integers) if with_ids else None,
        torch.zeros(COUNTERS + 2 * (C * -(-N // FWD_BLOCK) + scan_programs(R)), **integers),
    )  # fmt: skip
    means2d, records, sampled = _Project.apply(
        means.contiguous(), quats, scales, covars, opacities.contiguous(),
        _packed_rows(sh0), _packed_rows(shN), viewmats.contiguous(),
        None if masks is None else masks.contiguous(),
        None if mask_logits is None else mask_logits.contiguous(),
        Ks.contiguous(), mask_ids, seed, settings, out,
    )  # fmt: skip
    return Projected(means2d, records, masks if mask_logits is None else sampled, *out)
