r"""EWA projection of 3D Gaussians to one record per camera and Gaussian, forward and backward.

    t      = R_view mean + t_view                       camera space, OpenCV axes
    mean2d = (fx tx/tz + cx, fy ty/tz + cy)             pixels, pixel centres at +0.5
    U      = J R_view, rows fx/tz (r0 - u r2), fy/tz (r1 - v r2)      u, v: clamped tx/tz, ty/tz
    H      = U R S, rows hx, hy                         R S S R^T: covariance of the Gaussian
    cov2d  = H H^T + eps2d I,   conic = cov2d^-1,   t2 = 2 ln(255 o)
    o      = opacity sqrt(det / det_blurred) when antialiased, with det = |hx x hy|^2

With G the symmetric gradient of cov2d: v_H = 2 G H, v_U = v_H (R S)^T, v_(R S) = U^T v_H. The vjp of
det is 2 (hy x n, n x hx) with n = hx x hy, which keeps its digits where a Gaussian is a needle.
A Gaussian is culled unless near < z < far, o >= 1/255, the conic is positive definite and its
extent meets the image. See EWA Volume Splatting (Zwicker et al. 2001), equation 31.

One lane holds one Gaussian. Fused with it: exp and sigmoid of raw parameters, spherical harmonics
(loaded for visible lanes only), the mask draw, and the exact number of tiles. The backward loops
over cameras, so that every gradient is written once and without atomics, zeros included.

    record [16] float32: 0 mx, 1 my, 2 A, 3 B, 4 C, 5 log2 o, 6 mask, 7 z, 8..10 colour, 11 z,
                         12 t2, 13..15 zero; all zero where culled
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import constants
from .ellipse import row_range, row_span
from .linalg import (
    Mat3,
    Sym2,
    Vec3,
    add3,
    combine3,
    cross3,
    dot3,
    load3,
    normalize3,
    normalize3_vjp,
    quat_to_rotmat,
    quat_to_rotmat_vjp,
    scale3,
    store3,
    sym2_inverse,
    sym2_inverse_vjp,
)
from .rows import join4, join16, load16
from .sampling import hard_mask, hard_mask_vjp, logistic_noise, split_seed
from .spherical_harmonics import sh_basis, sh_color, sh_color_vjp_direction

FWD_BLOCK = 64  # Gaussians per program, one per lane
FWD_WARPS = 2
BWD_BLOCK = 64
BWD_WARPS = 2

TILE = constants.TILE_SIZE
ALPHA_MIN = tl.constexpr(constants.ALPHA_MIN)
FOV_MARGIN = tl.constexpr(constants.FOV_MARGIN)
# Extents grow by this much, so that rounding never loses a pixel of the support.
EXTENT_SLACK = tl.constexpr(1e-3)
LN2 = tl.constexpr(0.6931471805599453)
LOG2_255 = tl.constexpr(7.994353436858858)
CULLED_KEY = tl.constexpr(0x7F800000)


class Camera(NamedTuple):
    """Rows of the rotation, translation, intrinsics, and the bounds of x/z and y/z."""

    r0: Any
    r1: Any
    r2: Any
    t: Any
    fx: Any
    fy: Any
    cx: Any
    cy: Any
    low_u: Any
    high_u: Any
    low_v: Any
    high_v: Any


class Slopes(NamedTuple):
    """x/z and y/z, clamped, and the rows of J R_view."""

    x: Any
    y: Any
    u: Any
    v: Any
    row_x: Any
    row_y: Any


@triton.jit
def _load_scalar3(ptr):
    return Vec3(tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2))


@triton.jit
def _load_camera(viewmats_ptr, Ks_ptr, c, width, height):
    V = viewmats_ptr + c * 16
    K = Ks_ptr + c * 9
    fx = tl.load(K)
    fy = tl.load(K + 4)
    cx = tl.load(K + 2)
    cy = tl.load(K + 5)
    margin_u = 0.5 * width / fx * FOV_MARGIN
    margin_v = 0.5 * height / fy * FOV_MARGIN
    return Camera(
        _load_scalar3(V),
        _load_scalar3(V + 4),
        _load_scalar3(V + 8),
        Vec3(tl.load(V + 3), tl.load(V + 7), tl.load(V + 11)),
        fx,
        fy,
        cx,
        cy,
        -cx / fx - margin_u,
        (width - cx) / fx + margin_u,
        -cy / fy - margin_v,
        (height - cy) / fy + margin_v,
    )


@triton.jit
def _to_camera(camera, mean):
    return Vec3(
        dot3(camera.r0, mean) + camera.t.x,
        dot3(camera.r1, mean) + camera.t.y,
        dot3(camera.r2, mean) + camera.t.z,
    )


@triton.jit
def _center_offset(camera):
    """R_view^T t_view: minus the camera centre."""
    return _rows_times(camera, camera.t)


@triton.jit
def _slopes(camera, t):
    inverse_z = 1.0 / t.z
    x = t.x * inverse_z
    y = t.y * inverse_z
    u = tl.minimum(tl.maximum(x, camera.low_u), camera.high_u)
    v = tl.minimum(tl.maximum(y, camera.low_v), camera.high_v)
    fx = camera.fx * inverse_z
    fy = camera.fy * inverse_z
    row_x = combine3(fx, camera.r0, -fx * u, camera.r2)
    row_y = combine3(fy, camera.r1, -fy * v, camera.r2)
    return Slopes(x, y, u, v, row_x, row_y)


@triton.jit
def _slopes_vjp(camera, t, s, v_mx, v_my, v_row_x, v_row_y):
    """v_t, v_r0, v_r1, v_r2 from the gradients of the mean in pixels and of the rows."""
    inverse_z = 1.0 / t.z
    fx = camera.fx * inverse_z
    fy = camera.fy * inverse_z
    v_u = tl.where(s.u == s.x, -fx * dot3(v_row_x, camera.r2), 0.0)
    v_v = tl.where(s.v == s.y, -fy * dot3(v_row_y, camera.r2), 0.0)
    v_x = (camera.fx * v_mx + v_u) * inverse_z
    v_y = (camera.fy * v_my + v_v) * inverse_z
    v_z = -(dot3(v_row_x, s.row_x) + dot3(v_row_y, s.row_y)) * inverse_z - s.x * v_x - s.y * v_y
    v_r0 = scale3(fx, v_row_x)
    v_r1 = scale3(fy, v_row_y)
    v_r2 = combine3(-s.u, v_r0, -s.v, v_r1)
    return Vec3(v_x, v_y, v_z), v_r0, v_r1, v_r2


@triton.jit
def _rows_times(camera, v):
    """R_view^T v."""
    return add3(combine3(v.x, camera.r0, v.y, camera.r1), scale3(v.z, camera.r2))


@triton.jit
def _columns_times(m, v):
    """The matrix m times the vector v."""
    return add3(combine3(v.x, m.c0, v.y, m.c1), scale3(v.z, m.c2))


@triton.jit
def _times3(a, b):
    return Vec3(a.x * b.x, a.y * b.y, a.z * b.z)


@triton.jit
def _or_one(mask, x):
    return tl.where(mask, x, 1.0)


@triton.jit
def _store_sum4(ptr, a, b):
    """Sums over the program of a vector and of one more block."""
    tl.store(ptr, tl.sum(a.x, 0))
    tl.store(ptr + 1, tl.sum(a.y, 0))
    tl.store(ptr + 2, tl.sum(a.z, 0))
    tl.store(ptr + 3, tl.sum(b, 0))


@triton.jit
def _compensation_vjp(det, trace, eps2d, v_log_o):
    """v_det, and eps2d v_det_blurred, of log sqrt(det / det_blurred); 0 where det <= 0."""
    half = tl.where(det > 0.0, 0.5 * v_log_o, 0.0)
    v_blurred = -half / tl.maximum(det + eps2d * trace + eps2d * eps2d, 1e-30)
    return half / tl.where(det > 0.0, det, 1.0) + v_blurred, eps2d * v_blurred


@triton.jit
def _times_columns(a, m, s):
    """Row vector a times the matrix m with its columns scaled by s."""
    return Vec3(s.x * dot3(a, m.c0), s.y * dot3(a, m.c1), s.z * dot3(a, m.c2))


@triton.jit
def _load_quat(quats_ptr, i, mask):
    """Quaternions, (1, 0, 0, 0) where the mask is off."""
    w = tl.load(quats_ptr + i * 4, mask=mask, other=1.0)
    x = tl.load(quats_ptr + i * 4 + 1, mask=mask, other=0.0)
    y = tl.load(quats_ptr + i * 4 + 2, mask=mask, other=0.0)
    z = tl.load(quats_ptr + i * 4 + 3, mask=mask, other=0.0)
    return w, x, y, z


@triton.jit
def _load_logit(mask_logits_ptr, i, mask, LOGITS: tl.constexpr):
    """Logits [N], or keep minus drop of logits [N, 2]."""
    logit = tl.load(mask_logits_ptr + i * LOGITS, mask=mask, other=0.0)
    if LOGITS == 2:
        logit -= tl.load(mask_logits_ptr + i * 2 + 1, mask=mask, other=0.0)
    return logit


@triton.jit
def _load_ids(mask_ids_ptr, i, mask):
    if mask_ids_ptr is not None:
        return tl.load(mask_ids_ptr + i, mask=mask, other=0).to(tl.int32)
    else:
        return i.to(tl.int32)


@triton.jit
def _load_covariance(covars_ptr, i, mask):
    """Columns of a [3, 3] matrix, symmetrised."""
    c = covars_ptr + i * 9
    a = load3(c, mask)
    b = load3(c + 3, mask)
    d = load3(c + 6, mask)
    xy, xz, yz = 0.5 * (a.y + b.x), 0.5 * (a.z + d.x), 0.5 * (b.z + d.y)
    return Mat3(Vec3(a.x, xy, xz), Vec3(xy, b.y, yz), Vec3(xz, yz, d.z))


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
def _load_sh(sh0_ptr, shN_ptr, i, mask, stride0, strideN, DEGREE: tl.constexpr, REST: tl.constexpr):
    """Coefficients up to DEGREE as a tuple of at least 3 (DEGREE + 1)^2 blocks."""
    if REST:
        first = load3(sh0_ptr + i * stride0, mask)
        coeffs = (first.x, first.y, first.z)
        row = shN_ptr + i * strideN
        COUNT: tl.constexpr = 3 * (DEGREE + 1) * (DEGREE + 1) - 3
    else:
        coeffs = ()
        row = sh0_ptr + i * stride0
        COUNT: tl.constexpr = 3 * (DEGREE + 1) * (DEGREE + 1)
    if COUNT > 0:
        coeffs = coeffs + load16(row, mask, COUNT)
    if COUNT > 16:
        coeffs = coeffs + load16(row + 16, mask, COUNT - 16)
    if COUNT > 32:
        coeffs = coeffs + load16(row + 32, mask, COUNT - 32)
    return coeffs


@triton.jit
def _store_v_sh(
    v_sh_ptr,  # [N, WIDTH]
    i,
    inside,
    visible,
    first_camera,
    basis,
    v_color,
    SKIP: tl.constexpr,  # leading coefficients that are stored elsewhere
    WIDTH: tl.constexpr,
    DEGREE: tl.constexpr,
):
    """Write or add the gradients of one camera; zeros above DEGREE."""
    v = (v_color.x, v_color.y, v_color.z)
    for first in tl.static_range(0, WIDTH, 16):
        block = ()
        for f in tl.static_range(SKIP + first, SKIP + first + 16):
            if f < 3 * (DEGREE + 1) * (DEGREE + 1):
                block = block + (basis[f // 3] * v[f % 3],)
            else:
                block = block + (tl.zeros_like(v_color.x),)
        j = first + tl.arange(0, 16)[None, :]
        ptr = v_sh_ptr + i[:, None] * WIDTH + j
        values = join16(block)
        if first_camera:
            tl.store(ptr, values, mask=inside[:, None] & (j < WIDTH))
        else:
            there = visible[:, None] & (j < WIDTH)
            tl.store(ptr, values + tl.load(ptr, mask=there, other=0.0), mask=there)


@triton.jit(do_not_specialize=["N", "width", "height", "seed_low", "seed_high"])
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
    means2d_ptr,  # [C, N, 2] out
    records_ptr,  # [C, N, 16] out
    radii_ptr,  # [C, N, 2] out
    tiles_per_gauss_ptr,  # [C, N] out
    depth_keys_ptr,  # [C, N] out
    n_nonfinite_ptr,  # [1] in and out
    N,
    width,
    height,
    stride0,
    strideN,
    near_plane,
    far_plane,
    eps2d,
    seed_low,
    seed_high,
    DEGREE: tl.constexpr,
    LOGITS: tl.constexpr,
    RAW: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1)
    inside = i < N
    camera = _load_camera(viewmats_ptr, Ks_ptr, c, width, height)
    mean = load3(means_ptr + i * 3, inside)
    opacity = tl.load(opacities_ptr + i, mask=inside, other=0.0)
    # Zero, or NaN once any parameter is not finite.
    probe = 0.0 * mean.x + 0.0 * mean.y + 0.0 * mean.z + 0.0 * opacity

    mask = tl.full([BLOCK], 1.0, tl.float32)
    if LOGITS > 0:
        logit = _load_logit(mask_logits_ptr, i, inside, LOGITS)
        probe += 0.0 * logit
        ids = _load_ids(mask_ids_ptr, i, inside)
        mask = hard_mask(logit + logistic_noise(seed_low, seed_high, ids))
        tl.store(masks_ptr + i, mask, mask=inside & (c == 0))
    elif masks_ptr is not None:
        mask = tl.load(masks_ptr + i, mask=inside, other=0.0)
        probe += 0.0 * mask

    t = _to_camera(camera, mean)
    slopes = _slopes(camera, t)
    if covars_ptr is None:
        qw, qx, qy, qz = _load_quat(quats_ptr, i, inside)
        scale = load3(scales_ptr + i * 3, inside)
        probe += 0.0 * qw + 0.0 * qx + 0.0 * qy + 0.0 * qz
        probe += 0.0 * scale.x + 0.0 * scale.y + 0.0 * scale.z
        if NORMALIZE:
            inverse = 1.0 / tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
            qw, qx, qy, qz = qw * inverse, qx * inverse, qy * inverse, qz * inverse
        rotation = quat_to_rotmat(qw, qx, qy, qz)
        if RAW:
            scale = Vec3(tl.exp(scale.x), tl.exp(scale.y), tl.exp(scale.z))
        hx = _times_columns(slopes.row_x, rotation, scale)
        hy = _times_columns(slopes.row_y, rotation, scale)
        xx, xy, yy = dot3(hx, hx), dot3(hx, hy), dot3(hy, hy)
        n = cross3(hx, hy)
        det = dot3(n, n)
    else:
        covariance = _load_covariance(covars_ptr, i, inside)
        one = Vec3(1.0, 1.0, 1.0)
        hx = _times_columns(slopes.row_x, covariance, one)
        hy = _times_columns(slopes.row_y, covariance, one)
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
    t2 = tl.maximum((lo + LOG2_255) * (2.0 * LN2), 0.0)
    extent_x = tl.ceil(tl.sqrt(t2 * xx) * (1.0 + EXTENT_SLACK) + EXTENT_SLACK)
    extent_y = tl.ceil(tl.sqrt(t2 * yy) * (1.0 + EXTENT_SLACK) + EXTENT_SLACK)
    finite = probe == 0.0
    # Comparisons with NaN are false, so these also cull whatever overflowed.
    visible = inside & finite & (t.z > near_plane) & (t.z < far_plane)
    visible = visible & (det_blurred > 0.0) & (xx > 0.0) & (yy > 0.0) & (opacity >= ALPHA_MIN)
    visible = visible & (mx + extent_x > 0.0) & (mx - extent_x < width)
    visible = visible & (my + extent_y > 0.0) & (my - extent_y < height)
    visible = visible & (0.0 * (conic.xx + conic.xy + conic.yy + extent_x + extent_y) == 0.0)

    color = Vec3(tl.zeros_like(mx), tl.zeros_like(mx), tl.zeros_like(mx))
    if DEGREE >= 0:
        # mean - center, with center = -R_view^T t_view
        d = add3(mean, _center_offset(camera))
        d, inverse_d = normalize3(d)
        coeffs = _load_sh(
            sh0_ptr, shN_ptr, i, visible, stride0, strideN, DEGREE, shN_ptr is not None
        )
        color = sh_color(d, coeffs, DEGREE)
        finite = finite & ((0.0 * (color.x + color.y + color.z) == 0.0) | (visible == 0))
        visible = visible & finite
        color = Vec3(
            tl.maximum(color.x, 0.0), tl.maximum(color.y, 0.0), tl.maximum(color.z, 0.0)
        )

    mx = tl.where(visible, mx, 0.0)
    my = tl.where(visible, my, 0.0)
    A = tl.where(visible, conic.xx, 0.0)
    B = tl.where(visible, conic.xy, 0.0)
    C = tl.where(visible, conic.yy, 0.0)
    depth = tl.where(visible, t.z, 0.0)
    t2 = tl.where(visible, t2, 0.0)
    tiles_x = (width + TILE - 1) // TILE
    tiles_y = (height + TILE - 1) // TILE
    n_tiles = _count_tiles(visible, mx, my, A, B, C, t2, tiles_x, tiles_y)

    row = c.to(tl.int64) * N + i
    zero = tl.zeros_like(mx)
    record = (mx, my, A, B, C, tl.where(visible, lo, 0.0), tl.where(visible, mask, 0.0), depth)
    record = record + (
        tl.where(visible, color.x, 0.0),
        tl.where(visible, color.y, 0.0),
        tl.where(visible, color.z, 0.0),
        depth,
        t2,
        zero,
        zero,
        zero,
    )
    column = tl.arange(0, 16)[None, :]
    tl.store(records_ptr + row[:, None] * 16 + column, join16(record), mask=inside[:, None])
    pair = row[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(means2d_ptr + pair, tl.join(mx, my), mask=inside[:, None])
    radius_x = tl.where(visible, tl.minimum(extent_x, 1073741824.0), 0.0).to(tl.int32)
    radius_y = tl.where(visible, tl.minimum(extent_y, 1073741824.0), 0.0).to(tl.int32)
    tl.store(radii_ptr + pair, tl.join(radius_x, radius_y), mask=inside[:, None])
    tl.store(tiles_per_gauss_ptr + row, n_tiles, mask=inside)
    key = tl.where(visible, depth.to(tl.int32, bitcast=True), CULLED_KEY)
    tl.store(depth_keys_ptr + row, key, mask=inside)
    n_bad = tl.sum((inside & (finite == 0)).to(tl.int32), 0)
    if n_bad > 0:
        if c == 0:
            tl.atomic_add(n_nonfinite_ptr, n_bad, sem="relaxed")


@triton.jit(do_not_specialize=["N", "width", "height", "seed_low", "seed_high"])
def _project_bwd_kernel(
    means_ptr,  # [N, 3]
    quats_ptr,  # [N, 4]
    scales_ptr,  # [N, 3]
    covars_ptr,  # [N, 3, 3] in place of quats and scales, or None
    opacities_ptr,  # [N]
    sh0_ptr,  # [N, stride0]
    shN_ptr,  # [N, strideN] or None
    viewmats_ptr,  # [C, 4, 4]
    Ks_ptr,  # [C, 3, 3]
    mask_logits_ptr,  # [N] or [N, 2] or None
    mask_ids_ptr,  # [N] or None
    records_ptr,  # [C, N, 16] of the forward
    depth_keys_ptr,  # [C, N] of the forward
    v_means2d_ptr,  # [C N, stride_v_means2d] or None
    v_records_ptr,  # [C, N, 16]
    v_masks_ptr,  # [N] or None
    v_means_ptr,  # [N, 3] out
    v_quats_ptr,  # [N, 4] out or None
    v_scales_ptr,  # [N, 3] out or None
    v_covars_ptr,  # [N, 3, 3] out or None
    v_opacities_ptr,  # [N] out
    v_sh0_ptr,  # [N, WIDTH0] out or None
    v_shN_ptr,  # [N, WIDTHN] out or None
    v_viewmats_ptr,  # [programs, C, 12] out or None
    v_mask_inputs_ptr,  # as masks or mask_logits, out or None
    N,
    C,
    width,
    height,
    stride0,
    strideN,
    stride_v_means2d,
    eps2d,
    seed_low,
    seed_high,
    WIDTH0: tl.constexpr,
    WIDTHN: tl.constexpr,
    DEGREE: tl.constexpr,
    LOGITS: tl.constexpr,
    RAW: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    i = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    zero = tl.zeros([BLOCK], tl.float32)
    none = Vec3(zero, zero, zero)
    v_mean = none
    v_scale = none
    v_qw, v_qx, v_qy, v_qz = zero, zero, zero, zero
    v_diagonal, v_off = none, none  # of the covariance: xx yy zz and xy xz yz
    v_opacity = zero
    v_mask = zero
    for c in range(C):
        row = i + c * N.to(tl.int64)
        key = tl.load(depth_keys_ptr + row, mask=inside, other=CULLED_KEY)
        visible = key != CULLED_KEY
        # Lanes that are not visible go through with harmless numbers and zero gradients.
        mean = load3(means_ptr + i * 3, visible)
        record = load16(records_ptr + row * 16, visible, 11)
        v_record = load16(v_records_ptr + row * 16, visible, 12)
        conic = Sym2(record[2], record[3], record[4])
        v_mx, v_my = zero, zero
        if v_means2d_ptr is not None:
            v_mx = tl.load(v_means2d_ptr + row * stride_v_means2d, mask=visible, other=0.0)
            v_my = tl.load(v_means2d_ptr + row * stride_v_means2d + 1, mask=visible, other=0.0)
        v_mask += v_record[6]
        v_log_o = v_record[5] * (1.0 / LN2)

        camera = _load_camera(viewmats_ptr, Ks_ptr, c, width, height)
        t = _to_camera(camera, mean)
        t = Vec3(tl.where(visible, t.x, 0.0), tl.where(visible, t.y, 0.0), _or_one(visible, t.z))
        slopes = _slopes(camera, t)

        opacity = tl.load(opacities_ptr + i, mask=visible, other=1.0)
        if RAW:
            v_opacity += v_log_o * (1.0 / (1.0 + tl.exp(opacity)))
        else:
            v_opacity += v_log_o / opacity

        v_cov = sym2_inverse_vjp(conic, Sym2(v_record[2], v_record[3], v_record[4]))
        if covars_ptr is None:
            qw, qx, qy, qz = _load_quat(quats_ptr, i, visible)
            if NORMALIZE:
                inverse = 1.0 / tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
                qw, qx, qy, qz = qw * inverse, qx * inverse, qy * inverse, qz * inverse
            rotation = quat_to_rotmat(qw, qx, qy, qz)
            scale = load3(scales_ptr + i * 3, visible)
            if RAW:
                scale = Vec3(tl.exp(scale.x), tl.exp(scale.y), tl.exp(scale.z))
            one = Vec3(1.0, 1.0, 1.0)
            px = _times_columns(slopes.row_x, rotation, one)
            py = _times_columns(slopes.row_y, rotation, one)
            hx = _times3(px, scale)
            hy = _times3(py, scale)
            if ANTIALIASED:
                n = cross3(hx, hy)
                xx, yy = dot3(hx, hx), dot3(hy, hy)
                v_det, v_eps = _compensation_vjp(dot3(n, n), xx + yy, eps2d, v_log_o)
                v_cov = Sym2(v_cov.xx + v_eps, v_cov.xy, v_cov.yy + v_eps)
            v_hx = combine3(2.0 * v_cov.xx, hx, v_cov.xy, hy)
            v_hy = combine3(v_cov.xy, hx, 2.0 * v_cov.yy, hy)
            if ANTIALIASED:
                v_hx = add3(v_hx, scale3(2.0 * v_det, cross3(hy, n)))
                v_hy = add3(v_hy, scale3(2.0 * v_det, cross3(n, hx)))
            if RAW:
                v_scale = add3(v_scale, add3(_times3(v_hx, hx), _times3(v_hy, hy)))
            else:
                v_scale = add3(v_scale, add3(_times3(v_hx, px), _times3(v_hy, py)))
            a = _times3(v_hx, scale)
            b = _times3(v_hy, scale)
            v_row_x = _columns_times(rotation, a)
            v_row_y = _columns_times(rotation, b)
            v_w, v_x, v_y, v_z = quat_to_rotmat_vjp(
                qw,
                qx,
                qy,
                qz,
                combine3(a.x, slopes.row_x, b.x, slopes.row_y),
                combine3(a.y, slopes.row_x, b.y, slopes.row_y),
                combine3(a.z, slopes.row_x, b.z, slopes.row_y),
            )
            if NORMALIZE:
                along = v_w * qw + v_x * qx + v_y * qy + v_z * qz
                v_w, v_x = inverse * (v_w - along * qw), inverse * (v_x - along * qx)
                v_y, v_z = inverse * (v_y - along * qy), inverse * (v_z - along * qz)
            v_qw += v_w
            v_qx += v_x
            v_qy += v_y
            v_qz += v_z
        else:
            covariance = _load_covariance(covars_ptr, i, visible)
            hx = _columns_times(covariance, slopes.row_x)
            hy = _columns_times(covariance, slopes.row_y)
            if ANTIALIASED:
                xx, yy = dot3(slopes.row_x, hx), dot3(slopes.row_y, hy)
                xy = dot3(slopes.row_x, hy)
                v_det, v_eps = _compensation_vjp(xx * yy - xy * xy, xx + yy, eps2d, v_log_o)
                v_cov = Sym2(
                    v_cov.xx + v_eps + v_det * yy,
                    v_cov.xy - 2.0 * v_det * xy,
                    v_cov.yy + v_eps + v_det * xx,
                )
            v_row_x = combine3(2.0 * v_cov.xx, hx, v_cov.xy, hy)
            v_row_y = combine3(v_cov.xy, hx, 2.0 * v_cov.yy, hy)
            # v_covariance = v_cov.xx x x^T + v_cov.xy (x y^T + y x^T) / 2 + v_cov.yy y y^T
            x, y = slopes.row_x, slopes.row_y
            p = combine3(v_cov.xx, x, 0.5 * v_cov.xy, y)
            q = combine3(0.5 * v_cov.xy, x, v_cov.yy, y)
            v_diagonal = add3(v_diagonal, add3(_times3(p, x), _times3(q, y)))
            v_xy = p.x * x.y + q.x * y.y
            v_xz = p.x * x.z + q.x * y.z
            v_off = add3(v_off, Vec3(v_xy, v_xz, p.y * x.z + q.y * y.z))

        v_t, v_r0, v_r1, v_r2 = _slopes_vjp(camera, t, slopes, v_mx, v_my, v_row_x, v_row_y)
        v_t = Vec3(v_t.x, v_t.y, v_t.z + v_record[7] + v_record[11])
        v_mean = add3(v_mean, _rows_times(camera, v_t))

        v_dir = none
        if DEGREE >= 0:
            v_color = Vec3(
                tl.where(record[8] > 0.0, v_record[8], 0.0),
                tl.where(record[9] > 0.0, v_record[9], 0.0),
                tl.where(record[10] > 0.0, v_record[10], 0.0),
            )
            d = add3(mean, _center_offset(camera))
            d, inverse_d = normalize3(Vec3(d.x, d.y, _or_one(visible, d.z)))
            if DEGREE > 0:
                REST: tl.constexpr = shN_ptr is not None
                coeffs = _load_sh(sh0_ptr, shN_ptr, i, visible, stride0, strideN, DEGREE, REST)
                v_dir = sh_color_vjp_direction(d, coeffs, v_color, DEGREE)
                v_dir = normalize3_vjp(d, inverse_d, v_dir)
                v_mean = add3(v_mean, v_dir)
            basis = sh_basis(d, DEGREE)
            first = c == 0
            if v_sh0_ptr is not None:
                _store_v_sh(v_sh0_ptr, i, inside, visible, first, basis, v_color, 0, WIDTH0, DEGREE)
            if v_shN_ptr is not None:
                _store_v_sh(v_shN_ptr, i, inside, visible, first, basis, v_color, 3, WIDTHN, DEGREE)
            if C > 1:
                # The next camera's lanes add to what other lanes have written.
                tl.debug_barrier()

        if v_viewmats_ptr is not None:
            # t = R mean + t_view and the direction mean + R^T t_view
            out = v_viewmats_ptr + (pid.to(tl.int64) * C + c) * 12
            r0 = add3(v_r0, combine3(v_t.x, mean, camera.t.x, v_dir))
            r1 = add3(v_r1, combine3(v_t.y, mean, camera.t.y, v_dir))
            r2 = add3(v_r2, combine3(v_t.z, mean, camera.t.z, v_dir))
            _store_sum4(out, r0, v_t.x + dot3(camera.r0, v_dir))
            _store_sum4(out + 4, r1, v_t.y + dot3(camera.r1, v_dir))
            _store_sum4(out + 8, r2, v_t.z + dot3(camera.r2, v_dir))

    store3(v_means_ptr + i * 3, v_mean, inside)
    if v_quats_ptr is not None:
        quat = i[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(v_quats_ptr + quat, join4(v_qw, v_qx, v_qy, v_qz), mask=inside[:, None])
    if v_scales_ptr is not None:
        store3(v_scales_ptr + i * 3, v_scale, inside)
    if v_covars_ptr is not None:
        out = v_covars_ptr + i * 9
        store3(out, Vec3(v_diagonal.x, v_off.x, v_off.y), inside)
        store3(out + 3, Vec3(v_off.x, v_diagonal.y, v_off.z), inside)
        store3(out + 6, Vec3(v_off.y, v_off.z, v_diagonal.z), inside)
    tl.store(v_opacities_ptr + i, v_opacity, mask=inside)
    if v_mask_inputs_ptr is not None:
        if v_masks_ptr is not None:
            v_mask += tl.load(v_masks_ptr + i, mask=inside, other=0.0)
        if LOGITS == 0:
            tl.store(v_mask_inputs_ptr + i, v_mask, mask=inside)
        else:
            logit = _load_logit(mask_logits_ptr, i, inside, LOGITS)
            ids = _load_ids(mask_ids_ptr, i, inside)
            v = hard_mask_vjp(logit + logistic_noise(seed_low, seed_high, ids), v_mask)
            v = tl.where(0.0 * logit == 0.0, v, 0.0)
            tl.store(v_mask_inputs_ptr + i * LOGITS, v, mask=inside)
            if LOGITS == 2:
                tl.store(v_mask_inputs_ptr + i * 2 + 1, -v, mask=inside)


class Projected(NamedTuple):
    """What projection hands on, per camera and Gaussian; see the module for a record's columns."""

    means2d: Tensor  # [C, N, 2] pixels
    records: Tensor  # [C, N, 16]
    masks: Tensor | None  # [N] as given or as drawn
    radii: Tensor  # [C, N, 2] int32 half extents in pixels, 0 = culled
    tiles_per_gauss: Tensor  # [C, N] int32
    depth_keys: Tensor  # [C, N] int32 bits of z, those of infinity where culled
    n_nonfinite: Tensor  # [1] int32 Gaussians culled because a parameter is not finite


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
    if sh is None or sh.numel() == 0:
        return None
    return sh if sh.stride(2) == 1 and sh.stride(1) == 3 else sh.contiguous()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: D102
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
        s: _Settings,
    ) -> tuple[Tensor | None, ...]:
        N, C, device = means.shape[0], viewmats.shape[0], means.device
        means2d = torch.empty((C, N, 2), device=device)
        records = torch.empty((C, N, 16), device=device)
        integers = {"dtype": torch.int32, "device": device}
        radii = torch.empty((C, N, 2), **integers)
        tiles_per_gauss = torch.empty((C, N), **integers)
        depth_keys = torch.empty((C, N), **integers)
        n_nonfinite = torch.zeros(1, **integers)
        sampled = None if mask_logits is None else torch.empty(N, device=device)
        logits = 0 if mask_logits is None else mask_logits.dim()
        if N > 0:
            _project_fwd_kernel[(triton.cdiv(N, FWD_BLOCK), C)](
                means, quats, scales, covars, opacities, sh0, shN, viewmats, Ks,
                masks if sampled is None else sampled, mask_logits, mask_ids,
                means2d, records, radii, tiles_per_gauss, depth_keys, n_nonfinite,
                N, s.width, s.height, _row_stride(sh0), _row_stride(shN),
                s.near_plane, s.far_plane, s.eps2d, *s.seed,
                DEGREE=s.degree, LOGITS=logits, RAW=s.raw, ANTIALIASED=s.antialiased,
                NORMALIZE=s.normalize, TILE=TILE, BLOCK=FWD_BLOCK, num_warps=FWD_WARPS,
            )  # fmt: skip
        ctx.save_for_backward(
            means, quats, scales, covars, opacities, sh0, shN, viewmats, mask_logits, Ks,
            mask_ids, records, depth_keys,
        )  # fmt: skip
        ctx.settings = s
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(radii, tiles_per_gauss, depth_keys, n_nonfinite)
        return means2d, records, sampled, radii, tiles_per_gauss, depth_keys, n_nonfinite

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *v_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        v_means2d, v_records, v_masks = v_outputs[:3]
        s: _Settings = ctx.settings
        means, quats, scales, covars, opacities, sh0, shN, viewmats, mask_logits = (
            ctx.saved_tensors[:9]
        )
        Ks, mask_ids, records, depth_keys = ctx.saved_tensors[9:]
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
        n_programs = triton.cdiv(N, BWD_BLOCK)
        partials = torch.empty((n_programs, C, 3, 4), device=means.device) if needs[7] else None
        if N > 0:
            _project_bwd_kernel[(n_programs,)](
                means, quats, scales, covars, opacities, sh0, shN, viewmats, Ks,
                mask_logits, mask_ids, records, depth_keys, v_means2d, v_records, v_masks,
                v_means, v_quats, v_scales, v_covars, v_opacities, v_sh0, v_shN, partials,
                v_mask_inputs,
                N, C, s.width, s.height, _row_stride(sh0), _row_stride(shN), stride_v_means2d,
                s.eps2d, *s.seed,
                WIDTH0=0 if sh0 is None else 3 * sh0.shape[1],
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
            v_given, v_logits, None, None, None,
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
    mask_seed: int = 0,
    mask_ids: Tensor | None = None,  # [N] int32
    raw: bool = False,
    covars: Tensor | None = None,  # [N, 3, 3]
    normalize_quats: bool = True,
) -> Projected:
    """Project Gaussians into every camera; differentiable in all float inputs but Ks.

    Arguments are those of `kernels.rasterization`, float32 and not validated here.

    Args:
        sh0: Spherical harmonics, all of them when shN is None. Rows may be spaced: no copy is made.
        sh_degree: Degree that is evaluated; None leaves the colours of records at zero.
        near_plane: Not negative.
        raw: `scales` are logarithms and `opacities` logits; exp and sigmoid are fused.
        covars: World covariances in place of quats and scales; with raw, opacities only are raw.
        normalize_quats: False uses quaternions as they are.

    Returns:
        Records and what binning needs. `masks` is differentiable when drawn from mask_logits.
    """
    settings = _Settings(
        width, height, near_plane, far_plane, eps2d, -1 if sh_degree is None else sh_degree,
        antialiased, raw, normalize_quats, split_seed(mask_seed),
    )  # fmt: skip
    if covars is not None:
        quats, scales, covars = None, None, covars.contiguous()
    else:
        assert quats is not None and scales is not None
        quats, scales = quats.contiguous(), scales.contiguous()
    if sh_degree is None:
        sh0 = shN = None
    results = _Project.apply(
        means.contiguous(), quats, scales, covars, opacities.contiguous(),
        _packed_rows(sh0), _packed_rows(shN), viewmats.contiguous(),
        None if masks is None else masks.contiguous(),
        None if mask_logits is None else mask_logits.contiguous(),
        Ks.contiguous(), mask_ids, settings,
    )  # fmt: skip
    means2d, records, sampled, *integers = results
    return Projected(means2d, records, masks if mask_logits is None else sampled, *integers)
