import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gs.errors import SplatrimError
from gs.training.checkpoint import FORMAT_VERSION, import_inria, load_checkpoint, save_checkpoint
from pruning import MaskGaussianConfig

NAMES = ("means", "sh0", "shN", "opacities", "mask_logits", "scales", "quats")
ADAM_ORDER = ("xyz", "f_dc", "f_rest", "opacity", "mask", "scaling", "rotation")


def sample_state(n: int = 5, *, masked: bool = True) -> dict[str, Any]:
    torch.manual_seed(n)
    shapes = [(n, 3), (n, 1, 3), (n, 15, 3), (n,), (n, 2), (n, 3), (n, 4)]
    params = {name: torch.randn(shape) for name, shape in zip(NAMES, shapes, strict=True)}
    if not masked:
        del params["mask_logits"]
    optimizer: dict[str, Any] = {"lrs": {name: 0.001 * (i + 1) for i, name in enumerate(params)}}
    for name, x in params.items():
        moments = {"exp_avg": torch.randn(x.shape), "exp_avg_sq": torch.rand(x.shape)}
        optimizer[name] = {"step": torch.tensor(7.0), **moments}
    return {
        "method": "mask-gaussian" if masked else "3dgs",
        "step": 7,
        "params": params,
        "rows": {
            "ids": torch.arange(n, dtype=torch.int32),
            "max_radii": torch.rand(n),
            "densify_gradients": torch.rand(n),
            "densify_views": torch.ones(n),
        },
        "next_id": n,
        "active_sh_degree": 2,
        "sh_degree": 3,
        "optimizer": optimizer,
        "strategies": {"densify": {"seed": 3}},
        "sampler": {"epoch": 1, "position": 4},
        "rng": {"torch": torch.get_rng_state()},
        "extent": 2.5,
        "config": {"iterations": 30},
    }


def assert_same(got: Any, want: Any, where: str = "state") -> None:
    if isinstance(want, Tensor):
        assert got.dtype == want.dtype and torch.equal(got, want), where
    elif isinstance(want, dict):
        assert set(got) == set(want), where
        for key in want:
            assert_same(got[key], want[key], f"{where}.{key}")
    else:
        assert got == want and type(got) is type(want), where


