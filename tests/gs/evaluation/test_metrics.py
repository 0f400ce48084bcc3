import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.errors import SplatrimError
from gs.evaluation.metrics import VGG_FILE, compute_metrics, load_lpips, main, read_image
from gs.evaluation.views import psnr, quantize


def write_views(
    model: Path, n: int, *, method: str = "ours_30", size: tuple[int, int] = (24, 20)
) -> None:
    """Ground truth, and renderings that differ by a known amount."""
    rng = np.random.default_rng(n)
    for kind in ("renders", "gt"):
        (model / "test" / method / kind).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        truth = rng.integers(20, 200, (size[1], size[0], 3), np.uint8)
        Image.fromarray(truth).save(model / "test" / method / "gt" / f"{i:05d}.png")
        Image.fromarray(truth + np.uint8(i + 1)).save(
            model / "test" / method / "renders" / f"{i:05d}.png"
        )


@pytest.fixture
def no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)


def test_psnr_of_known_differences() -> None:
    a = torch.full((4, 5, 3), 100, dtype=torch.uint8)
    assert psnr(a, a + 1).item() == pytest.approx(20 * np.log10(255), abs=1e-4)
    assert psnr(a / 255.0, a + 10).item() == pytest.approx(20 * np.log10(25.5), abs=1e-4)
    assert psnr(a, a).item() == pytest.approx(120.0)
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, a[1:])


def test_quantize_rounds_half_up_and_clamps() -> None:
    levels = torch.tensor([-0.1, 0.0, 0.49, 0.5, 1.49, 1.5, 254.49, 254.5, 255.0, 300.0])
    got = quantize(levels / 255.0)
    assert got.dtype == torch.uint8
    assert got.tolist() == [0, 0, 0, 1, 1, 2, 254, 255, 255, 255]
    assert quantize(torch.tensor([float("nan"), float("inf")])).tolist() == [0, 255]


