"""Swaps: training goes on bit for bit as if the block had stayed; stale states raise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.blocks.prefetch import Prefetcher, next_in_turn
from gs.blocks.state import CANARY, BlockState, HostArena, StaleState
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.rows import gather_rows, keep_rows
from gs.model.specs import ParameterSpec
from gs.training.checkpoint import load_checkpoint, save_checkpoint
from gs.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state
from gs.training.run_state import RunState

STEPS = 60
MASKS = ParameterSpec("mask_logits", (2,), 0.01)


def start(n: int = 37, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    points, colors = (torch.rand(n, 3, generator=generator) for _ in range(2))
    gaussians = Gaussians.from_points(points, colors, sh_degree=2)
    gaussians.rows["seen"] = torch.arange(n, dtype=torch.int64)
    return gaussians


class Block:
    """A model with its optimizer on a device, trained towards numbers that follow from the ids."""

    def __init__(self, gaussians: Gaussians, device: str, optimizer: Any = None) -> None:
        self.gaussians = gaussians.to(device)
        self.gaussians.add_parameter(MASKS, torch.ones(len(gaussians), 2, device=device))
        self.optimizer = build_optimizer(self.gaussians, OptimConfig(), extent=1.0)
        self.sums = torch.zeros(3, device=device)
        if optimizer is not None:
            load_optimizer_state(self.optimizer, optimizer)

    def step(self, step: int) -> None:
        gaussians = self.gaussians
        ids = gaussians.rows["ids"].double()
        loss = torch.zeros((), device=gaussians.device)
        for k, parameter in enumerate(gaussians.params.values()):
            wanted = (ids * (k + 1)).sin().float().view(-1, *[1] * (parameter.dim() - 1))
            loss = loss + ((parameter - wanted) * (1 + step % 3)).square().mean()
        loss.backward()
        self.sums += gaussians.params["means"].detach().mean(dim=0)
        gaussians.rows["seen"] += step
        n = len(gaussians)
        if step == 20:
            keep_rows(gaussians, self.optimizer, gaussians.rows["ids"] % 5 != 0)
        if step == 35:
            parents = torch.arange(n // 2, device=gaussians.device)
            ids = parents.int() + gaussians.next_id
            gaussians.next_id += len(parents)
            sources = torch.cat([torch.arange(n, device=gaussians.device), parents])
            gather_rows(gaussians, self.optimizer, sources, n_kept=n, new_ids=ids)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self, step: int) -> dict[str, Any]:
        g = self.gaussians
        return RunState(
            method="3dgs",
            step=step,
            params=g.to_tensors(),
            rows=g.rows,
            next_id=g.next_id,
            active_sh_degree=g.active_sh_degree,
            sh_degree=g.sh_degree,
            optimizer=optimizer_state(self.optimizer),
            strategies={"sums": {"means": self.sums, "pairs": [(1, self.sums[:2])]}},
            extent=1.0,
        ).to_dict()

    @classmethod
    def of(cls, state: dict[str, Any], device: str) -> "Block":
        block = cls(Gaussians.from_state(state, device), device, state["optimizer"])
        block.sums = state["strategies"]["sums"]["means"]
        return block


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {path: value.detach().cpu() if isinstance(value, Tensor) else value}
    return {k: x for name, item in items for k, x in flat(item, f"{path}/{name}").items()}


def same(a: Any, b: Any) -> bool:
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    return all(
        torch.equal(x, right[k]) and x.dtype == right[k].dtype
        if isinstance(x, Tensor)
        else x == right[k]
        for k, x in left.items()
    )


def train(
    device: str, swap: Callable[[dict[str, Any]], dict[str, Any]] | None, every: int
) -> dict[str, Any]:
    block = Block(start(), device)
    for step in range(1, STEPS + 1):
        block.step(step)
        if swap is not None and step % every == 0:
            block = Block.of(swap(block.state(step)), device)
    return block.state(STEPS)


@pytest.fixture(scope="module")
def resident(one_thread: None) -> dict[str, Any]:
    return train("cpu", None, 1)


@pytest.mark.parametrize("every", [1, 7, 25])
def test_swapping_changes_nothing(resident: dict[str, Any], every: int) -> None:
    arena, between = HostArena(pinned=False, poisons=True), HostArena(pinned=False, poisons=True)

    def swap(state: dict[str, Any]) -> dict[str, Any]:
        held = BlockState.to_host(state, arena)
        for tensor in flat(state).values():  # what was live is written over
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.fill_(float("nan"))
        BlockState.to_host(Block(start(9, seed=every), "cpu").state(0), between)
        live = held.to_device("cpu")
        arena.empty()
        return live

    assert same(train("cpu", swap, every), resident)


def test_a_fresh_optimizer_would_be_noticed(resident: dict[str, Any]) -> None:
    forgetful = train("cpu", lambda state: {**state, "optimizer": {}}, 25)
    assert not same(forgetful, resident)


@pytest.mark.gpu
@pytest.mark.parametrize("every", [1, 7, 25])
@pytest.mark.parametrize("way", ["pageable", "pinned", "asynchronous"])
def test_swapping_changes_nothing_on_a_gpu(every: int, way: str) -> None:
    arena = HostArena(pinned=way != "pageable", poisons=True)
    stream = torch.cuda.Stream() if way == "asynchronous" else None

    def swap(state: dict[str, Any]) -> dict[str, Any]:
        held = BlockState.to_host(state, arena, stream)
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
        for tensor in flat_tensors(state):
            tensor.detach().zero_()
        return held.to_device("cuda", stream)

    assert same(train("cuda", swap, every), train("cuda", None, 1))


def test_nothing_is_shared() -> None:
    state, arena = Block(start(), "cpu").state(3), HostArena(pinned=False)
    held = BlockState.to_host(state, arena)
    live = held.to_device("cpu")
    memory = [
        {x.untyped_storage().data_ptr() for x in flat_tensors(value)}
        for value in (state, held.on_host(), live)
    ]
    assert len(memory[1]) == len(memory[2]) == 1
    assert not memory[0] & memory[1] and not memory[1] & memory[2] and not memory[0] & memory[2]
    live["strategies"]["sums"]["pairs"].append(2)
    assert len(held.on_host()["strategies"]["sums"]["pairs"]) == 1


def flat_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    return [x for item in value for x in flat_tensors(item)]


def test_the_next_state_comes_beforehand_and_no_other_is_taken_for_it() -> None:
    states = [BlockState.to_host(Block(start(n), "cpu").state(0), HostArena()) for n in (40, 50)]
    wanted = [state.to_device("cpu") for state in states]
    prefetcher = Prefetcher(torch.device("cpu"))
    prefetcher.begin(states[0])
    prefetcher.begin(states[1])  # one at a time
    slab = states[0].arena.bytes_of(states[0].generation)
    slab.fill_(CANARY)  # it is there already
    assert same(prefetcher.take(states[0]), wanted[0])
    prefetcher.begin(states[0])
    assert same(prefetcher.take(states[1]), wanted[1])
    states[0].arena.empty()
    with pytest.raises(StaleState):
        prefetcher.take(states[0])
    assert [next_in_turn([2, 0, 1], block) for block in (2, 0, 1)] == [0, 1, None]


def test_a_state_of_another_generation_raises() -> None:
    arena = HostArena(pinned=False, poisons=True)
    first = BlockState.to_host(Block(start(), "cpu").state(1), arena)
    views = first.tensors()
    second = BlockState.to_host(Block(start(5), "cpu").state(2), arena)
    with pytest.raises(StaleState, match="generation 1 was asked for.* holds generation 2"):
        first.to_device("cpu")
    with pytest.raises(StaleState):
        first.on_host()
    assert second.to_device("cpu")["step"] == 2
    # a reader that kept views sees the canary beyond the new state
    arena.empty()
    assert CANARY == 255 and views["params/means"].isnan().all()
    assert (views["rows/ids"] == -1).all()


def test_an_arena_grows_to_powers_of_two_and_keeps_what_it_has() -> None:
    arena = HostArena(pinned=False)
    sizes, needed = [], []
    for n in (100, 105, 90, 190, 500):
        needed.append(BlockState.to_host(Block(start(n), "cpu").state(0), arena).n_bytes)
        sizes.append(arena.n_bytes)
    assert all(size & (size - 1) == 0 for size in sizes)
    assert all(n <= size < 2 * n for n, size in zip(needed, sizes, strict=True) if n > needed[2])
    assert sizes[0] == sizes[1] == sizes[2] < sizes[3] < sizes[4]


def test_no_rows_and_no_dimension(resident: dict[str, Any]) -> None:
    state = {"none": torch.zeros(0, 3), "step": torch.tensor(7.0), "yes": torch.tensor([True])}
    back = BlockState.to_host(state, HostArena(pinned=False)).to_device("cpu")
    assert same(back, state)
    assert back["step"].shape == () and back["none"].shape == (0, 3)


def test_out_of_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = HostArena(pinned=False)

    def none_left(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    state = Block(start(), "cpu").state(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda n, **o: none_left() if n else torch.zeros(0))
        with pytest.raises(SplatrimError, match="GB of host memory are left for a block's state"):
            BlockState.to_host(state, arena)
    assert same(BlockState.to_host(state, arena).to_device("cpu"), state)


def test_a_state_on_the_host_makes_a_checkpoint(tmp_path: Any, resident: dict[str, Any]) -> None:
    state = {**resident, "strategies": {}}
    held = BlockState.to_host(state, HostArena(pinned=False))
    save_checkpoint(tmp_path / "block.pth", held.on_host())
    loaded = load_checkpoint(tmp_path / "block.pth")
    assert same(
        {k: loaded[k] for k in ("params", "rows", "optimizer")},
        {k: state[k] for k in ("params", "rows", "optimizer")},
    )
