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

Most Gaussians of a large scene are not in view, and neighbours in memory are often neighbours in
space. A program that sees none writes its zeros, 16 bytes per lane, and is done: in the forward
before colours and tiles, and without waiting for the running sum; in the backward before all loads.
One that does sees to it that its loads are on their way together.

Only visible pairs of camera and Gaussian get a row, numbered in ascending camera and Gaussian by a
running sum over programs (device/running_sum.py), so that a tie in depth keeps that order. Rows
beyond the capacity R are not written; rows beyond the visible ones sort last and touch no tile.

    means2d [C N 2] float32, radii [C N 2] int32, rows [C N] int32: the row, or -1 records [R 16]
    float32: projection/record.py depth_keys, gaussian_ids (camera N + Gaussian) [R] int32
    tile_counts [3 R] int32: of tiles, of bins (binning/coarse.py), and of these in the first four
    rows workspace int32, zeros before: 0 rows, 1 intersections (by binning/), 2 Gaussians that
    are
                                   not finite, 4.. words of running sums
"""

import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import constants
from ..device.running_sum import scan_programs
from ..masks.kernel import split_seed
from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import empty, launch, zeros
from ..runtime.packed import Layout
from ..runtime.recording import KINDS, Results, Scalar, repeat
from .backward import project_bwd_kernel
from .forward import project_fwd_kernel
from .record import RECORD_SIZE

FWD_BLOCK = 64  # Gaussians per program, one per lane
FWD_WARPS = 2
FWD_REGISTERS = 80  # per thread at most: a few spilled bytes cost less than a program less per SM
TAIL_BLOCK = 1024  # rows per program of those that are left over
BWD_BLOCK = 64
BWD_WARPS = 2

TILE = constants.TILE_SIZE
N_COUNTERS = 4  # int32 of the workspace before its running sums


class Projected(NamedTuple):
    """What projection hands on; see the module for rows and projection/record.py for records."""

    means2d: Tensor  # [C, N, 2] pixels, 0 where culled
    records: Tensor  # [R, 16]
    masks: Tensor | None  # [N] as given or as drawn
    radii: Tensor  # [C, N, 2] int32 half extents in pixels, 0 = culled
    rows: Tensor  # [C, N] int32, -1 = culled or without room
    depth_keys: Tensor  # [R] int32 bits of z, those of infinity in rows left over
    tile_counts: Tensor  # [3, R] int32: of tiles, of bins, of bins by row
    gaussian_ids: Tensor | None  # [R] int32, camera N + Gaussian
    workspace: Tensor  # int32
    counters: Tensor  # [4] int32, for those of the workspace once lists are made
    told: Tensor  # in which radii, tile_counts and counters lie: told_layout


class Inputs(NamedTuple):
    """Contiguous tensors; see `project`."""

    means: Tensor
    quats: Tensor | None
    scales: Tensor | None
    covars: Tensor | None
    opacities: Tensor
    sh0: Tensor | None
    shN: Tensor | None
    viewmats: Tensor
    masks: Tensor | None
    mask_logits: Tensor | None
    Ks: Tensor
    mask_ids: Tensor | None
    seed: Tensor | None  # in place of
    seed_low: Scalar
    seed_high: Scalar


class Settings(NamedTuple):
    """Numbers and flags of `project`."""

    width: int
    height: int
    near_plane: float
    far_plane: float
    eps2d: float
    degree: int  # -1: no spherical harmonics
    antialiased: bool
    raw: bool
    normalize: bool
    max_rows: int
    with_ids: bool


_NO_SEED = Scalar(0), Scalar(0)


def gather_inputs(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    covars: Tensor | None,
    opacities: Tensor,
    sh0: Tensor | None,
    shN: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    masks: Tensor | None,
    mask_logits: Tensor | None,
    mask_seed: int | Tensor,
    mask_ids: Tensor | None,
) -> Inputs:
    """Arguments of `project` as kernels take them."""
    if covars is not None:
        quats, scales, covars = None, None, covars.contiguous()
    else:
        assert quats is not None and scales is not None
        quats, scales = quats.contiguous(), scales.contiguous()
    (low, high), seed = _NO_SEED, None
    if isinstance(mask_seed, Tensor):
        seed = mask_seed
    elif mask_logits is not None:
        low, high = map(Scalar, split_seed(mask_seed))
    return Inputs(
        means.contiguous(), quats, scales, covars, opacities.contiguous(),
        _packed_rows(sh0), _packed_rows(shN), viewmats.contiguous(),
        None if masks is None else masks.contiguous(),
        None if mask_logits is None else mask_logits.contiguous(),
        Ks.contiguous(), mask_ids, seed, low, high,
    )  # fmt: skip


def row_stride(sh: Tensor | None) -> int:
    return 0 if sh is None else sh.stride(0)


def _packed_rows(sh: Tensor | None) -> Tensor | None:
    """Coefficients [N, K, 3] whose rows are contiguous; the rows may be spaced."""
    if sh is None or sh.shape[1] == 0:
        return None
    return sh if sh.stride(2) == 1 and sh.stride(1) == 3 else sh.contiguous()


RADII, TILE_COUNTS, COUNTERS = range(3)  # of told_layout


@functools.lru_cache(KINDS)
def told_layout(C: int, N: int, R: int) -> Layout:
    """Where the integers lie that outlive binning, but no gradient needs."""
    return Layout((C, N, 2), (3, R), (N_COUNTERS,))


def project_fwd(x: Inputs, s: Settings) -> Projected:
    """Project; results carry no gradient before `differentiable_projection`."""
    N, C, R, device = x.means.shape[0], x.viewmats.shape[0], s.max_rows, x.means.device
    n_blocks = -(-N // FWD_BLOCK)
    layout = told_layout(C, N, R)
    told = layout.make(device)
    radii, tile_counts, counters = (layout.part(told, k) for k in range(3))
    n_words = N_COUNTERS + 2 * (C * n_blocks + scan_programs(R))
    workspace = zeros((n_words,), torch.int32, device)
    means2d = empty((C, N, 2), torch.float32, device)
    rows = empty((C, N), torch.int32, device)
    records = empty((R, RECORD_SIZE.value), torch.float32, device)
    depth_keys = empty((R,), torch.int32, device)
    gaussian_ids = empty((R,), torch.int32, device) if s.with_ids else None
    masks, logits = x.masks, 0
    if x.mask_logits is not None:
        masks, logits = empty((N,), torch.float32, device), x.mask_logits.dim()
    launch(
        project_fwd_kernel, (C * n_blocks + -(-R // TAIL_BLOCK),),
        x.means, x.quats, x.scales, x.covars, x.opacities, x.sh0, x.shN, x.viewmats, x.Ks,
        masks, x.mask_logits, x.mask_ids, x.seed,
        means2d, radii, rows, records, depth_keys, tile_counts, gaussian_ids, workspace,
        N, R, n_blocks, C * n_blocks,
        s.width, s.height, s.near_plane, s.far_plane, s.eps2d, x.seed_low, x.seed_high,
        stride0=row_stride(x.sh0), strideN=row_stride(x.shN), DEGREE=s.degree,
        LOGITS=logits, RAW=s.raw, ANTIALIASED=s.antialiased, NORMALIZE=s.normalize,
        TILE=TILE, BLOCK=FWD_BLOCK, TAIL_BLOCK=TAIL_BLOCK,
        num_warps=FWD_WARPS, maxnreg=FWD_REGISTERS,
    )  # fmt: skip
    return Projected(
        means2d, records, masks, radii, rows, depth_keys, tile_counts, gaussian_ids, workspace,
        counters, told,
    )  # fmt: skip


def _project_bwd(
    x: Inputs,
    s: Settings,
    needs: tuple[bool, ...],
    rows: Tensor,
    v_means2d: Tensor | None,
    v_records: Tensor,
    v_masks: Tensor | None,
) -> Results:
    """Gradients of the first ten inputs, where needed."""
    N, C, device = x.means.shape[0], x.viewmats.shape[0], x.means.device
    stride_v_means2d = 2 if v_means2d is None else v_means2d.stride(1)

    def like(x: Tensor | None, needed: bool) -> Tensor | None:
        # Contiguous even where x has spaced rows.
        return empty(x.shape, torch.float32, device) if needed and x is not None else None

    v_means, v_opacities = like(x.means, True), like(x.opacities, True)
    v_quats, v_scales, v_covars = (
        like(x.quats, needs[1]), like(x.scales, needs[2]), like(x.covars, needs[3])
    )  # fmt: skip
    v_sh0, v_shN = like(x.sh0, needs[5]), like(x.shN, needs[6])
    v_masks_in, v_logits = like(x.masks, needs[8]), like(x.mask_logits, needs[9])
    n_programs = -(-N // BWD_BLOCK)
    partials = empty((n_programs, C, 3, 4), torch.float32, device) if needs[7] else None
    launch(
        project_bwd_kernel, (n_programs,),
        x.means, x.quats, x.scales, x.covars, x.opacities, x.sh0, x.shN, x.viewmats, x.Ks,
        x.mask_logits, x.mask_ids, x.seed, rows, v_means2d, v_records, v_masks,
        v_means, v_quats, v_scales, v_covars, v_opacities, v_sh0, v_shN, partials,
        v_masks_in if needs[8] else v_logits,
        N, s.width, s.height, s.eps2d, x.seed_low, x.seed_high,
        C=C, stride0=row_stride(x.sh0), strideN=row_stride(x.shN),
        stride_v_means2d=stride_v_means2d, WIDTH0=0 if x.sh0 is None else 3 * x.sh0.shape[1],
        WIDTHN=0 if x.shN is None else 3 * x.shN.shape[1],
        DEGREE=s.degree, LOGITS=0 if x.mask_logits is None else x.mask_logits.dim(),
        RAW=s.raw, ANTIALIASED=s.antialiased, NORMALIZE=s.normalize,
        BLOCK=BWD_BLOCK, num_warps=BWD_WARPS,
    )  # fmt: skip
    v_viewmats = None
    if partials is not None:
        v_viewmats = torch.zeros_like(x.viewmats)
        v_viewmats[:, :3] = partials.sum(0)
    return (
        v_means, v_quats, v_scales, v_covars, v_opacities, v_sh0, v_shN, v_viewmats,
        v_masks_in, v_logits,
    )  # fmt: skip


class _Project(torch.autograd.Function):
    """Hands on what `project_fwd` has made, and makes it differentiable."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        x, settings, made, rows, kind = arguments[-1]
        ctx.save_for_backward(*x[:N_TENSORS])
        ctx.settings, ctx.rows, ctx.seed, ctx.kind = settings, rows, x[N_TENSORS:], kind
        ctx.means2d, ctx.has_grad = weakref.ref(made[0]), False
        ctx.set_materialize_grads(False)
        return made

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *v_outputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        v_means2d, v_records, v_masks = v_outputs
        means2d = ctx.means2d()
        if means2d is not None and v_means2d is not None and not means2d.retains_grad:
            # As retain_grad() would, but without a copy; to read .grad before is a warning.
            means2d.grad = means2d.grad + v_means2d if ctx.has_grad else v_means2d
            ctx.has_grad = True
        x, s = Inputs(*ctx.saved_tensors, *ctx.seed), ctx.settings
        needs = ctx.needs_input_grad[:N_FLOATS]
        N, C = x.means.shape[0], x.viewmats.shape[0]
        if v_records is None:
            v_records = x.means.new_zeros(s.max_rows, RECORD_SIZE.value)
        v_records = v_records.contiguous()
        v_masks = None if v_masks is None else v_masks.contiguous()
        if v_means2d is not None:
            stride = v_means2d.stride(1)
            if v_means2d.stride(2) != 1 or (C > 1 and v_means2d.stride(0) != N * stride):
                v_means2d = v_means2d.contiguous()

        def run() -> Results:
            return _project_bwd(x, s, needs, ctx.rows, v_means2d, v_records, v_masks)

        if ctx.kind is None:
            return *run(), None
        stride = None if v_means2d is None else v_means2d.stride(1)
        kind = (ctx.kind, project_bwd_kernel, needs, stride, v_masks is None)
        inputs = (*x, ctx.rows, v_means2d, v_records, v_masks)
        return *repeat(kind, inputs, run), None


