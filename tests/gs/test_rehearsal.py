"""What is rehearsed is what a training launches, variant by variant."""

import dataclasses
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from gs.cli import Config, parse
from gs.data.scene import Scene
from gs.data.tracks import Tracks
from gs.evaluation.pose_fit import fit_poses
from gs.program import strategies_in, strategies_of
from gs.rehearsal import Captured, rehearse_training
from gs.training.captured_steps import StepGraphs
from gs.training.trainer import Trainer
from kernels import Rehearsal, Target, backend, caches, rehearsing
from kernels.projection.forward import project_fwd_kernel
from kernels.rehearsal import label
from kernels.runtime import launch as launches
from pruning import METHODS

H200 = Target(90, 132)
SHORT = "--iterations 6 --sh_degree 1 --sh_degree_interval 4 --densify_until_iter 5"
SHORT += " --densify_from_iter 0 --densification_interval 3 --schedule published"
MASKS = " --mask_from_iter 2 --mask_until_iter 6 --mask_prune_iter 4"

pytestmark = pytest.mark.usefixtures("interpreted", "one_thread")


def config_of(folder: Path, *words: str) -> Config[Any, Any, Any]:
    own = ["-s", str(folder), "-m", str(folder / "out"), "--device", "cpu"]
    return parse([*own, *words], METHODS, "")


@pytest.fixture(scope="module")
def small(write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor]) -> Scene:
    """Two views of 30 Gaussians to train on and one to test: four tiles each."""
    points = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    views = [turned_view(angle) for angle in (-0.5, 0.0, 0.5)]
    scene = write_scene(points, points + 0.5, views, 2, (16, 12), 30.0)
    seen = {camera.image_name: torch.arange(len(points)) for camera in scene.train}
    return dataclasses.replace(scene, tracks=Tracks(points.double(), seen))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Labels of what is launched from now on; tensors on the CPU will do."""
    original, found = launches.launch, set[str]()
    # what is imported later would keep what stands in for it here
    for file in pkgutil.walk_packages(kernels.__path__, "kernels."):
        import_module(file.name)
    caches.clear()

    def noting(kernel: Any, grid: Any, *args: Any, **named: Any) -> None:
        options = {"num_warps": named.get("num_warps", 4), "maxnreg": named.get("maxnreg")}
        options["launch_cooperative_grid"] = named.get("cooperative", False)
        constants = {k: v for k, v in named.items() if k not in (*options, "cooperative")}
        found.add(label(kernel, args, constants, options))
        original(kernel, grid, *args, **named)

    for module in [*sys.modules.values()]:
        if module.__name__.startswith("kernels.") and vars(module).get("launch") is original:
            monkeypatch.setattr(module, "launch", noting)
    monkeypatch.setattr(backend, "on_gpu", lambda _: True)
    monkeypatch.setattr("gs.training.pose_refinement.fit_poses", partial(fit_poses, steps=1))
    return found


@pytest.mark.parametrize(
    "words",
    [
        "--method mask-gaussian" + MASKS,
        "--method 3dgs --densifier mcmc --budget 1.1x",
        "--method mask-gaussian --densifier taming --budget 1.2x --no_cuda_graphs" + MASKS,
        "--method 3dgs --batch 2",
        "--method natural-selection --select_from_iter 4 --select_until_iter 7 --select_interval 2"
        " --densifier error --budget 1.1x --multi_view_updates 0.5:2 --resolution_schedule 0:2",
        "--method lp-3dgs --mask_from_iter 2 --mask_until_iter 6 --score_interval 2"
        " --densify_until_iter 1 --sh_degree 0",
        "--method 3dgs --pose_refinement --pose_from_iter 1 --depth_loss",
    ],
    ids=["masks", "mcmc", "taming", "batch", "error", "lp-3dgs", "poses"],
)
def test_a_training_launches_nothing_that_was_not_rehearsed(
    small: Scene, tmp_path: Path, launched: set[str], words: str
) -> None:
    config = config_of(tmp_path, *SHORT.split(), *words.split())
    strategies = [*strategies_of(config), *strategies_in(small, config)]
    trainer = Trainer(config.train, small, strategies=strategies, method=config.choice.method)
    if config.train.cuda_graphs:
        trainer.stepper.graphs = StepGraphs(Captured)
    trainer.fit()
    in_run = {*launched}
    assert sum("project_bwd" in name for name in in_run) >= 2
    missing = in_run - {*rehearse_training(config, METHODS, H200).launches}
    assert not missing, sorted(missing)


def test_a_rehearsal_leaves_nothing_behind(tmp_path: Path) -> None:
    found, turns = rehearse_training(config_of(tmp_path), METHODS, H200)
    first = {label for label in found if turns[label] == 0}
    assert len(found) > 40 and 15 < len(first) < len(found) / 2 and {*turns} == {*found}
    assert not any("DEGREE=1" in label for label in first)
    degrees = [[turns[x] for x in found if f"DEGREE={k}" in x] for k in range(4)]
    assert max(degrees[0]) < min(degrees[1]) and max(degrees[1]) < min(degrees[3])
    # a large model sorts in passes from the first step on
    assert {turns[label] for label in found if "sweep_kernel" in label} == {1}
    projections = [label for label in found if "project_fwd" in label]
    assert sum("LOGITS=2" in label for label in projections) == 4  # eager as captured
    unmasked = [label for label in projections if "LOGITS=0" in label]
    assert len(unmasked) == 1 and "DEGREE=3" in unmasked[0]  # views are evaluated at the end
    # every degree, width and way of sorting
    for word in ("DEGREE=3", "ALIGN=1", "ALIGN=2", "ALIGN=4", "CHUNK=2048", "sweep_kernel"):
        assert any(word in label for label in found), word
    assert not [*tmp_path.iterdir()]
    x = torch.empty(3)
    with rehearsing(Rehearsal(H200)):
        assert torch.equal(torch.empty_like(x), torch.ones(3)) and backend.on_gpu(x)
    assert not backend.on_gpu(x)


def test_blocks_are_rehearsed_among_their_surroundings(tmp_path: Path) -> None:
    words = ["--blocks", "2", "--method", "3dgs"]
    found = rehearse_training(config_of(tmp_path, *words), METHODS, H200).launches
    names = [*signature(project_fwd_kernel.fn).parameters]
    n_taken, boxes = names.index("n_taken_ptr"), names.index("boxes_ptr")
    projections = [name for name in found if "project_fwd" in name]
    for degree in range(4):
        named = [name for name in projections if f"DEGREE={degree}" in name]
        behind = [name for name in named if f"{n_taken}=None" not in name]
        assert len(behind) == 1 < len(named) and f"{boxes}=None" not in behind[0]
    losses = [name for name in found if "_ssim_gradient_kernel" in name and "GRADIENT=True" in name]
    assert losses and all("MASKED=True" in name for name in losses)
