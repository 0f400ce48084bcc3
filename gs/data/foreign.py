"""Recognises files that are not what was asked for, so that an error can say what they are."""

import zipfile
import zlib
from pathlib import Path

from .ply_table import Header

CONVERTERS = "convert it to an uncompressed .ply, for example with SuperSplat or splat-transform"
READERS = "--start_ply reads it, as gs.load_model does"

_MAGIC = {
    b"NGSP": f"an SPZ file of compressed Gaussians: {READERS}",
    b"glTF": f"a binary glTF file: {READERS}",
    b"LASF": "a LAS or LAZ point cloud, not Gaussians",
    b"ASTM-E57": "an E57 point cloud, not Gaussians",
    b"# .PCD": "a PCD point cloud, not Gaussians",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x80": "a Python pickle, perhaps a checkpoint: export it as .ply where it was written",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: run `git lfs pull`",
}
_SUFFIXES = {
    ".splat": f"a .splat file: {READERS}",
    ".ksplat": f"a .ksplat file of compressed Gaussians: {READERS}",
    ".spz": f"an SPZ file of compressed Gaussians: {READERS}",
    ".sog": f"a SOG file of compressed Gaussians: {READERS}",
}


def recognise(path: Path) -> str | None:
    """What a file that is not a .ply is, as the end of a sentence; None where unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return None
    if head.startswith(b"ply"):
        return None
    if head.startswith(b"\x1f\x8b"):
        # only the first bytes: a bomb stays packed
        try:
            inner = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 16)
        except zlib.error:
            inner = b""
        return _MAGIC[b"NGSP"] if inner.startswith(b"NGSP") else "a gzip file: unpack it first"
    if head.startswith(b"PK\x03\x04"):
        return _recognise_archive(path)
    found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    return found or _SUFFIXES.get(path.suffix.lower())


def _recognise_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickle = next((name for name in names if name.endswith("data.pkl")), None)
            start = b""
            if pickle is not None:
                with archive.open(pickle) as file:
                    start = file.read(1 << 16)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, zlib.error, EOFError):
        return "a damaged zip archive"
    if b"splatrim" in start:
        return "a training checkpoint: give it with --start_checkpoint"
    if b"splats" in start:
        return "a gsplat checkpoint: export it as .ply with gsplat's export_splats"
    if b"gauss_params" in start or b"pipeline" in start:
        return "a nerfstudio checkpoint: export it as .ply with ns-export gaussian-splat"
    if pickle is not None:
        return "a PyTorch file, perhaps a checkpoint: export it as .ply where it was written"
    if any(name.endswith("meta.json") for name in names):
        return f"a SOG file of compressed Gaussians: {READERS}"
    return "a zip archive: unpack it first"


def recognise_ply(header: Header) -> str | None:
    """What a .ply without the properties of Gaussians is, as the end of a sentence."""
    vertex = header.element("vertex")
    names = set(vertex.properties) if vertex else set()
    if "packed_position" in names or header.element("chunk"):
        return f"a compressed .ply of SuperSplat or PlayCanvas: {READERS}"
    if any("codebook" in element.name for element in header.elements):
        return f"a .ply of Gaussians compressed with codebooks: {CONVERTERS}"
    if "f_anchor_feat_0" in names or "f_offset_0" in names:
        return "a .ply of Scaffold-GS's anchors, from which a network makes Gaussians"
    if {"f_dc_0", "scale_1", "opacity"} <= names and "scale_2" not in names:
        return "a .ply of flat Gaussians (2DGS), which have two scales instead of three"
    face = header.element("face")
    if face is not None and face.n_rows:
        return "a mesh, not Gaussians"
    if {"x", "y", "z"} <= names and not names & {"opacity", "scale_0", "f_dc_0"}:
        return "a point cloud, not Gaussians: as points3D.ply beside the cameras it is a start"
    return None
