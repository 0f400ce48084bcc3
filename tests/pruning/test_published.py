"""Presets that follow published code to the last step, and what each of them differs in."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from gs.cli import Config
from gs.config import TrainConfig
from gs.model.gaussians import Gaussians
from pruning import LP3DGSConfig, MaskGaussianConfig, MethodConfig

SAMPLE = {"final_mask": "sample"}
DRAWN = {"score_source": "masked", "decision": "sample"}
UNSCALED = {"score_scale": "none"}

# method, published preset, its better default, and all that differs between the two
PAIRS: list[tuple[type[MethodConfig], str, str, dict[str, Any]]] = [
    (MaskGaussianConfig, "published-alpha", "alpha", SAMPLE),
    (MaskGaussianConfig, "published-beta", "beta", SAMPLE),
    (MaskGaussianConfig, "published-gamma", "gamma", SAMPLE),
    (
        MaskGaussianConfig,
        "published-post",
        "post",
        SAMPLE | {"mask_prune_iter": 0, "mean_over": "present"},
    ),
    (LP3DGSConfig, "published-radsplat", "radsplat", DRAWN),
    (LP3DGSConfig, "published-mini-splatting", "mini-splatting", DRAWN | UNSCALED),
]


@pytest.mark.parametrize("method, published, better, changes", PAIRS, ids=[p[1] for p in PAIRS])
def test_published_presets_differ_where_the_code_does(
    method: type[MethodConfig], published: str, better: str, changes: dict[str, Any]
) -> None:
    theirs, ours = (dataclasses.asdict(method.preset(name)) for name in (published, better))
    assert {k: theirs[k] for k in theirs if theirs[k] != ours[k]} == changes


def parse(line: str) -> Config:
    return train.parse(shlex.split(f"-s x {line}"))


def test_one_preset_alone_changes_the_run() -> None:
    for method, published, better, _ in PAIRS:
        for name in {published, better} - {"published-mini-splatting"}:
            assert not method.RUN_SETTINGS.get(name)
    late = parse("--method lp-3dgs --preset published-mini-splatting").train
    assert late.sh_degree_from_iter == 15_000
    plain = parse("--method lp-3dgs --preset mini-splatting").train
    assert dataclasses.replace(late, sh_degree_from_iter=0, model_path=plain.model_path) == plain
    line = "--method lp-3dgs --preset published-mini-splatting --iterations 3000"
    assert parse(line).train.sh_degree_from_iter == 1500
    assert parse(f"{line} --sh_degree_from_iter 7").train.sh_degree_from_iter == 7


@pytest.mark.parametrize(
    "start, want", [(15_000, [16_000, 17_000, 18_000]), (0, [1000, 2000, 3000])]
)
def test_degrees_grow_as_published(start: int, want: list[int]) -> None:
    run = TrainConfig(Path("out"), sh_degree_from_iter=start)
    assert [step for step in range(1, 30_001) if run.sh_degree_grows_at(step)][:3] == want


def model(n: int) -> Gaussians:
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    return Gaussians.from_points(points, points, sh_degree=0)


@pytest.mark.parametrize("preset", ["alpha", "beta", "gamma", "post"])
def test_the_saved_model_is_a_draw(preset: str) -> None:
    def kept(name: str) -> float:
        gaussians = model(20_000)
        strategy = MaskGaussianConfig.preset(name).build(densify_until=15_000)
        strategy.setup(gaussians, extent=1.0, iterations=30_000, seed=0)
        gaussians.params["mask_logits"].data[:] = torch.tensor([1.0, 0.0])
        keep = strategy.final_keep(gaussians)
        assert keep is not None
        return keep.float().mean().item()

    assert kept(f"published-{preset}") == pytest.approx(0.7311, abs=0.016)  # sigmoid(1), 5 sigma
    assert kept(preset) == 0.0  # 0.73 is below the threshold of 0.8


@pytest.mark.parametrize("preset", ["radsplat", "mini-splatting"])
def test_the_decision_is_a_draw(preset: str) -> None:
    def kept(name: str) -> float:
        gaussians = model(20_000)
        strategy = LP3DGSConfig.preset(name).build(densify_until=15_000)
        strategy.setup(gaussians, extent=1.0, iterations=30_000, seed=0)  # logits are 1
        return strategy.decide(gaussians).float().mean().item()

    assert kept(f"published-{preset}") == pytest.approx(0.7311, abs=0.016)
    assert kept(preset) == 1.0
