"""Parameters that a strategy brings: optimised, edited, checkpointed, resumed, and not exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply
from gs.model.rates import OptimConfig, annealing
from gs.model.renderer import RenderOutput
from gs.model.rows import copy_rows, gather_rows, keep_rows, replace_values
from gs.model.specs import PUBLISHED, ParameterSpec
from gs.training.checkpoint import load_checkpoint
from gs.training.optimizer import build_optimizer, learning_rates, set_learning_rates
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from kernels import FusedAdam

DENSIFY = DensifyConfig(
    densify_from_iter=2,
    densify_until_iter=18,
    densification_interval=4,
    opacity_reset_interval=50,
    densify_grad_threshold=4e-3,
)
ANCHOR = ParameterSpec("anchor_feat", (8,), lr=0.01)

pytestmark = pytest.mark.usefixtures("one_thread")


class Neural(Strategy):
    """Features of every Gaussian, decoded by a shared module, plus a shared table of exposures."""

    name = "neural"

    def __init__(self, width: int = 8) -> None:
        torch.manual_seed(3)
        self.decoder = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 3))
        self.exposure = nn.Parameter(torch.ones(2, 3))
        self.is_new = False

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(len(gaussians), 8, generator=generator)
        self.is_new = gaussians.add_parameter(ANCHOR, features)
        gaussians.add_shared("decoder", self.decoder, lr=0.01, anneals=True)
        gaussians.add_shared("exposure", self.exposure, lr=lambda c, extent, step: c.feature_lr)

    def loss(self, step: int, gaussians: Gaussians, out: RenderOutput) -> Tensor:
        colors = self.decoder(gaussians.params["anchor_feat"]) * self.exposure[step % 2]
        return (colors - gaussians.params["sh0"][:, 0]).square().mean()


def make(scene: Scene, out: Path, *strategies: Strategy, **options: Any) -> Trainer:
    config = TrainConfig(
        out,
        iterations=20,
        sh_degree_interval=10,
        quiet=True,
        device="cpu",
        checkpoint_iterations=(9,),
    )
    optim = OptimConfig(position_lr_max_steps=20, anneal_to=0.1)
    return Trainer(config, scene, strategies=strategies, optim=optim, **options)


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    gaussians = trainer.gaussians
    tensors = {**gaussians.to_tensors(), **gaussians.rows, **gaussians.shared.state_dict()}
    for group in trainer.optimizer.param_groups:
        state = trainer.optimizer.state[group["params"][0]]
        tensors |= {f"{group['name']} {key}": x for key, x in state.items()}
    return tensors


def test_added_parameters_train_and_resume_bit_exactly(scene: Scene, tmp_path: Path) -> None:
    whole = make(scene, tmp_path / "whole", DENSIFY.build(), first := Neural())
    start = {name: x.clone() for name, x in first.decoder.state_dict().items()}
    whole.fit()
    gaussians = whole.gaussians
    assert len(gaussians) != 80
    assert gaussians.params["anchor_feat"].shape == (len(gaussians), 8)
    assert whole.optimizer.state[gaussians.params["anchor_feat"]]["exp_avg"].abs().max() > 0
    assert all(not torch.equal(x, start[name]) for name, x in first.decoder.state_dict().items())

    state = load_checkpoint(tmp_path / "whole" / "chkpnt9.pth")
    n = len(state["params"]["means"])
    assert state["params"]["anchor_feat"].shape == (n, 8)
    assert state["optimizer"]["anchor_feat"]["exp_avg"].shape == (n, 8)
    assert state["shared"].keys() == {
        "decoder.0.weight",
        "decoder.0.bias",
        "decoder.2.weight",
        "decoder.2.bias",
        "exposure",
    }
    assert first.is_new
    resumed = make(scene, tmp_path / "again", DENSIFY.build(), second := Neural(), start=state)
    assert not second.is_new
    resumed.fit()
    want, got = tensors_of(whole), tensors_of(resumed)
    assert want.keys() == got.keys() and "decoder.0.weight exp_avg_sq" in want
    for name in want:
        assert torch.equal(got[name], want[name]), name

    file = Path("point_cloud") / "iteration_20" / "point_cloud.ply"
    assert load_ply(tmp_path / "whole" / file).keys() == set(PUBLISHED)
    assert set(whole.exported().params) == set(PUBLISHED)


def test_row_edits_take_an_added_parameter_along(scene: Scene) -> None:
    gaussians = Gaussians.from_points(torch.rand(6, 3), torch.rand(6, 3), sh_degree=0)
    features = torch.arange(48.0).view(6, 8)
    gaussians.add_parameter(ANCHOR, features.clone())
    gaussians.add_shared("exposure", exposure := nn.Parameter(torch.ones(3)), lr=0.5)
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
    assert [g["name"] for g in optimizer.param_groups] == [*PUBLISHED, "anchor_feat", "exposure"]
    for parameter in [*gaussians.params.values(), exposure]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = gaussians.params["anchor_feat"].detach().clone()
    torch.testing.assert_close(before, features - 0.01)

    def check(rows: list[int]) -> None:
        parameter = gaussians.params["anchor_feat"]
        assert torch.equal(parameter, before[rows])
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert [g["params"] for g in optimizer.param_groups][6][0] is parameter

    keep_rows(gaussians, optimizer, torch.tensor([True, False, True, True, True, True]))
    check([0, 2, 3, 4, 5])
    gather_rows(gaussians, optimizer, torch.tensor([0, 1, 2, 3, 4, 1]), n_kept=5)
    check([0, 2, 3, 4, 5, 2])
    gather_rows(gaussians, optimizer, torch.tensor([5, 0]), n_kept=2)
    check([2, 0])
    copy_rows(gaussians, optimizer, torch.tensor([0]), torch.tensor([1]))
    check([0, 0])
    replace_values(gaussians, optimizer, "anchor_feat", before[:2])
    check([0, 1])
    # what has no rows is none of their business, and is stepped even after an edit
    assert exposure.grad is not None
    optimizer.step()
    torch.testing.assert_close(exposure.detach(), torch.zeros(3), atol=1e-6, rtol=0)


def test_the_kernel_steps_added_and_shared_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[dict[str, Tensor]] = []
    for kernel in (False, True):
        monkeypatch.setattr("gs.training.optimizer.uses_triton", lambda _, x, kernel=kernel: kernel)
        torch.manual_seed(0)
        gaussians = Gaussians.from_points(torch.rand(5, 3), torch.rand(5, 3), sh_degree=0)
        Neural().setup(gaussians, extent=1.0, iterations=1, seed=0)
        optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
        assert isinstance(optimizer, FusedAdam) == kernel
        for step in range(2):
            for group in optimizer.param_groups:
                p = group["params"][0]
                p.grad = torch.sin(torch.arange(p.numel()).view_as(p) + float(step))
            optimizer.step()
        results.append({**gaussians.to_tensors(), **gaussians.shared.state_dict()})
    for name, want in results[0].items():
        torch.testing.assert_close(results[1][name], want, rtol=2e-6, atol=1e-6, msg=name)


def test_rates_follow_the_specs() -> None:
    gaussians = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3), sh_degree=0)
    specs = [
        ParameterSpec("fixed", (), lr=0.3),
        ParameterSpec("annealed", (2,), lr=0.3, anneals=True, order=15),
        ParameterSpec("scheduled", (1,), lambda c, extent, step: extent * step, scheduled=True),
    ]
    for spec in specs:
        gaussians.add_parameter(spec, torch.zeros(4, *spec.tail))
    config = OptimConfig(anneal_to=0.1)
    optimizer = build_optimizer(gaussians, config, extent=2.0)
    names = [group["name"] for group in optimizer.param_groups]
    assert names[:3] == ["means", "sh0", "annealed"] and names[-2:] == ["fixed", "scheduled"]
    set_learning_rates(optimizer, learning_rates(optimizer, config, extent=2.0, step=20_000))
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["fixed"] == 0.3 and rates["scheduled"] == 40_000
    assert rates["annealed"] == annealing(config, 20_000) * 0.3 < 0.3


def test_what_needs_no_gradient_is_kept_but_not_optimised() -> None:
    gaussians = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3), sh_degree=0)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    gaussians.add_shared("frozen", frozen, lr=0.1)
    names = [g["name"] for g in build_optimizer(gaussians, OptimConfig(), extent=1.0).param_groups]
    assert names == list(PUBLISHED)
    assert gaussians.shared.state_dict().keys() == {"frozen.weight", "frozen.bias"}


def test_a_checkpoint_that_does_not_belong_is_refused(scene: Scene, tmp_path: Path) -> None:
    make(scene, tmp_path, Neural()).fit()
    state = load_checkpoint(tmp_path / "chkpnt9.pth")
    with pytest.raises(SplatrimError, match=r"\(anchor_feat, decoder\.0\.bias, .*, exposure\)"):
        make(scene, tmp_path, start=state)
    with pytest.raises(SplatrimError, match=r"0\.weight has shape \[8, 8\] and .*\[5, 8\]"):
        make(scene, tmp_path, Neural(width=5), start=state)
    less = {k: x for k, x in state["shared"].items() if k != "decoder.2.bias"}
    with pytest.raises(SplatrimError, match=r"decoder has other parts .*\(decoder\.2\.bias\)"):
        make(scene, tmp_path, Neural(), start={**state, "shared": less})


def test_bad_parameters_are_named() -> None:
    gaussians = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3), sh_degree=0)
    gaussians.add_shared("table", nn.Parameter(torch.zeros(2)), lr=0.1)
    for name in ("table", "means", "forward"):
        with pytest.raises(ValueError, match=f"{name} is taken"):
            gaussians.add_parameter(ParameterSpec(name, (), lr=0.1), torch.zeros(4))
    with pytest.raises(ValueError, match="'a.b' is no name"):
        gaussians.add_shared("a.b", nn.Parameter(torch.zeros(2)), lr=0.1)
    with pytest.raises(ValueError, match=r"number: expected float32 \[...\], got \[\]"):
        gaussians.add_shared("number", nn.Parameter(torch.tensor(1.0)), lr=0.1)
    with pytest.raises(ValueError, match="narrow: expected float32"):
        gaussians.add_shared("narrow", nn.Parameter(torch.zeros(2).half()), lr=0.1)
