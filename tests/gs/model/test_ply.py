import gzip
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from torch import Tensor

from gs.errors import SplatrimError
from gs.files import atomic_write
from gs.model.ply import load_ply, property_names, read_offset, save_ply


def random_gaussians(n: int, *, sh_degree: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n + sh_degree)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "means": rand(n, 3),
        "quats": rand(n, 4),
        "scales": rand(n, 3),
        "opacities": rand(n),
        "sh0": rand(n, 1, 3),
        "shN": rand(n, (sh_degree + 1) ** 2 - 1, 3),
    }


def vanilla_bytes(tensors: dict[str, Tensor]) -> bytes:
    """The layout written out independently: a header and rows of floats."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(45)] + ["opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    n = len(tensors["means"])
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    lines += [f"property float {name}" for name in names] + ["end_header", ""]
    rows = []
    for i in range(n):
        row = [*tensors["means"][i].tolist(), 0.0, 0.0, 0.0, *tensors["sh0"][i, 0].tolist()]
        for channel in range(3):
            row += tensors["shN"][i, :, channel].tolist()
        row += [tensors["opacities"][i].item(), *tensors["scales"][i].tolist()]
        rows.append(row + tensors["quats"][i].tolist())
    return "\n".join(lines).encode() + np.array(rows, "<f4").reshape(n, 62).tobytes()


@pytest.mark.parametrize("n", [0, 1, 7])
def test_save_ply_writes_the_vanilla_bytes(tmp_path: Path, n: int) -> None:
    tensors = random_gaussians(n)
    save_ply(tmp_path / "x.ply", tensors | {"anchor_feat": torch.zeros(n, 2)})
    assert (tmp_path / "x.ply").read_bytes() == vanilla_bytes(tensors)


def test_plyfile_reads_it(tmp_path: Path) -> None:
    tensors = random_gaussians(5)
    save_ply(tmp_path / "x.ply", tensors)
    vertex = PlyData.read(str(tmp_path / "x.ply"))["vertex"]
    assert [p.name for p in vertex.properties] == property_names(45)
    np.testing.assert_array_equal(vertex["rot_0"], tensors["quats"][:, 0].numpy())
    np.testing.assert_array_equal(vertex["f_rest_15"], tensors["shN"][:, 0, 1].numpy())


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_round_trip(tmp_path: Path, n: int, sh_degree: int) -> None:
    tensors = random_gaussians(n, sh_degree=sh_degree)
    save_ply(tmp_path / "x.ply", tensors)
    loaded = load_ply(tmp_path / "x.ply")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].shape == tensor.shape, name
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].is_contiguous(), name


def test_save_ply_checks_shapes(tmp_path: Path) -> None:
    tensors = random_gaussians(4)
    with pytest.raises(ValueError, match=r"quats: expected \[4, 4\], got \[3, 4\]"):
        save_ply(tmp_path / "x.ply", tensors | {"quats": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="scales missing"):
        save_ply(tmp_path / "x.ply", {k: v for k, v in tensors.items() if k != "scales"})
    assert not (tmp_path / "x.ply").exists()


def write_table(path: Path, columns: dict[str, np.ndarray], *, text: bool = False) -> None:
    n = len(next(iter(columns.values())))
    table = np.empty(n, [(name, c.dtype.str) for name, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    PlyData([PlyElement.describe(table, "vertex")], text=text).write(str(path))


def table_columns(tensors: dict[str, Tensor], path: Path) -> dict[str, np.ndarray]:
    save_ply(path, tensors)
    vertex = PlyData.read(str(path))["vertex"]
    return {p.name: np.array(vertex[p.name]) for p in vertex.properties}


def test_load_ply_other_properties_order_types_and_ascii(tmp_path: Path) -> None:
    tensors = random_gaussians(6)
    columns = table_columns(tensors, tmp_path / "x.ply")
    del columns["nx"]
    columns = {name: columns[name].astype("f8") for name in reversed(columns)}
    columns["extra_1"] = np.ones(6, "f4")
    columns["extra_0"] = np.arange(6, dtype="f4")
    columns["unknown"] = np.full(6, np.nan, "f4")
    write_table(tmp_path / "y.ply", columns, text=True)
    loaded = load_ply(tmp_path / "y.ply", others=["extra", "absent"])
    assert torch.equal(loaded["extra"], torch.stack([torch.arange(6.0), torch.ones(6)], 1))
    assert loaded.keys() - {"extra"} == load_ply(tmp_path / "y.ply").keys() == tensors.keys()
    assert torch.allclose(loaded["shN"], tensors["shN"], rtol=1e-6)


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh0", "shN"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_left_out(
    tmp_path: Path, value: float, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_gaussians(6)
    tensors[name].reshape(6, -1)[2:5, 0] = value
    save_ply(tmp_path / "x.ply", tensors)
    loaded = load_ply(tmp_path / "x.ply")
    for key, tensor in tensors.items():
        assert torch.equal(loaded[key], tensor[[0, 1, 5]]), key
    assert re.search(r"x\.ply: 3 of 6 Gaussians have NaN .*: 3\) and are left out", caplog.text)
    tensors[name][:] = value
    save_ply(tmp_path / "x.ply", tensors)
    with pytest.raises(SplatrimError, match=r"6 of 6 Gaussians.*none is left"):
        load_ply(tmp_path / "x.ply")


def test_scales_that_overflow_are_left_out(tmp_path: Path) -> None:
    tensors = random_gaussians(6)
    tensors["scales"][4, 2] = 89.0  # e^89 > 3.4e38
    save_ply(tmp_path / "x.ply", tensors)
    assert len(load_ply(tmp_path / "x.ply")["means"]) == 5


def test_quaternions_of_zero_get_a_rotation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_gaussians(6)
    tensors["quats"][:2] = 0
    save_ply(tmp_path / "x.ply", tensors)
    loaded = load_ply(tmp_path / "x.ply")
    assert loaded["quats"][:2].tolist() == [[1, 0, 0, 0]] * 2
    assert torch.equal(loaded["quats"][2:], tensors["quats"][2:])
    assert "2 of 6 Gaussians have a quaternion of zero" in caplog.text


def test_offset_is_a_comment_and_comes_back(tmp_path: Path) -> None:
    offset = (465000.0, -5248000.25, 0.1)
    save_ply(tmp_path / "x.ply", random_gaussians(3), world_offset=offset)
    assert b"comment world_offset 465000.0 -5248000.25 0.1\n" in (tmp_path / "x.ply").read_bytes()
    assert read_offset(tmp_path / "x.ply") == offset
    assert PlyData.read(str(tmp_path / "x.ply"))["vertex"].count == 3
    save_ply(tmp_path / "x.ply", random_gaussians(3))
    assert read_offset(tmp_path / "x.ply") == (0, 0, 0)
    data = (tmp_path / "x.ply").read_bytes()
    for words in ("1 2", "1 2 nan", "a b c"):
        comment = f"1.0\ncomment world_offset {words}\n".encode()
        (tmp_path / "y.ply").write_bytes(data.replace(b"1.0\n", comment))
        with pytest.raises(SplatrimError, match="damaged comment"):
            read_offset(tmp_path / "y.ply")


def test_load_ply_missing_property(tmp_path: Path) -> None:
    columns = table_columns(random_gaussians(3), tmp_path / "x.ply")
    del columns["opacity"]
    write_table(tmp_path / "x.ply", columns)
    with pytest.raises(SplatrimError, match="property opacity is missing"):
        load_ply(tmp_path / "x.ply")
    write_table(tmp_path / "points.ply", {k: columns[k] for k in "xyz"})
    with pytest.raises(SplatrimError, match="f_dc_0 is missing .and 10 more.*a point cloud"):
        load_ply(tmp_path / "points.ply")


def archive(path: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path.read_bytes()


def test_other_formats_are_named(tmp_path: Path) -> None:
    zipped = tmp_path / "zipped"
    torch.save({"step": 1, "splats": {"means": torch.zeros(2, 3)}}, tmp_path / "gsplat.pt")
    known = {
        "SPZ": [gzip.compress(b"NGSP" + bytes(40)), b"NGSP" + bytes(40)],
        "gzip": [gzip.compress(b"ply" * 9)],
        "SOG": [archive(zipped, {"meta.json": b"{}", "means_l.webp": b""})],
        "gsplat checkpoint": [(tmp_path / "gsplat.pt").read_bytes()],
        "nerfstudio checkpoint": [archive(zipped, {"a/data.pkl": b"gauss_params.means"})],
        "--start_checkpoint": [archive(zipped, {"a/data.pkl": b"formatsplatrim"})],
        "zip archive": [archive(zipped, {"a": b"b"}), b"PK\x03\x04broken"],
        "PNG image": [b"\x89PNG\r\n\x1a\n" * 9],
        "Git LFS": [b"version https://git-lfs.github.com/spec/v1\n"],
        "LAS": [b"LASF" + bytes(90)],
    }
    for word, contents in known.items():
        for data in contents:
            (tmp_path / "x.ply").write_bytes(data)
            with pytest.raises(SplatrimError, match=f"not a complete .ply file.* it is .*{word}"):
                load_ply(tmp_path / "x.ply")
    (tmp_path / "x.splat").write_bytes(bytes(64))
    with pytest.raises(SplatrimError, match=r"it is a \.splat file"):
        load_ply(tmp_path / "x.splat")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["packed_position", "packed_rotation"], "it is a compressed .ply"),
        (["x", "y", "z", "f_offset_0", "f_anchor_feat_0"], "Scaffold-GS"),
        (["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1"], "2DGS"),
        (["x", "y", "z", "red"], "it is a point cloud, not Gaussians"),
    ],
)
def test_other_ply_files_are_named(tmp_path: Path, names: list[str], sentence: str) -> None:
    write_table(tmp_path / "x.ply", {name: np.ones(4, "f4") for name in names})
    with pytest.raises(SplatrimError, match=sentence):
        load_ply(tmp_path / "x.ply")


def test_load_ply_odd_number_of_sh(tmp_path: Path) -> None:
    columns = table_columns(random_gaussians(3, sh_degree=1), tmp_path / "x.ply")
    del columns["f_rest_8"]
    write_table(tmp_path / "x.ply", columns)
    with pytest.raises(SplatrimError, match="8 f_rest properties"):
        load_ply(tmp_path / "x.ply")


def test_load_ply_truncated_at_any_place(tmp_path: Path) -> None:
    save_ply(tmp_path / "x.ply", random_gaussians(3))
    data = (tmp_path / "x.ply").read_bytes()
    for size in [*range(0, len(data) - 1, 97), len(data) - 1]:
        (tmp_path / "cut.ply").write_bytes(data[:size])
        with pytest.raises(SplatrimError, match=r"cut\.ply"):
            load_ply(tmp_path / "cut.ply")


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" * 9, b"ply\n", b"hello\n" * 3])
def test_load_ply_of_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.ply").write_bytes(data)
    with pytest.raises(SplatrimError, match=r"x\.ply is not a complete \.ply"):
        load_ply(tmp_path / "x.ply")


def test_load_ply_absent_or_without_vertices(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="no such file"):
        load_ply(tmp_path / "x.ply")
    faces = np.zeros(2, [("i", "i4")])
    PlyData([PlyElement.describe(faces, "face")]).write(str(tmp_path / "x.ply"))
    with pytest.raises(SplatrimError, match="no vertices"):
        load_ply(tmp_path / "x.ply")


def test_an_interrupted_save_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gs.model.ply

    save_ply(tmp_path / "x.ply", random_gaussians(2))
    old = (tmp_path / "x.ply").read_bytes()

    class Interrupted:
        def __init__(self, path: Path) -> None:
            self.inner = atomic_write(path)

        def __enter__(self) -> "Interrupted":
            self.file = self.inner.__enter__()
            return self

        def __exit__(self, *args: object) -> bool | None:
            return self.inner.__exit__(*args)  # type: ignore[arg-type]

        def write(self, data: bytes | memoryview) -> None:
            data = bytes(data)
            self.file.write(data[:10])
            if not data.startswith(b"ply"):
                raise KeyboardInterrupt

    monkeypatch.setattr(gs.model.ply, "atomic_write", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_ply(tmp_path / "x.ply", random_gaussians(9))
    assert (tmp_path / "x.ply").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["x.ply"]
