"""Backward kernel of projection: see projection/ for the equations."""

import triton
import triton.language as tl

from ..device.linalg import (
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
    sym2_inverse_vjp,
)
from ..device.transpose import join4
from .cameras.lens import add_depth_vjp, load_lens
from .cameras.pinhole import (
    center_offset,
    load_camera,
    perspective,
    perspective_vjp,
    rows_times,
    to_camera,
)
from .ellipse import LN2
from .ewa import (
    blurred_conic,
    columns_times,
    compensation_vjp,
    load_covariance,
    load_quat,
    load_sh_tiles,
    split_sh,
    times3,
    times_columns,
)
from .masks import add_v_mask, store_v_masks
from .record import load_gradient, split_gradient
from .spherical_harmonics import (
    flat_basis,
    flat_color,
    sh_basis,
    sh_color,
    sh_color_vjp_direction,
    store_v_sh,
)
from .unscented import rows_of_axes, unscented_vjp


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
def _store_zeros(ptr, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows [first, first + BLOCK) of [N, WIDTH], 16 bytes per lane."""
    at = ptr + first * WIDTH
    for begin in tl.static_range(0, BLOCK * WIDTH, 1024):
        if BLOCK * WIDTH - begin >= 1024:
            k = begin + tl.arange(0, 1024)
            tl.store(at + k, tl.zeros([1024], tl.float32))
        else:
            SHORT: tl.constexpr = triton.next_power_of_2(BLOCK * WIDTH - begin)
            k = begin + tl.arange(0, SHORT)
            tl.store(at + k, tl.zeros([SHORT], tl.float32), mask=k < BLOCK * WIDTH)


@triton.jit(do_not_specialize=["N", "width", "height", "seed_low", "seed_high", "C"])
def project_bwd_kernel(
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
    mask_logits_ptr,  # [N] or [N, 2] or None
    mask_ids_ptr,  # [N] or None
    seed_ptr,  # [2] in place of seed_low and seed_high, or None
    rows_ptr,  # [C, N] of the forward
    v_means2d_ptr,  # [C N, stride_v_means2d] or None
    v_records_ptr,  # [R, 16]
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
    width,
    height,
    eps2d,
    seed_low,
    seed_high,
    C,
    SEVERAL: tl.constexpr,  # cameras; else C is 1
    stride0: tl.constexpr,
    strideN: tl.constexpr,
    stride_v_means2d: tl.constexpr,
    WIDTH0: tl.constexpr,
    WIDTHN: tl.constexpr,
    DEGREE: tl.constexpr,
    LOGITS: tl.constexpr,
    BY_CAMERA: tl.constexpr,  # masks
    RAW: tl.constexpr,
    ANTIALIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    LENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    i = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    zero = tl.zeros([BLOCK], tl.float32)
    n_seen = 0  # cameras that see any of the program's Gaussians
    for c in range(C if SEVERAL else 1):
        row = tl.load(rows_ptr + i + c * N.to(tl.int64), mask=inside, other=-1)
        is_seen = (tl.max(row, 0) >= 0).to(tl.int32)
        n_seen += is_seen
        if v_viewmats_ptr is not None:
            k = tl.arange(0, 16)
            out = v_viewmats_ptr + (pid.to(tl.int64) * C + c) * 12
            tl.store(out + k, tl.zeros([16], tl.float32), mask=(k < 12) & (is_seen == 0))
    start = pid.to(tl.int64) * BLOCK
    full = start + BLOCK <= N  # all but the last program
    if (n_seen == 0) & full:
        _store_zeros(v_means_ptr, start, 3, BLOCK)
        if v_quats_ptr is not None:
            _store_zeros(v_quats_ptr, start, 4, BLOCK)
        if v_scales_ptr is not None:
            _store_zeros(v_scales_ptr, start, 3, BLOCK)
        if v_covars_ptr is not None:
            _store_zeros(v_covars_ptr, start, 9, BLOCK)
        _store_zeros(v_opacities_ptr, start, 1, BLOCK)
        if v_sh0_ptr is not None:
            _store_zeros(v_sh0_ptr, start, WIDTH0, BLOCK)
        if v_shN_ptr is not None:
            _store_zeros(v_shN_ptr, start, WIDTHN, BLOCK)
        store_v_masks(
            v_mask_inputs_ptr, v_masks_ptr, mask_logits_ptr, mask_ids_ptr, seed_ptr, seed_low,
            seed_high, i, inside, zero, C, LOGITS, BY_CAMERA,
        )  # fmt: skip
        return
    none = Vec3(zero, zero, zero)
    v_mean = none
    v_scale = none
    v_qw, v_qx, v_qy, v_qz = zero, zero, zero, zero
    v_diagonal, v_off = none, none  # of the covariance: xx yy zz and xy xz yz
    v_opacity = zero
    v_mask = zero
    c = -1
    # Gradients of harmonics are summed in memory: cameras that see nothing here are passed over.
    for k in range(tl.maximum(n_seen, 1) if SEVERAL else 1):
        c += 1
        row = tl.load(rows_ptr + i + c * N.to(tl.int64), mask=inside, other=-1)
        if SEVERAL:
            while (tl.max(row, 0) < 0) & (c < C - 1):
                c += 1
                row = tl.load(rows_ptr + i + c * N.to(tl.int64), mask=inside, other=-1)
        gaussian = i + c * N.to(tl.int64)
        row = row.to(tl.int64)
        visible = row >= 0
        # Lanes that are not visible go through with harmless numbers and zero gradients.
        mean = load3(means_ptr + i * 3, visible)
        # All loads stand first, so that they are on their way together.
        v_record_loaded = load_gradient(v_records_ptr, row, visible)
        REST: tl.constexpr = shN_ptr is not None
        if DEGREE >= 0 and LENS == 0:
            sh_tiles = load_sh_tiles(sh0_ptr, shN_ptr, i, visible, stride0, strideN, DEGREE, REST)
        opacity = tl.load(opacities_ptr + i, mask=visible, other=1.0)
        if covars_ptr is None:
            qw, qx, qy, qz = load_quat(quats_ptr, i, visible)
            scale = load3(scales_ptr + i * 3, visible)
        v_record = split_gradient(v_record_loaded)
        v_mx, v_my = zero, zero
        if v_means2d_ptr is not None:
            v_mean2d_ptr = v_means2d_ptr + gaussian * stride_v_means2d
            v_mx = tl.load(v_mean2d_ptr, mask=visible, other=0.0)
            v_my = tl.load(v_mean2d_ptr + 1, mask=visible, other=0.0)
        if BY_CAMERA and v_mask_inputs_ptr is not None:
            v_mask = add_v_mask(
                v_mask,
                v_record.mask,
                mask_logits_ptr,
                mask_ids_ptr,
                seed_ptr,
                seed_low,
                seed_high,
                c,
                i,
                inside,
                LOGITS,
            )
        else:
            v_mask += v_record.mask
        v_log_o = v_record.log2_opacity * (1.0 / LN2)

        camera = load_camera(viewmats_ptr, Ks_ptr, c, width, height)
        t = to_camera(camera, mean)
        t = Vec3(tl.where(visible, t.x, 0.0), tl.where(visible, t.y, 0.0), _or_one(visible, t.z))
        if LENS == 0:
            slopes = perspective(camera, t)

        if RAW:
            v_opacity += v_log_o * (1.0 / (1.0 + tl.exp(opacity)))
        else:
            v_opacity += v_log_o / opacity

        # Conics and colours are formed anew: records are gone by now, and would take as long.
        if covars_ptr is None:
            if NORMALIZE:
                inverse = 1.0 / tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
                qw, qx, qy, qz = qw * inverse, qx * inverse, qy * inverse, qz * inverse
            rotation = quat_to_rotmat(qw, qx, qy, qz)
            if RAW:
                scale = Vec3(tl.exp(scale.x), tl.exp(scale.y), tl.exp(scale.z))
            if LENS == 0:
                one = Vec3(1.0, 1.0, 1.0)
                px = times_columns(slopes.row_x, rotation, one)
                py = times_columns(slopes.row_y, rotation, one)
                hx = times3(px, scale)
                hy = times3(py, scale)
                n = cross3(hx, hy)
                xx, yy, det = dot3(hx, hx), dot3(hy, hy), dot3(n, n)
                conic, _ = blurred_conic(xx, dot3(hx, hy), yy, det, eps2d)
                v_cov = sym2_inverse_vjp(conic, v_record.conic)
                if ANTIALIASED:
                    v_det, v_eps = compensation_vjp(det, xx + yy, eps2d, v_log_o)
                    v_cov = Sym2(v_cov.xx + v_eps, v_cov.xy, v_cov.yy + v_eps)
                v_hx = combine3(2.0 * v_cov.xx, hx, v_cov.xy, hy)
                v_hy = combine3(v_cov.xy, hx, 2.0 * v_cov.yy, hy)
                if ANTIALIASED:
                    v_hx = add3(v_hx, scale3(2.0 * v_det, cross3(hy, n)))
                    v_hy = add3(v_hy, scale3(2.0 * v_det, cross3(n, hx)))
                if RAW:
                    v_scale = add3(v_scale, add3(times3(v_hx, hx), times3(v_hy, hy)))
                else:
                    v_scale = add3(v_scale, add3(times3(v_hx, px), times3(v_hy, py)))
                a = times3(v_hx, scale)
                b = times3(v_hy, scale)
                v_row_x = columns_times(rotation, a)
                v_row_y = columns_times(rotation, b)
                v_rotation = Mat3(
                    combine3(a.x, slopes.row_x, b.x, slopes.row_y),
                    combine3(a.y, slopes.row_x, b.y, slopes.row_y),
                    combine3(a.z, slopes.row_x, b.z, slopes.row_y),
                )
            else:
                lens = load_lens(camera, lenses_ptr, c)
                v_t, v_axes, v_shape, v_rotation = unscented_vjp(
                    camera,
                    lens,
                    t,
                    rotation,
                    scale,
                    v_mx,
                    v_my,
                    v_record.conic,
                    v_log_o,
                    eps2d,
                    ANTIALIASED,
                    LENS,
                )
                v_scale = add3(v_scale, times3(v_shape, scale) if RAW else v_shape)
                v_r0, v_r1, v_r2 = rows_of_axes(rotation, scale, v_axes)
            v_w, v_x, v_y, v_z = quat_to_rotmat_vjp(
                qw, qx, qy, qz, v_rotation.c0, v_rotation.c1, v_rotation.c2
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
            covariance = load_covariance(covars_ptr, i, visible)
            hx = columns_times(covariance, slopes.row_x)
            hy = columns_times(covariance, slopes.row_y)
            xx, yy = dot3(slopes.row_x, hx), dot3(slopes.row_y, hy)
            xy = dot3(slopes.row_x, hy)
            det = xx * yy - xy * xy
            conic, _ = blurred_conic(xx, xy, yy, det, eps2d)
            v_cov = sym2_inverse_vjp(conic, v_record.conic)
            if ANTIALIASED:
                v_det, v_eps = compensation_vjp(det, xx + yy, eps2d, v_log_o)
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
            v_diagonal = add3(v_diagonal, add3(times3(p, x), times3(q, y)))
            v_xy = p.x * x.y + q.x * y.y
            v_xz = p.x * x.z + q.x * y.z
            v_off = add3(v_off, Vec3(v_xy, v_xz, p.y * x.z + q.y * y.z))

        if LENS == 0:
            v_t, v_r0, v_r1, v_r2 = perspective_vjp(camera, t, slopes, v_mx, v_my, v_row_x, v_row_y)
        v_t = add_depth_vjp(v_t, t, v_record.depth, v_record.depth_feature, LENS)
        v_mean = add3(v_mean, rows_times(camera, v_t))

        v_dir = none
        if DEGREE >= 0:
            d = add3(mean, center_offset(camera))
            d, inverse_d = normalize3(Vec3(d.x, d.y, _or_one(visible, d.z)))
            if LENS > 0:  # the sigma points take the registers before
                sh_tiles = load_sh_tiles(
                    sh0_ptr, shN_ptr, i, visible, stride0, strideN, DEGREE, REST
                )
            coeffs = split_sh(sh_tiles, REST)
            color = sh_color(d, coeffs, DEGREE)
            v_color = Vec3(
                tl.where(color.x > 0.0, v_record.color.x, 0.0),
                tl.where(color.y > 0.0, v_record.color.y, 0.0),
                tl.where(color.z > 0.0, v_record.color.z, 0.0),
            )
            if DEGREE > 0:
                v_dir = sh_color_vjp_direction(d, coeffs, v_color, DEGREE)
                v_dir = normalize3_vjp(d, inverse_d, v_dir)
                v_mean = add3(v_mean, v_dir)
            basis = flat_basis(sh_basis(d, DEGREE), DEGREE)
            v_flat = flat_color(v_color)
            if full:
                store_v_sh(
                    v_sh0_ptr, v_shN_ptr, start, BLOCK, k > 0, basis, v_flat,
                    WIDTH0, WIDTHN, True, BLOCK,
                )  # fmt: skip
            else:
                store_v_sh(
                    v_sh0_ptr, v_shN_ptr, start, N - start, k > 0, basis, v_flat,
                    WIDTH0, WIDTHN, False, BLOCK,
                )  # fmt: skip

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
    store_v_masks(
        v_mask_inputs_ptr, v_masks_ptr, mask_logits_ptr, mask_ids_ptr, seed_ptr, seed_low,
        seed_high, i, inside, v_mask, C, LOGITS, BY_CAMERA,
    )  # fmt: skip
