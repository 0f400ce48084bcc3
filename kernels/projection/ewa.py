"""Device functions that both passes of projection share; equations in projection/."""

import triton
import triton.language as tl

from ..device.linalg import Mat3, Sym2, Vec3, add3, combine3, dot3, load3, scale3, sym2_inverse
from ..device.transpose import load_tile16, split16

CULLED_KEY = tl.constexpr(0x7F800000)


@triton.jit
def columns_times(m, v):
    """The matrix m times the vector v."""
    return add3(combine3(v.x, m.c0, v.y, m.c1), scale3(v.z, m.c2))


@triton.jit
def times3(a, b):
    return Vec3(a.x * b.x, a.y * b.y, a.z * b.z)


@triton.jit
def times_columns(a, m, s):
    """Row vector a times the matrix m with its columns scaled by s."""
    return Vec3(s.x * dot3(a, m.c0), s.y * dot3(a, m.c1), s.z * dot3(a, m.c2))


@triton.jit
def load_quat(quats_ptr, i, mask):
    """Quaternions, (1, 0, 0, 0) where the mask is off."""
    w = tl.load(quats_ptr + i * 4, mask=mask, other=1.0)
    x = tl.load(quats_ptr + i * 4 + 1, mask=mask, other=0.0)
    y = tl.load(quats_ptr + i * 4 + 2, mask=mask, other=0.0)
    z = tl.load(quats_ptr + i * 4 + 3, mask=mask, other=0.0)
    return w, x, y, z


@triton.jit
def load_logit(mask_logits_ptr, i, mask, LOGITS: tl.constexpr):
    """Logits [N], or keep minus drop of logits [N, 2]."""
    logit = tl.load(mask_logits_ptr + i * LOGITS, mask=mask, other=0.0)
    if LOGITS == 2:
        logit -= tl.load(mask_logits_ptr + i * 2 + 1, mask=mask, other=0.0)
    return logit


@triton.jit
def load_ids(mask_ids_ptr, i, mask):
    if mask_ids_ptr is not None:
        return tl.load(mask_ids_ptr + i, mask=mask, other=0).to(tl.int32)
    else:
        return i.to(tl.int32)


@triton.jit
def load_covariance(covars_ptr, i, mask):
    """Columns of a [3, 3] matrix, symmetrised."""
    c = covars_ptr + i * 9
    a = load3(c, mask)
    b = load3(c + 3, mask)
    d = load3(c + 6, mask)
    xy, xz, yz = 0.5 * (a.y + b.x), 0.5 * (a.z + d.x), 0.5 * (b.z + d.y)
    return Mat3(Vec3(a.x, xy, xz), Vec3(xy, b.y, yz), Vec3(xz, yz, d.z))


@triton.jit
def load_sh_tiles(
    sh0_ptr, shN_ptr, i, mask, stride0, strideN, DEGREE: tl.constexpr, REST: tl.constexpr
):
    """What `split_sh` takes apart: all loads at once, so that they are on their way together."""
    COUNT: tl.constexpr = 3 * (DEGREE + 1) * (DEGREE + 1)
    if REST:
        first = load3(sh0_ptr + i * stride0, mask)
        row = shN_ptr + i * strideN
        return (first.x, first.y, first.z) + _load_tiles(row, mask, COUNT - 3)
    else:
        return _load_tiles(sh0_ptr + i * stride0, mask, COUNT)


@triton.jit
def _load_tiles(row_ptr, mask, COUNT: tl.constexpr):
    tiles = ()
    for begin in tl.static_range(0, COUNT, 16):
        tiles = tiles + (load_tile16(row_ptr + begin, mask, COUNT - begin),)
    return tiles


@triton.jit
def split_sh(tiles, REST: tl.constexpr):
    """Coefficients up to DEGREE as a tuple of at least 3 (DEGREE + 1)^2 blocks."""
    coeffs = ()
    if REST:
        coeffs = coeffs + (tiles[0], tiles[1], tiles[2])
        for k in tl.static_range(3, len(tiles)):
            coeffs = coeffs + split16(tiles[k])
    else:
        for k in tl.static_range(len(tiles)):
            coeffs = coeffs + split16(tiles[k])
    return coeffs


@triton.jit
def blurred_conic(xx, xy, yy, det, eps2d):
    """Inverse of a covariance [xx xy; xy yy] of determinant det, blurred; and its determinant."""
    det_blurred = det + eps2d * (xx + yy) + eps2d * eps2d
    return sym2_inverse(Sym2(xx + eps2d, xy, yy + eps2d), det_blurred), det_blurred


@triton.jit
def compensation_vjp(det, trace, eps2d, v_log_o):
    """v_det, and eps2d v_det_blurred, of log sqrt(det / det_blurred); 0 where det <= 0."""
    half = tl.where(det > 0.0, 0.5 * v_log_o, 0.0)
    v_blurred = -half / tl.maximum(det + eps2d * trace + eps2d * eps2d, 1e-30)
    return half / tl.where(det > 0.0, det, 1.0) + v_blurred, eps2d * v_blurred
