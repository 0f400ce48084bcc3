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

    means2d [C N 2] float32, radii [C N 2] int32, rows [C N] int32: the row, or -1
    records [R 16] float32: projection/record.py
    depth_keys, gaussian_ids (camera N + Gaussian) [R] int32
    tile_counts [3 R] int32: of tiles, of bins (binning/coarse.py), and of these in the first four
        rows of bins
    workspace int32, zeros before: 0 rows, 1 entries needed and 3 entries (by binning/), 2 Gaussians
        that are not finite, 4.. words of running sums
"""

import weakref
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import Capacity, RasterInputs, RenderSettings
from ..constants import TILE_SIZE
from ..device.running_sum import scan_programs
from ..runtime.autograd import apply, once_differentiable
from ..runtime.cache import caches
from ..runtime.launch import empty, launch, zeros
from ..runtime.packed import Layout
from ..runtime.recording import Results, run_recorded
from .backward import project_bwd_kernel
from .forward import project_fwd_kernel
from .inputs import FloatGradients, FloatInputs, ProjectionInputs, gather_inputs, row_stride
from .record import MEAN, RECORD_SIZE, spread_pairs
from .records import Projected

FWD_BLOCK = 64  # Gaussians per program, one per lane
FWD_WARPS = 2
FWD_REGISTERS = 80  # per thread at most: a few spilled bytes cost less than a program less per SM
TAIL_BLOCK = 1024  # rows per program of those that are left over
BWD_BLOCK = 64
BWD_WARPS = 2

N_COUNTS = 4  # int32 of the workspace before its running sums
RADII, TILE_COUNTS, COUNTS = range(3)  # of integers_layout
ROWS, ENTRIES_NEEDED, NONFINITE, ENTRIES = range(N_COUNTS)  # of counts


@caches.remembered
def integers_layout(C: int, N: int, R: int) -> Layout:
    """Where the integers lie that outlive binning, but no gradient needs."""
    return Layout((C, N, 2), (3, R), (N_COUNTS,))


def project_fwd(
    x: ProjectionInputs,
    s: RenderSettings,
    R: int,
    with_ids: bool,
    for_lists: bool = True,
    *,
    n_ids: int | None = None,
    behind: Projected | None = None,
    boxes: Tensor | None = None,  # [C, 4] int32
) -> Projected:
    """R rows of records, which carry no gradient; `project` documents arguments and results.

    Others' records may come `behind` those of a projection, in the rows of it that are left:
    then their ids follow its own, `n_ids` in all.
    """
    N, C, device, f = x.n_gaussians, x.n_cameras, x.Ks.device, x.floats
    n_blocks = -(-N // FWD_BLOCK)
    # The first kernel starts at once: the GPU need not wait for what follows.
    n_words = N_COUNTS + 2 * (C * n_blocks + scan_programs(R))
    workspace = zeros((n_words,), torch.int32, device)
    layout = integers_layout(C, N, R if for_lists and behind is None else 0)
    integers = layout.make(device)
    radii, tile_counts, counts = (layout.part(integers, k) for k in range(3))
    means2d = empty((C, N, 2), torch.float32, device)
    rows = empty((C, N), torch.int32, device)
    if behind is None:
        values = empty((R, RECORD_SIZE.value), torch.float32, device)
        depth_keys = empty((R if for_lists else 0,), torch.int32, device)
        gaussian_ids = empty((R,), torch.int32, device) if with_ids else None
    else:
        values, depth_keys = behind.values.detach(), behind.depth_keys
        gaussian_ids, tile_counts = behind.gaussian_ids, behind.tile_counts
    masks, logits = f.masks, 0
    if f.mask_logits is not None:
        masks, logits = empty((N,), torch.float32, device), f.mask_logits.dim()
    launch(
        project_fwd_kernel, (C * n_blocks + -(-R // TAIL_BLOCK),),
        f.means, f.quats, f.scales, f.covars, f.opacities, f.sh0, f.shN, f.viewmats, x.Ks,
        x.lenses, masks, f.mask_logits, x.mask_ids, x.seed,
        means2d, radii, rows, values, depth_keys if for_lists else None,
        tile_counts if for_lists else None, gaussian_ids, workspace,
        None if behind is None else behind.workspace, boxes,
        N, R, n_blocks, C * n_blocks,
        s.width, s.height, s.near_plane, s.far_plane, s.eps2d, x.seed_low, x.seed_high,
        0 if behind is None else behind.n_gaussians, N if n_ids is None else n_ids,
        stride0=row_stride(f.sh0), strideN=row_stride(f.shN), DEGREE=_degree(s),
        LOGITS=logits, BY_CAMERA=_by_camera(x, s), RAW=s.raw, ANTIALIASED=s.antialiased,
        NORMALIZE=s.normalize_quats, LENS=s.lens.code, TILE=TILE_SIZE, BLOCK=FWD_BLOCK,
        TAIL_BLOCK=TAIL_BLOCK, num_warps=FWD_WARPS, maxnreg=FWD_REGISTERS,
    )  # fmt: skip
    return Projected(
        values, gaussian_ids, workspace[:1], C, N, s.width, s.height, means2d, masks, radii, rows,
        depth_keys, tile_counts, workspace, counts, integers,
    )  # fmt: skip


def _degree(s: RenderSettings) -> int:
    """Of spherical harmonics; -1: none."""
    return -1 if s.sh_degree is None else s.sh_degree


def _by_camera(x: ProjectionInputs, s: RenderSettings) -> bool:
    """Whether cameras draw masks of their own; the only one has the one draw."""
    return s.masks_by_camera and x.n_cameras > 1 and x.floats.mask_logits is not None


def _project_bwd(
    x: ProjectionInputs,
    s: RenderSettings,
    like: FloatGradients,  # their shapes, where gradients are needed
    rows: Tensor,
    v_means2d: Tensor | None,
    v_records: Tensor,
    v_masks: Tensor | None,
) -> FloatGradients:
    """Gradients of the inputs."""
    N, C, device, f = x.n_gaussians, x.n_cameras, x.Ks.device, x.floats
    stride_v_means2d = 2 if v_means2d is None else v_means2d.stride(1)

    def new(x: Tensor | None) -> Tensor | None:
        # Contiguous even where x has spaced rows.
        return None if x is None else empty(x.shape, torch.float32, device)

    v_means, v_opacities = new(f.means), new(f.opacities)
    v_quats, v_scales, v_covars = new(like.quats), new(like.scales), new(like.covars)
    v_sh0, v_shN = new(like.sh0), new(like.shN)
    v_masks_in, v_logits = new(like.masks), new(like.mask_logits)
    n_programs = -(-N // BWD_BLOCK)
    partials = None
    if like.viewmats is not None:
        partials = empty((n_programs, C, 3, 4), torch.float32, device)
    launch(
        project_bwd_kernel, (n_programs,),
        f.means, f.quats, f.scales, f.covars, f.opacities, f.sh0, f.shN, f.viewmats, x.Ks,
        x.lenses, f.mask_logits, x.mask_ids, x.seed, rows, v_means2d, v_records, v_masks,
        v_means, v_quats, v_scales, v_covars, v_opacities, v_sh0, v_shN, partials,
        v_logits if v_masks_in is None else v_masks_in,
        N, s.width, s.height, s.eps2d, x.seed_low, x.seed_high, C,
        SEVERAL=C > 1, stride0=row_stride(f.sh0), strideN=row_stride(f.shN),
        stride_v_means2d=stride_v_means2d, WIDTH0=0 if f.sh0 is None else 3 * f.sh0.shape[1],
        WIDTHN=0 if f.shN is None else 3 * f.shN.shape[1],
        DEGREE=_degree(s), LOGITS=0 if f.mask_logits is None else f.mask_logits.dim(),
        BY_CAMERA=_by_camera(x, s), RAW=s.raw, ANTIALIASED=s.antialiased,
        NORMALIZE=s.normalize_quats, LENS=s.lens.code, BLOCK=BWD_BLOCK, num_warps=BWD_WARPS,
    )  # fmt: skip
    v_viewmats = None
    if partials is not None:
        v_viewmats = torch.zeros_like(f.viewmats)
        v_viewmats[:, :3] = partials.sum(0)
    return FloatGradients(
        v_means,
        v_quats,
        v_scales,
        v_covars,
        v_opacities,
        v_sh0,
        v_shN,
        v_viewmats,
        v_masks_in,
        v_logits,
    )


class _Made(NamedTuple):
    """What `project_fwd` has made, and of what."""

    inputs: ProjectionInputs
    settings: RenderSettings
    outputs: tuple[Tensor, Tensor, Tensor | None]
    rows: Tensor
    kind: Hashable
    mean_in_records: bool


class _Project(torch.autograd.Function):
    """Hands on what `project_fwd` has made, and makes it differentiable."""

    @staticmethod
    def forward(ctx: Any, *floats_and_made: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        made: _Made = floats_and_made[-1]
        x = made.inputs
        ctx.save_for_backward(*x.floats, x.Ks, x.lenses, x.mask_ids, x.seed)
        ctx.seeds = x.seed_low, x.seed_high
        ctx.settings, ctx.rows, ctx.kind = made.settings, made.rows, made.kind
        ctx.mean_in_records, ctx.n_rows = made.mean_in_records, made.outputs[1].shape[0]
        ctx.means2d, ctx.has_grad = weakref.ref(made.outputs[0]), False
        ctx.set_materialize_grads(False)
        return made.outputs

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v_means2d: Tensor | None, v_values: Tensor | None, v_masks: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if v_values is not None:
            v_values = v_values.contiguous()
            if ctx.mean_in_records:
                v_pairs = spread_pairs(ctx.rows, v_values, MEAN)
                v_means2d = v_pairs if v_means2d is None else v_means2d + v_pairs
        means2d = ctx.means2d()
        if means2d is not None and v_means2d is not None and not means2d.retains_grad:
            # As retain_grad() would, but without a copy; to read .grad before is a warning.
            means2d.grad = means2d.grad + v_means2d if ctx.has_grad else v_means2d
            ctx.has_grad = True
        *floats, Ks, lenses, mask_ids, seed = ctx.saved_tensors
        x = ProjectionInputs(FloatInputs(*floats), Ks, lenses, mask_ids, seed, *ctx.seeds)
        N, C = x.n_gaussians, x.n_cameras
        v_records = Ks.new_zeros(ctx.n_rows, RECORD_SIZE.value) if v_values is None else v_values
        v_masks = None if v_masks is None else v_masks.contiguous()
        stride = None
        if v_means2d is not None:
            stride = v_means2d.stride(1)
            if v_means2d.stride(2) != 1 or (C > 1 and v_means2d.stride(0) != N * stride):
                v_means2d = v_means2d.contiguous()
                stride = v_means2d.stride(1)
        *needed, _ = ctx.needs_input_grad

        def run() -> Results:
            like = [x if need else None for x, need in zip(floats, needed, strict=True)]
            v = v_means2d, v_records, v_masks
            return _project_bwd(x, ctx.settings, FloatGradients(*like), ctx.rows, *v)

        if ctx.kind is None:
            return *run(), None
        kind = (ctx.kind, _project_bwd, *needed, stride, v_masks is None)
        inputs = (*x.floats, *x[1:], ctx.rows, v_means2d, v_records, v_masks)
        return *run_recorded(kind, inputs, run), None


def differentiable_projection(
    x: ProjectionInputs,
    s: RenderSettings,
    means2d: Tensor,
    values: Tensor,
    drawn: Tensor | None,
    rows: Tensor,
    kind: Hashable = None,
    *,
    mean_in_records: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Results of `project_fwd` (masks if they were drawn) as part of autograd's graph.

    Args:
        kind: Stands for shapes and flags: runtime/recording.py.
        mean_in_records: The gradients of records count MEAN, too; else means2d alone carries it.
    """
    if not torch.is_grad_enabled():
        return means2d, values, drawn
    made = _Made(x, s, (means2d, values, drawn), rows, kind, mean_in_records)
    return apply(_Project, *x.floats, made)


