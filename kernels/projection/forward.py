"""Forward kernel of projection: see projection/ for the equations."""

import triton
import triton.language as tl

from .. import constants
from ..device.linalg import Vec3, add3, cross3, dot3, load3, normalize3, quat_to_rotmat
from ..device.masks import hard_mask, load_seed, logistic_noise
from ..device.running_sum import OWN, RUNNING, publish, sum_before
from .cameras.lens import depth as lens_depth
from .cameras.lens import load_lens, may_reach
from .cameras.pinhole import center_offset, load_camera, perspective, to_camera
from .ellipse import count_tiles, cutoff
from .ewa import (
    CULLED_KEY,
    blurred_conic,
    load_covariance,
    load_ids,
    load_logit,
    load_quat,
    load_sh_tiles,
    split_sh,
    times_columns,
)
from .masks import store_mean_mask
from .record import store_record
from .spherical_harmonics import sh_color
from .unscented import moments, sigma_columns, to_camera_axes

ALPHA_MIN = tl.constexpr(constants.ALPHA_MIN)
# Extents grow by this much, so that rounding never loses a pixel of the support.
EXTENT_SLACK = tl.constexpr(1e-3)
PROJECTION_WINDOW = tl.constexpr(256)  # programs that are looked back at together
ANCHOR = tl.constexpr(128)  # of so many programs one at least knows its running sum


@triton.jit
def _finish_unseen(
    words_ptr,
    workspace_ptr,
    means2d_ptr,
    radii_ptr,
    rows_ptr,
    pid,
    n_programs,
    gaussian,
    inside,
    n_taken,
):
    """What a program without a visible Gaussian leaves."""
    publish(words_ptr, pid, tl.full([], 0, tl.int64), OWN)
    pair = gaussian[:, None] * 2 + tl.arange(0, 2)[None, :]
    zero = tl.zeros(pair.shape, tl.int32)
    tl.store(means2d_ptr + pair, zero.to(tl.float32), mask=inside[:, None])
    tl.store(radii_ptr + pair, zero, mask=inside[:, None])
    tl.store(rows_ptr + gaussian, -1, mask=inside)
    # It needs no running sum: only so many wait for it that later programs find one near.
    if (pid % ANCHOR == 0) | (pid == n_programs - 1):
        first = sum_before(words_ptr, pid, PROJECTION_WINDOW).to(tl.int32)
        publish(words_ptr, pid, first, RUNNING)
        if pid == n_programs - 1:
            tl.store(workspace_ptr, n_taken + first)


@triton.jit
def _count_nonfinite(workspace_ptr, inside, finite, c):
    n_bad = tl.sum((inside & (finite == 0)).to(tl.int32), 0)
    if n_bad > 0:
        if c == 0:
            tl.atomic_add(workspace_ptr + 2, n_bad, sem="relaxed")


