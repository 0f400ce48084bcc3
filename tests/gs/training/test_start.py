"""Where runs begin: resumed or post-trained, and the published post-training rates."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from gs.config import TrainConfig
from gs.errors import SplatrimError
from gs.formats.model_file import save_model
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply
from gs.model.rates import OptimConfig
from gs.model.specs import PUBLISHED, ParameterSpec
from gs.training.checkpoint import save_checkpoint
from gs.training.optimizer import build_optimizer, learning_rates, set_learning_rates
from gs.training.run_state import RunState
from gs.training.start import (
    Origin,
    PostRates,
    add_aged_moments,
    find_origin,
    load_start,
)
from pruning import METHODS, MaskGaussian, MaskGaussianConfig

MASK_LOGITS = ParameterSpec("mask_logits", (2,), lr=0.01, order=35)

N = 6


def model(*, masks: bool = False, sh_degree: int = 2) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(N, 3, generator=generator)
    gaussians = Gaussians.from_points(points, points, sh_degree=sh_degree)
    if masks:  # rows 1 and 4 are dropped, 4 by a tie
        gap = torch.tensor([9.0, -1.0, 0.5, 2.0, 0.0, 7.0])
        gaussians.add_parameter(MASK_LOGITS, torch.stack([gap, torch.zeros(N)], 1))
    return gaussians


def state(step: int, *, masks: bool = False, **entries: Any) -> dict[str, Any]:
    gaussians = model(masks=masks)
    params = gaussians.to_tensors()
    moments: dict[str, Any] = {
        name: {"step": torch.tensor(float(step)), "exp_avg": x + 1, "exp_avg_sq": x.abs() + 2}
        for name, x in params.items()
    }
    return {
        "method": "mask-gaussian" if masks else "3dgs",
        "step": step,
        "params": params,
        "rows": {**gaussians.rows, "densify_views": torch.ones(N)},
        "next_id": N,
        "active_sh_degree": 2,
        "sh_degree": 2,
        "optimizer": {"lrs": dict.fromkeys(params, 0.5), **moments},
        "strategies": {"densify": {"seed": 3}},
        "extent": 1.0,
        **entries,
    }


def config(tmp_path: Path, **fields: Any) -> TrainConfig:
    return TrainConfig(tmp_path / "out", **{"iterations": 35_000, **fields})


def test_a_ply_is_post_trained_from_the_published_length(tmp_path: Path) -> None:
    origin = find_origin(tmp_path / "any.ply", None)
    assert origin == Origin(30_000, 30_000) and origin is not None and origin.post_end == 35_000
    assert find_origin(None, None) is None
    with pytest.raises(SplatrimError, match="not both"):
        find_origin(tmp_path / "a.ply", tmp_path / "b.pth")


@pytest.mark.parametrize("masks", [False, True])  # tuples of 12 and of 13
@pytest.mark.parametrize(("step", "post_start"), [(29_999, None), (30_000, 30_000)])
def test_published_checkpoints_are_finished_at_30000(
    write_published: Callable[..., None],
    tmp_path: Path,
    masks: bool,
    step: int,
    post_start: int | None,
) -> None:
    path = tmp_path / "chkpnt.pth"
    write_published(path, state(step, masks=masks))
    assert find_origin(None, path) == Origin(step, post_start)


def test_own_checkpoints_are_finished_when_their_schedule_is(tmp_path: Path) -> None:
    path = tmp_path / "chkpnt.pth"
    for step, settings, want in [
        (600, {"optim": {"position_lr_max_steps": 600}}, Origin(600, 600)),
        (7000, {"optim": {"position_lr_max_steps": 30_000}}, Origin(7000, None)),
        (
            32_000,
            {"optim": {"position_lr_max_steps": 35_000}, "post_start": 30_000},
            Origin(32_000, 30_000),
        ),
        (30_000, {}, Origin(30_000, 30_000)),
    ]:
        save_checkpoint(path, state(step, config=settings))
        assert find_origin(None, path) == want
    assert Origin(600, 600).post_end == 700
    assert Origin(32_000, 30_000).post_end == 35_000


def test_a_ply_becomes_a_state(tmp_path: Path) -> None:
    save_ply(tmp_path / "a.ply", model().to_tensors())
    start = load_start(
        config(tmp_path, start_ply=tmp_path / "a.ply", post_start=30_000), "mask-gaussian", METHODS
    )
    assert start is not None
    assert (start["step"], start["sh_degree"], start["active_sh_degree"]) == (30_000, 2, 2)
    assert start["optimizer"] == {}
    for name, x in model().to_tensors().items():
        assert torch.equal(start["params"][name], x), name


@pytest.mark.parametrize("kind", ["spz", "splat", "compressed.ply", "glb"])
def test_a_file_of_another_format_is_a_start_too(tmp_path: Path, kind: str) -> None:
    """By its content: even under the name that a flag for .ply files suggests."""
    gaussians, offset = model(), (1000.0, 0.0, -2.5)
    path = tmp_path / "model.ply" if kind != "splat" else tmp_path / "model.splat"
    save_model(path, gaussians.to_tensors(), kind, world_offset=offset)
    start = load_start(config(tmp_path, start_ply=path, post_start=30_000), "opacity", METHODS)
    assert start is not None and start["step"] == 30_000
    found = start["params"]["means"].sort(0).values
    want = gaussians.params["means"].detach().sort(0).values
    assert float((found - want).abs().max()) < 1e-3
    assert start["params"]["shN"].shape[1] == (0 if kind == "splat" else 8)
    assert start["world_offset"] == (offset if kind == "glb" else None)


def test_what_stays_of_a_finished_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "chkpnt.pth"
    save_checkpoint(path, state(30_000, masks=True))
    settings = config(tmp_path, start_checkpoint=path, post_start=30_000)
    kept, want = load_start(settings, "mask-gaussian", METHODS), state(30_000, masks=True)
    assert kept is not None
    assert kept["params"].keys() == want["params"].keys()
    assert torch.equal(
        kept["optimizer"]["mask_logits"]["exp_avg"], want["optimizer"]["mask_logits"]["exp_avg"]
    )
    assert kept["strategies"] == {} and list(kept["rows"]) == ["ids"]
    assert "lrs" not in kept["optimizer"]

    # another method gets the model that would have been saved
    other = load_start(settings, "opacity", METHODS)
    assert other is not None
    logits = want["params"]["mask_logits"]
    rows = (torch.sigmoid(logits[:, 0] - logits[:, 1]) > 0.8).nonzero()[:, 0]
    assert 0 < len(rows) < len(logits)
    assert "mask_logits" not in other["params"] and "mask_logits" not in other["optimizer"]
    assert other["rows"]["ids"].tolist() == rows.tolist()
    for name in ("means", "shN", "opacities"):
        assert torch.equal(other["params"][name], want["params"][name][rows]), name
        got, moments = other["optimizer"][name], want["optimizer"][name]
        assert torch.equal(got["exp_avg_sq"], moments["exp_avg_sq"][rows]), name
        assert float(got["step"]) == 30_000


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, lambda p: p > 0.8),
        ({"final_threshold": 0.6}, lambda p: p > 0.6),
        ({"final_threshold": 0.99}, lambda p: p > 0.99),
        ({"final_mask": "sample"}, None),
    ],
)
def test_a_finished_run_hands_over_what_it_would_have_saved(
    tmp_path: Path, settings: dict[str, Any], kept: Callable[..., torch.Tensor] | None
) -> None:
    """By its own final rule, whatever this run's is."""
    run = MaskGaussian(MaskGaussianConfig(**settings), densify_until=0)
    run.seed = 5
    strategies = {"mask_gaussian": run.state_dict()}
    done = state(30_000, masks=True, config={"pruning": settings}, strategies=strategies)
    done["params"]["mask_logits"][:, 0] = torch.tensor([9.0, -0.5, 0.5, 2.0, 0.1, 7.0])
    save_checkpoint(tmp_path / "chkpnt.pth", done)
    start_config = config(tmp_path, start_checkpoint=tmp_path / "chkpnt.pth", post_start=30_000)
    start = load_start(start_config, "opacity", METHODS)
    assert start is not None
    finished = model(masks=True)
    finished.params["mask_logits"].data.copy_(done["params"]["mask_logits"])
    keep = run.final_keep(finished)
    assert 0 < int(keep.sum()) < N
    assert start["rows"]["ids"].tolist() == keep.nonzero()[:, 0].tolist()
    if kept is not None:
        logits = done["params"]["mask_logits"]
        assert torch.equal(keep, kept(torch.sigmoid(logits[:, 0] - logits[:, 1])))


