"""A model whose rows are decoded: half as many rows as Gaussians, and a shared linear layer."""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.model.gaussians import SH_C0, Gaussians
from gs.model.model import Model, Splats
from gs.model.ply import load_ply
from gs.model.renderer import render
from gs.model.rows import keep_rows
from gs.model.specs import ParameterSpec
from gs.model.view import View, view_of
from gs.training.checkpoint import load_checkpoint
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer

CHILDREN, FEATURES = 2, 6
DECODED = 3 + 3 + 1 + 3  # offset, log-scale, opacity, colour

pytestmark = pytest.mark.usefixtures("one_thread")


class Anchors(Model):
    """Anchors [M], each of which a decoder makes two Gaussians of, by where it is seen from."""

    def __init__(self, points: Tensor, state: dict[str, Any] | None = None) -> None:
        n = len(points) if state is None else len(state["rows"]["ids"])
        super().__init__(n, "cpu")
        if state is not None:
            self.restore(state["params"], state["rows"], state["shared"], state["next_id"])
            points = state["params"]["anchors"]
        generator = torch.Generator().manual_seed(0)
        features = 0.5 * torch.randn(n, FEATURES, generator=generator)
        self.add_parameter(ParameterSpec("anchors", (3,), lr=0.002), points)
        self.add_parameter(ParameterSpec("features", (FEATURES,), lr=0.02, anneals=True), features)
        torch.manual_seed(0)
        self.add_shared("decoder", nn.Linear(FEATURES + 3, CHILDREN * DECODED), lr=0.005)

    def splats(self, view: View) -> Splats:
        centre = -view.viewmats[0, :3, :3].T @ view.viewmats[0, :3, 3]
        anchors = self.params["anchors"]
        directions = nn.functional.normalize(anchors - centre, dim=-1)
        decoded = self.shared.get_submodule("decoder")(
            torch.cat([self.params["features"], directions], 1)
        )
        offsets, scales, opacities, colors = decoded.view(-1, DECODED).split([3, 3, 1, 3], 1)
        return Splats(
            anchors.repeat_interleave(CHILDREN, 0) + 0.1 * offsets,
            torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(offsets), 1),
            0.2 * torch.exp(scales),
            torch.sigmoid(opacities[:, 0]),
            torch.sigmoid(colors),
        )

    @torch.no_grad()
    def exported(self, keep: Tensor | None = None) -> "Anchors":
        tensors = {**self.to_tensors(), **self.rows}
        if keep is not None:
            tensors = {name: x[keep] for name, x in tensors.items()}
        ids = tensors.pop("ids")
        state = {"params": tensors, "rows": {"ids": ids}, "next_id": self.next_id}
        return Anchors(tensors["anchors"], state | {"shared": self.shared.state_dict()})

    @torch.no_grad()
    def to_ply(self) -> dict[str, Tensor]:
        """As seen from the front."""
        splats = self.splats(View(torch.eye(4)[None], torch.eye(3)[None], torch.zeros(1), 1, 1))
        return {
            "means": splats.means,
            "quats": splats.quats,
            "scales": splats.scales.log(),
            "opacities": splats.opacities.logit(),
            "sh0": ((splats.colors - 0.5) / SH_C0)[:, None],
            "shN": splats.colors.new_zeros(len(splats.means), 0, 3),
        }


class Prunes(Strategy[Anchors]):
    """Drops the anchors of odd ids once, and keeps the others of the first ten in what is saved."""

    name = "prunes"

    def after_backward(self, step: int, ctx: StepContext[Anchors]) -> None:
        if step == 6:
            keep_rows(ctx.gaussians, ctx.optimizer, ctx.gaussians.rows["ids"] % 2 == 0)

    def final_keep(self, gaussians: Anchors) -> Tensor:
        return gaussians.rows["ids"] < 10

    def phase(self, step: int) -> Hashable | None:
        return None


