"""Elements of .ply files, and headers that promise more than the file has."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from gs.data.ply_table import read_header, read_table
from gs.data.points import read_point_cloud
from gs.errors import SplatrimError

KINDS = {"x": "f4", "b": "u1", "n": "i2", "z": "f8"}


def table(n: int) -> np.ndarray:
    rows = np.zeros(n, list(KINDS.items()))
    for i, name in enumerate(KINDS):
        rows[name] = np.arange(n) + i
    return rows


@pytest.mark.parametrize("form", ["ascii", "<", ">"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_reads_what_plyfile_writes(tmp_path: Path, form: str, n: int) -> None:
    elements = [PlyElement.describe(table(3), "first"), PlyElement.describe(table(n), "vertex")]
    text = form == "ascii"
    PlyData(elements, text=text, byte_order="=" if text else form, comments=["a b", "c"]).write(
        str(tmp_path / "x.ply")
    )
    got = read_table(tmp_path / "x.ply")
    assert got.dtype.names == tuple(KINDS)
    for name in KINDS:
        np.testing.assert_array_equal(got[name], table(n)[name])
    header = read_header(tmp_path / "x.ply")
    assert header.comments == ("a b", "c")
    assert [element.n_rows for element in header.elements] == [3, n]


def test_lines_end_as_on_windows(tmp_path: Path) -> None:
    text = "ply\r\nformat ascii 1.0\r\nelement vertex 1\r\nproperty float x\r\nend_header\r\n2\r\n"
    (tmp_path / "x.ply").write_bytes(text.encode())
    assert read_table(tmp_path / "x.ply")["x"].tolist() == [2]


def header(*lines: str, form: str = "binary_little_endian") -> bytes:
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header", ""]).encode()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("element vertex 100000000000", "property float x"), "counts 100000000000 vertex rows"),
        (("element a 9000000000", "property list uchar int i"), "counts 9000000000 a rows"),
        (("element vertex 3", "property list uchar int i", "property float x"), "lists"),
        (
            ("element f 1", "property list uchar int i", "element vertex 1", "property int x"),
            "list",
        ),
        (("element vertex -1", "property float x"), "the element 'vertex -1'"),
        (("element vertex 1e3", "property float x"), "the element 'vertex 1e3'"),
        (("element vertex 1", "property half x"), "the property 'half x'"),
        (("element vertex 1", "property int x", "property int x"), "the property 'int x'"),
        (("element vertex 1", "element vertex 2"), "names the element vertex twice"),
        (("nonsense",), "the line 'nonsense'"),
        (("property float x",), "the line 'property float x'"),
        (("element face 1", "property float x"), "no vertex rows"),
    ],
)
@pytest.mark.parametrize("form", ["binary_little_endian", "ascii"])
def test_headers_that_are_refused(
    tmp_path: Path, lines: tuple[str, ...], sentence: str, form: str
) -> None:
    if form == "ascii" and lines[0] == "element f 1":
        return  # text has lists line by line, and can be skipped
    (tmp_path / "x.ply").write_bytes(header(*lines, form=form) + b"1 1 1 1\n" * 9)
    tracemalloc.start()
    try:
        with pytest.raises(SplatrimError, match=sentence):
            read_table(tmp_path / "x.ply")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("row", ["1 2", "1 2 x", "1 2 3 4"])
def test_text_that_is_no_row(tmp_path: Path, row: str) -> None:
    lines = ["element vertex 2", "property float x", "property float y", "property float z"]
    (tmp_path / "x.ply").write_bytes(header(*lines, form="ascii") + f"1 2 3\n{row}\n    ".encode())
    with pytest.raises(SplatrimError, match="is not a complete .ply file"):
        read_table(tmp_path / "x.ply")


def test_a_header_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "x.ply").write_bytes(b"ply\n" + b"comment a\n" * 300_000)
    with pytest.raises(SplatrimError, match="its header has no end"):
        read_header(tmp_path / "x.ply")


@pytest.mark.parametrize(
    ("names", "kind", "value", "want"),
    [
        (("red", "green", "blue"), "u1", 51, 0.2),
        (("red", "green", "blue"), "u2", 13107, 0.2),
        (("r", "g", "b"), "f4", 0.2, 0.2),
        (("diffuse_red", "diffuse_green", "diffuse_blue"), "u1", 255, 1.0),
        (("f_dc_0", "f_dc_1", "f_dc_2"), "f4", 0.0, 0.5),
        ((), "f4", 0, 0.5),
    ],
)
def test_point_clouds(
    tmp_path: Path, names: tuple[str, ...], kind: str, value: float, want: float
) -> None:
    rows = np.zeros(4, [(axis, "f8") for axis in "xyz"] + [(name, kind) for name in names])
    rows["y"] = 5_248_000.125
    for name in names:
        rows[name] = value
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "x.ply"))
    xyz, rgb = read_point_cloud(tmp_path / "x.ply")
    assert xyz.tolist() == [[0, 5_248_000.125, 0]] * 4, "in float64"
    np.testing.assert_allclose(rgb, want, rtol=1e-6)
