"""The report's sections on light and masks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.data.camera import Camera
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.light import NAME, Kind, Light, save_light
from gs.report.photographs import corrections, masks
from gs.report.run import load_run
from gs.report.sections import write_report
from gs.report.views import view_table


def camera(name: str) -> Camera:
    return Camera(name, None, 6, 4, torch.eye(4), torch.eye(3), 6, 4)


def lit(out: Path, kind: Kind, n_images: int = 14) -> None:
    """Light of a run, whose image 3 is a stop darker and image 5 redder."""
    model = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3))
    light = Light.of_cameras(kind, [camera(f"<{k}>.png") for k in range(n_images)])
    if kind == "affine":
        light.rows.data[3] *= 0.5
        light.rows.data[5, 0] = 1.1
    else:
        light.rows.data[3, 0] = -1.0
        light.lenses.data[0, 7] = -1.0
    model.shared.add_module(NAME, light)
    save_light(model, out / "point_cloud" / "iteration_300")


def masked(out: Path) -> None:
    pixels = np.full((12, 16, 4), 200, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(out / "masked_view.png")


def test_a_run_without_either_has_no_such_section(
    write_run: Callable[..., None], tmp_path: Path
) -> None:
    write_run(tmp_path / "out")
    run = load_run(tmp_path / "out")
    assert corrections(run) is None and masks(run) is None


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_the_most_corrected_image_comes_first(
    write_run: Callable[..., None], tmp_path: Path, kind: Kind
) -> None:
    write_run(tmp_path / "out")
    lit(tmp_path / "out", kind)
    section = corrections(load_run(tmp_path / "out"))
    assert section is not None
    heading, html = section
    assert heading == "Light" and f"--exposure {kind}" in html and "mean light" in html
    first = html.split("<tbody>")[1].split("</tr>")[0]
    assert "&lt;3&gt;.png" in first
    # 13 of 14 stay: the mean is a fourteenth of a stop lower
    assert "-0.93" in first or "-0.92" in first
    assert "4 images that were corrected less" in html
    # 1 - 13 / 36 of the light comes through in the corners
    assert ("0.639" in html) == (kind == "ppisp")


def test_a_masked_view_stands_beside_its_mask(
    write_run: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_run(out)
    masked(out)
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "masked_images": 7}))
    results = json.loads((out / "results.json").read_text())
    results["ours_300"]["counted"] = 0.875
    (out / "results.json").write_text(json.dumps(results))
    run = load_run(out)
    section = masks(run)
    assert section is not None
    heading, html = section
    assert heading == "Masks" and html.count("<figure>") == 3
    assert "7 images have masks" in html and "75.0% count" in html
    assert "Of the test views 87.5% count" in html
    table = view_table(run)
    assert table is not None and "of the pixels that their masks let through" in table[1]
    page = write_report(out).read_text()
    assert "88 % of pixels, by the masks" in page and "<h2>Masks</h2>" in page


def test_a_broken_view_is_told(write_run: Callable[..., None], tmp_path: Path) -> None:
    write_run(tmp_path / "out")
    (tmp_path / "out" / "masked_view.png").write_bytes(b"no image")
    with pytest.raises(SplatrimError, match="cannot read the image"):
        masks(load_run(tmp_path / "out"))
