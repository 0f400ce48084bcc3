"""Blending and the tile lists against a dense float64 blend of every record and pixel."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kernels import Records, RenderSettings, TileLists, bin_tiles, blend
from kernels.blending import (
    BlendSettings,
    Features,
    blend_fwd,
    blend_settings,
    differentiable_blend,
)
from kernels.blending.backward import sum_rows_kernel
from kernels.blending.contributions import contributions
from kernels.constants import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from kernels.projection.record import (
    DEPTH_FEATURE,
    MASK,
    RECORD_SIZE,
    record_absgrads,
    record_colors,
    record_conics,
    record_depths,
    record_log2_opacities,
    record_masks,
    record_means,
)
from kernels.runtime.launch import launch

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# interpreted kernels are slow; either way tiles stick out at both edges
SIZE = (37, 21) if ON_GPU else (21, 13)


class Scene(NamedTuple):
    records: Tensor  # [C, N, 16]
    width: int
    height: int

    @property
    def rows(self) -> Tensor:
        """Row of every camera and Gaussian: none is culled."""
        C, N, _ = self.records.shape
        return torch.arange(C * N, dtype=torch.int32, device=DEVICE).view(C, N)

    def received(self, values: Tensor | None = None) -> Records:
        """Records from elsewhere than a projection."""
        C, N, size = self.records.shape
        values = (self.records if values is None else values).view(C * N, size)
        return Records(values, self.rows.flatten(), None, C, N, self.width, self.height)


def make_scene(N: int, width: int, height: int, C: int = 1, opacity: float = 1.0) -> Scene:
    """Random ellipses of 1 to 12 pixels at distinct depths; half of the masks are 0."""
    g = torch.Generator().manual_seed(N + width)
    uniform = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    mean = uniform(C, N, 2) * torch.tensor([width + 8.0, height + 8.0]) - 4.0
    sigma = 1.0 + 11.0 * uniform(C, N, 2) ** 2
    angle = 3.2 * uniform(C, N)
    c, s = angle.cos(), angle.sin()
    a, b = sigma[..., 0] ** -2, sigma[..., 1] ** -2
    conic = torch.stack([c * c * a + s * s * b, c * s * (a - b), s * s * a + c * c * b], -1)
    o = ALPHA_MIN + (opacity - ALPHA_MIN) * uniform(C, N)
    z = torch.argsort(uniform(C, N), dim=1).float() + 1.0
    m = (uniform(N) < 0.5).float().expand(C, N)
    colors = uniform(C, N, 3)
    lo = torch.log2(o)[..., None]
    high = colors.half()
    halves = torch.stack([high, (colors - high.float()).half()], -1).reshape(C, N, 6)
    halves = torch.cat([torch.ones(C, N, 1).half(), lo.half(), halves], -1)
    columns = [mean, conic, lo, m[..., None], z[..., None], colors, z[..., None]]
    records = torch.cat([*columns, halves.view(torch.float32)], -1)
    return Scene(records.to(DEVICE), width, height)


def dense(records: Tensor, features: Tensor, width: int, height: int) -> tuple[Tensor, ...]:
    """Colours [C H W D], alphas and weights [C H W N] of all pairs, in the dtype of records."""
    order = record_depths(records).detach().argsort(1)
    sort = lambda t: torch.gather(t, 1, order[..., None].expand(-1, -1, t.shape[-1]))  # noqa: E731
    r, f = sort(records), sort(features)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([x, y], -1).to(records).reshape(1, -1, 1, 2)
    r = r[:, None]
    dx, dy = (pixel - record_means(r)).unbind(-1)
    A, B, C = record_conics(r).unbind(-1)
    sigma = 0.5 * (A * dx**2 + C * dy**2) + B * dx * dy
    raw = torch.exp2(record_log2_opacities(r)) * torch.exp(-sigma)
    # straight through the clamp
    alpha = raw + (raw.clamp(max=ALPHA_MAX) - raw).detach()
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    e = alpha * record_masks(r)
    after = torch.cumprod(1 - e, -1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
    weights = torch.where(after >= TRANSMITTANCE_MIN, before * e, 0.0)
    image = torch.einsum("cpn,cnd->cpd", weights, f)
    shape = (len(r), height, width)
    back = torch.argsort(order, 1)[:, None].expand_as(weights)
    weights = torch.gather(weights, 2, back)
    alphas = weights.sum(-1).reshape(*shape, 1)
    return image.reshape(*shape, -1), alphas, weights.reshape(*shape, -1)


def wide(
    scene: Scene, values: Tensor, means2d: Tensor, table: Tensor, shared: bool
) -> tuple[Tensor, Tensor]:
    """The pipeline's blending: features by Gaussian, the gradient of MEAN in means2d."""
    C, N, _ = scene.records.shape
    records = scene.received(values)
    lists = bin_tiles(records)
    settings = RenderSettings(scene.width, scene.height, exact=True)
    s = blend_settings(settings, C, N, table, True)
    assert s.shared == shared
    features = Features(table, records.gaussian_ids)
    images = blend_fwd(records.values.detach(), lists, s, features, None)
    return differentiable_blend(
        images,
        records.values,
        lists.buffer,
        lists.layout,
        None,
        s,
        features,
        None,
        means2d,
        scene.rows,
    )


