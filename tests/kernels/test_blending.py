"""rasterize_to_pixels and the tile lists against a dense float64 blend of every pair."""

from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.binning import depth_order, isect_tiles
from kernels.blending import Blend, rasterize_to_pixels
from kernels.blending_backward import sum_rows_kernel
from kernels.constants import ALPHA_MAX, ALPHA_MIN, TILE_SIZE, TRANSMITTANCE_MIN
from kernels.contributions import contributions
from kernels.ellipse import load_ellipse
from kernels.launch import launch
from kernels.lookback import scan_programs
from kernels.projection_forward import count_tiles

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# interpreted kernels are slow; either way tiles stick out at both edges
SIZE = (37, 21) if ON_GPU else (21, 13)


@triton.jit
def _count_kernel(records_ptr, counts_ptr, M, tiles_x, tiles_y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < M
    mx, my, A, B, C, t2 = load_ellipse(records_ptr + i * 16, mask)
    tiles, bins, widths = count_tiles(mask, mx, my, A, B, C, t2, tiles_x, tiles_y)
    tl.store(counts_ptr + i, tiles, mask=mask)
    tl.store(counts_ptr + M + i, bins, mask=mask)
    tl.store(counts_ptr + 2 * M + i, widths, mask=mask)


class Scene(NamedTuple):
    records: Tensor  # [C, N, 16]
    width: int
    height: int

    @property
    def rows(self) -> Tensor:
        """The records as projection.py lays them out when nothing is culled."""
        return self.records.reshape(-1, 16)

    @property
    def gaussian_ids(self) -> Tensor:
        return torch.arange(len(self.rows), dtype=torch.int32, device=DEVICE)


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
    order = records[..., 7].detach().argsort(1)
    sort = lambda t: torch.gather(t, 1, order[..., None].expand(-1, -1, t.shape[-1]))  # noqa: E731
    r, f = sort(records), sort(features)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([x, y], -1).to(records).reshape(1, -1, 1, 2)
    dx, dy = (pixel - r[:, None, :, :2]).unbind(-1)
    A, B, C = (r[:, None, :, k] for k in (2, 3, 4))
    raw = torch.exp2(r[:, None, :, 5]) * torch.exp(-0.5 * (A * dx**2 + C * dy**2) - B * dx * dy)
    # straight through the clamp
    alpha = raw + (raw.clamp(max=ALPHA_MAX) - raw).detach()
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    e = alpha * r[:, None, :, 6]
    after = torch.cumprod(1 - e, -1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
    weights = torch.where(after >= TRANSMITTANCE_MIN, before * e, 0.0)
    image = torch.einsum("cpn,cnd->cpd", weights, f)
    shape = (len(r), height, width)
    back = torch.argsort(order, 1)[:, None].expand_as(weights)
    weights = torch.gather(weights, 2, back)
    alphas = weights.sum(-1).reshape(*shape, 1)
    return image.reshape(*shape, -1), alphas, weights.reshape(*shape, -1)


def lists_of(scene: Scene, sort: str = "triton", with_slots: bool = True):
    C, N, _ = scene.records.shape
    tiles_x, tiles_y = -(-scene.width // TILE_SIZE), -(-scene.height // TILE_SIZE)
    counts = torch.zeros(3, C * N, dtype=torch.int32, device=DEVICE)
    workspace = torch.zeros(4 + 2 * scan_programs(C * N), dtype=torch.int32, device=DEVICE)
    _count_kernel[(triton.cdiv(C * N, 32),)](
        scene.records, counts, C * N, tiles_x, tiles_y, BLOCK=32
    )
    keys = scene.rows[:, 7].contiguous().view(torch.int32)
    capacity = int(torch.maximum(counts[0].sum(), 3 * counts[1].sum())) + 37
    depth, bins = depth_order(keys, counts, workspace, capacity, sort)
    n = int(depth.cumulative[-1])
    assert torch.equal(depth.cumulative, counts[0, depth.order.long()].cumsum(0).int())
    assert int(workspace[3]) == n
    lists = isect_tiles(
        scene.rows, scene.gaussian_ids, depth, bins, capacity, C, N, tiles_x, tiles_y, with_slots
    )
    assert (lists.slots is not None) == with_slots
    return depth, lists, tiles_x, tiles_y


def blend(scene: Scene, **flags) -> Blend:
    depth, lists, tiles_x, tiles_y = lists_of(scene)
    defaults = {
        "first_column": 8, "n_features": 3, "shared": False, "colors_only": True,
        "mask_gradient": True, "absgrad": False, "deterministic": False, "exact": True,
        "gaussian_ids": None,
    }  # fmt: skip
    rows = scene.gaussian_ids.view(scene.records.shape[:2])
    sizes = {"width": scene.width, "height": scene.height, "tiles_x": tiles_x, "tiles_y": tiles_y}
    return Blend(**sizes, rows=rows, depth=depth, lists=lists, **(defaults | flags))


@pytest.mark.parametrize("with_slots", [False, True])
@pytest.mark.parametrize("sort", ["torch", "triton"])
@pytest.mark.parametrize("N, width, height", [(1, 8, 8), (40, 37, 21), (90, 33, 40)])
def test_isect_tiles(N, width, height, sort, with_slots):
    scene = make_scene(N, width, height, C=2)
    _, lists, tiles_x, tiles_y = lists_of(scene, sort, with_slots)
    r = scene.records.double().cpu()
    _, _, weights = dense(r.index_fill(2, torch.tensor([6]), 1e-6), r[..., 8:11], width, height)
    offsets, ids = lists.offsets.tolist(), lists.flatten_ids.tolist()
    for camera in range(2):
        z = r[camera, :, 7]
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


CASES = {
    "colors": {},
    "colors-fast": {"exact": False},
    "float32": {"colors_only": False},
    "with-depth": {"colors_only": False, "n_features": 4},
    "depth": {"colors_only": False, "n_features": 1, "first_column": 11},
    "deterministic": {"deterministic": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("N, width, height, C", [(1, 8, 8, 1), (60, *SIZE, 2)])
def test_rasterize_to_pixels(case, N, width, height, C, assert_close):
    if case == "colors-fast" and N == 1:
        pytest.skip("one rounding per product averages out over many pairs, not within one sum")
    torch.manual_seed(0)
    scene = make_scene(N, width, height, C)
    args = blend(scene, **CASES[case])
    first, D = args.first_column, args.n_features
    records = scene.records.clone().requires_grad_()
    means2d = scene.records[..., :2].clone().requires_grad_()
    background = torch.rand(C, D, device=DEVICE).requires_grad_()
    colors, alphas = rasterize_to_pixels(means2d, records.view(-1, 16), None, background, args)
    want_records = scene.records.double().requires_grad_()
    want_background = background.detach().double().requires_grad_()
    features = want_records[..., first : first + D]
    want, want_alphas, _ = dense(want_records, features, width, height)
    want = want + (1 - want_alphas) * want_background[:, None, None]
    assert_close("colors", colors, want, 1e-5)
    assert_close("alphas", alphas, want_alphas, 1e-5)

    v_colors, v_alphas = torch.randn_like(colors), torch.randn_like(alphas)
    ((colors * v_colors).sum() + (alphas * v_alphas).sum()).backward()
    ((want * v_colors).sum() + (want_alphas * v_alphas).sum()).backward()
    limit = 1e-3 if case == "colors-fast" else 2e-4
    want_v = want_records.grad
    assert_close("v_means2d", means2d.grad, want_v[..., :2], limit)
    assert_close("v_conics", records.grad[..., 2:5], want_v[..., 2:5], limit)
    assert_close("v_log2_opacity", records.grad[..., 5], want_v[..., 5], limit)
    assert_close("v_mask", records.grad[..., 6], want_v[..., 6], limit)
    got_f, want_f = records.grad[..., first : first + D], want_v[..., first : first + D]
    assert_close("v_features", got_f, want_f, limit)
    assert_close("v_backgrounds", background.grad, want_background.grad, limit)


@pytest.mark.parametrize("place", ["shared", "camera", "row"])
def test_wide_features(place, assert_close):
    scene, D = make_scene(30, *SIZE, C=2), 9
    ids = None if place == "row" else scene.gaussian_ids
    flags = {"shared": place == "shared", "gaussian_ids": ids}
    args = blend(scene, colors_only=False, n_features=D, first_column=0, **flags)
    shape = {"shared": (30, D), "camera": (2, 30, D), "row": (60, D)}[place]
    features = torch.randn(shape, device=DEVICE).requires_grad_()
    records = scene.records.clone().requires_grad_()
    rows = records.view(-1, 16)
    colors, alphas = rasterize_to_pixels(records[..., :2], rows, features, None, args)
    want_records = scene.records.double().requires_grad_()
    want_features = features.detach().double().requires_grad_()
    want, want_alphas, _ = dense(
        want_records, want_features.view(-1, 30, D).expand(2, 30, D), *SIZE
    )
    assert_close("colors", colors, want, 1e-5)
    v_colors, v_alphas = torch.randn_like(colors), torch.randn_like(alphas)
    ((colors * v_colors).sum() + (alphas * v_alphas).sum()).backward()
    ((want * v_colors).sum() + (want_alphas * v_alphas).sum()).backward()
    assert_close("v_features", features.grad, want_features.grad, 2e-4)
    assert_close("v_conics", records.grad[..., 2:5], want_records.grad[..., 2:5], 2e-4)
    assert_close("v_mask", records.grad[..., 6], want_records.grad[..., 6], 2e-4)


def test_absgrad(assert_close):
    scene = make_scene(25, 24, 17)
    means2d = scene.records[..., :2].clone().requires_grad_()
    args = blend(scene, absgrad=True)
    colors, _ = rasterize_to_pixels(means2d, scene.rows, None, None, args)
    v = torch.randn_like(colors)
    colors.backward(v)
    want = torch.zeros(1, 25, 2, dtype=torch.float64, device=DEVICE)
    for y in range(17):
        for x in range(24):
            r = scene.records.double().requires_grad_()
            one = torch.zeros_like(v).double()
            one[:, y, x] = v[:, y, x].double()
            dense(r, r[..., 8:11], 24, 17)[0].backward(one)
            want += r.grad[..., :2].abs()
    assert_close("absgrad", means2d.absgrad, want, 2e-4)


def test_contributions(assert_close):
    scene = make_scene(50, 31, 22, C=2)
    _, lists, tiles_x, tiles_y = lists_of(scene)
    got = contributions(scene.rows, scene.gaussian_ids, lists, 2, 50, 31, 22, tiles_x, tiles_y)
    r = scene.records.double()
    weights = dense(r, r[..., 8:11], 31, 22)[2].reshape(-1, 50)
    assert_close("contrib_max", got["contrib_max"], weights.amax(0), 1e-5)
    assert_close("contrib_sum", got["contrib_sum"], weights.sum(0), 1e-5)
    assert torch.equal(got["contrib_count"].cpu(), (weights > 0).sum(0).cpu())
    best, name = weights.max(1)
    top = torch.bincount(name[best > 0], minlength=50)
    assert torch.equal(got["contrib_top"].cpu(), top.cpu())


def test_no_entries():
    scene = make_scene(3, 16, 9)
    args = blend(Scene(scene.records[:, :1] * 0 + 1e6, 16, 9))
    background = torch.rand(1, 3, device=DEVICE)
    colors, alphas = rasterize_to_pixels(
        scene.records[:, :1, :2], scene.rows[:1], None, background, args
    )
    assert torch.equal(colors, background[:, None, None].expand_as(colors))
    assert torch.equal(alphas, torch.zeros_like(alphas))


def test_sums_end_with_the_room_for_pairs() -> None:
    """What a captured step without enough room sums is not used, but must not be read elsewhere."""
    around = torch.full((40, 16), torch.nan, device=DEVICE)
    around[:20] = torch.rand(20, 16, device=DEVICE)
    entries = around[:20]
    order = torch.tensor([2, 0, 1, 3], dtype=torch.int32, device=DEVICE)
    cumulative = torch.tensor([3, 18, 25, 39], dtype=torch.int32, device=DEVICE)
    sums = torch.full((4, 16), torch.nan, device=DEVICE)
    launch(
        sum_rows_kernel, (4,), entries, order, cumulative, sums, 20,
        WIDE_ORDER=False, BLOCK=16, num_warps=1,
    )  # fmt: skip
    parts = [entries[3:18], entries[18:20], entries[:3], entries[20:]]
    want = torch.stack([part.sum(0) for part in parts])
    torch.testing.assert_close(sums, want)
