"""Regularisers and steps of the Gaussians that are seen, against a loop written by hand."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.densification.mcmc import MCMCConfig
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.model.view import view_of
from gs.seeds import derive_seed
from gs.training.checkpoint import load_checkpoint
from gs.training.optimizer import build_optimizer
from gs.training.seen import STEPS, mark_rows
from gs.training.strategy import Population, StepContext, Strategy
from gs.training.trainer import Trainer
from kernels import add_langevin_noise, photometric_loss
from pruning import MaskGaussianConfig

MASKS = MaskGaussianConfig(lambda_mask=2.0, mask_lr=0.4, mask_prune_iter=0, final_threshold=0.05)
MCMC = MCMCConfig(
    lambda_opacity=0.4, lambda_scale=0.3, noise_lr=1e3, densify_from_iter=500, budget="1x"
)
RATES = {"sh0": 0.0025, "shN": 0.0025 / 20, "opacities": 0.05, "scales": 0.005, "quats": 0.001}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def narrow(scene: Scene) -> Scene:
    """Cameras of a third of the field of view, so that each sees a part."""
    train = [dataclasses.replace(camera, K=_closer(camera.K)) for camera in scene.train]
    return dataclasses.replace(scene, train=train)


def _closer(K: Tensor) -> Tensor:
    K = K.clone()
    K[:2, :2] *= 3.0
    return K


def make(scene: Scene, out: Path, *strategies: Strategy, **options: Any) -> Trainer:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {"iterations": 60, "quiet": True, "device": "cpu", "sh_degree_interval": 1000}
    settings |= {k: options.pop(k) for k in list(options) if k in fields}
    config = TrainConfig(model_path=out, **settings)
    optim = OptimConfig(position_lr_init=1e-3, position_lr_final=1e-3)
    trainer = Trainer(config, scene, strategies=strategies, optim=optim, **options)
    if trainer.step == 0:
        # small, so that an image misses some, and no spheres: those have no gradient of rotation
        scales, g = trainer.gaussians.params["scales"].data, torch.Generator().manual_seed(0)
        scales += torch.rand(scales.shape, generator=g) - 2.0
    return trainer


def by_hand(
    trainer: Trainer, steps: Sequence[Sequence[int]], *, mcmc: bool, rows: str
) -> dict[str, Tensor]:
    """Parameters after steps of these images each, by --regularise seen."""
    scene, b = trainer.scene, len(steps[0])
    params = {name: x.detach().clone() for name, x in trainer.gaussians.params.items()}
    ids, n = trainer.gaussians.rows["ids"], len(trainer.gaussians)
    m, v = ({name: torch.zeros_like(x) for name, x in params.items()} for _ in range(2))
    t = {name: torch.zeros(n) for name in params}
    rates = {"means": 1e-3 * scene.extent, "mask_logits": 0.4, **RATES}
    for k, indices in enumerate(steps, 1):
        step = k * b
        leaves = {name: x.clone().requires_grad_() for name, x in params.items()}
        model = Gaussians.from_tensors({k: x for k, x in params.items() if k != "mask_logits"})
        model.active_sh_degree = 0
        loss, counts, masks = torch.zeros(()), torch.zeros(n), []
        for c, index in enumerate(indices):
            view = view_of(scene.train[index], torch.device("cpu"))
            splats = model.splats(view)._replace(
                means=leaves["means"],
                quats=leaves["quats"],
                scales=leaves["scales"],
                opacities=leaves["opacities"],
                colors=leaves["sh0"],
                colors_rest=leaves["shN"],
            )
            drawn: dict[str, Any] = {}
            if not mcmc:
                seed = derive_seed(0, "mask", step) ^ (c << 32)
                drawn = {"mask_logits": leaves["mask_logits"], "mask_ids": ids, "mask_seed": seed}
            out = render(splats, view, background=torch.zeros(3), **drawn)
            loss = loss + photometric_loss(out.colors, trainer.images[index], 0.2)
            counts += (out.info["radii"][0] > 0).all(-1)
            masks.append(out.info["masks"])
        share = counts / counts.sum()
        if mcmc:
            o, s = leaves["opacities"].sigmoid(), leaves["scales"].exp().mean(-1)
            loss = loss + b * (0.4 * (share * o).sum() + 0.3 * (share * s).sum())
        else:
            loss = loss + b * 2.0 * (share * torch.stack(masks).mean(0)).sum().square()
        loss.backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            seen = counts > 0 if rows == "seen" else torch.ones(n, dtype=torch.bool)
            t[name] += seen
            shape = (-1, *[1] * (leaf.dim() - 1))
            seen, age = seen.view(shape), t[name].double().view(shape)
            beta1, beta2 = 0.9**b, 0.999**b
            m[name] = torch.where(seen, beta1 * m[name] + (1 - beta1) * leaf.grad, m[name])
            v[name] = torch.where(seen, beta2 * v[name] + (1 - beta2) * leaf.grad.square(), v[name])
            change = m[name] / (1 - beta1**age) / ((v[name] / (1 - beta2**age)).sqrt() + 1e-15)
            change = torch.where(seen, b**0.5 * rates[name] * change, 0.0).float()
            params[name] = params[name] - change
        if mcmc:
            words = torch.tensor([derive_seed(0, "step", step), 0], dtype=torch.int32)
            lr = torch.tensor([b**0.5 * rates["means"]])
            add_langevin_noise(
                params["means"],
                params["quats"],
                params["scales"],
                params["opacities"],
                ids,
                seed=words,
                lr=lr,
                noise_lr=1e3,
            )
    return params


@pytest.mark.parametrize("rows", ["all", "seen"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["masks", "mcmc"])
def test_steps_are_those_by_hand(
    narrow: Scene, tmp_path: Path, kind: str, batch: int, rows: str
) -> None:
    mcmc = kind == "mcmc"
    strategy = MCMC.build() if mcmc else MASKS.build(densify_until=0)
    options = {"regularise": "seen", "adam_rows": rows, "batch": batch}
    trainer = make(narrow, tmp_path, strategy, **options)
    start = {name: x.detach().clone() for name, x in trainer.gaussians.params.items()}
    steps = [[(3 * k + j) % 6 for j in range(batch)] for k in range(4)]
    want = by_hand(trainer, steps, mcmc=mcmc, rows=rows)
    order = iter([index for indices in steps for index in indices])
    trainer.sampler.next = lambda: next(order)
    for k in range(1, 5):
        trainer.train_step(k * batch)
    still = torch.ones(len(trainer.gaussians), dtype=torch.bool)
    for name, x in want.items():
        got = trainer.gaussians.params[name].detach()
        moved = (x - start[name]).square().mean().sqrt()
        if name != "shN":  # of a degree that is not in use yet
            assert moved > 0, name
        # a gradient of nearly nothing may have either sign, which is a whole step of Adam
        wrong = (got - x).abs() > 1e-3 * moved + 1e-7
        assert wrong.float().mean() < 0.01, name
        if name != "means":  # noise moves those
            still &= (got == start[name]).reshape(len(got), -1).all(1)
    assert still.any() and not still.all()  # who was never seen


def test_who_is_not_seen_keeps_the_bits(narrow: Scene, tmp_path: Path) -> None:
    trainer = make(narrow, tmp_path, MASKS.build(densify_until=0), adam_rows="seen")
    order = iter([0, 5, 0])
    trainer.sampler.next = lambda: next(order)
    trainer.train_step(1)
    model, optimizer = trainer.gaussians, trainer.optimizer
    with torch.no_grad():
        out = render(model, narrow.train[5])
    seen = (out.info["radii"][0] > 0).all(-1)
    assert 0 < int(seen.sum()) < len(seen)
    logits = model.params["mask_logits"]
    old = [x.detach().clone() for x in (logits, *optimizer.state[logits].values())]
    ages = model.rows[STEPS].clone()
    trainer.train_step(2)
    for x, before in zip((logits, *optimizer.state[logits].values()), old, strict=True):
        if x.dim():
            assert torch.equal(x[~seen], before[~seen]) and (x[seen] != before[seen]).any()
    assert torch.equal(model.rows[STEPS], ages + seen)


@pytest.mark.parametrize("rows", ["all", "seen"])
def test_the_share_that_moves_unseen_is_told(narrow: Scene, tmp_path: Path, rows: str) -> None:
    options = {"regularise": rows, "adam_rows": rows, "iterations": 2000, "start": None}
    trainer = make(narrow, tmp_path, MASKS.build(densify_until=0), **options)
    trainer.step = 948
    for step in (949, 950, 951):
        trainer.train_step(step)
    (row,) = trainer.tracker.history["unseen"]
    assert row["step"] == 950 and 0.05 < row["seen"] < 0.95
    moved = row["moved"]["mask_logits"]
    assert moved == 0.0 if rows == "seen" else moved == pytest.approx(1.0 - row["seen"])
    trainer.write_history()
    assert json.loads((tmp_path / "history.json").read_text())["unseen"] == [row]
    load_checkpoint(trainer.checkpoint(951))  # its history may have such rows


def test_resuming_equals_not_stopping(narrow: Scene, tmp_path: Path) -> None:
    densify = DensifyConfig(
        densify_from_iter=5,
        densify_until_iter=50,
        densification_interval=12,
        opacity_reset_interval=30,
        densify_grad_threshold=1e-4,
    )

    def run(name: str, **more: Any) -> Trainer:
        methods = [densify.build(), MASKS.build(densify_until=50)]
        options = {"regularise": "seen", "adam_rows": "seen", "checkpoint_iterations": (34,)}
        trainer = make(narrow, tmp_path / name, *methods, batch=2, **options, **more)
        trainer.fit()
        return trainer

    whole = run("whole")
    resumed = run("resumed", start=load_checkpoint(tmp_path / "whole" / "chkpnt34.pth"))
    assert len(whole.gaussians) != len(narrow.points)
    for name, x in whole.gaussians.params.items():
        assert torch.equal(x, resumed.gaussians.params[name]), name
    for name, x in whole.gaussians.rows.items():
        assert torch.equal(x, resumed.gaussians.rows[name]), name
    assert whole.gaussians.rows[STEPS].max() > whole.gaussians.rows[STEPS].min()


def test_a_dense_checkpoint_gives_rows_its_age(narrow: Scene, tmp_path: Path) -> None:
    dense = make(narrow, tmp_path / "dense", checkpoint_iterations=(8,))
    for step in range(1, 9):
        dense.train_step(step)
    start = load_checkpoint(tmp_path / "dense" / "chkpnt8.pth")
    trainer = make(narrow, tmp_path / "rows", start=start, adam_rows="seen", batch=4)
    assert (trainer.gaussians.rows[STEPS] == 2).all()


def test_nothing_is_counted_where_rows_have_just_been_edited() -> None:
    model = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3))
    model.rows[STEPS] = torch.zeros(4, dtype=torch.int32)
    optimizer: Any = build_optimizer(model, OptimConfig(), extent=1.0, by_row=True)
    context: Any = None
    mark_rows(model, optimizer, context)
    assert optimizer.rows is None and not model.rows[STEPS].any()


@pytest.mark.parametrize("parts", [[5], [2, 3]])
def test_observations_elsewhere_count(parts: list[int]) -> None:
    """A scene in parts has the loss of the whole over its observations."""
    masks, counts = torch.tensor([1.0, 0, 1, 1, 0]), torch.tensor([2.0, 0, 1, 0, 3])
    strategy = MASKS.build(densify_until=0)
    model = Gaussians.from_points(torch.rand(5, 3), torch.rand(5, 3))
    for part, seen in zip(masks.split(parts), counts.split(parts), strict=True):
        out: Any = type("Out", (), {"info": {"masks": part, "observations": seen}})
        out.info["population"] = Population(
            5,
            masks.sum() - part.sum(),
            counts.sum() - seen.sum(),
            (masks * counts).sum() - (part * seen).sum(),
        )
        loss = strategy.loss(1, model, out)
        assert loss is not None and loss.item() == pytest.approx(2.0 * (3 / 6) ** 2)


def test_observations_add_up_renderings() -> None:
    radii = torch.tensor([[[3, 2], [0, 1], [1, 1]], [[1, 1], [0, 0], [0, 0]]]).int()
    first: Any = type("Out", (), {"info": {"radii": radii}, "splats": None})
    other: Any = type("Out", (), {"info": {"radii": radii[:1]}, "splats": None})
    none: Any = None
    context = StepContext(none, none, first, none, 1.0, 1, others=(other,))
    assert context.observations.tolist() == [3.0, 0.0, 2.0]
