"""Lists of bins and tiles against a walk over every row of every Gaussian, one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import binning
from kernels.binning import ListsLayout, TileLists, bin_tiles, isect_tiles
from kernels.binning.depth_order import MEMBER_SHARE, DepthOrder, depth_order
from kernels.binning.row_keys import row_keys
from kernels.device.running_sum import scan_programs
from kernels.projection.ellipse import SIDE, half_height, load_ellipse, row_range, row_span
from kernels.projection.record import (
    RECORD_SIZE,
    record_conics,
    record_depths,
    record_log2_opacities,
    record_means,
)
from kernels.projection.records import Records
from kernels.runtime.launch import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(0x7F7F)


@triton.jit
def _spans_kernel(records_ptr, spans_ptr, first_ptr, M, tiles_x, tiles_y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < M
    mx, my, A, B, C, t2 = load_ellipse(records_ptr + i * RECORD_SIZE, mask)
    first, last = row_range(my, half_height(A, B, C, t2), tiles_y)
    tl.store(first_ptr + i, first, mask=mask)
    for row in range(tiles_y):
        rows = tl.zeros([BLOCK], tl.int32) + row
        x0, x1 = row_span(rows, mx, my, A, B, C, t2, tiles_x)
        x1 = tl.where((row >= first) & (row <= last), x1, x0 - 1)
        tl.store(spans_ptr + (i * tiles_y + row) * 2, x0, mask=mask)
        tl.store(spans_ptr + (i * tiles_y + row) * 2 + 1, x1, mask=mask)


class Scene(NamedTuple):
    records: Records  # C N rows
    depth_keys: Tensor  # [C N]
    tile_counts: Tensor  # [3, C N]
    lists: list[list[int]]  # rows of each tile from front to back


def _counts(spans: list[list[int]], first: int) -> list[int]:
    """Tiles, bins from the first to the last that is touched in each row of them, and the latter
    in the first four rows that the ellipse reaches, inside the image or beside it."""
    side, widths, touched = int(SIDE.value), [], []
    for y in range(first // side * side, len(spans), side):
        columns = [x // side for x0, x1 in spans[y : y + side] for x in range(x0, x1 + 1)]
        touched += columns
        widths.append(max(columns) - min(columns) + 1 if columns else 0)
    packed = sum(min(w, 255) << 8 * k for k, w in enumerate(widths[:4]))
    return [len(touched), sum(widths), packed - (packed >> 31 << 32)]


def make_scene(sigma: Tensor, width: int, height: int, C: int = 1, seed: int = 0) -> Scene:
    """Ellipses of sigma [C N, 2] pixels, turned and spread over and around the image."""
    g = torch.Generator().manual_seed(seed)
    M = len(sigma)
    angle = 3.2 * torch.rand(M, generator=g)
    c, s = angle.cos(), angle.sin()
    a, b = sigma[:, 0] ** -2, sigma[:, 1] ** -2
    records = torch.zeros(M, RECORD_SIZE.value)
    size = torch.tensor([width, height])
    record_means(records)[:] = size * (1.2 * torch.rand(M, 2, generator=g) - 0.1)
    record_conics(records)[:] = torch.stack(
        [c * c * a + s * s * b, c * s * (a - b), s * s * a + c * c * b], 1
    )
    record_log2_opacities(records)[:] = torch.log2(1 / 255 + torch.rand(M, generator=g))
    # a few share their depth: ties in ascending row
    depths = 1.0 + torch.randint(0, 2 * M, (M,), generator=g).float()
    record_depths(records)[:] = depths
    tiles_x, tiles_y = -(-width // 8), -(-height // 8)
    records = records.to(DEVICE)
    spans = torch.empty(M, tiles_y, 2, dtype=torch.int32, device=DEVICE)
    first = torch.empty(M, dtype=torch.int32, device=DEVICE)
    grid = (-(-M // 32),)
    launch(_spans_kernel, grid, records, spans, first, M, tiles_x, tiles_y, BLOCK=32)
    lists: list[list[int]] = [[] for _ in range(C * tiles_x * tiles_y)]
    rows = spans.tolist()
    counts = [_counts(r, f) for r, f in zip(rows, first.tolist(), strict=True)]
    for i in torch.sort(depths, stable=True).indices.tolist():
        for y, (x0, x1) in enumerate(rows[i]):
            for x in range(x0, x1 + 1):
                lists[(i * C // M * tiles_y + y) * tiles_x + x].append(i)
    ids = torch.arange(M, dtype=torch.int32, device=DEVICE)
    keys = depths.view(torch.int32).to(DEVICE)
    counts = torch.tensor(counts, dtype=torch.int32, device=DEVICE).T.contiguous()
    return Scene(Records(records, ids, None, C, M // C, width, height), keys, counts, lists)


def random_sigma(n: int, seed: int = 0) -> Tensor:
    """Specks, ellipses, needles and a few that cover everything."""
    sigma = 0.5 + 9.0 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) ** 3
    sigma[::9, 0] *= 8.0
    sigma[1::40] = 200.0
    return sigma


def bin_scene(
    s: Scene, spare: int = 0, with_slots: bool = False
) -> tuple[DepthOrder, TileLists, Tensor]:
    """Depth order, lists with `spare` entries more than needed, and the workspace."""
    M, r = len(s.depth_keys), s.records
    workspace = torch.zeros(4 + 2 * scan_programs(M), dtype=torch.int32, device=DEVICE)
    tiles, bins = s.tile_counts[:2].sum(1).tolist()
    needed = max(tiles, MEMBER_SHARE.value * bins)
    depth, members = depth_order(s.depth_keys, s.tile_counts, workspace, needed + spare)
    assert int(members.total) == bins and int(workspace[1]) == needed
    layout = ListsLayout(r.n_cameras, r.tiles_x, r.tiles_y, needed + spare, with_slots)
    return depth, isect_tiles(r, depth, members, layout), workspace


def as_lists(lists: TileLists) -> list[list[int]]:
    offsets, ids = lists.offsets.tolist(), lists.flatten_ids.tolist()
    return [ids[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def check_tile_order(lists: TileLists, want: list[list[int]]) -> None:
    lengths = [len(want[t]) for t in lists.tile_order.tolist()]
    assert sorted(lists.tile_order.tolist()) == list(range(len(want)))
    # classes of four per doubling of length + 1
    assert all(b + 1 <= (a + 1) * 2**0.25 * 1.001 for a, b in zip(lengths, lengths[1:]))  # noqa: B905


@pytest.mark.parametrize("with_slots", [False, True])
@pytest.mark.parametrize("n, width, height, C", [(1, 8, 8, 1), (40, 37, 21, 2), (80, 100, 75, 1)])
def test_isect_tiles(n: int, width: int, height: int, C: int, with_slots: bool) -> None:
    s = make_scene(random_sigma(C * n), width, height, C)
    depth, lists, workspace = bin_scene(s, 5, with_slots)
    order = torch.sort(s.depth_keys, stable=True).indices
    total = sum(map(len, s.lists))
    assert torch.equal(depth.order.long(), order)
    assert torch.equal(depth.cumulative, s.tile_counts[0, order].cumsum(0).int())
    assert int(workspace[3]) == total and total > 0
    assert as_lists(lists) == s.lists
    check_tile_order(lists, s.lists)
    assert (lists.slots is not None) == with_slots
    if lists.slots is not None:
        # a Gaussian's slots are a range, and Gaussians stand in depth order
        slots = lists.slots[:total].long()
        assert torch.equal(slots.sort().values, torch.arange(total, device=DEVICE))
        rank = torch.searchsorted(depth.cumulative.long(), slots, right=True)
        assert torch.equal(order[rank].int(), lists.flatten_ids[:total])


@pytest.mark.parametrize("n_rows", [None, 70, 0])
def test_keys_of_received_records(n_rows: int | None) -> None:
    """Depth keys and tile counts are formed anew; what is behind the last row does not count."""
    s = make_scene(random_sigma(80), 100, 75)
    n = 80 if n_rows is None else n_rows
    count = None if n_rows is None else torch.tensor([n], dtype=torch.int32, device=DEVICE)
    values = s.records.values.clone()
    values[n:] = torch.nan
    if n > 9:
        record_depths(values)[9] = 0.0  # taken by a projection, then culled
    keys = row_keys(replace(s.records, values=values, n_rows=count))
    seen = torch.arange(80, device=DEVICE) < n
    seen[9] = False
    want = torch.where(seen, s.depth_keys, 0x7F800000)
    assert torch.equal(keys.depth_keys, want)
    assert torch.equal(keys.tile_counts, torch.where(seen, s.tile_counts, 0))
    assert keys.workspace.tolist() == [n, 0, 0, 0, 0, 0]
    lists = bin_tiles(replace(s.records, values=values, n_rows=count), deterministic=True)
    assert as_lists(lists) == [[r for r in rows if seen[r]] for rows in s.lists]
    assert lists.counts is not None and lists.counts[[0, 3]].tolist() == [n, int(lists.offsets[-1])]


@pytest.mark.parametrize("parts, window", [(1, 2), (7, 4)])
def test_long_lists(parts: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bins of many chunks, and chunks of many bins."""
    monkeypatch.setattr(binning, "PARTS", parts)
    monkeypatch.setattr(binning, "LIST_WINDOW", window)
    sigma = torch.cat([torch.full((250, 2), 9.0), torch.full((60, 2), 0.4)])
    s = make_scene(sigma, 40, 50)
    _, lists, _ = bin_scene(s)
    assert max(map(len, s.lists)) > 3 * 32
    assert as_lists(lists) == s.lists


