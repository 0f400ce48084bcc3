"""A run beside its baseline, several runs on one page, and the 3D view, also in a browser."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.evaluation.views import psnr, quantize
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, save_ply
from gs.model.renderer import render
from gs.report import model_view
from gs.report.comparison import labels, write_comparison
from gs.report.headline import headline, with_baseline
from gs.report.run import Run, load_run
from gs.report.sections import main, write_report

WriteRun = Callable[..., None]
ENOUGH = 30.0  # dB of the 3D view beside the project's own rendering
MODEL = "document.querySelector('.model')"


def set_up(out: Path, *, method: str, psnr: float, n: int, **more: Any) -> Run:
    """Change what the files of a run say."""
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "method": method, **more}))
    (out / "results.json").write_text(json.dumps({"ours_300": {"PSNR": psnr}}))
    model = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,)}
    tensors = {name: torch.ones(shape) for name, shape in model.items()}
    path = out / "point_cloud/iteration_300/point_cloud.ply"
    save_ply(path, {**tensors, "sh0": torch.zeros(n, 1, 3)})
    return load_run(out)


def words(run: Run) -> str:
    shown = headline(run)
    assert shown is not None
    return shown[1].split("<div")[0].replace("<b>", "").replace("</b>", "")


@pytest.mark.parametrize(
    ("score", "n", "sentence"),
    [
        (
            30.04,
            60,
            "40 % fewer Gaussians than 3DGS (60 instead of 100) at equal quality: "
            "30.04 dB, 3DGS 30.00 dB.",
        ),
        (
            29.5,
            99,
            "1.0 % fewer Gaussians than 3DGS (99 instead of 100) at a PSNR that is 0.50 dB worse: "
            "29.50 dB, 3DGS 30.00 dB.",
        ),
        (
            30.25,
            150,
            "50 % more Gaussians than 3DGS (150 instead of 100) at a PSNR that is 0.25 dB better: "
            "30.25 dB, 3DGS 30.00 dB.",
        ),
        (30.0, 100, "As many Gaussians as 3DGS (100) at equal quality: 30.00 dB, 3DGS 30.00 dB."),
    ],
)
def test_the_headline_says_what_pruning_did(
    tmp_path: Path, write_run: WriteRun, score: float, n: int, sentence: str
) -> None:
    write_run(tmp_path / "out")
    write_run(tmp_path / "out/baseline")
    set_up(tmp_path / "out/baseline", method="3dgs", psnr=30.0, n=100)
    run = with_baseline(set_up(tmp_path / "out", method="mask-gaussian", psnr=score, n=n))
    assert words(run) == f'<p class="lead">{sentence}</p>'


def test_a_baseline_that_was_trained_otherwise_is_told_of(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "out")
    write_run(tmp_path / "base")
    set_up(tmp_path / "base", method="3dgs", psnr=30.0, n=100, iterations=900)
    run = with_baseline(load_run(tmp_path / "out"), tmp_path / "base")
    assert "The baseline was trained otherwise: iterations 900 instead of 300." in words(run)


def test_without_a_baseline_the_report_says_how_to_get_one(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "out")
    text = words(with_baseline(load_run(tmp_path / "out")))
    assert "40 of up to 200 Gaussians were kept." in text and "--baseline BASE" in text
    (tmp_path / "out/baseline").mkdir()  # one that has only begun
    assert with_baseline(load_run(tmp_path / "out")).baseline is None


def test_several_runs_on_one_page(tmp_path: Path, write_run: WriteRun) -> None:
    for name in ("a", "b", "c"):
        write_run(tmp_path / name)
    set_up(tmp_path / "b", method="3dgs", psnr=30.0, n=100)
    folders = [str(tmp_path / name) for name in ("a", "b", "c")]
    main(folders)
    html = (tmp_path / "comparison.html").read_text()
    assert "3 runs of &lt;garden&gt; &amp; co" in html
    assert html.count('href="') == 3 and 'href="b/report.html"' in html
    assert html.count("<svg") == 4 and html.count('class="picker"') == 4
    assert "<b>30.00</b>" in html and "<b>40</b>" in html  # the best of their columns
    assert all((tmp_path / name / "report.html").is_file() for name in ("a", "b", "c"))
    main(["-m", *folders[:2], "--output", str(tmp_path / "deep/page.html")])
    assert 'href="../b/report.html"' in (tmp_path / "deep/page.html").read_text()


def test_runs_have_names_of_their_own(tmp_path: Path, write_run: WriteRun) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name)
    a, b = load_run(tmp_path / "a"), load_run(tmp_path / "b")
    assert labels([a, b]) == ["mask-gaussian, a", "mask-gaussian, b"]
    c = set_up(tmp_path / "b", method="3dgs", psnr=1.0, n=1)
    assert labels([a, c]) == ["mask-gaussian", "3DGS"]
    assert labels([a, a]) == [str(tmp_path / "a")] * 2


def test_a_comparison_needs_several_runs(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    with pytest.raises(SplatrimError, match="of 2 to 8 runs, not of 1"):
        write_comparison([tmp_path / "out"])
    with pytest.raises(SplatrimError, match="there is one run"):
        main([str(tmp_path / "out"), "-o", "page.html"])
    with pytest.raises(SplatrimError, match="which run"):
        main([])


@pytest.fixture
def trained(tmp_path: Path, write_run: WriteRun, scene: Scene) -> Path:
    """A run whose model and scene can be shown, 200 x 150 pixels a view."""
    out, folder = tmp_path / "out", tmp_path / "scene"
    write_run(out)
    frames = []
    for i in range(2):
        (folder / "test").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 150)).save(folder / f"test/r_{i}.png")
        turn = 0.7 * i
        c, s = math.cos(turn), math.sin(turn)
        matrix = [[c, 0, s, 4 * s], [0, 1, 0, 0], [-s, 0, c, 4 * c], [0, 0, 0, 1]]
        frames.append({"file_path": f"./test/r_{i}", "transform_matrix": matrix})
    text = json.dumps({"camera_angle_x": 0.8, "frames": frames})
    for split in ("train", "test"):
        (folder / f"transforms_{split}.json").write_text(text)
    set_up(out, method="mask-gaussian", psnr=30.0, n=1, source_path=str(folder))
    g = torch.Generator().manual_seed(0)
    n = 300
    save_ply(
        out / "point_cloud/iteration_300/point_cloud.ply",
        {
            "means": torch.randn(n, 3, generator=g) * 0.6,
            "quats": torch.randn(n, 4, generator=g),
            "scales": torch.randn(n, 3, generator=g) * 0.5 - 2.3,
            "opacities": torch.randn(n, generator=g) * 2 + 2,
            "sh0": torch.randn(n, 1, 3, generator=g) * 1.5,
            "shN": torch.randn(n, 15, 3, generator=g) * 0.3,
        },
    )
    return out


def rendered(out: Path) -> Tensor:  # [150, 200, 3] uint8
    shown = model_view.load_shown(out)
    assert shown.cameras[0].image_name == "test/r_0.png"
    gaussians = Gaussians.from_tensors(load_ply(out / "point_cloud/iteration_300/point_cloud.ply"))
    with torch.no_grad():
        background = torch.tensor(shown.background)
        return quantize(render(gaussians, shown.cameras[0], background=background).colors)


def pictured(browser: Any, shape: tuple[int, int]) -> Tensor:  # [H, W, 3] uint8
    """The 3D view alone, at the size of a camera."""
    browser.wait_for("document.querySelector('.splats').dataset.state === 'shown'")
    browser.evaluate(
        f"{MODEL}.querySelector('.panel').hidden = true;"
        f"{MODEL}.querySelector('.whole').style.display = 'none';"
        f"{MODEL}.style.cssText = 'position: fixed; inset: 0; border: 0; border-radius: 0;"
        f"max-height: none; z-index: 9; width: {shape[1]}px; height: {shape[0]}px'"
    )
    browser.wait_for(
        "document.querySelector('.splats').dataset.state === 'shown' && "
        f"document.querySelector('canvas').width === {shape[1]}"
    )
    image: np.ndarray[Any, Any] = browser.screenshot()
    return torch.from_numpy(image[: shape[0], : shape[1]].copy())


def test_the_report_shows_the_model_as_the_renderer_does(browser: Any, trained: Path) -> None:
    browser.open(write_report(trained), 900, 700)
    want = rendered(trained)
    first = pictured(browser, (150, 200))
    assert psnr(first, want) > ENOUGH
    browser.drag([(100, 75), (140, 80), (180, 90)])
    turned = pictured(browser, (150, 200))
    assert psnr(turned, want) < ENOUGH - 5
    browser.drag([(180, 90), (140, 80), (100, 75)])
    assert psnr(pictured(browser, (150, 200)), want) > ENOUGH
    assert not browser.log


def test_the_view_fills_the_window_and_goes_back(browser: Any, trained: Path) -> None:
    browser.open(write_report(trained), 390, 844, phone=True)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    browser.evaluate(f"{MODEL}.querySelector('.whole').click()")
    browser.wait_for(f"{MODEL}.clientHeight === 844")
    browser.evaluate(f"{MODEL}.querySelector('.splats').focus()")
    browser.press("Escape", "Escape")
    browser.wait_for(f"{MODEL}.clientHeight < 844")


def test_the_line_between_truth_and_rendering_moves(browser: Any, trained: Path) -> None:
    browser.open(write_report(trained), 900, 700)
    slide = "document.querySelector('.slide')"
    browser.evaluate(f"{slide}.scrollIntoView({{block: 'center'}})")
    x, y, width = browser.evaluate(
        f"(b => [b.left, b.top + b.height / 2, b.width])({slide}.getBoundingClientRect())"
    )
    browser.drag([(int(x + width / 2), int(y)), (int(x + width * 0.9), int(y))])
    assert browser.evaluate(f"parseFloat({slide}.style.getPropertyValue('--at'))") > 85


def test_a_large_model_lies_beside_the_report(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "view.html" not in write_report(trained).read_text()
    monkeypatch.setattr(model_view, "EMBEDDED", 1000)
    assert 'href="view.html"' in write_report(trained).read_text()
    assert "splats" in (trained / "view.html").read_text()