def make(scene: Scene, out: Path, **options: Any) -> Trainer[Anchors]:
    config = TrainConfig(
        out,
        iterations=30,
        quiet=True,
        device="cpu",
        test_iterations=(1,),
        checkpoint_iterations=(9,),
    )
    start = options.get("start")
    return Trainer(
        config, scene, strategies=[Prunes()], model=Anchors(scene.points[::2], start), **options
    )


def test_a_decoded_model_trains_and_resumes_and_is_saved(scene: Scene, tmp_path: Path) -> None:
    whole = make(scene, tmp_path / "whole")
    assert len(whole.gaussians) == 40
    names = [group["name"] for group in whole.optimizer.param_groups]
    assert names == ["anchors", "features", "decoder.weight", "decoder.bias"]
    whole.fit()
    first, last = whole.tracker.history["test"]
    assert last["psnr"] > first["psnr"] + 1.0
    assert whole.gaussians.rows["ids"].tolist() == [*range(0, 40, 2)]
    saved = load_ply(tmp_path / "whole" / "point_cloud" / "iteration_30" / "point_cloud.ply")
    assert len(saved["means"]) == 5 * CHILDREN
    assert torch.allclose(saved["means"], whole.exported().to_ply()["means"])

    state = load_checkpoint(tmp_path / "whole" / "chkpnt9.pth", gaussians=False)
    assert state["params"].keys() == {"anchors", "features"}
    resumed = make(scene, tmp_path / "again", start=state)
    resumed.fit()
    got, want = resumed.gaussians.state_dict(), whole.gaussians.state_dict()
    assert got.keys() == want.keys() and "shared.decoder.weight" in want
    for name, x in want.items():
        assert torch.equal(got[name], x), name
    assert resumed.tracker.history["loss"] == whole.tracker.history["loss"]


def gaussians(n: int = 20) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    points, colors = torch.randn(2, n, 3, generator=generator)
    model = Gaussians.from_points(points, colors.abs())
    with torch.no_grad():
        model.params["shN"].copy_(0.1 * torch.randn(n, 15, 3, generator=generator))
    model.active_sh_degree = 2
    return model


def test_splats_of_gaussians_are_the_parameters_themselves(scene: Scene) -> None:
    model, view = gaussians(), view_of(scene.train[0], torch.device("cpu"))
    splats = model.splats(view)
    p = model.params
    tensors = (p["means"], p["quats"], p["scales"], p["opacities"], p["sh0"], p["shN"])
    assert all(a is b for a, b in zip(splats, tensors, strict=False))
    assert splats.raw and splats.sh_degree == 2


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_splats_are_drawn_raw_or_activated(scene: Scene, backend: str) -> None:
    shrink = torch.tensor([0.4, 0.4, 1.0])[:, None]
    camera = replace(scene.train[0], width=16, height=12, K=shrink * scene.train[0].K)
    model = gaussians(6)
    raw = model.splats(view_of(camera, torch.device("cpu")))
    activated = raw._replace(
        scales=model.get_scales(),
        opacities=model.get_opacities(),
        colors=model.get_sh(),
        colors_rest=None,
        raw=False,
    )
    want = render(raw, camera, backend=backend)
    out = render(activated, camera, backend=backend)
    assert out.alphas.max() > 0.05
    torch.testing.assert_close(out.colors, want.colors, rtol=1e-4, atol=1e-5)
    plain = activated._replace(colors=model.get_sh()[:, 0] * SH_C0 + 0.5, sh_degree=None)
    constant = render(model, camera, sh_degree=0, backend=backend)
    gradients: list[Tensor] = []
    for out in (render(plain, camera, backend=backend), constant):
        torch.testing.assert_close(out.colors, constant.colors, rtol=1e-3, atol=1e-4)
        (v_sh0,) = torch.autograd.grad(out.colors.sum(), [model.params["sh0"]])
        gradients.append(v_sh0)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


def test_the_ids_follow_the_model_to_a_device() -> None:
    model = Anchors(torch.zeros(3, 3)).to("meta")
    assert model.device.type == "meta" and len(model) == 3