@pytest.mark.parametrize("method", ["lp-3dgs", "mask-gaussian", "3dgs"])
def test_single_logits_go_and_drop_nothing(tmp_path: Path, method: str) -> None:
    lp = state(30_000, method="lp-3dgs")
    lp["params"] = {**lp["params"], "mask_logits": torch.full((N,), -1.0)}
    save_checkpoint(tmp_path / "chkpnt.pth", lp)
    settings = config(tmp_path, start_checkpoint=tmp_path / "chkpnt.pth", post_start=30_000)
    start = load_start(settings, method, METHODS)
    assert start is not None and "mask_logits" not in start["params"]
    assert len(start["params"]["means"]) == N


def test_what_an_unknown_method_added_goes(tmp_path: Path) -> None:
    other = state(30_000, method="other", shared={"table": torch.zeros(3)})
    other["params"] = {**other["params"], "anchor_feat": torch.zeros(N, 8)}
    save_checkpoint(tmp_path / "chkpnt.pth", other)
    settings = config(tmp_path, start_checkpoint=tmp_path / "chkpnt.pth", post_start=30_000)
    start = load_start(settings, "opacity", METHODS)
    assert start is not None and start["params"].keys() == set(PUBLISHED)
    assert start["shared"] == {} and start["optimizer"].keys() == set(PUBLISHED)


