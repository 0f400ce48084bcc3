import importlib
import json
import random
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gs
from gs.data.ply_table import read_table
from gs.errors import SplatrimError
from gs.formats import glb, spz
from gs.formats.arrays import from_tensors, to_tensors
from gs.formats.model_file import FORMATS, format_of, load_model, load_offset, save_model
from kernels.reference.projection import quats_to_rotmats
from kernels.reference.spherical_harmonics import sh_basis

gaussforge = pytest.importorskip("gaussforge", reason="needs the extra export")

# What each format may change: units of the parameters, a little above half a step of its grid.
STEPS = {
    "ply": {"means": 0, "quats": 2e-7, "scales": 0, "alphas": 0, "sh0": 0, "shN": 0},
    "glb": {"means": 0, "quats": 2e-7, "scales": 1e-5, "alphas": 1e-6, "sh0": 0, "shN": 0},
    "spz": {
        "means": 2e-4,
        "quats": 3e-3,
        "scales": 0.032,
        "alphas": 0.002,
        "sh0": 0.014,
        "shN": 4e-3,
    },
    "compressed.ply": {
        "means": 4e-3,  # half of 1/1023 of a chunk's extent
        "quats": 2e-3,
        "scales": 2e-3,
        "alphas": 0.002,
        "sh0": 0.03,
        "shN": 0.016,
    },
    "splat": {"means": 0, "quats": 0.01, "scales": 1e-5, "alphas": 0.002, "sh0": 0.007},
    # k-means and images of 16 bits a coordinate; clusters of few rows fall on themselves
    "sog": {
        "means": 1e-3,
        "quats": 0.01,
        "scales": 0.02,
        "alphas": 0.005,
        "sh0": 0.02,
        "shN": 0.02,
    },
}


