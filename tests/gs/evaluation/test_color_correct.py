"""Fitted colours: a literal vector, masks, and where nothing can be fitted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.evaluation.color_correct import color_corrected
from gs.evaluation.metrics import compute_metrics


def test_literal_vector() -> None:
    image = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64).view(1, 4, 1).expand(1, 4, 3)
    ref = torch.tensor([0.25, 0.35, 0.7, 0.75], dtype=torch.float64).view(1, 4, 1).expand(1, 4, 3)
    want = [0.20945945945945965, 0.41148648648648656, 0.6135135135135134, 0.8155405405405403]
    for channel in range(3):
        got = color_corrected(image, ref)[0, :, channel]
        assert got.tolist() == pytest.approx(want, abs=1e-14)


def test_gain_and_offset_are_undone_where_pixels_count() -> None:
    g = torch.Generator().manual_seed(0)
    ref = 0.3 + 0.3 * torch.rand(9, 8, 3, generator=g, dtype=torch.float64)
    image = ref * torch.tensor([0.5, 1.2, 0.9]) + torch.tensor([0.1, 0.0, -0.05])
    torch.testing.assert_close(color_corrected(image, ref), ref)
    counted = torch.rand(9, 8, generator=g) < 0.7
    image[~counted] = 1.0
    got = color_corrected(image, ref, counted)
    torch.testing.assert_close(got[counted], ref[counted])


def test_what_does_not_fit_stays() -> None:
    ref = torch.rand(5, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(color_corrected(1.0 - ref, ref), 1.0 - ref)
    flat = torch.full((5, 5, 3), 0.4)
    assert torch.equal(color_corrected(flat, ref), flat)


@pytest.mark.parametrize(("flag", "exposure"), [(True, "none"), (False, "affine"), (False, "none")])
def test_metrics_give_it_beside_the_plain_figure(
    flag: bool, exposure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    (tmp_path / "config.json").write_text(json.dumps({"exposure": exposure}))
    truth = np.random.default_rng(0).integers(80, 180, (20, 24, 3)).astype(np.uint8)
    for kind, image in (("gt", truth), ("renders", (0.8 * truth).round().astype(np.uint8))):
        folder = tmp_path / "test" / "ours_30" / kind
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "00000.png")
    figures = compute_metrics([tmp_path], device="cpu", color_correct=flag)[str(tmp_path)]
    figures = figures["ours_30"]
    assert ("cc PSNR" in figures) == (flag or exposure != "none")
    assert figures["PSNR"] < 25 and figures.get("cc PSNR", 99) > 45
