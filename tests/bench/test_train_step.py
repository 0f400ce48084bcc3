"""Grouping kernels, limits, lines, tables and plots; and real iterations on a tiny scene."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench import scaling, train_step
from bench.train_step import Interval, Machine, by_kernel, group, limits, stage_of
from bench.training import build_trainer, counts, random_workload, run_steps
from gs.errors import SplatrimError

H200 = Machine(bandwidth=4.3e12, instructions=29.7e12, special=3.7e12)
WORK = {"n_gaussians": 1_000_000, "n_visible": 600_000, "n_isects": 4_800_000}
WORK |= {"n_pixels": 1_000_000, "tile_pixels": 256}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("project_fwd_kernel", "projection"),
        ("project_bwd_kernel", "projection backward"),
        ("_blend_fwd_kernel", "blend forward"),
        ("blend_bwd_kernel", "blend backward"),
        ("sum_rows_kernel", "blend backward"),
        ("expand_kernel", "binning"),
        ("count_chunks_kernel", "binning"),
        ("scan_tiles_kernel", "binning"),
        ("place_kernel", "binning"),
        ("void at_cuda_detail::cub::DeviceScanKernel<Policy, int*>(int*)", "binning"),
        ("histograms_kernel", "sort"),
        ("sweep_kernel", "sort"),
        ("_order_kernel", "sort"),
        ("_zero_kernel", "copies, fills"),
        ("void cub::DeviceRadixSortOnesweepKernel<Policy, false, float, long>()", "sort"),
        ("void cub::DeviceRadixSortExclusiveSumKernel<Scan>()", "sort"),
        ("_ssim_fwd_kernel", "loss"),
        ("void conv_depthwise2d_forward_kernel_generic<float, int>()", "loss"),
        ("_adam_kernel", "optimizer"),
        ("_gradient_norms_kernel", "statistics"),
        ("multi_tensor_apply_kernel<Meta, FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("Memset (Device)", "copies, fills"),
        ("Memcpy HtoD (Pinned -> Device)", "copies, fills"),
        ("vectorized_elementwise_kernel<4, FillFunctor<float>>", "copies, fills"),
        ("vectorized_elementwise_kernel<4, sigmoid_kernel_cuda>", "other"),
    ],
)
def test_kernels_are_told_by_name(name: str, stage: str) -> None:
    assert stage_of(name) == stage


def test_every_kernel_of_the_rasterizer_has_a_stage(repo: Path) -> None:
    import re

    names = [
        name
        for path in (repo / "kernels").rglob("*.py")
        for name in re.findall(
            r"^@triton\.jit.*\ndef (\w*kernel)\(", path.read_text(), re.MULTILINE
        )
    ]
    assert len(names) > 8
    assert [name for name in names if stage_of(name) == "other"] == []


def test_stages_add_up_to_the_busy_time() -> None:
    intervals = [
        Interval("_adam_kernel", 5000.0, 5500.0),
        Interval("project_fwd_kernel", 0.0, 1000.0),
        Interval("_blend_fwd_kernel", 1500.0, 3500.0),
        Interval("Memcpy HtoD (Pinned -> Device)", 3000.0, 4000.0),  # half of it at the same time
        Interval("Memset (Device)", 1600.0, 1700.0),  # all of it
    ]
    stages = group(intervals, steps=2)
    assert {k: v for k, v in stages.items() if v} == {
        "projection": 0.5,
        "blend forward": 1.0,
        "copies, fills": 0.25,
        "optimizer": 0.25,
    }
    kernels = by_kernel([*intervals, Interval("_adam_kernel", 6000.0, 7000.0)], steps=2)
    first, second = kernels[0], kernels[1]
    assert (first["name"], first["n"], first["ms"]) == ("_blend_fwd_kernel", 0.5, 1.0)
    assert (second["name"], second["n"], second["ms"]) == ("_adam_kernel", 1.0, 0.75)


def test_limits() -> None:
    found = limits(H200, **WORK)
    pairs = 0.6 * 256 * 4.8e6
    expected = {
        "projection": (12e6 + 288 * 0.6e6) / 4.3e9,
        "sort": (68 * 0.6e6 + 32 * 4.8e6) / 4.3e9,
        "binning": 8 * 4.8e6 / 4.3e9,
        "blend forward": 15 * pairs / (0.6 * 29.7e9),
        "loss": 168e6 / 4.3e9,
        "blend backward": 35 * pairs / (0.6 * 29.7e9),
        "projection backward": 508 * 0.6e6 / 4.3e9,
        "optimizer": 1652e6 / 4.3e9,
    }
    assert {k: v for k, v in found.items() if v} == pytest.approx(expected)
    # with few special functions these are what takes longest
    slow = limits(H200._replace(special=1e11), **WORK)
    assert slow["blend backward"] == pytest.approx(2 * pairs / 1e8)


def made_up(name: str, n: int, scale: float) -> dict[str, Any]:
    names = ["project_fwd_kernel", "DeviceRadixSort", "expand_kernel", "_blend_fwd_kernel"]
    names += ["_ssim", "blend_bwd_kernel", "project_bwd_kernel", "_adam_kernel", "Memset", "gelu"]
    starts = [100.0 * scale * i for i in range(len(names))]
    intervals = [Interval(k, s, s + 90 * scale) for k, s in zip(names, starts, strict=True)]
    stages = group(intervals, steps=1)
    work = WORK | {"n_gaussians": n, "tile_pixels": 64}
    return work | {
        "workload": name,
        "width": 1296,
        "height": 840,
        "stages": stages,
        "limits": limits(H200, **work),
        "wall_ms": 1.0 * scale,
        "busy_ms": sum(stages.values()),
        "idle_ms": 0.1 * scale,
        "launches": 10.0,
        "peak_memory_mb": 1234.0,
    }


def test_the_table_and_plot_of_stages(tmp_path: Path) -> None:
    about = {"device": "GPU", "torch": "2", "command": "c"}
    rows = [made_up("garden-x1", 111_785, 1.0), made_up("garden-7x7", 5_477_465, 6.0)]
    text = train_step.write_results(tmp_path, about, rows)
    lines = text.splitlines()
    assert "| | 111,785 Gaussians, 1296x840 | 5,477,465 Gaussians, 1296x840 |" in lines
    assert "| projection | 0.090 / 0.040 | 0.540 / 0.055 |" in lines
    assert "| other | 0.090 / 0.000 | 0.540 / 0.000 |" in lines
    assert "| GPU busy | 0.900 / " in text and "| **wall** | **1.000** | **6.000** |" in lines
    assert "| idle (wall - busy) | 0.100 | 0.600 |" in lines
    assert json.loads((tmp_path / "train_step.json").read_text())["rows"] == rows
    with Image.open(tmp_path / "train_step.png") as image:
        # a colour for every stage, and for idle
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 11


def test_a_line_and_its_fit() -> None:
    line = scaling.fit_line([1, 2, 4], [3.0, 5.0, 9.0])
    assert line == pytest.approx((1.0, 2.0, 1.0))
    # y = x + (1, -2, 1) / 3: the residual is orthogonal to the line
    line = scaling.fit_line([0, 1, 2], [1 / 3, 1 - 2 / 3, 2 + 1 / 3])
    assert line == pytest.approx((0.0, 1.0, 1 - (6 / 9) / (2 + 6 / 9)))
    assert scaling.fit_line([1, 2], [5.0, 5.0]).r2 == 1.0
    with pytest.raises(ValueError, match="two or more places"):
        scaling.fit_line([1, 1], [1.0, 2.0])


def test_image_sizes_keep_their_ratio() -> None:
    assert scaling.image_size(1296 * 840 / 1e6) == (1296, 840)
    for megapixels in scaling.MEGAPIXELS:
        width, height = scaling.image_size(megapixels)
        assert width * height / 1e6 == pytest.approx(megapixels, rel=2e-3)
        assert width / height == pytest.approx(1296 / 840, rel=2e-3)


def test_iterations_do_the_same_work_and_change_nothing(tmp_path: Path) -> None:
    w = random_workload(50, 64, 48)
    trainer = build_trainer(w, tmp_path, torch.device("cpu"), method="mask-gaussian")
    before = {name: x.clone() for name, x in trainer.gaussians.to_tensors().items()}
    run_steps(trainer, 3)
    trainer.images.close()
    assert trainer.step == 20_003
    for name, x in trainer.gaussians.to_tensors().items():
        assert torch.allclose(x, before[name], rtol=0, atol=1e-25), name
    moments = trainer.optimizer.state[trainer.gaussians.params["sh0"]]["exp_avg"]
    assert moments.abs().sum() > 0
    work = counts(w, torch.device("cpu"))
    assert work["n_gaussians"] == 50 and 0 < work["n_visible"] <= 50
    assert work["n_isects"] >= work["n_visible"] and work["n_pixels"] == 64 * 48


def test_train_step_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workloads", "random-30", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]
    train_step.main([*words, "--densifying"])
    (row,) = json.loads((tmp_path / "train_step.json").read_text())["rows"]
    assert row["n_gaussians"] == 30 and row["wall_ms"] > 0 and "stages" not in row
    assert "| **wall** | **" in capsys.readouterr().out


def test_scaling_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "RANDOM_SIZES", (10, 20))
    scaling.main(["--random", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / "scaling.json").read_text())
    assert [r["n_gaussians"] for r in saved["rows"]["gaussians"]] == [10, 20]
    assert [r["n_pixels"] for r in saved["rows"]["pixels"]] == [768, 3072, 12_288]
    assert set(saved["fits"]) == {"gaussians", "pixels"}
    text = (tmp_path / "scaling.md").read_text()
    assert "ms per million, R^2" in text and "ms per megapixel, R^2" in text
    with Image.open(tmp_path / "scaling.png") as image:
        assert image.format == "PNG"


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATRIM_DATA", str(tmp_path))
    out = ["--device", "cpu", "--out", str(tmp_path / "out")]
    with pytest.raises(SplatrimError, match="workload garden-x1 needs its data: .*garden_points"):
        train_step.main(out)
    with pytest.raises(SplatrimError, match="workloads need their data: .*garden_points"):
        scaling.main(out)
    with pytest.raises(SplatrimError, match="--memory_limit needs a CUDA device"):
        scaling.main([*out, "--memory_limit", "24"])
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_stages_on_a_gpu() -> None:
    device = torch.device("cuda")
    arguments = argparse.Namespace(
        device="cuda", method="3dgs", no_graph=False, densifying=False, steps=5
    )
    row = train_step.measure("random-5000", train_step.measure_machine(device), arguments)
    for stage in ("projection", "binning", "sort", "blend forward", "blend backward", "optimizer"):
        assert row["stages"][stage] > 0, stage
    # the profiled iterations are others than the timed ones
    assert 0 < row["busy_ms"] < 1.2 * row["wall_ms"]