def test_many_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ids of bins leave no bits for hits, these lie in tables."""
    s = make_scene(random_sigma(60), 100, 40)
    monkeypatch.setattr(binning, "KEY_BITS", 3)
    _, lists, _ = bin_scene(s)
    assert as_lists(lists) == s.lists


@pytest.mark.parametrize("missing", [1, 300])
def test_overflow(missing: int) -> None:
    """What has no room is dropped, the need is told, and nothing else is written."""
    s = make_scene(random_sigma(60), 100, 40)
    _, lists, workspace = bin_scene(s, -missing)
    capacity = int(workspace[1]) - missing
    assert capacity + missing >= sum(map(len, s.lists)) == int(workspace[3])
    assert lists.flatten_ids.shape[0] == capacity
    for got, want in zip(as_lists(lists), s.lists, strict=True):
        rest = iter(want)
        assert all(i in rest for i in got), "not in the order of the whole list"
    assert int(lists.offsets.max()) <= capacity


def test_nothing_visible() -> None:
    s = make_scene(random_sigma(40), 50, 20)
    empty: dict[str, Any] = {"lists": [[] for _ in s.lists]}
    s = s._replace(tile_counts=torch.zeros_like(s.tile_counts), **empty)
    _, lists, workspace = bin_scene(s, 10)
    assert workspace[:4].tolist() == [0, 0, 0, 0]
    assert as_lists(lists) == s.lists
    check_tile_order(lists, s.lists)


@pytest.mark.gpu
def test_large() -> None:
    """A million entries: the same lists again and again, whatever the timing."""
    s = make_scene(random_sigma(20_000), 640, 480)
    first = None
    for _ in range(20):
        _, lists, _ = bin_scene(s)
        total = int(lists.offsets[-1])
        got = (lists.offsets.clone(), lists.flatten_ids[:total].clone())
        if first is None:
            first = got
            assert as_lists(lists) == s.lists
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