def random_model(n: int = 700, degree: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(n + degree)
    return {
        "means": 2 * torch.rand(n, 3, generator=g) - 1,
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.rand(n, 3, generator=g) - 4,
        "opacities": 3 * torch.rand(n, generator=g) - 1,
        "sh0": torch.rand(n, 1, 3, generator=g) - 0.5,
        "shN": 0.4 * torch.rand(n, (degree + 1) ** 2 - 1, 3, generator=g) - 0.2,
    }


def in_order(model: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of a model, each by the mean nearest to that of `like`."""
    nearest = torch.cdist(like["means"], model["means"]).argmin(dim=1)
    assert len(set(nearest.tolist())) == len(nearest)
    return {name: x[nearest] for name, x in model.items()}


def turned(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model in the axes of SPZ files."""
    return to_tensors(spz.turned(from_tensors(model)))


def differences(model: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Largest differences by name; of rotations up to sign, of opacities in 0..1."""
    a, b = ({**x, "alphas": x["opacities"].sigmoid()} for x in (model, other))
    a["quats"], b["quats"] = (torch.nn.functional.normalize(x["quats"], dim=1) for x in (a, b))
    b["quats"] = b["quats"] * torch.where((a["quats"] * b["quats"]).sum(1, True) < 0, -1, 1)
    names = [name for name in a if name != "opacities" and a[name].shape == b[name].shape]
    return {name: float((a[name] - b[name]).abs().max()) for name in names if a[name].numel()}


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    model, path = random_model(), tmp_path / f"model.{kind}"
    size = save_model(path, model, kind)
    assert size == path.stat().st_size and format_of(path) == kind
    loaded = load_model(path)
    assert {name: x.dtype for name, x in loaded.items()} == dict.fromkeys(model, torch.float32)
    found = differences(model, in_order(loaded, model))
    assert found.keys() == STEPS[kind].keys()
    wrong = {name: x for name, x in found.items() if x > STEPS[kind][name] + 1e-7}
    assert not wrong, wrong


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_sh_degree_is_read_back_or_reduced(tmp_path: Path, kind: str, degree: int) -> None:
    path = tmp_path / f"model.{kind}"
    save_model(path, random_model(300, degree), kind)
    k = 0 if kind == "splat" else (degree + 1) ** 2 - 1
    assert load_model(path)["shN"].shape == (300, k, 3)
    save_model(path, random_model(300, degree), kind, sh_degree=1)
    assert load_model(path)["shN"].shape == (300, min(k, 3), 3)


@pytest.mark.parametrize("kind", ["spz", "splat", "compressed.ply"])
def test_gaussforge_reads_what_is_written(tmp_path: Path, kind: str) -> None:
    """Another reader finds the numbers that ours finds."""
    path = tmp_path / f"model.{kind}"
    save_model(path, random_model(), kind)
    ours = load_model(path)
    answer = gaussforge.GaussForge().convert(path.read_bytes(), kind, "ply")
    (tmp_path / "theirs.ply").write_bytes(answer["data"])
    theirs = gs.load_ply(tmp_path / "theirs.ply")
    found = differences(ours, turned(theirs) if kind == "spz" else theirs)  # as they are stored
    assert found.keys() == STEPS[kind].keys() and max(found.values()) < 1e-5, found


@pytest.mark.parametrize("kind", ["ply", "spz", "sog", "compressed.ply", "splat"])
def test_splat_transform_reads_what_is_written(tmp_path: Path, kind: str) -> None:
    """A reader that turns the axes of SPZ files (npm install @playcanvas/splat-transform)."""
    program = shutil.which("splat-transform")
    if program is None:
        pytest.skip("splat-transform is not installed")
    path, converted = tmp_path / f"model.{kind}", tmp_path / "theirs.ply"
    save_model(path, random_model(), kind)
    subprocess.run([program, str(path), str(converted)], check=True, capture_output=True)
    ours = load_model(path)
    found = differences(ours, in_order(gs.load_ply(converted), ours))
    # of .splat, the other reader leaves quaternions of bytes unnormalised until it writes them
    limit = 0.01 if kind == "splat" else 1e-5
    assert found.keys() == STEPS[kind].keys() and max(found.values()) < limit, found


def test_turned_for_spz_a_model_looks_the_same_from_turned_cameras() -> None:
    model = random_model(50)
    there = turned(model)
    half_a_round = torch.tensor([1.0, -1.0, -1.0])
    directions = torch.nn.functional.normalize(model["means"], dim=1)
    basis, basis_there = sh_basis(directions, 3), sh_basis(directions * half_a_round, 3)
    colors, colors_there = (
        (y[:, :, None] * torch.cat([x["sh0"], x["shN"]], 1)).sum(1)
        for y, x in ((basis, model), (basis_there, there))
    )
    assert torch.allclose(colors, colors_there, atol=1e-6)
    assert torch.equal(there["means"], model["means"] * half_a_round)
    turn = torch.diag(half_a_round)
    axes = (
        quats_to_rotmats(torch.nn.functional.normalize(x["quats"], dim=1))
        * x["scales"].exp()[:, None]
        for x in (model, there)
    )
    here, others = (x @ x.mT for x in axes)
    assert torch.allclose(others, turn @ here @ turn, atol=1e-7)


def test_pygltflib_reads_the_glb(tmp_path: Path) -> None:
    pygltflib = pytest.importorskip("pygltflib")
    model = random_model(degree=1)
    save_model(tmp_path / "x.glb", model, "glb")
    gltf = pygltflib.GLTF2().load(str(tmp_path / "x.glb"))
    (primitive,) = gltf.meshes[0].primitives
    assert primitive.mode == 0 and primitive.extensions["KHR_gaussian_splatting"]["kernel"]
    attributes = primitive.attributes.__dict__
    for name, want in (
        ("POSITION", model["means"]),
        ("KHR_gaussian_splatting:SCALE", model["scales"].exp()),
        ("KHR_gaussian_splatting:OPACITY", model["opacities"].sigmoid()),
        ("KHR_gaussian_splatting:SH_DEGREE_1_COEF_2", model["shN"][:, 2]),
    ):
        accessor = gltf.accessors[attributes[name]]
        view = gltf.bufferViews[accessor.bufferView]
        data = gltf.binary_blob()[view.byteOffset :][: view.byteLength]
        assert accessor.count == len(want) and accessor.componentType == pygltflib.FLOAT
        values = np.frombuffer(data, "<f4").reshape(want.shape)
        np.testing.assert_allclose(values, want.numpy(), rtol=1e-6, err_msg=name)


def test_quantised_glb_of_another_writer(tmp_path: Path) -> None:
    """Rotations in normalised bytes, rows apart by a stride, an older spelling of nothing else."""
    model = random_model(5, degree=0)
    data = glb.encode(from_tensors(model))
    parts = glb.take_apart(data)
    turns = np.zeros((5, 8), np.int8)
    turns[:, :4] = [127, 0, 0, 0]
    index = parts.gltf["meshes"][0]["primitives"][0]["attributes"][
        "KHR_gaussian_splatting:ROTATION"
    ]
    view = len(parts.gltf["bufferViews"])
    accessor = {"bufferView": view, "componentType": 5120, "count": 5, "type": "VEC4"}
    parts.gltf["accessors"][index] = accessor | {"normalized": True}
    place = {"buffer": 0, "byteOffset": len(parts.binary), "byteLength": 40, "byteStride": 8}
    parts.gltf["bufferViews"].append(place)
    text = json.dumps(parts.gltf).encode()
    text += b" " * (-len(text) % 4)
    binary = parts.binary + turns.tobytes()
    chunks = len(text).to_bytes(4, "little") + b"JSON" + text
    chunks += len(binary).to_bytes(4, "little") + b"BIN\0" + binary
    whole = b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks
    (tmp_path / "x.glb").write_bytes(whole)
    loaded = load_model(tmp_path / "x.glb")
    assert torch.equal(loaded["quats"], torch.tensor([[0.0, 1, 0, 0]]).expand(5, 4))
    assert torch.equal(loaded["means"], model["means"])


def test_spz_of_version_2_and_of_version_4(tmp_path: Path) -> None:
    model = random_model(degree=1)
    forge = gaussforge.GaussForge()
    gs.save_ply(tmp_path / "x.ply", turned(model))  # gaussforge leaves axes as they are
    # a byte per component, and w the root of what is left of 1; nine bits and a sign
    for version, atol in ((2, 0.1), (4, 3e-3)):
        made = forge.convert((tmp_path / "x.ply").read_bytes(), "ply", "spz", spz_version=version)
        (tmp_path / "x.spz").write_bytes(made["data"])
        assert format_of(tmp_path / "x.spz") == "spz"
        found = differences(model, in_order(load_model(tmp_path / "x.spz"), model))
        assert found["means"] < 2e-4 and found["quats"] < atol and found["alphas"] < 2e-3, found


def test_ksplat_is_read(tmp_path: Path) -> None:
    model = random_model(degree=0)
    gs.save_ply(tmp_path / "x.ply", model)
    made = gaussforge.GaussForge().convert((tmp_path / "x.ply").read_bytes(), "ply", "ksplat")
    (tmp_path / "x.ksplat").write_bytes(made["data"])
    assert format_of(tmp_path / "x.ksplat") == "ksplat"
    found = differences(model, in_order(load_model(tmp_path / "x.ksplat"), model))
    # a step of 1/255 in opacity and colour
    assert found["means"] < 1e-3 and found["alphas"] < 4e-3 and found["sh0"] < 0.014, found


def test_scenes_far_from_zero_and_tiny_ones_keep_their_places(tmp_path: Path) -> None:
    for size, step in ((1e4, 2e-3), (1e-3, 1e-7)):
        model = random_model()
        model["means"] = model["means"] * size
        save_model(tmp_path / "x.spz", model, "spz")
        got = load_model(tmp_path / "x.spz")["means"]
        assert float((got - model["means"]).abs().max()) <= step


def test_world_offset_is_kept_where_the_format_can(tmp_path: Path) -> None:
    offset = (512345.5, -4.25, 0.125)
    for kind in FORMATS:
        save_model(tmp_path / f"x.{kind}", random_model(300), kind, world_offset=offset)
        want = offset if kind in ("ply", "glb") else (0.0, 0.0, 0.0)
        assert load_offset(tmp_path / f"x.{kind}") == want, kind


@pytest.mark.parametrize("kind", ["ply", "spz", "compressed.ply", "splat", "glb"])
@pytest.mark.parametrize("n", [0, 1, 257])
def test_any_number_of_gaussians(tmp_path: Path, kind: str, n: int) -> None:
    save_model(tmp_path / f"x.{kind}", random_model(n), kind)
    loaded = load_model(tmp_path / f"x.{kind}")
    assert len(loaded["means"]) == n and bool(torch.isfinite(loaded["opacities"]).all())


def test_chunks_of_a_compressed_ply_are_neighbours(tmp_path: Path) -> None:
    """Rows in any order become chunks that are small beside the whole, and so have small steps."""
    save_model(tmp_path / "x.ply", random_model(4096, 0), "compressed.ply")
    chunks = read_table(tmp_path / "x.ply", "chunk")
    extents = [chunks[f"max_{axis}"] - chunks[f"min_{axis}"] for axis in "xyz"]
    assert len(chunks) == 16 and float(np.mean(extents)) < 0.6 * 2


def test_rows_that_are_not_finite_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(10)
    model["means"][3, 1] = float("nan")
    save_model(tmp_path / "x.glb", model, "glb")
    assert len(load_model(tmp_path / "x.glb")["means"]) == 9
    assert "1 of 10 Gaussians have NaN or infinite values (property y: 1)" in caplog.text


def test_opaque_and_invisible_gaussians_stay_finite(tmp_path: Path) -> None:
    model = random_model(300)
    model["opacities"][:150], model["opacities"][150:] = 60.0, -60.0
    for kind in ("spz", "splat", "compressed.ply", "glb", "sog"):
        save_model(tmp_path / f"x.{kind}", model, kind)
        loaded = in_order(load_model(tmp_path / f"x.{kind}"), model)
        alphas = loaded["opacities"].sigmoid()
        assert float(alphas[:150].min()) > 0.99 and float(alphas[150:].max()) < 0.01, kind


@pytest.mark.parametrize("kind", ["spz", "compressed.ply", "splat", "glb", "sog"])
def test_damaged_files_get_a_sentence(tmp_path: Path, kind: str) -> None:
    path, dice = tmp_path / f"x.{kind}", random.Random(7)
    save_model(path, random_model(60, 1), kind)
    whole, refused = path.read_bytes(), 0
    for trial in range(40):
        data = bytearray(whole)
        if trial % 2:
            del data[dice.randrange(1, len(data)) :]
        else:
            for _ in range(1 + trial // 4):
                data[dice.randrange(min(len(data), 400))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            loaded = load_model(path)
            assert all(bool(torch.isfinite(x).all()) for x in loaded.values())
        except SplatrimError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 10


def test_a_header_that_counts_too_many_allocates_nothing(tmp_path: Path) -> None:
    head = spz.HEADER.pack(spz.MAGIC, 3, 2**31, 3, 12, 0, 0)
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    (tmp_path / "x.spz").write_bytes(packer.compress(head) + packer.flush())
    with pytest.raises(SplatrimError, match="is too short for the 2147483648 Gaussians"):
        load_model(tmp_path / "x.spz")


def test_without_gaussforge_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "x.sog", random_model(300), "sog")
    plain = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name == "gaussforge":
            raise ImportError(name)
        return plain(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    for use in (
        lambda: load_model(tmp_path / "x.sog"),
        lambda: save_model(tmp_path / "y.sog", random_model(300), "sog"),
    ):
        with pytest.raises(SplatrimError, match=r'SOG needs .* `pip install "splatrim\[export\]"`'):
            use()
    assert not (tmp_path / "y.sog").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.sog"]


def test_save_model_checks_its_arguments(tmp_path: Path) -> None:
    model = random_model(3)
    with pytest.raises(ValueError, match="kind: expected one of ply, spz"):
        save_model(tmp_path / "x.obj", model, "obj")
    with pytest.raises(ValueError, match=r"quats: expected \[3, 4\], got \[2, 4\]"):
        save_model(tmp_path / "x.spz", model | {"quats": torch.ones(2, 4)}, "spz")
    with pytest.raises(ValueError, match="opacities is missing"):
        save_model(tmp_path / "x.spz", {k: v for k, v in model.items() if k != "opacities"}, "spz")
    with pytest.raises(SplatrimError, match="no such file"):
        load_model(tmp_path / "absent.spz")