def test_masks_that_drop_everything_are_refused(tmp_path: Path) -> None:
    dropped = state(30_000, masks=True)
    dropped["params"]["mask_logits"] = torch.zeros(N, 2)
    save_checkpoint(tmp_path / "chkpnt.pth", dropped)
    settings = config(tmp_path, start_checkpoint=tmp_path / "chkpnt.pth", post_start=30_000)
    with pytest.raises(SplatrimError, match="drop every Gaussian"):
        load_start(settings, "opacity", METHODS)


@pytest.mark.parametrize("method", ["mask-gaussian", "opacity"])
def test_masks_of_published_files_are_adopted(
    write_published: Callable[..., None], tmp_path: Path, method: str
) -> None:
    """A checkpoint with 13 entries, and a .ply with two more properties."""
    want = state(30_000, masks=True)
    write_published(tmp_path / "chkpnt.pth", want)
    save_ply(tmp_path / "plain.ply", want["params"])
    table = PlyData.read(str(tmp_path / "plain.ply"))["vertex"].data
    logits = want["params"]["mask_logits"]
    columns = {name: table[name] for name in table.dtype.names}
    columns |= {f"masks_{i}": logits[:, i].numpy() for i in (0, 1)}
    joined = np.array(list(zip(*columns.values(), strict=True)), [(name, "f4") for name in columns])
    PlyData([PlyElement.describe(joined, "vertex")]).write(str(tmp_path / "model.ply"))
    for start in (
        {"start_checkpoint": tmp_path / "chkpnt.pth"},
        {"start_ply": tmp_path / "model.ply"},
    ):
        got = load_start(config(tmp_path, post_start=30_000, **start), method, METHODS)
        assert got is not None
        if method == "mask-gaussian":
            assert torch.equal(got["params"]["mask_logits"], logits)
            assert "start_ply" in start or "mask_logits" in got["optimizer"]
        else:
            assert got["params"].keys() == set(PUBLISHED)
            assert got["rows"]["ids"].tolist() == [0, 3, 5]  # p > 0.8


