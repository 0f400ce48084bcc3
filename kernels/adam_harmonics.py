r"""One step of Adam for spherical harmonics whose gradients are never written to memory.

The gradient of coefficient k of channel c of a Gaussian that one camera sees is

    basis_k(d) v_color_c        d: unit direction, camera to Gaussian; 0 where the colour is clamped

and 0 for all others, so that 48 floats follow from the three of v_color and from the mean. The
kernel forms them where it needs them: 24 bytes per value instead of 28, and the backward of
projection does not write the 4 bytes more. The step itself is that of adam.py, operation by
operation, and must run before the means are stepped.

A program owns BLOCK Gaussians and goes through their coefficients in the order of memory, 16 bytes
per lane, with basis and colours spread to them (spherical_harmonics.py). Where no Gaussian is
visible, gradients are 0.

H200, SH of 5.5 million Gaussians: 1.59 ms, of which 1.53 by bandwidth; the backward of projection
takes 0.27 ms less without them. With 0.16 million Gaussians nothing is saved.
"""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl
from torch import Tensor

from .adam import adam_update
from .launch import launch
from .linalg import Vec3, add3, load3, normalize3
from .projection_parts import center_offset, load_camera
from .spherical_harmonics import flat_basis, flat_color, sh_basis, sh_color_vjp

BLOCK = 64  # Gaussians per program
WARPS = 4
CHUNK = 512  # elements at once