@pytest.mark.parametrize("with_slots", [False, True])
@pytest.mark.parametrize("N, width, height", [(1, 8, 8), (40, 37, 21), (90, 33, 40)])
def test_lists(N, width, height, with_slots):
    scene = make_scene(N, width, height, C=2)
    lists = bin_tiles(scene.received(), deterministic=with_slots)
    assert (lists.slots is not None) == with_slots
    tiles_x, tiles_y = lists.layout.tiles_x, lists.layout.tiles_y
    r = scene.records.double().cpu()
    faint = r.index_fill(2, torch.tensor([MASK.value]), 1e-6)
    _, _, weights = dense(faint, record_colors(r), width, height)
    offsets, ids = lists.offsets.tolist(), lists.flatten_ids.tolist()
    for camera in range(2):
        z = record_depths(r[camera])
        for ty in range(tiles_y):
            for tx in range(tiles_x):
                t = (camera * tiles_y + ty) * tiles_x + tx
                got = ids[offsets[t] : offsets[t + 1]]
                rows = [i - camera * N for i in got]
                assert all(0 <= i < N for i in rows) and len(set(rows)) == len(rows)
                assert rows == sorted(rows, key=lambda i: z[i])
                tile = weights[camera, ty * 8 : ty * 8 + 8, tx * 8 : tx * 8 + 8]
                needed = set(torch.nonzero(tile.reshape(-1, N).amax(0)).flatten().tolist())
                assert needed <= set(rows), "a Gaussian misses a pixel that it reaches"
                # the ellipse is exact: at most slivers between pixel centres are extra
                assert len(rows) <= len(needed) + max(3, len(needed) // 3)


CASES: dict[str, dict[str, Any]] = {
    "colors": {},
    "colors-fast": {"exact": False},
    "with-depth": {"render_mode": "RGB+D"},
    "depth": {"render_mode": "D"},
    "expected-depth": {"render_mode": "ED"},
    "deterministic": {"deterministic": True},
}


def grad_of(x: Tensor) -> Tensor:
    """The gradient that x must have."""
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("N, width, height, C", [(1, 8, 8, 1), (60, *SIZE, 2)])
def test_blend(case, N, width, height, C, assert_close):
    if case == "colors-fast" and N == 1:
        pytest.skip("one rounding per product averages out over many pairs, not within one sum")
    torch.manual_seed(0)
    scene = make_scene(N, width, height, C)
    options: dict[str, Any] = {"exact": True} | CASES[case]
    settings = RenderSettings(width, height, **options)
    records = scene.records.clone().requires_grad_()
    received = scene.received(records)
    lists = bin_tiles(received, deterministic=settings.deterministic)
    D = 3 * settings.has_colors
    background = torch.rand(C, D, device=DEVICE).requires_grad_(D > 0)
    colors, alphas = blend(received, lists, settings, backgrounds=background)
    want_records = scene.records.double().requires_grad_()
    want_background = background.detach().double().requires_grad_(D > 0)
    features = [record_colors(want_records)] * settings.has_colors
    features += [record_depths(want_records)[..., None]] * settings.has_depth
    want, want_alphas, _ = dense(want_records, torch.cat(features, -1), width, height)
    behind = (1 - want_alphas) * want_background[:, None, None]
    want = torch.cat([want[..., :D] + behind, want[..., D:]], -1)
    if settings.expects_depth:
        want = torch.where(want_alphas > 0, want / want_alphas.clamp(min=1e-9), 0.0)
    assert_close("colors", colors, want, 1e-5)
    assert_close("alphas", alphas, want_alphas, 1e-5)

    v_colors, v_alphas = torch.randn_like(colors), torch.randn_like(alphas)
    ((colors * v_colors).sum() + (alphas * v_alphas).sum()).backward()
    ((want * v_colors).sum() + (want_alphas * v_alphas).sum()).backward()
    limit = 1e-3 if case == "colors-fast" else 2e-4
    got_v, want_v = grad_of(records), grad_of(want_records)
    for part in (record_means, record_conics, record_log2_opacities, record_masks):
        assert_close(part.__name__, part(got_v), part(want_v), limit)
    if settings.has_colors:
        assert_close("v_colors", record_colors(got_v), record_colors(want_v), limit)
        assert_close("v_backgrounds", background.grad, want_background.grad, limit)
    if settings.has_depth:
        depths = record_depths(got_v) + got_v[..., DEPTH_FEATURE.value]
        assert_close("v_depths", depths, record_depths(want_v), limit)


@pytest.mark.parametrize("place", ["shared", "camera", "row"])
def test_wide_features(place, assert_close):
    scene, D = make_scene(30, 29, 18, C=2), 9
    shape = {"shared": (30, D), "camera": (2, 30, D), "row": (60, D)}[place]
    features = torch.randn(shape, device=DEVICE).requires_grad_()
    records = scene.records.clone().requires_grad_()
    if place == "row":
        received, settings = scene.received(records), RenderSettings(29, 18, exact=True)
        colors, alphas = blend(received, bin_tiles(received), settings, features=features)
    else:
        means2d = record_means(records)
        colors, alphas = wide(scene, records, means2d, features, place == "shared")
    want_records = scene.records.double().requires_grad_()
    want_features = features.detach().double().requires_grad_()
    want, want_alphas, _ = dense(
        want_records, want_features.view(-1, 30, D).expand(2, 30, D), 29, 18
    )
    assert_close("colors", colors, want, 1e-5)
    v_colors, v_alphas = torch.randn_like(colors), torch.randn_like(alphas)
    ((colors * v_colors).sum() + (alphas * v_alphas).sum()).backward()
    ((want * v_colors).sum() + (want_alphas * v_alphas).sum()).backward()
    assert_close("v_features", features.grad, want_features.grad, 2e-4)
    for part in (record_conics, record_masks):
        assert_close(part.__name__, part(grad_of(records)), part(grad_of(want_records)), 2e-4)


def test_absgrad(assert_close):
    scene = make_scene(25, 24, 17)
    values = scene.records.clone().requires_grad_()
    received = scene.received(values)
    settings = RenderSettings(24, 17, absgrad=True, exact=True)
    colors, _ = blend(received, bin_tiles(received), settings)
    v = torch.randn_like(colors)
    colors.backward(v)
    want = torch.zeros(1, 25, 2, dtype=torch.float64, device=DEVICE)
    for y in range(17):
        for x in range(24):
            r = scene.records.double().requires_grad_()
            one = torch.zeros_like(v).double()
            one[:, y, x] = v[:, y, x].double()
            dense(r, record_colors(r), 24, 17)[0].backward(one)
            want += record_means(grad_of(r)).abs()
    assert_close("absgrad", record_absgrads(grad_of(values)), want, 2e-4)


def test_contributions(assert_close):
    scene = make_scene(50, 31, 22, C=2)
    received, sizes = scene.received(), BlendSettings(31, 22, 2, 50, 3)
    assert received.gaussian_ids is not None
    lists = bin_tiles(received)
    got = contributions(received.values, received.gaussian_ids, lists, sizes)
    r = scene.records.double()
    weights = dense(r, record_colors(r), 31, 22)[2].reshape(-1, 50)
    assert_close("contrib_max", got["contrib_max"], weights.amax(0), 1e-5)
    assert_close("contrib_sum", got["contrib_sum"], weights.sum(0), 1e-5)
    assert torch.equal(got["contrib_count"].cpu(), (weights > 0).sum(0).cpu())
    best, name = weights.max(1)
    top = torch.bincount(name[best > 0], minlength=50)
    assert torch.equal(got["contrib_top"].cpu(), top.cpu())


def test_deterministic_needs_lists_made_for_it() -> None:
    received = make_scene(3, 16, 9).received()
    with pytest.raises(ValueError, match="deterministic=True"):
        blend(received, bin_tiles(received), RenderSettings(16, 9, deterministic=True))


def test_no_entries():
    received = Scene(make_scene(3, 16, 9).records[:, :1] * 0 + 1e6, 16, 9).received()
    background = torch.rand(1, 3, device=DEVICE)
    lists: TileLists = bin_tiles(received)
    colors, alphas = blend(received, lists, RenderSettings(16, 9), backgrounds=background)
    assert torch.equal(colors, background[:, None, None].expand_as(colors))
    assert torch.equal(alphas, torch.zeros_like(alphas))


def test_sums_end_with_the_capacity() -> None:
    """Beyond the capacity, what a captured step sums is not used, but nothing else is read."""
    size = RECORD_SIZE.value
    around = torch.full((40, size), torch.nan, device=DEVICE)
    around[:20] = torch.rand(20, size, device=DEVICE)
    entries = around[:20]
    order = torch.tensor([2, 0, 1, 3], dtype=torch.int32, device=DEVICE)
    cumulative = torch.tensor([3, 18, 25, 39], dtype=torch.int32, device=DEVICE)
    sums = torch.full((4, size), torch.nan, device=DEVICE)
    launch(sum_rows_kernel, (4,), entries, order, cumulative, sums, 20, BLOCK=16, num_warps=1)
    parts = [entries[3:18], entries[18:20], entries[:3], entries[20:]]
    want = torch.stack([part.sum(0) for part in parts])
    torch.testing.assert_close(sums, want)
