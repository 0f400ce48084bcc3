"""Metrics of views with masks: pixels count that the masks let through, and the files say so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gs.data.camera import Camera
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.views import evaluate_views, mean_scores, psnr
from gs.model.gaussians import Gaussians
from kernels import structural_similarity

HEIGHT, WIDTH = 24, 30


def images(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two images that differ most where they do not count, and what counts."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(HEIGHT, WIDTH, 3, generator=g)
    b = (a + 0.1 * torch.rand(HEIGHT, WIDTH, 3, generator=g)).clamp(0, 1)
    counted = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    counted[:, :7] = False
    b[~counted] = 1.0 - a[~counted]
    return a, b, counted


def test_ssim_is_that_of_whole_windows() -> None:
    a, b, counted = images()
    got = structural_similarity(a, b, counted=counted)
    other = b.clone()
    other[~counted] = 0.3
    assert torch.equal(structural_similarity(a, other, counted=counted), got)
    assert 0.5 < got.item() < 1.0
    everything = torch.ones_like(counted)
    torch.testing.assert_close(
        structural_similarity(a, b, counted=everything), structural_similarity(a, b)
    )


def test_ssim_where_no_window_is_whole() -> None:
    a, b, counted = images()
    counted[:] = False
    assert structural_similarity(a, b, counted=counted).isnan()
    counted[3, 3:9] = True
    assert structural_similarity(a, b, counted=counted).isfinite()
    with pytest.raises(ValueError, match="counted: expected bool"):
        structural_similarity(a, b, counted=counted[1:])


def test_views_are_scored_where_they_count() -> None:
    g = torch.Generator().manual_seed(1)
    points = torch.rand(20, 3, generator=g) + torch.tensor([0, 0, 2.0])
    model = Gaussians.from_points(points, torch.rand(20, 3, generator=g))
    K = torch.tensor([[30.0, 0, 15], [0, 30, 12], [0, 0, 1]])
    camera = Camera("a", None, WIDTH, HEIGHT, torch.eye(4), K, WIDTH, HEIGHT)
    target = torch.randint(0, 256, (HEIGHT, WIDTH, 4), generator=g, dtype=torch.uint8)
    target[..., 3] = 0
    target[:, 7:, 3] = 255

    class Images:
        def __init__(self, image: Tensor) -> None:
            self.image = image

        def __getitem__(self, index: int, /) -> Tensor:
            return self.image

        def prefetch(self, indices: list[int], /) -> None: ...

    seen: list[Tensor] = []
    (score,) = evaluate_views(
        model,
        [camera],
        Images(target),
        on_view=lambda _, __, rendering, ___: seen.append(rendering),
    )
    want = psnr(seen[0][:, 7:], target[:, 7:, :3]).item()
    assert score.psnr == pytest.approx(want, abs=1e-5)
    assert mean_scores([score])["counted"] == pytest.approx(23 / 30)
    target[..., 3] = 0
    assert mean_scores(evaluate_views(model, [camera], Images(target))) == {}
    assert "counted" not in mean_scores(evaluate_views(model, [camera], Images(target[..., :3])))


def test_results_say_how_much_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    a, b, counted = images()
    folder = tmp_path / "test" / "ours_30"
    for kind, image in (("renders", a), ("gt", b), ("masks", counted.float())):
        (folder / kind).mkdir(parents=True)
        pixels = (255 * image).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / kind / "00000.png")
    compute_metrics([tmp_path], device="cpu")
    results = json.loads((tmp_path / "results.json").read_text())["ours_30"]
    assert results["counted"] == pytest.approx(23 / 30)
    eight = [np.array(Image.open(folder / kind / "00000.png")) for kind in ("renders", "gt")]
    seen = [torch.from_numpy(x)[counted] for x in eight]
    assert results["PSNR"] == pytest.approx(psnr(*seen).item(), abs=1e-5)
    first = results
    # what is hidden may be anything
    eight[1][~counted.numpy()] = 7
    Image.fromarray(eight[1]).save(folder / "gt" / "00000.png")
    compute_metrics([tmp_path], device="cpu")
    assert json.loads((tmp_path / "results.json").read_text())["ours_30"] == first
