"""Steps of several images: their gradients, settings, schedules, statistics, files and resumes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import GRADIENTS, VIEWS, DensifyConfig
from gs.densification.mcmc import MCMCConfig
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.schedule import covers, multiple_in
from gs.training.batch import batched, grouped, moments_for
from gs.training.checkpoint import load_checkpoint
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer
from kernels import photometric_gradient, rasterization
from pruning import LP3DGSConfig, MaskGaussianConfig

DENSIFY = DensifyConfig(
    densify_from_iter=5,
    densify_until_iter=60,
    densification_interval=12,
    opacity_reset_interval=40,
    densify_grad_threshold=1e-4,
)
MASKS = MaskGaussianConfig(
    lambda_mask=1.0,
    mask_from_iter=3,
    mask_until_iter=60,
    mask_prune_iter=14,
    mask_lr=0.4,
    final_threshold=0.05,
)
MCMC = MCMCConfig(densify_from_iter=5, densify_until_iter=60, budget="1.2x", min_opacity=0.02)
OPTIM = OptimConfig(position_lr_max_steps=80)

pytestmark = pytest.mark.usefixtures("one_thread")


def make(scene: Scene, out: Path, *strategies: Strategy, **options: Any) -> Trainer:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {"iterations": 80, "sh_degree_interval": 10, "quiet": True, "device": "cpu"}
    settings |= {k: options.pop(k) for k in list(options) if k in fields}
    config = TrainConfig(model_path=out, **settings)
    return Trainer(config, scene, strategies=strategies, optim=OPTIM, **options)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {**trainer.gaussians.to_tensors(), **trainer.gaussians.rows}
    for group in trainer.optimizer.param_groups:
        for key, value in trainer.optimizer.state[group["params"][0]].items():
            tensors[f"{group['name']}.{key}"] = value
    return tensors


@pytest.fixture(scope="session")
def sizes(
    write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor], scene: Scene
) -> Scene:
    """Three views of one size and three of another."""
    points, colors = scene.points, scene.colors
    views = [turned_view(0.3 * i - 1.0) for i in range(3)]
    wide = write_scene(points, colors, views, 3, (48, 24), 50.0)
    mixed = [scene.train[0], wide.train[0], wide.train[1], scene.train[1], wide.train[2]]
    return dataclasses.replace(scene, train=[*mixed, scene.train[2]], test=scene.test)


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
@pytest.mark.parametrize("interval", [100, 500, 3000])
def test_events_come_once_for_the_images_that_have_them(batch: int, interval: int) -> None:
    end, until = 30_000, 15_000
    windows = [range(i, min(i + batch, end + 1)) for i in range(1, end + 1, batch)]
    config = DensifyConfig(densification_interval=interval, densify_until_iter=until)
    want = [
        any(image % interval == 0 and 500 < image < until for image in window) for window in windows
    ]
    got = [config.densifies_at(window[-1], len(window)) for window in windows]
    assert got == want
    assert sum(got) == sum(500 < image < until for image in range(interval, until, interval))
    grows = TrainConfig(Path(), sh_degree_interval=interval, sh_degree_from_iter=2 * interval)
    got = [grows.sh_degree_grows_at(window[-1], len(window)) for window in windows]
    assert got == [any(x % interval == 0 and x > 2 * interval for x in w) for w in windows]
    over = [config.is_over(window[-1], len(window)) for window in windows]
    assert over == [all(image >= until for image in window) for window in windows]


def test_an_event_within_a_step() -> None:
    assert [step for step in range(8, 40, 8) if covers(step, 17, 8)] == [24]
    assert [multiple_in(step, 3, 8) for step in (8, 16)] == [6, 15]
    assert multiple_in(8, 100, 8) is None  # image 0 is none


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_sum_with_its_settings_steps_as_the_published_mean(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    beta1, beta2 = 0.9**batch, 0.999**batch
    lr, eps = 0.01 * batch**0.5, 1e-3 / batch**0.5
    x = torch.randn(50, generator=generator, dtype=torch.float64)
    mine = x.clone().requires_grad_()
    adam = batched((0.9, 0.999), 1e-3, batch)
    optimizer = torch.optim.Adam([mine], lr=adam.gain * 0.01, betas=adam.betas, eps=adam.eps)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t in range(1, 21):
        g = torch.randn(batch, 50, generator=generator, dtype=torch.float64)
        mean = g.mean(0)
        m, v = beta1 * m + (1 - beta1) * mean, beta2 * v + (1 - beta2) * mean.square()
        x = x - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        mine.grad = g.sum(0)
        optimizer.step()
    torch.testing.assert_close(mine.detach(), x, rtol=1e-12, atol=1e-12)


def test_one_call_has_the_sum_of_single_gradients(scene: Scene) -> None:
    model = Gaussians.from_points(scene.points, scene.colors, sh_degree=1)
    leaves = {name: x.detach().double().requires_grad_() for name, x in model.params.items()}
    cameras = scene.train[:3]
    targets = [torch.rand(30, 40, 3, dtype=torch.float64) for _ in cameras]

    def gradients(chosen: Sequence[int]) -> list[Tensor]:
        colors, _, _ = rasterization(
            leaves["means"],
            leaves["quats"],
            leaves["scales"],
            leaves["opacities"],
            leaves["sh0"],
            torch.stack([cameras[k].viewmat for k in chosen]).double(),
            torch.stack([cameras[k].K for k in chosen]).double(),
            40,
            30,
            sh_degree=1,
            colors_rest=leaves["shN"],
            raw=True,
        )
        v = [photometric_gradient(colors[j], targets[k])[1] for j, k in enumerate(chosen)]
        return list(torch.autograd.grad(colors, [*leaves.values()], torch.stack(v)))

    together = gradients([0, 1, 2])
    alone = [gradients([k]) for k in range(3)]
    for name, got, *want in zip(leaves, together, *alone, strict=True):
        torch.testing.assert_close(got, sum(want), rtol=1e-12, atol=1e-15, msg=name)


def test_a_step_adds_its_images_and_counts_their_views(
    sizes: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sizes in one step; every image of a size has a draw of masks of its own."""
    indices, step = [0, 1, 2, 3], 10
    masks = [dataclasses.replace(MASKS, lambda_mask=0.0).build(densify_until=60) for _ in range(2)]
    whole, single = (
        make(sizes, tmp_path / str(batch), DENSIFY.build(), strategy, batch=batch)
        for batch, strategy in zip((4, 1), masks, strict=True)
    )
    seed = masks[0].device_inputs(step)["mask_seed"]
    for trainer in (whole, single):
        trainer.gaussians.active_sh_degree = 3
    ctx = whole.stepper.forward_backward(step, indices)
    assert len(ctx.renderings) == 2
    whole.strategies[0].after_backward(step, ctx)
    gradients: dict[str, Tensor] = {}
    order, views = grouped(sizes.train, indices, torch.device("cpu"), together=True)
    draws = [c for view in views for c in range(view.n_cameras)]
    for index, draw in zip(order, draws, strict=True):
        own = {"mask_seed": seed ^ (draw << 32)}
        monkeypatch.setattr(masks[1], "device_inputs", lambda step, own=own: own)
        one = single.stepper.forward_backward(step, [index])
        single.strategies[0].after_backward(step, one)
        for name, parameter in single.gaussians.params.items():
            assert parameter.grad is not None
            gradients[name] = gradients.get(name, 0) + parameter.grad
            parameter.grad = None
    for name, want in gradients.items():
        got = whole.gaussians.params[name].grad
        assert got is not None
        error = (got - want).norm() / want.norm()
        assert error < 1e-5, name
    assert torch.equal(whole.gaussians.rows[VIEWS], single.gaussians.rows[VIEWS])
    assert whole.gaussians.rows[VIEWS].max() == 4
    torch.testing.assert_close(whole.gaussians.rows[GRADIENTS], single.gaussians.rows[GRADIENTS])
    sums, want = (trainer.tracker.state_dict()["sums"] for trainer in (whole, single))
    assert sums == pytest.approx(want) and sums[3] == 4


