"""A block while it is trained: as plain training, the same when swapped, captured or not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.blocks.live import BlockPlan, LiveBlock, Shared
from gs.blocks.partition import make_partition
from gs.blocks.plans import RunSettings, first_states, make_plans
from gs.blocks.schedule import Schedule
from gs.blocks.state import BlockState, HostArena
from gs.blocks.surroundings import find_surroundings, reached_boxes
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.model.splats import Frozen
from gs.training.trainer import Trainer
from tests.gs.graph_like import Watched, graph_like

CPU = torch.device("cpu")
N_STEPS = 24
__all__ = ["graph_like"]

pytestmark = pytest.mark.usefixtures("one_thread")


def parts_of(
    run: RunSettings, scene: Scene
) -> tuple[list[BlockPlan], dict[int, dict[str, Any]], ImageLoader]:
    partition = make_partition(scene, run.blocks.cut())
    schedule = Schedule(run.train.iterations, len(scene.train), tuple(map(len, partition.cameras)))
    plans = make_plans(run, scene, partition, schedule)
    states = first_states(run, scene, partition, range(partition.n_blocks), CPU)
    return plans, states, ImageLoader(scene.train)


def tensors_of(state: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {path: state}
    items = state.items() if isinstance(state, dict) else ()
    return {k: x for name, item in items for k, x in tensors_of(item, f"{path}/{name}").items()}


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    left, right = tensors_of(a), tensors_of(b)
    assert left.keys() == right.keys() and len(left) > 20
    for path, x in left.items():
        assert torch.equal(x, right[path]), path
    assert a["sampler"] == b["sampler"] and a["next_id"] == b["next_id"]
    assert a["tracker"]["history"]["loss"] == b["tracker"]["history"]["loss"]


def test_one_block_is_plain_training(
    survey: Scene, tmp_path: Path, settings: Callable[..., RunSettings]
) -> None:
    run = settings(tmp_path, {"blocks": 1})
    assert isinstance(run.densify, DensifyConfig)
    densify = dataclasses.replace(run.densify, opacity_reset_interval=30)
    run = dataclasses.replace(run, densify=densify)
    plans, states, images = parts_of(run, survey)
    live = LiveBlock(plans[0], states[0], images, CPU, Shared(CPU))
    assert live.run(36)
    strategies = [densify.build(), run.pruning.build(densify_until=30)]
    trainer = Trainer(run.train, survey, strategies=strategies, optim=run.optim)
    trainer.fit()
    assert len(live.gaussians) != 200
    for name, x in trainer.gaussians.to_tensors().items():
        assert torch.equal(x, live.gaussians.params[name]), name
    for name, x in trainer.gaussians.rows.items():
        assert torch.equal(x, live.gaussians.rows[name]), name
    assert trainer.tracker.history["loss"] == live.tracker.history["loss"]


def surroundings_of(
    states: dict[int, dict[str, Any]], live: LiveBlock, block: int
) -> Frozen | None:
    others = [
        {**state["params"], "ids": state["rows"]["ids"]}
        for other, state in states.items()
        if other != block
    ]
    cameras = live.plan.scene.train
    boxes = reached_boxes(live.gaussians, cameras)
    return find_surroundings(others, cameras, boxes, CPU, sh_degree=1)


@pytest.mark.parametrize("interval", [1, 5])
def test_a_swapped_block_is_one_that_stayed(
    survey: Scene, tmp_path: Path, settings: Callable[..., RunSettings], interval: int
) -> None:
    plans, states, images = parts_of(settings(tmp_path), survey)
    resident = LiveBlock(plans[1], states[1], images, CPU, Shared(CPU))
    frozen = surroundings_of(states, resident, 1)
    assert frozen is not None
    before = [x.clone() for x in frozen.splats if isinstance(x, Tensor)]
    resident.gaussians.frozen = frozen
    assert resident.run(N_STEPS)

    arena, other = HostArena(poisons=True), HostArena(poisons=True)
    state = states[1]
    for until in range(interval, N_STEPS + interval, interval):
        live = LiveBlock(plans[1], state, images, CPU, Shared(CPU))
        live.gaussians.frozen = frozen
        assert live.run(min(until, N_STEPS))
        state = BlockState.to_host(live.state(), arena).to_device(CPU)
        live.close()
        for x in live.gaussians.params.values():
            x.data.fill_(torch.nan)  # nobody may look at it any more
        arena, other = other, arena
        other.empty()
    assert len(resident.gaussians) != len(states[1]["params"]["means"])
    assert_same_state(resident.state(), state)
    assert all(map(torch.equal, before, [x for x in frozen.splats if isinstance(x, Tensor)]))


@pytest.mark.usefixtures("graph_like")
def test_captured_steps_among_surroundings_are_those_taken_in_parts(
    survey: Scene, tmp_path: Path, settings: Callable[..., RunSettings]
) -> None:
    plans, states, images = parts_of(settings(tmp_path), survey)
    found = []
    for graphs in (None, Watched()):
        live = LiveBlock(plans[0], states[0], images, CPU, Shared(CPU))
        live.gaussians.frozen = surroundings_of(states, live, 0)
        live.stepper.elsewhere = 100, torch.tensor(90.0)
        live.stepper.graphs = graphs
        assert live.run(N_STEPS)
        found.append(live.state())
        if graphs is not None:
            assert graphs.plans.count("capture") > 1 and graphs.plans.count("replay") > 3
    assert_same_state(*found)


def test_what_is_added_to_the_loss_pushes_as_in_one_piece(
    survey: Scene, tmp_path: Path, settings: Callable[..., RunSettings]
) -> None:
    """Of masks over all Gaussians, C / C_b times per step: 2 lambda m / N for each row, C times."""
    plans, states, images = parts_of(settings(tmp_path), survey)
    plan = plans[0]
    share = len(plan.cameras) / len(survey.train)
    assert plan.term_weight == pytest.approx(1 / share) and share < 1
    n_own, n_else, kept = len(states[0]["params"]["means"]), 130, 120.0
    pushes = []
    for elsewhere in (None, (n_else, torch.tensor(kept))):
        live = LiveBlock(plan, states[0], images, CPU, Shared(CPU))
        live.stepper.elsewhere = elsewhere
        live.stepper.term_weight = 1.0 if elsewhere is None else plan.term_weight
        live.gaussians.params["means"].data += 1000.0  # nothing of it is in an image
        live.stepper.forward_backward(1, [0])
        grad = live.gaussians.params["mask_logits"].grad
        assert grad is not None and grad.any()
        pushes.append(grad)
    # every mask is there at first: the mean over the block's own is 1
    m, n = (n_own + kept) / (n_own + n_else), n_own + n_else
    assert torch.allclose(pushes[1], pushes[0] * (m / n / share) / (1 / n_own), rtol=1e-5)


def test_a_block_s_steps_move_what_they_show_as_far_as_those_of_one_piece(
    survey: Scene, tmp_path: Path, settings: Callable[..., RunSettings]
) -> None:
    """Those of one piece that show other blocks alone move it too, by momentum."""
    plans, states, images = parts_of(settings(tmp_path), survey)
    plan, share = plans[0], len(plans[0].cameras) / len(survey.train)
    live = LiveBlock(plan, states[0], images, CPU, Shared(CPU))
    block = live.optimizer.param_groups[0]
    whole = Trainer(dataclasses.replace(plan.config, batch=1), survey).optimizer.param_groups[0]
    generator = torch.Generator().manual_seed(0)
    found = []
    for group, shown in ((whole, share), (block, 1.0)):
        x = torch.zeros(2000, requires_grad=True)
        adam = torch.optim.Adam([x], 0.01 * group["gain"], group["betas"], group["eps"])
        for k in range(round(500 / shown)):
            x.grad = torch.zeros(2000)
            if int((k + 1) * shown) > int(k * shown):
                x.grad = 0.1 + torch.randn(2000, generator=generator)
            adam.step()
        found.append(x.detach())
    # of numbers of steps: with the whole's rates it would be sqrt(0.69) = 0.83
    assert float(found[1].mean()) == pytest.approx(float(found[0].mean()), rel=0.05)
    assert float(found[1].std()) == pytest.approx(float(found[0].std()), rel=0.05)
