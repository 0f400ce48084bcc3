"""Stopping within any method's window and going on gives the Gaussians of a run in one piece."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifierConfig, DensifyConfig
from gs.densification.error import ErrorConfig
from gs.densification.mcmc import MCMCConfig
from gs.densification.taming import TamingConfig
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint
from gs.training.trainer import Trainer
from pruning import METHODS
from pruning.method import MethodConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ITERATIONS, STOP = 40, 17
DENSIFY = DensifyConfig(
    densify_from_iter=5,
    densify_until_iter=26,
    densification_interval=6,
    opacity_reset_interval=20,
    densify_grad_threshold=1e-4,
)
TAMING = TamingConfig(
    densify_from_iter=5,
    densify_until_iter=26,
    densification_interval=8,
    opacity_reset_interval=20,
    densify_grad_threshold=1e-4,
    budget="1.5x",
    score_views=2,
)
MCMC = MCMCConfig(
    densify_from_iter=5,
    densify_until_iter=32,
    densification_interval=6,
    budget="1.2x",
    min_opacity=0.05,
    initial_opacity=0.1,
)
ERROR = ErrorConfig(
    densify_from_iter=3,
    densify_until_iter=26,
    densification_interval=6,
    densify_grad_threshold=1e-5,
    budget="1.5x",
    first_prune_iter=4,
    opacity_resets=1,
    opacity_reset_interval=10,
    recovery_delay=9,
)


def _method(name: str, preset: str, **settings: Any) -> MethodConfig:
    return replace(METHODS[name].preset(preset), **settings)


MASKS = _method(
    "mask-gaussian",
    "beta",
    lambda_mask=1.0,
    mask_from_iter=3,
    mask_until_iter=30,
    mask_prune_iter=7,
    mask_lr=0.4,
)
LP = {"mask_from_iter": 8, "mask_until_iter": 30, "score_interval": 4, "logit_lr": 0.1}
TWICE = {"prune_iterations": (14, 19)}  # before opacities are reset
CASES: dict[str, tuple[DensifierConfig, MethodConfig]] = {
    "mask-gaussian": (DENSIFY, MASKS),
    "mask-gaussian, taming": (TAMING, MASKS),
    "mask-gaussian, mcmc": (MCMC, MASKS),
    "mask-gaussian, error": (ERROR, MASKS),
    "lp-3dgs:radsplat": (DENSIFY, _method("lp-3dgs", "radsplat", **LP)),
    "lp-3dgs:mini-splatting": (
        DENSIFY,
        _method("lp-3dgs", "mini-splatting", score_source="masked", **LP),
    ),
    "lp-3dgs:straight-through": (DENSIFY, _method("lp-3dgs", "straight-through", **LP)),
    "radsplat": (DENSIFY, _method("radsplat", "default", threshold=0.05, **TWICE)),
    "mini-splatting": (DENSIFY, _method("mini-splatting", "indoor", **TWICE)),
    "light-gaussian": (DENSIFY, _method("light-gaussian", "two-step", **TWICE)),
    "opacity": (DENSIFY, _method("opacity", "default", ratio=0.2, **TWICE)),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _trainer(scene: Scene, out: Path, case: str, device: str, start: Any = None) -> Trainer:
    densify, method = CASES[case]
    train = TrainConfig(
        out,
        iterations=ITERATIONS,
        sh_degree_interval=10,
        quiet=True,
        device=device,
        deterministic=True,
        checkpoint_iterations=(STOP,),
    )
    strategies = [densify.build(), method.build(densify_until=densify.densify_until_iter)]
    optim = OptimConfig(position_lr_max_steps=ITERATIONS)
    return Trainer(train, scene, strategies=strategies, optim=optim, start=start)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    model = trainer.gaussians
    tensors = {f"rows.{name}": rows for name, rows in model.rows.items()}
    for name, parameter in model.params.items():
        tensors[name] = parameter.detach()
        moments = trainer.optimizer.state[parameter]
        tensors |= {f"{name}.{key}": value for key, value in moments.items()}
    return tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_resuming_equals_not_stopping(scene: Scene, tmp_path: Path, case: str, device: str) -> None:
    whole = _trainer(scene, tmp_path / "whole", case, device)
    whole.fit()
    start = load_checkpoint(tmp_path / "whole" / f"chkpnt{STOP}.pth")
    n_stopped = len(start["params"]["means"])
    assert 0 < len(whole.gaussians) != n_stopped  # rows come or go after the stop
    resumed = _trainer(scene, tmp_path / "resumed", case, device, start)
    resumed.fit()
    want, got = _tensors(whole), _tensors(resumed)
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name
