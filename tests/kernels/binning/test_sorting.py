"""Sorting against torch.sort: order, stability, payloads, bit ranges and device-side counts."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from kernels.binning import sorting
from kernels.binning.sort_digits import CHUNK_SIZES
from kernels.binning.sorting import SORT_WINDOW, plan_sort

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Exchange = Literal["global", "shared"]
# The interpreter has no shared memory of its own: one design tells as much as both there. Keys that
# have programs for all chunks at once (one chunk in the interpreter) take one launch, unless
# "passes" asks for one per pass.
WAYS = ["global", "shared", "passes"] if DEVICE == "cuda" else ["global", "passes"]
N_CHUNK = CHUNK_SIZES[0]


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(0x7F7F7F7)


@pytest.fixture(params=WAYS)
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    if request.param != "passes":
        return request.param
    monkeypatch.setattr(sorting, "programs_at_once", lambda *_: 0)
    return "shared"


def random_keys(n: int, bits: int = 31, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + n)
    return torch.randint(0, 2**bits, (n,), generator=g, dtype=torch.int64).to(torch.int32)


def check_sorted(
    keys: Tensor,
    values: Tensor | None,
    begin_bit: int,
    end_bit: int,
    exchange: Exchange,
    n_valid: int | None = None,
) -> None:
    keys = keys.to(DEVICE)
    values = None if values is None else values.to(DEVICE)
    before = keys.clone()
    count = None if n_valid is None else torch.tensor([n_valid], dtype=torch.int32, device=DEVICE)
    plan = plan_sort(keys, values, end_bit, count, begin_bit=begin_bit, exchange=exchange)
    sorted_keys, sorted_values = plan.run()
    n = keys.shape[0] if n_valid is None else min(n_valid, keys.shape[0])
    compared = (before[:n].to(torch.int64) >> begin_bit) & ((1 << (end_bit - begin_bit)) - 1)
    order = torch.sort(compared, stable=True).indices
    want = order.to(torch.int32) if values is None else values[order]
    assert sorted_keys.shape == sorted_values.shape == keys.shape
    assert sorted_keys.dtype == sorted_values.dtype == torch.int32
    assert torch.equal(sorted_keys[:n], before[:n][order]), "keys"
    assert torch.equal(sorted_values[:n], want), "values"
    assert torch.equal(keys, before), "the input changed"


@pytest.mark.parametrize("n", [0, 1, 63, 1000, N_CHUNK - 1, N_CHUNK, N_CHUNK + 1, 5000])
def test_sizes(n: int, exchange: Exchange) -> None:
    check_sorted(random_keys(n, 13), None, 0, 13, exchange)
    check_sorted(random_keys(n), random_keys(n, seed=1), 0, 31, exchange)


@pytest.mark.parametrize("bits", [(0, 1), (0, 4), (3, 8), (0, 9), (5, 22), (23, 31), (30, 31)])
def test_bit_ranges(bits: tuple[int, int], exchange: Exchange) -> None:
    check_sorted(random_keys(5000), None, *bits, exchange)


@pytest.mark.parametrize("pattern", ["equal", "largest", "ascending", "descending", "few", "runs"])
def test_patterns(pattern: str, exchange: Exchange) -> None:
    i = torch.arange(9001, dtype=torch.int32)
    keys = {
        "equal": torch.full_like(i, 0x2BCD),
        "largest": torch.full_like(i, 0x7FFFFFFF),
        "ascending": i,
        "descending": i.flip(0).contiguous(),
        "few": i * 7919 % 3,
        "runs": i // 100 % 11,
    }[pattern]
    check_sorted(keys, None, 0, 16, exchange)


@pytest.mark.parametrize("n", [1, CHUNK_SIZES[1] - 1, CHUNK_SIZES[1] + 1, 9001])
def test_large_chunks(n: int, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as many keys take them."""
    monkeypatch.setattr(sorting, "SMALL", 0)
    check_sorted(random_keys(n, 13), random_keys(n, seed=1), 0, 13, exchange)
    check_sorted(torch.full((n,), 0x2BCD, dtype=torch.int32), None, 0, 16, exchange)


@pytest.mark.parametrize("n_valid", [0, 1, N_CHUNK, 7000, 9000, 12000])
def test_n_valid(n_valid: int, exchange: Exchange) -> None:
    keys = random_keys(9000, 16)
    check_sorted(keys, random_keys(9000, seed=2), 0, 16, exchange, n_valid)
    # keys past n_valid are never looked at
    keys[n_valid:] = 0
    check_sorted(keys, None, 0, 16, exchange, n_valid)


def test_many_chunks() -> None:
    """More chunks than a program looks at together, and on a GPU more than run at once."""
    chunks = SORT_WINDOW + 2 if DEVICE == "cpu" else 1000
    keys = random_keys(chunks * N_CHUNK - 5, 8)
    check_sorted(keys, None, 0, 8, "shared")


@pytest.mark.parametrize("way", WAYS[:-1])
def test_two_chunks_per_program(way: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    n_programs = 3 if DEVICE == "cuda" else 1
    monkeypatch.setattr(sorting, "programs_at_once", lambda _: n_programs)
    n = 2 * n_programs * N_CHUNK - 5
    check_sorted(random_keys(n), None, 0, 31, way, n)
    check_sorted(random_keys(n, 11), random_keys(n, seed=4), 0, 11, way, n - N_CHUNK)


def test_depths() -> None:
    """Bit patterns of positive floats ascend with them; infinity comes last, in input order."""
    depths = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 100 + 0.01
    depths[::7] = float("inf")
    check_sorted(depths.view(torch.int32), None, 0, 31, "shared")


@pytest.mark.gpu
def test_a_graph(exchange: Exchange) -> None:
    keys = random_keys(300_000).to(DEVICE)
    plan_sort(keys, None, 31, exchange=exchange).run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = plan_sort(keys, None, 31, exchange=exchange).run()
    for seed in range(3):
        keys.copy_(random_keys(300_000, seed=seed))
        graph.replay()
        want = torch.sort(keys, stable=True)
        assert torch.equal(got[0], want.values)
        assert torch.equal(got[1].long(), want.indices)


@pytest.mark.parametrize("programs", [1, 20, 108, 132])
def test_sizes_by_way_name_every_way_of_sorting(programs: int) -> None:
    def way(n: int) -> tuple[int, bool, bool]:
        n_chunks = -(-n // sorting.chunk_of(n))
        full, counted = (n_chunks <= sorting.most_chunks(programs, x) for x in (True, False))
        return sorting.chunk_of(n), full, counted

    sizes = sorting.sizes_by_way(programs)
    ways = [way(n) for n in sizes]
    assert len(set(ways)) == len(ways)
    assert set(ways) == {way(n) for n in range(1, 1_500_000, 1021)}
