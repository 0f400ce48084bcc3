"""The ablation of mask gradients: its plan, its runs on a CPU, its statistics."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels.blending
from bench.ablation import AblationConfig, main, markdown, plan, summarize
from bench.ablation import train as ablation_train
from bench.ablation.published_backward import published_bwd
from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError


def run(method: str, seed: int, psnr: float, n: int, **more: Any) -> dict[str, Any]:
    figures = {"scene": "garden", "method": method, "seed": seed, "psnr": psnr, "n_gaussians": n}
    return figures | {"ssim": 0.8, "train_seconds": 60.0, "device": "GPU"} | more


def test_a_plan_pairs_the_runs_of_a_seed(tmp_path: Path) -> None:
    config = AblationConfig(tmp_path, seeds=(3, 4), iterations=900, out=tmp_path / "out")
    _, jobs = plan(config, ["--sh_degree", "1"])
    assert [(job.method.label, job.seed) for job in jobs] == [
        ("3dgs", 3),
        ("exact", 3),
        ("published", 3),
        ("3dgs", 4),
        ("exact", 4),
        ("published", 4),
    ]
    exact, published = jobs[1:3]
    assert exact.args == published.args and exact.folder != published.folder
    assert (exact.method.module, published.method.module) == ("train", "bench.ablation.train")
    line = "--method mask-gaussian --seed 3 --preset beta --iterations 900 --sh_degree 1"
    assert " ".join(exact.args) == line
    with pytest.raises(SplatrimError, match="no such scene"):
        plan(AblationConfig(tmp_path / "absent"))


def test_on_a_cpu_the_exact_run_finishes_and_the_published_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scene, out = tmp_path / "solids", tmp_path / "out"
    write_demo_scene(scene, views=9, width=48, height=36)
    words = ["--scene", str(scene), "--seeds", "0", "--iterations", "2", "--out", str(out)]
    words += ["--device", "cpu", "--skip_baseline", "--", "--init_points", "50"]
    with pytest.raises(SystemExit):
        main(words)
    assert "1 of 2 runs failed" in capsys.readouterr().err
    exact, published = json.loads((out / "ablation.json").read_text())["runs"]
    assert exact["method"] == "exact" and exact["psnr"] > 5 and exact["n_gaussians"] == 50
    message = "published gradients need a GPU: on a CPU all gradients are exact"
    assert published["error"] == message
    assert f"- published, seed 0: {message}" in (out / "ablation.md").read_text()
    assert not (out / "solids/published/seed0/config.json").exists()


def test_a_published_run_is_train_py_with_another_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, ran = kernels.blending.blend_bwd, []

    def note(path: str, run_name: str) -> None:
        ran.append((Path(path).name, run_name, kernels.blending.blend_bwd))

    words = ["-s", str(tmp_path), "-m", str(tmp_path / "x"), "--device", "cuda"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    monkeypatch.setattr(ablation_train, "resolve_device", torch.device)
    monkeypatch.setattr(ablation_train.runpy, "run_path", note)
    ablation_train.main()
    assert ran == [("train.py", "__main__", published_bwd)]
    assert kernels.blending.blend_bwd is exact


def test_statistics() -> None:
    runs = [
        run("3dgs", 0, 27.0, 1000),
        run("3dgs", 1, 27.0, 1000),
        run("exact", 0, 27.5, 400),
        run("published", 0, 27.0, 500),
        run("exact", 1, 28.5, 600),
        run("published", 1, 28.25, 500),
        run("exact", 2, 29.0, 500, ratio=None),
        {**run("published", 2, 0, 0), "error": "broke"},
    ]
    summary = summarize(runs)
    psnr = summary["exact"]["psnr"]
    assert psnr["n"] == 3 and psnr["mean"] == pytest.approx(85 / 3)
    assert summary["published"]["n_gaussians"] == {"mean": 500, "spread": 0, "n": 2}
    # differences 0.5 and 0.25: standard deviation 0.25 / sqrt(2), over sqrt(2)
    difference = summary["difference"]["psnr"]
    assert difference == {"mean": 0.375, "spread": pytest.approx(0.125), "n": 2}
    assert summary["difference"]["ratio"]["mean"] == pytest.approx(0.0)
    assert summary["exact"]["ratio"] is None  # 3dgs of seed 2 has not finished
    lines = markdown(runs).splitlines()
    assert lines[4].startswith("| exact - published | +0.375 ± 0.125 | +0.00000 ± 0.00000 | +0 ±")
    assert "- published, seed 2: broke" in lines
    assert {line.count("|") for line in lines[:5]} == {7}
