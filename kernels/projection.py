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

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import constants
from .launch import launch
from .lookback import scan_programs
from .projection_backward import project_bwd_kernel
from .projection_forward import project_fwd_kernel
from .sampling import split_seed

FWD_BLOCK = 64  # Gaussians per program, one per lane
FWD_WARPS = 2
TAIL_BLOCK = 1024  # rows per program of those that are left over
BWD_BLOCK = 64
BWD_WARPS = 2

TILE = constants.TILE_SIZE
COUNTERS = 4  # int32 of the workspace before its running sums


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
            project_fwd_kernel, (C * n_blocks + -(-R // TAIL_BLOCK),),
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