@triton.jit
def _step_rows(
    p_ptr, m_ptr, v_ptr, first, n_valid, basis, v_color,
    step_size, root_bias, weight1, beta2, weight2, eps,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr, SEEN: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Adam on rows [first, first + BLOCK) of [N, WIDTH], from the coefficient FIRST."""
    for begin in range(0, BLOCK * WIDTH, CHUNK):
        k = begin + tl.arange(0, CHUNK)
        i = first * WIDTH + k
        mask = k < BLOCK * WIDTH if FULL else k < n_valid * WIDTH
        p = tl.load(p_ptr + i, mask=mask)
        m = tl.load(m_ptr + i, mask=mask)
        v = tl.load(v_ptr + i, mask=mask)
        g = tl.zeros([CHUNK], tl.float32)
        if SEEN:
            g = sh_color_vjp(basis, v_color, k, FIRST, WIDTH, BLOCK)
        p, m, v = adam_update(
            p, g, m, v, step_size, root_bias, weight1, beta2, weight2, eps, ZEROS=True
        )
        tl.store(p_ptr + i, p, mask=mask)
        tl.store(m_ptr + i, m, mask=mask)
        tl.store(v_ptr + i, v, mask=mask)


@triton.jit
def _step_both(
    p0_ptr, m0_ptr, v0_ptr, pN_ptr, mN_ptr, vN_ptr, rate0_ptr, rateN_ptr, first, n_valid,
    basis, v_color, weight1, beta2, weight2, eps,
    WIDTH: tl.constexpr, FULL: tl.constexpr, SEEN: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    _step_rows(
        p0_ptr, m0_ptr, v0_ptr, first, n_valid, basis, v_color,
        tl.load(rate0_ptr), tl.load(rate0_ptr + 1), weight1, beta2, weight2, eps,
        0, 3, FULL, SEEN, BLOCK, triton.next_power_of_2(3 * BLOCK),
    )  # fmt: skip
    if WIDTH > 0:
        _step_rows(
            pN_ptr, mN_ptr, vN_ptr, first, n_valid, basis, v_color,
            tl.load(rateN_ptr), tl.load(rateN_ptr + 1), weight1, beta2, weight2, eps,
            1, WIDTH, FULL, SEEN, BLOCK, CHUNK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "row0", "rowN"])
def _adam_harmonics_kernel(
    rows_ptr,  # [1, N] of projection
    records_ptr,  # [R, 16] of projection
    v_records_ptr,  # [R, 16]
    means_ptr,  # [N, 3]
    viewmats_ptr,  # [1, 4, 4]
    Ks_ptr,  # [1, 3, 3]
    p0_ptr, m0_ptr, v0_ptr,  # [N, 1, 3] in and out
    pN_ptr, mN_ptr, vN_ptr,  # [N, K - 1, 3] in and out
    rates_ptr,  # [P, 2]
    skip_ptr,  # [1] or None
    N,
    row0, rowN,  # of rates
    weight1, beta2, weight2, eps,
    WIDTH: tl.constexpr,
    DEGREE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if skip_ptr is not None:
        if tl.load(skip_ptr) != 0:
            return
    first = pid.to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    inside = i < N
    row = tl.load(rows_ptr + i, mask=inside, other=-1).to(tl.int64)
    rate0_ptr, rateN_ptr = rates_ptr + row0 * 2, rates_ptr + rowN * 2
    visible = row >= 0
    n_valid = tl.minimum(N - first, BLOCK).to(tl.int32)
    if (tl.max(visible.to(tl.int32), 0) == 0) & (n_valid == BLOCK):
        _step_both(
            p0_ptr, m0_ptr, v0_ptr, pN_ptr, mN_ptr, vN_ptr, rate0_ptr, rateN_ptr, first, n_valid,
            None, None, weight1, beta2, weight2, eps, WIDTH, True, False, BLOCK, CHUNK,
        )  # fmt: skip
        return
    camera = load_camera(viewmats_ptr, Ks_ptr, 0, 1, 1)
    mean = load3(means_ptr + i * 3, visible)
    color = load3(records_ptr + row * 16 + 8, visible)
    v = load3(v_records_ptr + row * 16 + 8, visible)
    red = tl.where(color.x > 0.0, v.x, 0.0)
    green = tl.where(color.y > 0.0, v.y, 0.0)
    blue = tl.where(color.z > 0.0, v.z, 0.0)
    d = add3(mean, center_offset(camera))
    d, _ = normalize3(Vec3(d.x, d.y, tl.where(visible, d.z, 1.0)))
    basis = flat_basis(sh_basis(d, DEGREE), DEGREE)
    v_color = flat_color(Vec3(red, green, blue))
    if n_valid == BLOCK:
        _step_both(
            p0_ptr, m0_ptr, v0_ptr, pN_ptr, mN_ptr, vN_ptr, rate0_ptr, rateN_ptr, first, n_valid,
            basis, v_color, weight1, beta2, weight2, eps, WIDTH, True, True, BLOCK, CHUNK,
        )  # fmt: skip
    else:
        _step_both(
            p0_ptr, m0_ptr, v0_ptr, pN_ptr, mN_ptr, vN_ptr, rate0_ptr, rateN_ptr, first, n_valid,
            basis, v_color, weight1, beta2, weight2, eps, WIDTH, False, True, BLOCK, CHUNK,
        )  # fmt: skip


class HarmonicsGradient:
    """What the gradients of spherical harmonics follow from; see the module.

    Args:
        sh0: Constant coefficients. [N, 1, 3]
        shN: The others. [N, K - 1, 3]
        means: Positions. [N, 3]
        viewmats: World to camera, of one camera. [1, 4, 4]
        Ks: Its intrinsics. [1, 3, 3]
        rows: The row of every Gaussian, or -1, as projection.py numbers them. [1, N] int32
        records: Of projection. [R, 16]
        degree: That was evaluated.
    """

    def __init__(
        self,
        sh0: Tensor,
        shN: Tensor,
        means: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        rows: Tensor,
        records: Tensor,
        degree: int,
    ) -> None:
        self.sh0, self.shN, self.means, self.viewmats, self.Ks = sh0, shN, means, viewmats, Ks
        # detached: a hook of the records leads here
        self.rows, self.records, self.degree = rows, records.detach(), degree
        self.v_records: Tensor | None = None
        """Gradients of records, once there was a backward. [R, 16]"""
        if records.requires_grad:
            records.register_hook(self._keep)

    def _keep(self, v_records: Tensor) -> None:
        self.v_records = v_records.contiguous()


def adam_harmonics_step(
    gradient: HarmonicsGradient,
    exp_avgs: tuple[Tensor, Tensor],
    exp_avg_sqs: tuple[Tensor, Tensor],
    rates: Tensor,  # [P, 2]
    rows_of_rates: tuple[int, int],
    *,
    betas: tuple[float, float],
    eps: float,
    skip: Tensor | None = None,  # [1] or []
) -> None:
    """One step of Adam in place for `gradient.sh0` and `gradient.shN`, before means are stepped.

    Args:
        gradient: After the backward; without one, nothing is done.
        exp_avgs: First moments of sh0 and shN, contiguous.
        exp_avg_sqs: Second moments.
        rates: As in `adam.adam_step`. [P, 2]
        rows_of_rates: Which rows of `rates` are those of sh0 and shN.
        betas: Decay of the moments.
        eps: Added to the denominator.
        skip: int32 on the device; if it is not 0, everything stays as it is.
    """
    g = gradient
    if g.v_records is None:
        return
    N = len(g.means)
    launch(
        _adam_harmonics_kernel, (-(-N // BLOCK),),
        g.rows, g.records, g.v_records, g.means, g.viewmats, g.Ks,
        g.sh0, exp_avgs[0], exp_avg_sqs[0], g.shN, exp_avgs[1], exp_avg_sqs[1], rates, skip,
        N, *rows_of_rates, 1.0 - betas[0], betas[1], 1.0 - betas[1], eps,
        WIDTH=3 * g.shN.shape[1], DEGREE=g.degree, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=WARPS,
    )  # fmt: skip