def project(
    inputs: RasterInputs,
    settings: RenderSettings,
    capacity: Capacity | None = None,
    *,
    for_lists: bool = True,
    n_ids: int | None = None,
) -> Projected:
    """Project Gaussians into every camera: the first stage of a rendering.

    Differentiable in all float tensors but Ks. Inputs are float32 and not validated here.

    Args:
        inputs: N Gaussians and C cameras. Without `sh_degree`, `colors` are not looked at and the
            colours of records are zero.
        settings: Sizes, planes, activations; render_mode counts in blending alone.
        capacity: Of rows: R; None: C N. Rows beyond it are counted and not written.
        for_lists: Whether `bin_tiles` is to follow; else depth_keys and tile_counts are empty.
        n_ids: What a camera's number counts in gaussian_ids, where others' records share the rows
            (`project_behind`); None: N.

    Returns:
        Records for `bin_tiles` and `blend`. A gradient that comes to the columns MEAN of
        `values` adds to that of `means2d`, and after the backward `means2d.grad` holds both.
    """
    x = gather_inputs(inputs, settings)
    R = max(x.n_cameras * x.n_gaussians, 1) if capacity is None else capacity.rows
    made = project_fwd(x, settings, R, True, for_lists, n_ids=n_ids)
    drawn = None if inputs.mask_logits is None else made.masks
    means2d, values, drawn = differentiable_projection(
        x, settings, made.means2d, made.values, drawn, made.rows, mean_in_records=True
    )
    masks = inputs.masks if inputs.mask_logits is None else drawn
    return replace(made, means2d=means2d, values=values, masks=masks)


@torch.no_grad()
def project_behind(
    first: Projected,
    inputs: RasterInputs,
    settings: RenderSettings,
    boxes: Tensor | None = None,  # [C, 4]
) -> Projected:
    """Project M further Gaussians into the rows that a projection of N has left; no gradients.

    Args:
        first: Of `project` in the same cameras, with N + M as `n_ids`; its rows are filled up.
        inputs: Others. Their number in gaussian_ids follows the N.
        settings: Of the same size.
        boxes: Left, top, right, bottom of the pixels that have to be reached; who reaches none is
            culled. None: all. [C, 4] int32

    Returns:
        `values`, `gaussian_ids` and what binning needs are of all; `workspace`[0] says how many
        rows all need; means2d, masks, radii and rows are of the further.
    """
    x = gather_inputs(inputs, settings)
    n_ids = first.n_gaussians + x.n_gaussians
    R = len(first.values)
    made = project_fwd(x, settings, R, True, n_ids=n_ids, behind=first, boxes=boxes)
    made.workspace[NONFINITE] += first.workspace[NONFINITE]
    return made