def test_an_unfinished_checkpoint_is_resumed_by_its_own_method(tmp_path: Path) -> None:
    path = tmp_path / "chkpnt.pth"
    save_checkpoint(path, state(500, masks=True))
    settings = config(tmp_path, start_checkpoint=path)
    resumed = load_start(settings, "mask-gaussian", METHODS)
    assert resumed is not None and resumed["strategies"] == {"densify": {"seed": 3}}
    assert resumed["optimizer"]["lrs"]["means"] == 0.5
    with pytest.raises(SplatrimError, match="go on with --method mask-gaussian instead of 3dgs"):
        load_start(settings, "3dgs", METHODS)
    with pytest.raises(SplatrimError, match="at iteration 500 of 500: give more --iterations"):
        short = config(tmp_path, start_checkpoint=path, iterations=500)
        load_start(short, "mask-gaussian", METHODS)


def test_added_parameters_have_the_models_age() -> None:
    gaussians = model(masks=True)
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
    moments = add_aged_moments(RunState.from_dict(state(30_000)), gaussians)
    entry = moments["mask_logits"]
    assert float(entry["step"]) == 30_000 and not entry["exp_avg"].any()
    assert torch.equal(moments["means"]["exp_avg"], state(30_000)["optimizer"]["means"]["exp_avg"])
    assert optimizer.param_groups[4]["name"] == "mask_logits"


def published_rates(first: float, steps: range) -> list[float]:
    """Rates under torch's own ExponentialLR, stepped at multiples of 400 before the optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=first)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)
    optimizer.step()
    rates = []
    for step in steps:
        if step % 400 == 0:
            scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def test_rates_are_the_published_ones() -> None:
    gaussians = model(masks=True)
    optim = OptimConfig(position_lr_max_steps=35_000)
    optimizer = build_optimizer(gaussians, optim, extent=2.0)
    rates = PostRates(optim, start=30_000, iterations=35_000)
    rates.setup(gaussians, extent=2.0, iterations=35_000, seed=0)
    context: Any = SimpleNamespace(optimizer=optimizer)
    steps = range(30_001, 35_001)
    got: dict[str, list[float]] = {group["name"]: [] for group in optimizer.param_groups}
    for step in steps:
        set_learning_rates(optimizer, learning_rates(optimizer, optim, extent=2.0, step=step))
        rates.after_backward(step, context)
        for group in optimizer.param_groups:
            got[group["name"]].append(float(group["lr"]))
    for name, first in [("mask_logits", 0.01), ("opacities", 0.05), ("shN", 0.0025 / 20)]:
        assert got[name] == pytest.approx(published_rates(first, steps), rel=1e-12), name
    assert got["mask_logits"][-1] == pytest.approx(0.01 * 0.95**12, rel=1e-12)

    # positions: log-linear to 35000, lowered in the twelve iterations themselves
    schedule = [2 * 1.6e-4 * 0.01 ** (step / 35_000) for step in steps]
    lowered = [
        lr * (0.95 if step % 400 == 0 else 1.0) for lr, step in zip(schedule, steps, strict=True)
    ]
    assert got["means"] == pytest.approx(lowered, rel=1e-9)


def test_short_post_training_decays_as_often() -> None:
    gaussians = model()
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
    rates = PostRates(OptimConfig(), start=600, iterations=700)
    rates.setup(gaussians, extent=1.0, iterations=700, seed=0)
    context: Any = SimpleNamespace(optimizer=optimizer)
    seen: list[float] = []
    assert rates.phase(601) is None  # nobody has set them yet
    for step in range(601, 701):
        rates.after_backward(step, context)
        assert (rates.phase(step) is None) == (step % 8 == 0)
        seen.append(optimizer.param_groups[-1]["lr"])
    assert len(set(seen)) == 13 and seen[6:8] == pytest.approx([0.001, 0.00095])