def test_regularisers_count_once_per_image(scene: Scene, tmp_path: Path) -> None:
    found: list[Tensor] = []
    for batch in (1, 3):
        strategy = MCMCConfig(lambda_opacity=0.3, lambda_scale=0.2).build()
        trainer = make(scene, tmp_path / str(batch), strategy, batch=batch)
        ctx = trainer.stepper.forward_backward(1, [0] * batch)
        grad = trainer.gaussians.params["opacities"].grad
        assert grad is not None
        before = grad.clone()
        strategy.after_backward(1, ctx)
        found.append(grad - before)
    torch.testing.assert_close(found[1], 3 * found[0])


def test_views_of_a_size_go_together(sizes: Scene) -> None:
    order, views = grouped(sizes.train, [5, 1, 0, 2], torch.device("cpu"), together=True)
    assert order == [5, 0, 1, 2]
    assert [view.n_cameras for view in views] == [2, 2]
    assert views[0].exposure.tolist() == [5, 0]
    assert torch.equal(views[1].one(1).viewmats[0], sizes.train[2].viewmat)
    order, views = grouped(sizes.train, [5, 1, 0], torch.device("cpu"), together=False)
    assert order == [5, 1, 0] and [view.n_cameras for view in views] == [1, 1, 1]


class Sees(Strategy):
    """Notes what it is shown of each image."""

    name = "sees"

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int, tuple[int, ...]]] = []

    def after_render(self, step: int, colors: Tensor, ctx: StepContext) -> Tensor:
        assert ctx.inputs is not None
        exposure = int(ctx.inputs.view.exposure)
        self.seen.append((step, self.n_images, exposure, (ctx.camera.height, ctx.camera.width, 3)))
        assert colors.shape == self.seen[-1][3]
        return colors