def inria_tuple(n: int, *, masked: bool) -> tuple[tuple[Any, ...], int]:
    """A checkpoint as the published codes write it, made with a real Adam."""
    torch.manual_seed(n)
    shapes = [(n, 3), (n, 1, 3), (n, 15, 3), (n, 1), (n, 2), (n, 3), (n, 4)]
    tensors = {
        name: nn.Parameter(torch.randn(shape))
        for name, shape in zip(ADAM_ORDER, shapes, strict=True)
    }
    if not masked:
        del tensors["mask"]
    groups = [{"params": [x], "lr": 0.01, "name": name} for name, x in tensors.items()]
    optimizer = torch.optim.Adam(groups, lr=0.0, eps=1e-15)
    sum((x**2).sum() for x in tensors.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    order = ["xyz", "f_dc", "f_rest", "scaling", "rotation", "opacity"] + ["mask"] * masked
    statistics = [torch.rand(n), torch.rand(n, 1), torch.ones(n, 1)]
    entries = [0, *(tensors[k] for k in order), *statistics, optimizer.state_dict()]
    return (*entries, np.float32(4.25)), 30


def test_round_trip(tmp_path: Path) -> None:
    state = sample_state()
    save_checkpoint(tmp_path / "x.pth", state)
    loaded = load_checkpoint(tmp_path / "x.pth", method="mask-gaussian")
    assert_same(loaded, {**state, "format": "splatrim", "version": FORMAT_VERSION})


def test_parameters_and_views_are_saved_plain_and_without_slack(tmp_path: Path) -> None:
    state = sample_state()
    state["params"]["means"] = nn.Parameter(torch.zeros(100_000, 3))[:5]
    save_checkpoint(tmp_path / "x.pth", state)
    assert (tmp_path / "x.pth").stat().st_size < 100_000
    means = load_checkpoint(tmp_path / "x.pth")["params"]["means"]
    assert type(means) is Tensor and not means.requires_grad


def test_save_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    state = sample_state() | {"config": {"a": [1, {"b": np.float32(1)}]}}
    with pytest.raises(ValueError, match=r"checkpoint\.config\.a\[1\]\.b: .* float32"):
        save_checkpoint(tmp_path / "x.pth", state)
    del state["params"]
    with pytest.raises(ValueError, match="params missing"):
        save_checkpoint(tmp_path / "x.pth", state)
    assert list(tmp_path.iterdir()) == []


def test_another_method_or_version(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, sample_state())
    with pytest.raises(SplatrimError, match="method mask-gaussian and cannot continue as 3dgs"):
        load_checkpoint(path, method="3dgs")
    torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    with pytest.raises(SplatrimError, match="format 99; this version reads format 1"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", ["entry", "type", "rows"])
def test_damaged_entries(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, sample_state())
    state = torch.load(path, weights_only=True)
    if damage == "entry":
        del state["optimizer"]
    elif damage == "type":
        state["step"] = "seven"
    else:
        state["params"]["quats"] = state["params"]["quats"][1:]
    torch.save(state, path)
    with pytest.raises(SplatrimError, match="is damaged"):
        load_checkpoint(path)


def test_cut_short_at_any_place(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.pth", sample_state())
    data = (tmp_path / "x.pth").read_bytes()
    for size in [*range(0, len(data) - 1, len(data) // 40), len(data) - 1]:
        (tmp_path / "cut.pth").write_bytes(data[:size])
        with pytest.raises(SplatrimError, match=r"cut\.pth is cut short or not a checkpoint"):
            load_checkpoint(tmp_path / "cut.pth")


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    state = sample_state()
    save_checkpoint(tmp_path / "x.pth", state)
    data = (tmp_path / "x.pth").read_bytes()
    values = state["params"]["shN"].numpy().tobytes()
    place = data.index(values) + 11
    flipped = data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
    (tmp_path / "x.pth").write_bytes(flipped)
    with pytest.raises(SplatrimError, match=r"x\.pth is damaged: the checksum"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04", bytes(64)])
def test_not_a_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(SplatrimError, match=r"x\.pth is (cut short or )?not a"):
        load_checkpoint(tmp_path / "x.pth")


def test_other_torch_files_and_absent_ones(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(SplatrimError, match="not a training checkpoint"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(SplatrimError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "y.pth")
    with pytest.raises(SplatrimError, match="no such checkpoint"):
        load_checkpoint(tmp_path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["top", "config", "tuple", "bare pickle"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, place: str) -> None:
    path, target = tmp_path / "x.pth", tmp_path / "owned"
    bad = Malicious(target)
    if place == "top":
        torch.save(bad, path)
    elif place == "config":
        torch.save({**sample_state(), "format": "splatrim", "version": 1, "config": bad}, path)
    elif place == "tuple":
        entries, step = inria_tuple(3, masked=True)
        torch.save(((*entries[:-1], bad), step), path)
    else:
        path.write_bytes(pickle.dumps(bad))
    with pytest.raises(SplatrimError, match=r"x\.pth"):
        load_checkpoint(path)
    assert not target.exists()
    if place != "bare pickle":
        with pytest.raises(SplatrimError, match="could run code"):
            load_checkpoint(path)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_published_checkpoint(tmp_path: Path, masked: bool, module: str) -> None:
    """Both places that numpy's releases give to the scalar in the last entry."""
    entries, step = inria_tuple(6, masked=masked)
    torch.save((entries, step), tmp_path / "x.pth")
    _rename_numpy(tmp_path / "x.pth", module)
    state = load_checkpoint(tmp_path / "x.pth")
    assert state["method"] == "3dgs"
    assert state["step"] == 30 and state["extent"] == 4.25 and state["sh_degree"] == 3
    assert ("mask" in state["params"]) == masked  # whose it is, gs does not know
    assert torch.equal(state["params"]["quats"], entries[5])
    assert torch.equal(state["params"]["opacities"], entries[6][:, 0])
    for name, index in {"means": 0, "opacities": 3, "quats": 5 + masked}.items():
        moments = entries[-2]["state"][index]
        got = state["optimizer"][name]
        shape = state["params"][name].shape
        assert torch.equal(got["exp_avg"], moments["exp_avg"].reshape(shape)), name
        assert torch.equal(got["exp_avg_sq"], moments["exp_avg_sq"].reshape(shape)), name
        assert got["step"] == 1 and state["optimizer"]["lrs"][name] == 0.01
    assert state["rows"]["densify_views"].tolist() == [1.0] * 6


def _rename_numpy(path: Path, module: str) -> None:
    """Rewrite the module name inside the archive's pickle."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        items = {name: archive.read(name) for name in archive.namelist()}
    changed = False
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in items.items():
            if name.endswith("data.pkl"):
                for old in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
                    changed |= old in data
                    data = data.replace(b"c" + old + b"\n", b"c" + module.encode() + b"\n")
            archive.writestr(name, data)
    assert changed


def test_published_checkpoint_before_the_first_step() -> None:
    entries, step = inria_tuple(3, masked=False)
    entries[10]["state"].clear()
    state = import_inria((entries, step))
    assert set(state["optimizer"]) == {"lrs"}


def test_published_checkpoints_that_are_damaged() -> None:
    entries, step = inria_tuple(3, masked=False)
    with pytest.raises(SplatrimError, match="11 entries"):
        import_inria((entries[:-1], step))
    with pytest.raises(SplatrimError, match="number of Gaussians"):
        import_inria(((*entries[:5], entries[5][1:], *entries[6:]), step))
    with pytest.raises(SplatrimError, match=r"quats has shape \[3, 3\]"):
        import_inria(((*entries[:5], entries[5][:, 1:], *entries[6:]), step))
    with pytest.raises(SplatrimError, match="no optimizer"):
        import_inria(((*entries[:10], None, 1.0), step))
    with pytest.raises(SplatrimError, match="scales is not a tensor"):
        import_inria(((*entries[:4], None, *entries[5:]), step))
    with pytest.raises(SplatrimError, match="not a checkpoint"):
        import_inria({"a": 1})
    with pytest.raises(SplatrimError, match="of 1 further parameters it names 0"):
        import_inria(((*entries[:7], entries[6], *entries[7:]), step))


def test_real_maskgaussian_checkpoint(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "golden" / "maskgaussian_run" / "chkpnt60.pth"
    if not path.is_file():
        pytest.skip(f"no {path}")
    published = load_checkpoint(path)
    state = MaskGaussianConfig.adopt(published)
    assert state["method"] == "mask-gaussian"
    assert state["step"] == 60 and len(state["params"]["means"]) == 14_266
    assert state["extent"] == pytest.approx(4.300909)
    assert state["params"]["mask_logits"].shape == (14_266, 2)
    # mask logits start at (10, 1) and cannot have moved further than 0.01 per step
    moved = (state["params"]["mask_logits"] - torch.tensor([10.0, 1.0])).abs().max()
    assert 0.0 < moved <= 0.6
    for name, x in state["params"].items():
        assert torch.isfinite(x).all(), name
        assert state["optimizer"][name]["exp_avg"].shape == x.shape, name
        assert state["optimizer"][name]["step"] == 59, name
    assert state["optimizer"]["mask_logits"]["exp_avg_sq"].max() > 0

    save_checkpoint(tmp_path / "ours.pth", state)
    assert_same(load_checkpoint(tmp_path / "ours.pth"), state)
    with pytest.raises(SplatrimError, match="cannot continue as 3dgs"):
        load_checkpoint(tmp_path / "ours.pth", method="3dgs")