@triton.jit
def _write_tail(depth_keys_ptr, tile_counts_ptr, gaussian_ids_ptr, r, R, there):
    """Rows that nothing visible needs."""
    zero = tl.zeros_like(r)
    if tile_counts_ptr is not None:
        tl.store(depth_keys_ptr + r, zero + CULLED_KEY, mask=there)
        for k in tl.static_range(3):
            tl.store(tile_counts_ptr + k * R + r, zero, mask=there)
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
        "first_id",
        "n_ids",
    ]
)
def project_fwd_kernel(
    means_ptr,  # [N, 3]
    quats_ptr,  # [N, 4]
    scales_ptr,  # [N, 3]
    covars_ptr,  # [N, 3, 3] in place of quats and scales, or None
    opacities_ptr,  # [N]
    sh0_ptr,  # [N, stride0]
    shN_ptr,  # [N, strideN] or None
    viewmats_ptr,  # [C, 4, 4]
    Ks_ptr,  # [C, 3, 3]
    lenses_ptr,  # [C, LENS_WORDS] or None
    masks_ptr,  # [N] in, or out with mask_logits, or None
    mask_logits_ptr,  # [N] or [N, 2] or None
    mask_ids_ptr,  # [N] or None
    seed_ptr,  # [2] in place of seed_low and seed_high, or None
    means2d_ptr,  # [C, N, 2] out
    radii_ptr,  # [C, N, 2] out
    rows_ptr,  # [C, N] out
    records_ptr,  # [R, 16] out
    depth_keys_ptr,  # [R] out, or None
    tile_counts_ptr,  # [3, R] out, or None: nobody makes lists of these records
    gaussian_ids_ptr,  # [R] out or None
    workspace_ptr,  # in and out
    n_taken_ptr,  # [1]: rows that others have, or None
    boxes_ptr,  # [C, 4] of pixels that have to be reached, or None
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
    first_id,
    n_ids,  # of all who have rows
    stride0: tl.constexpr,
    strideN: tl.constexpr,
    DEGREE: tl.constexpr,
    LOGITS: tl.constexpr,
    BY_CAMERA: tl.constexpr,  # masks
    RAW: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    LENS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    words_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + 2
    n_taken = 0
    if n_taken_ptr is not None:
        n_taken = tl.load(n_taken_ptr)
    if pid >= n_programs:
        n_rows = n_taken + sum_before(words_ptr, n_programs, PROJECTION_WINDOW).to(tl.int32)
        r = (pid - n_programs) * TAIL_BLOCK + tl.arange(0, TAIL_BLOCK)
        there = (r >= n_rows) & (r < R)
        _write_tail(depth_keys_ptr, tile_counts_ptr, gaussian_ids_ptr, r, R, there)
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
        if BY_CAMERA:
            mask = hard_mask(logit + logistic_noise(low, high ^ c, ids))
            if c == 0:
                n_cameras = n_programs // n_blocks
                store_mean_mask(masks_ptr, i, inside, logit, low, high, ids, n_cameras)
        else:
            mask = hard_mask(logit + logistic_noise(low, high, ids))
            tl.store(masks_ptr + i, mask, mask=inside & (c == 0))
    elif masks_ptr is not None:
        mask = tl.load(masks_ptr + i, mask=inside, other=0.0)
        probe += 0.0 * mask

    t = to_camera(camera, mean)
    distance = lens_depth(t, LENS)
    if LENS == 0:
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
        if LENS == 0:
            hx = times_columns(slopes.row_x, rotation, scale)
            hy = times_columns(slopes.row_y, rotation, scale)
            xx, xy, yy = dot3(hx, hx), dot3(hx, hy), dot3(hy, hy)
            n = cross3(hx, hy)
            det = dot3(n, n)
        else:
            lens = load_lens(camera, lenses_ptr, c)
            axes = to_camera_axes(camera, rotation, scale)
            px, py, xs, ys = sigma_columns(lens, t, axes, LENS)
            seen = moments(px, py, xs, ys)
            mx, my, xx, xy, yy, det = (
                seen.mx,
                seen.my,
                seen.cov.xx,
                seen.cov.xy,
                seen.cov.yy,
                seen.det,
            )
            largest = tl.maximum(tl.maximum(scale.x, scale.y), scale.z)
            inside_view = may_reach(lens, t, largest, LENS)
    else:
        covariance = load_covariance(covars_ptr, i, inside)
        one = Vec3(1.0, 1.0, 1.0)
        hx = times_columns(slopes.row_x, covariance, one)
        hy = times_columns(slopes.row_y, covariance, one)
        probe += 0.0 * (dot3(hx, hx) + dot3(hy, hy))
        xx, xy, yy = dot3(slopes.row_x, hx), dot3(slopes.row_x, hy), dot3(slopes.row_y, hy)
        det = xx * yy - xy * xy
    conic, det_blurred = blurred_conic(xx, xy, yy, det, eps2d)
    xx += eps2d
    yy += eps2d
    if RAW:
        opacity = 1.0 / (1.0 + tl.exp(-opacity))
    if ANTIALIASED:
        ratio = tl.where(det > 0.0, det / det_blurred, 0.0)
        opacity *= tl.sqrt(ratio)

    if LENS == 0:
        mx = camera.fx * slopes.x + camera.cx
        my = camera.fy * slopes.y + camera.cy
    lo = tl.log2(tl.maximum(opacity, ALPHA_MIN))
    t2 = cutoff(lo)
    extent_x = tl.ceil(tl.sqrt(t2 * xx) * (1.0 + EXTENT_SLACK) + EXTENT_SLACK)
    extent_y = tl.ceil(tl.sqrt(t2 * yy) * (1.0 + EXTENT_SLACK) + EXTENT_SLACK)
    finite = probe == 0.0
    # Comparisons with NaN are false, so these also cull whatever overflowed.
    visible = inside & finite & (distance > near_plane) & (distance < far_plane)
    if LENS > 0:
        visible = visible & inside_view
    visible = visible & (det_blurred > 0.0) & (xx > 0.0) & (yy > 0.0) & (opacity >= ALPHA_MIN)
    visible = visible & (mx + extent_x > 0.0) & (mx - extent_x < width)
    visible = visible & (my + extent_y > 0.0) & (my - extent_y < height)
    if boxes_ptr is not None:
        left, top = tl.load(boxes_ptr + c * 4), tl.load(boxes_ptr + c * 4 + 1)
        right, bottom = tl.load(boxes_ptr + c * 4 + 2), tl.load(boxes_ptr + c * 4 + 3)
        visible = visible & (mx + extent_x > left) & (mx - extent_x < right)
        visible = visible & (my + extent_y > top) & (my - extent_y < bottom)
    visible = visible & (0.0 * (conic.xx + conic.xy + conic.yy + extent_x + extent_y) == 0.0)

    mx = tl.where(visible, mx, 0.0)
    my = tl.where(visible, my, 0.0)
    A = tl.where(visible, conic.xx, 0.0)
    B = tl.where(visible, conic.xy, 0.0)
    C = tl.where(visible, conic.yy, 0.0)
    has_row = visible.to(tl.int32)
    n_rows = tl.sum(has_row, 0)
    gaussian = c.to(tl.int64) * N + i
    if n_rows == 0:
        _finish_unseen(
            words_ptr,
            workspace_ptr,
            means2d_ptr,
            radii_ptr,
            rows_ptr,
            pid,
            n_programs,
            gaussian,
            inside,
            n_taken,
        )
        _count_nonfinite(workspace_ptr, inside, finite, c)
        return
    # Told before the colours are loaded, and known before tiles are counted, which takes long
    # where a Gaussian is large: later programs seldom wait.
    publish(words_ptr, pid, n_rows, OWN)

    color = Vec3(tl.zeros_like(mx), tl.zeros_like(mx), tl.zeros_like(mx))
    if DEGREE >= 0:
        # mean - center, with center = -R_view^T t_view
        d = add3(mean, center_offset(camera))
        d, inverse_d = normalize3(d)
        REST: tl.constexpr = shN_ptr is not None
        tiles = load_sh_tiles(sh0_ptr, shN_ptr, i, visible, stride0, strideN, DEGREE, REST)
        coeffs = split_sh(tiles, REST)
        color = sh_color(d, coeffs, DEGREE)
        # A row is taken already; it sorts last.
        finite = finite & ((0.0 * (color.x + color.y + color.z) == 0.0) | (visible == 0))
        visible = visible & finite
        color = Vec3(tl.maximum(color.x, 0.0), tl.maximum(color.y, 0.0), tl.maximum(color.z, 0.0))

    first = sum_before(words_ptr, pid, PROJECTION_WINDOW).to(tl.int32)
    publish(words_ptr, pid, first + n_rows, RUNNING)
    if pid == n_programs - 1:
        tl.store(workspace_ptr, n_taken + first + n_rows)
    row = n_taken + first + tl.cumsum(has_row, 0) - has_row
    stored = (has_row != 0) & (row < R)
    depth = tl.where(visible, distance, 0.0)
    t2 = tl.where(visible, t2, 0.0)
    if tile_counts_ptr is not None:
        tiles_x = (width + TILE - 1) // TILE
        tiles_y = (height + TILE - 1) // TILE
        n_tiles, n_bins, widths = count_tiles(visible, mx, my, A, B, C, t2, tiles_x, tiles_y)
    log_o = tl.where(visible, lo, 0.0)
    red = tl.where(visible, color.x, 0.0)
    green = tl.where(visible, color.y, 0.0)
    blue = tl.where(visible, color.z, 0.0)
    mask = tl.where(visible, mask, 0.0)
    store_record(records_ptr, row, mx, my, A, B, C, log_o, mask, depth, red, green, blue, stored)
    pair = gaussian[:, None] * 2 + tl.arange(0, 2)[None, :]
    mean2d = tl.join(tl.where(visible, mx, 0.0), tl.where(visible, my, 0.0))
    tl.store(means2d_ptr + pair, mean2d, mask=inside[:, None])
    radius_x = tl.where(visible, tl.minimum(extent_x, 1073741824.0), 0.0).to(tl.int32)
    radius_y = tl.where(visible, tl.minimum(extent_y, 1073741824.0), 0.0).to(tl.int32)
    tl.store(radii_ptr + pair, tl.join(radius_x, radius_y), mask=inside[:, None])
    tl.store(rows_ptr + gaussian, tl.where(visible & stored, row, -1), mask=inside)
    if tile_counts_ptr is not None:
        key = tl.where(visible, depth.to(tl.int32, bitcast=True), CULLED_KEY)
        tl.store(depth_keys_ptr + row, key, mask=stored)
        tl.store(tile_counts_ptr + row, tl.where(visible, n_tiles, 0), mask=stored)
        tl.store(tile_counts_ptr + R + row, tl.where(visible, n_bins, 0), mask=stored)
        tl.store(tile_counts_ptr + 2 * R + row, widths, mask=stored)
    if gaussian_ids_ptr is not None:
        name = (c.to(tl.int64) * n_ids + first_id + i).to(tl.int32)
        tl.store(gaussian_ids_ptr + row, name, mask=stored)
    _count_nonfinite(workspace_ptr, inside, finite, c)