N_FLOATS = 10  # of Inputs, which begin with what can have gradients
N_TENSORS = 13  # then come numbers


def differentiable_projection(
    x: Inputs,
    s: Settings,
    means2d: Tensor,
    records: Tensor,
    drawn: Tensor | None,
    rows: Tensor,
    kind: int | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Results of `project_fwd` (masks if they were drawn) as part of autograd's graph.

    Args:
        kind: Stands for shapes and flags: runtime/recording.py.
    """
    if not torch.is_grad_enabled():
        return means2d, records, drawn
    return apply(_Project, *x[:N_FLOATS], (x, s, (means2d, records, drawn), rows, kind))


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
    if sh_degree is None:
        sh0 = shN = None
    inputs = gather_inputs(
        means, quats, scales, covars, opacities, sh0, shN, viewmats, Ks, masks, mask_logits,
        mask_seed, mask_ids,
    )  # fmt: skip
    settings = Settings(
        width, height, near_plane, far_plane, eps2d, -1 if sh_degree is None else sh_degree,
        antialiased, raw, normalize_quats,
        max(len(viewmats) * len(means), 1) if max_rows is None else max_rows, with_ids,
    )  # fmt: skip
    made = project_fwd(inputs, settings)
    drawn = None if mask_logits is None else made.masks
    means2d, records, drawn = differentiable_projection(
        inputs, settings, made.means2d, made.records, drawn, made.rows, None
    )
    return made._replace(
        means2d=means2d, records=records, masks=masks if mask_logits is None else drawn
    )