def test_iterations_count_images(sizes: Scene, tmp_path: Path) -> None:
    """Of 22 images in steps of 4, the last step has two."""
    sees = Sees()
    run = {"iterations": 22, "batch": 4, "checkpoint_iterations": (6,), "save_iterations": (9,)}
    trainer = make(sizes, tmp_path, sees, **run)
    trainer.fit()
    steps = [step for step, *_ in sees.seen]
    assert steps == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4 + [22] * 2
    assert [n for step, n, *_ in sees.seen if step > 16] == [4] * 4 + [2] * 2
    first_epoch = [exposure for _, _, exposure, _ in sees.seen[:4]]
    assert len(set(first_epoch)) == 4
    for _, _, exposure, shape in sees.seen:
        assert shape[1] == sizes.train[exposure].width
    assert (tmp_path / "chkpnt8.pth").is_file()
    models = {path.name for path in (tmp_path / "point_cloud").iterdir()}
    assert models == {"iteration_12", "iteration_22"}
    assert trainer.tracker.history["step"] == [12, 20, 22]


@pytest.mark.parametrize("which", ["scene", "sizes"])
@pytest.mark.parametrize("kind", ["masks", "mcmc", "lp"])
def test_resuming_equals_not_stopping(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, kind: str
) -> None:
    scene: Scene = request.getfixturevalue(which)

    def strategies() -> list[Strategy]:
        if kind == "masks":
            masks = dataclasses.replace(MASKS, mask_lr=0.2)
            return [DENSIFY.build(), masks.build(densify_until=60)]
        if kind == "lp":
            lp = LP3DGSConfig(mask_from_iter=30, mask_until_iter=61, score_interval=7)
            return [DENSIFY.build(), lp.build(densify_until=60)]
        return [dataclasses.replace(MCMC, densification_interval=9).build()]

    run = {"batch": 3, "checkpoint_iterations": (50,)}
    whole = make(scene, tmp_path / "whole", *strategies(), **run)
    whole.fit()
    start = load_checkpoint(tmp_path / "whole" / "chkpnt51.pth")
    resumed = make(scene, tmp_path / "resumed", *strategies(), start=start, **run)
    resumed.fit()
    found, expected = state_of(resumed), state_of(whole)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name
    assert resumed.tracker.history["loss"] == whole.tracker.history["loss"]
    assert len(whole.gaussians) != len(scene.points)


def test_another_batch_takes_the_moments_along(scene: Scene, tmp_path: Path) -> None:
    first = make(scene, tmp_path / "first", checkpoint_iterations=(8,))
    for step in range(1, 9):
        first.train_step(step)
    start = load_checkpoint(first.checkpoint(8))
    second = make(scene, tmp_path / "second", start=start, batch=4)
    old, new = (t.optimizer.state[t.gaussians.params["means"]] for t in (first, second))
    torch.testing.assert_close(new["exp_avg"], 4 * old["exp_avg"])
    torch.testing.assert_close(new["exp_avg_sq"], 16 * old["exp_avg_sq"])
    assert float(new["step"]) == 2.0
    assert second.optimizer.param_groups[3]["lr"] == 2 * OPTIM.opacity_lr
    assert moments_for({"lrs": {"a": 1.0}}, 1, 2) == {"lrs": {"a": 1.0}}


def test_training_in_batches_improves(scene: Scene, tmp_path: Path) -> None:
    trainer = make(scene, tmp_path, DENSIFY.build(), batch=4, iterations=160)
    trainer.fit()
    losses = trainer.tracker.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