def test_results_and_per_view(tmp_path: Path, no_lpips: None) -> None:
    write_views(tmp_path, 3)
    write_views(tmp_path, 2, method="ours_7")
    compute_metrics([tmp_path], device="cpu")
    results = json.loads((tmp_path / "results.json").read_text())
    per_view = json.loads((tmp_path / "per_view.json").read_text())
    assert set(results) == set(per_view) == {"ours_30", "ours_7"}
    assert set(results["ours_30"]) == {"PSNR", "SSIM", "FLIP"}
    expected = [20 * np.log10(255 / (i + 1)) for i in range(3)]
    names = ["00000.png", "00001.png", "00002.png"]
    assert list(per_view["ours_30"]["PSNR"]) == names
    assert [per_view["ours_30"]["PSNR"][k] for k in names] == pytest.approx(expected, abs=1e-3)
    assert results["ours_30"]["PSNR"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert 0.9 < results["ours_30"]["SSIM"] < 1.0


def test_missing_package_leaves_lpips_out(
    tmp_path: Path, no_lpips: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_views(tmp_path, 1)
    with caplog.at_level("WARNING", logger="splatrim"):
        compute_metrics([tmp_path], device="cpu")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "pip install lpips" in lines[0] and "\n" not in lines[0]


def test_broken_torchvision_leaves_lpips_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lpips.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    reason = load_lpips()
    assert isinstance(reason, str) and "torchvision::nms" in reason


class FakeLPIPS(torch.nn.Module):
    """Mean absolute difference in the place of the network, times a weight of VGG's."""

    def __init__(self, net: str, version: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, version, pnet_rand) == ("vgg", "0.1", True)
        layer = torch.nn.Conv2d(1, 1, 1, bias=False)
        self.net = torch.nn.ModuleDict({"slice2": torch.nn.ModuleDict({"5": layer})})

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape[:2] == (1, 3) and a.min() >= 0 and a.max() <= 1
        (weight,) = self.net.parameters()
        return weight * (a - b).abs().mean()


@pytest.fixture
def fake_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = types.ModuleType("lpips")
    module.LPIPS = FakeLPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / VGG_FILE


def test_missing_weights_are_not_downloaded(fake_lpips: Path) -> None:
    reason = load_lpips()
    assert isinstance(reason, str)
    assert f"curl -L --create-dirs -o {fake_lpips} https://" in reason
    assert not fake_lpips.exists()


def test_lpips_with_weights_gets_images_in_0_1(fake_lpips: Path, tmp_path: Path) -> None:
    fake_lpips.parent.mkdir(parents=True)
    torch.save({"features.5.weight": torch.ones(1, 1, 1, 1), "classifier.0": 0}, fake_lpips)
    write_views(tmp_path / "out", 2)
    results = compute_metrics([tmp_path / "out"], device="cpu")[str(tmp_path / "out")]
    assert results["ours_30"]["LPIPS"] == pytest.approx(1.5 / 255, rel=1e-4)


def test_lpips_with_weights_of_a_file(fake_lpips: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "mine.pth", tmp_path / "out"
    torch.save({"features.5.weight": torch.full((1, 1, 1, 1), 3.0)}, weights)
    write_views(out, 2)
    main(["-m", str(out), "--lpips_weights", str(weights)])
    results = json.loads((out / "results.json").read_text())
    assert results["ours_30"]["LPIPS"] == pytest.approx(3 * 1.5 / 255, rel=1e-4)


@pytest.mark.parametrize("content", [None, b"no weights", {"features.9.weight": 1}, [1]])
def test_given_weights_that_cannot_be_used_are_refused(
    fake_lpips: Path, tmp_path: Path, content: object
) -> None:
    weights, out = tmp_path / "mine.pth", tmp_path / "out"
    if isinstance(content, bytes):
        weights.write_bytes(content)
    elif content is not None:
        torch.save(content, weights)
    write_views(out, 1)
    with pytest.raises(SplatrimError, match=r"mine\.pth cannot be used"):
        compute_metrics([out], device="cpu", lpips_weights=weights)
    assert not (out / "results.json").exists()


class FullLPIPS(torch.nn.Module):
    """The layers of VGG-16 under LPIPS's names for them."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.net = torch.nn.ModuleDict()
        n_in = 3
        for block, layers in enumerate(VGG_LAYERS, 1):
            convolutions = torch.nn.ModuleDict()
            for number, n_out in layers.items():
                convolutions[str(number)] = torch.nn.Conv2d(n_in, n_out, 3)
                n_in = n_out
            self.net[f"slice{block}"] = convolutions


# numbers of the layers in "features" of the published network, and their channels
VGG_LAYERS = (
    {0: 64, 2: 64},
    {5: 128, 7: 128},
    {10: 256, 12: 256, 14: 256},
    {17: 512, 19: 512, 21: 512},
    {24: 512, 26: 512, 28: 512},
)


def published(layers: dict[int, int], seed: int) -> dict[str, torch.Tensor]:
    """Random weights in the layout in which torchvision saves a network's features."""
    generator, n_in, state = torch.Generator().manual_seed(seed), 3, {}
    for number, n_out in layers.items():
        state[f"features.{number}.weight"] = torch.rand(n_out, n_in, 3, 3, generator=generator)
        state[f"features.{number}.bias"] = torch.rand(n_out, generator=generator)
        n_in = n_out
    return {**state, "classifier.6.bias": torch.zeros(1000)}


def test_the_whole_of_vgg_finds_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lpips")
    module.LPIPS = FullLPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    path, layers = tmp_path / "vgg16.pth", {k: n for part in VGG_LAYERS for k, n in part.items()}
    state = published(layers, 1)
    torch.save(state, path)
    network = load_lpips(weights=path)
    assert isinstance(network, FullLPIPS)
    names = {name.partition(".")[2]: x for name, x in network.net.state_dict().items()}
    assert len(names) == 26
    assert all(torch.equal(x, state[f"features.{name}"]) for name, x in names.items())

    torch.save(published({0: 64, 3: 192, 6: 384, 8: 256, 10: 256}, 2), path)  # AlexNet's numbers
    said = load_lpips(weights=path)
    assert isinstance(said, str)
    assert "not VGG-16 as torchvision saves it: features.2.weight is missing" in said
    torch.save({**state, "features.2.weight": torch.zeros(64, 64, 1, 1)}, path)
    said = load_lpips(weights=path)
    assert isinstance(said, str) and "features.2.weight is not of [64, 64, 3, 3] numbers" in said
    path.write_text("<html>404</html>")
    said = load_lpips(weights=path)
    assert isinstance(said, str) and "no file of weights that torch has saved" in said


def test_bad_input_writes_nothing(tmp_path: Path, no_lpips: None) -> None:
    with pytest.raises(SplatrimError, match="no such folder"):
        compute_metrics([tmp_path / "absent"])
    with pytest.raises(SplatrimError, match="render -m .* --skip_train"):
        compute_metrics([tmp_path])

    write_views(tmp_path / "a", 2)
    gt = tmp_path / "a" / "test" / "ours_30" / "gt"
    (gt / "00001.png").unlink()
    with pytest.raises(SplatrimError, match=r"gt/00001\.png is missing"):
        compute_metrics([tmp_path / "a"])
    Image.new("RGB", (9, 9)).save(gt / "00001.png")
    with pytest.raises(SplatrimError, match="24x20 pixels, its ground truth 9x9"):
        compute_metrics([tmp_path / "a"])
    (gt / "00001.png").write_bytes((gt / "00000.png").read_bytes()[:60])
    with pytest.raises(SplatrimError, match="cannot read the image"):
        compute_metrics([tmp_path / "a"])
    assert not (tmp_path / "a" / "results.json").exists()


def test_read_image_drops_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (1, 2, 3, 0)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[1, 2, 3]] * 3] * 2


def test_command_line_takes_several_runs(tmp_path: Path, no_lpips: None) -> None:
    write_views(tmp_path / "a", 1)
    write_views(tmp_path / "b", 1)
    main(["-m", str(tmp_path / "a"), str(tmp_path / "b")])
    assert (tmp_path / "a" / "results.json").is_file()
    assert (tmp_path / "b" / "per_view.json").is_file()


def test_colour_corrected_figures_stand_beside_the_raw_ones(tmp_path: Path, no_lpips: None) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(30, 220, (40, 50, 3)).astype(np.float64)
    shown = np.rint(0.8 * truth + 10)
    damaged = shown.copy()
    damaged[:, 30:] += rng.normal(0, 20, damaged[:, 30:].shape)
    views = tmp_path / "test" / "ours_30"
    for kind, images in (("gt", (truth, truth)), ("renders", (shown, damaged))):
        (views / kind).mkdir(parents=True)
        for k, x in enumerate(images):
            Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(views / kind / f"{k:05d}.png")
    main(["-m", str(tmp_path), "--device", "cpu", "--color_correct"])
    results = json.loads((tmp_path / "results.json").read_text())["ours_30"]
    assert {f"{m}{s}" for m in ("PSNR", "SSIM") for s in ("", "_cc", "_half")} < results.keys()
    per_view = json.loads((tmp_path / "per_view.json").read_text())["ours_30"]
    good, bad = "00000.png", "00001.png"
    assert per_view["PSNR"][good] < 25.0
    # rounding to 8 bits is what is left of the first
    assert per_view["PSNR_cc"][good] > 50.0 and per_view["PSNR_half"][good] > 50.0
    assert per_view["PSNR_half"][bad] < per_view["PSNR_cc"][bad] < 40.0
    compute_metrics([tmp_path], device="cpu")
    raw = json.loads((tmp_path / "results.json").read_text())["ours_30"]
    assert raw == {name: results[name] for name in ("PSNR", "SSIM", "FLIP")}
