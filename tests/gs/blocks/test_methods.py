"""Every pruning method and densifier within blocks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.blocks.plans import RunSettings
from gs.blocks.schedule import densifier_in_block, in_share
from gs.blocks.surroundings import find_surroundings
from gs.blocks.trainer import BlockTrainer
from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.densification.mcmc import MCMCConfig
from gs.densification.taming import TamingConfig
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply
from gs.model.rates import OptimConfig
from gs.run_record import model_file
from pruning import METHODS, MaskGaussianConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "mask-gaussian"])
def test_every_method_prunes_in_blocks(
    tmp_path: Path, block_trainer: Callable[..., BlockTrainer], method: str
) -> None:
    def change(run: RunSettings) -> RunSettings:
        pruning = METHODS[method].preset(next(iter(METHODS[method].PRESETS))).scaled(36 / 30_000)
        if hasattr(pruning, "prune_iterations"):
            pruning = dataclasses.replace(pruning, prune_iterations=(20,))
        if hasattr(pruning, "threshold"):
            pruning = dataclasses.replace(pruning, threshold=0.1)
        never = DensifyConfig(densify_until_iter=0)
        return dataclasses.replace(run, densify=never, pruning=pruning, method=method)

    trainer = block_trainer(tmp_path / "out", change=change)
    trainer.fit()
    n = len(load_ply(model_file(tmp_path / "out", 36))["means"])
    counts = [trainer.store.n_gaussians(b) for b in range(2)]
    assert n == sum(counts) and min(counts) > 0
    # polarized opacities are pruned at the end of their schedule, and so few steps move none enough
    assert n == 200 if method in ("3dgs", "polarized") else n < 200


@pytest.mark.parametrize("kind", ["mcmc", "taming"])
def test_budgets_are_shared_out(
    tmp_path: Path, block_trainer: Callable[..., BlockTrainer], kind: str
) -> None:
    window: dict[str, Any] = {
        "densify_from_iter": 2,
        "densify_until_iter": 30,
        "densification_interval": 5,
    }
    config = (
        MCMCConfig(budget="260", growth=0.2, **window)
        if kind == "mcmc"
        else TamingConfig(budget="260", densify_grad_threshold=0.0, **window)
    )

    def change(run: RunSettings) -> RunSettings:
        return dataclasses.replace(run, densify=config, pruning=METHODS["3dgs"]())

    trainer = block_trainer(tmp_path / "out", change=change)
    trainer.fit()
    assert trainer.outputs.n_gaussians <= 261
    for block, points in enumerate(trainer.partition.n_points):
        assert points < trainer.store.n_gaussians(block) <= round(260 * points / 200)


def test_schedules_shrink_and_rates_stay() -> None:
    densify = DensifyConfig(densification_interval=100)
    half = densifier_in_block(densify, 0.54, 100, 400, True)
    assert half.densification_interval == 54 and half.densify_until_iter == 8100
    assert half.opacity_reset_interval == 8100  # never
    optim = OptimConfig()
    assert in_share(optim, 0.5) == dataclasses.replace(optim, position_lr_max_steps=15_000)
    masks = MaskGaussianConfig()
    assert in_share(masks, 0.5) == dataclasses.replace(
        masks, mask_until_iter=15_000, mask_prune_iter=500
    )
    assert in_share(masks, 1.0) is masks
    mcmc = densifier_in_block(MCMCConfig(budget="1000"), 0.5, 100, 400, True)
    assert mcmc.budget == "250" and mcmc.lambda_scale == 2 * MCMCConfig().lambda_scale
    assert mcmc.growth == MCMCConfig().growth
    assert densifier_in_block(MCMCConfig(budget="3x"), 0.5, 100, 400, False).budget == "3x"
    assert TrainConfig(Path("x")).scaled(0.5).sh_degree_interval == 500


def test_opacities_of_the_frozen_are_multiplied(survey: Scene) -> None:
    gaussians = Gaussians.from_points(survey.points, survey.colors, sh_degree=0)
    ids = torch.arange(200, dtype=torch.int32)
    plain = {**gaussians.to_tensors(), "ids": ids}
    others = [plain, {**plain, "ids": ids + 200, "opacity_factors": torch.full((200,), 0.25)}]
    frozen = find_surroundings(others, survey.train, None, torch.device("cpu"), sh_degree=0)
    assert frozen is not None
    opacities = frozen.splats.opacities.sigmoid()
    assert torch.allclose(opacities[frozen.ids < 200], torch.tensor(0.1))
    assert torch.allclose(opacities[frozen.ids >= 200], torch.tensor(0.025))
