"""glTF binary with KHR_gaussian_splatting (Khronos, ratified 2026): float32, nothing is lost.

A .glb is a header, a chunk of JSON and a chunk of bytes. One mesh primitive of points has the
attributes POSITION, ROTATION (x, y, z, w), SCALE (no logarithms), OPACITY (0..1) and
SH_DEGREE_l_COEF_n, the latter ones with the extension's name in front; COLOR_0 is for viewers that
know points only. The coordinates are the model's; its node turns them half a round about x, since
glTF's y points up and a camera's down here. What was subtracted from the world's coordinates is in
the node's extras. Reading, what nodes do is left out.

(https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting)
"""

import json
import math
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..schema import Mismatch, anything, fields, integer, listed, mapped
from .arrays import SH_C0, Arrays, Floats, logit, unit

EXTENSION = "KHR_gaussian_splatting"
MAGIC = b"glTF"
POINTS = 0
ARRAY_BUFFER = 34962
NUMBERS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
"""Kind of number by glTF's componentType."""
COLOR = "COLOR_0"  # in 8 bits, as only viewers of points read it
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
MIN_SCALE = 1e-30  # so that a logarithm is finite
_GLTF = fields(
    {
        "meshes": listed(fields({"primitives": listed(mapped(anything))})),
        "accessors": listed(
            fields(
                {
                    "bufferView": integer(0),
                    "byteOffset": integer(0),
                    "count": integer(0),
                    "componentType": integer(0),
                },
                needs=("bufferView", "count", "componentType", "type"),
            )
        ),
        "bufferViews": listed(
            fields(
                {
                    "buffer": integer(0, 0),
                    "byteOffset": integer(0),
                    "byteLength": integer(0),
                    "byteStride": integer(1),
                },
                needs=("buffer", "byteLength"),
            )
        ),
    },
    needs=("meshes", "accessors", "bufferViews"),
)


class Glb(NamedTuple):
    """A .glb, taken apart."""

    gltf: dict[str, Any]
    binary: bytes


def encode(model: Arrays, world_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> bytes:
    """The file of a model."""
    node: dict[str, Any] = {"mesh": 0, "rotation": [1.0, 0.0, 0.0, 0.0]}
    if any(world_offset):
        node["extras"] = {"world_offset": list(world_offset)}
    colors = (0.5 + SH_C0 * model.sh0).clip(0, 1)
    columns = {
        "POSITION": model.means,
        COLOR: np.rint(255 * np.concatenate([colors, model.alphas[:, None]], axis=1)),
        f"{EXTENSION}:ROTATION": model.quats[:, [1, 2, 3, 0]],
        f"{EXTENSION}:SCALE": np.exp(model.scales.astype(np.float64)),
        f"{EXTENSION}:OPACITY": model.alphas[:, None],
        _harmonic(0, 0): model.sh0,
    }
    for band in range(1, model.degree + 1):
        for i in range(2 * band + 1):
            columns[_harmonic(band, i)] = model.shN[:, band**2 - 1 + i]
    views, accessors, parts, start = [], [], [], 0
    for index, (name, values) in enumerate(columns.items()):
        kind = "<u1" if name == COLOR else "<f4"
        data = np.ascontiguousarray(values, kind)
        part = {"buffer": 0, "byteOffset": start, "byteLength": data.nbytes}
        views.append(part | {"target": ARRAY_BUFFER})
        accessor: dict[str, Any] = {
            "bufferView": index,
            "componentType": next(code for code, of in NUMBERS.items() if of == kind),
            "count": len(data),
            "type": {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[data.shape[1]],
        }
        if name == COLOR:
            accessor["normalized"] = True
        if index == 0 and len(data):
            accessor |= {"min": data.min(axis=0).tolist(), "max": data.max(axis=0).tolist()}
        accessors.append(accessor)
        parts.append(data.tobytes())
        start += data.nbytes
    splats = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "sortingMethod": "cameraDistance",
        "projection": "perspective",
    }
    attributes = {name: index for index, name in enumerate(columns)}
    primitive = {"attributes": attributes, "mode": POINTS, "extensions": {EXTENSION: splats}}
    gltf = {
        "asset": {"version": "2.0", "generator": "splatrim"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": start}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(gltf, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", start, b"BIN\0") + b"".join(parts)
    return struct.pack("<4sII", MAGIC, 2, 12 + len(chunks)) + chunks


def take_apart(data: bytes) -> Glb:
    """The JSON and the bytes of a .glb. Raises ValueError, the end of a sentence."""
    if len(data) < 20 or struct.unpack_from("<4sI", data) != (MAGIC, 2):
        raise ValueError("is no binary glTF 2.0 file")
    chunks, start = {}, 12
    while start + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, start)
        if start + 8 + length > len(data):
            raise ValueError("ends within a chunk")
        chunks.setdefault(kind, data[start + 8 : start + 8 + length])
        start += 8 + length
    try:
        gltf = json.loads(chunks.get(b"JSON", b"").decode())
        _GLTF(gltf, "")
    except Mismatch as error:
        raise ValueError(f"has damaged JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has JSON that cannot be read: {error}") from error
    return Glb(gltf, chunks.get(b"BIN\0", b""))


def decode(data: bytes) -> Arrays:
    """The first Gaussians in a file. Raises ValueError, the end of a sentence."""
    glb = take_apart(data)
    primitives = [p for mesh in glb.gltf["meshes"] for p in mesh.get("primitives", [])]
    found = next((p for p in primitives if EXTENSION in (p.get("extensions") or {})), None)
    if found is None:
        raise ValueError(f"has no primitive with {EXTENSION}: it holds no Gaussians")
    inner = found["extensions"][EXTENSION]
    packed = [] if not isinstance(inner, dict) else list(inner.get("extensions") or {})
    if packed:
        raise ValueError(f"is compressed with {str(packed[0])[:60]}, which is not read")
    attributes = found.get("attributes")
    if not isinstance(attributes, dict):
        raise ValueError("has a primitive without attributes")

    def column(name: str, width: int) -> Floats:
        if name not in attributes:
            raise ValueError(f"has Gaussians without {name}")
        return _values(glb, attributes[name], name, width)

    means = column("POSITION", 3)
    n_harmonics = sum(str(name).startswith(f"{EXTENSION}:SH_DEGREE_") for name in attributes)
    degree = max(math.isqrt(max(n_harmonics, 1)) - 1, 0)
    if (degree + 1) ** 2 != n_harmonics or degree > 3:
        raise ValueError(f"has {n_harmonics} SH attributes, not those of a degree from 0 to 3")
    names = [_harmonic(band, i) for band in range(1, degree + 1) for i in range(2 * band + 1)]
    rest = [column(name, 3) for name in names]
    with np.errstate(invalid="ignore"):
        scales = np.log(np.maximum(column(f"{EXTENSION}:SCALE", 3), MIN_SCALE))
    arrays = Arrays(
        means,
        unit(column(f"{EXTENSION}:ROTATION", 4)[:, [3, 0, 1, 2]]),
        scales,
        logit(column(f"{EXTENSION}:OPACITY", 1)[:, 0]),
        column(_harmonic(0, 0), 3),
        np.stack(rest, axis=1) if rest else np.zeros((len(means), 0, 3), np.float32),
    )
    if any(len(array) != len(means) for array in arrays):
        raise ValueError("has attributes of different lengths")
    return arrays


def read_offset(data: bytes) -> tuple[float, float, float]:
    """What was subtracted from the world's coordinates, where a node's extras say; else zero.

    Raises:
        ValueError: no .glb, or the extras are damaged; the end of a sentence.
    """
    nodes = take_apart(data).gltf.get("nodes")
    for node in nodes if isinstance(nodes, list) else []:
        extras = node.get("extras") if isinstance(node, dict) else None
        offset = extras.get("world_offset") if isinstance(extras, dict) else None
        if offset is None:
            continue
        try:
            x, y, z = map(float, offset)
        except (TypeError, ValueError):
            x = y = z = math.nan
        if not math.isfinite(x + y + z):
            raise ValueError(f"has a damaged world_offset: {str(offset)[:60]}")
        return x, y, z
    return 0.0, 0.0, 0.0


def _harmonic(band: int, index: int) -> str:
    return f"{EXTENSION}:SH_DEGREE_{band}_COEF_{index}"


def _values(glb: Glb, index: Any, name: str, width: int) -> Floats:  # [N, width]
    """The numbers of an accessor; those of integers as parts of their type's largest."""
    accessors, views = glb.gltf["accessors"], glb.gltf["bufferViews"]
    if not isinstance(index, int) or not 0 <= index < len(accessors):
        raise ValueError(f"has no accessor of {name}")
    accessor = accessors[index]
    if WIDTHS.get(accessor["type"]) != width or accessor["componentType"] not in NUMBERS:
        raise ValueError(f"has numbers of another kind in {name}")
    if accessor["bufferView"] >= len(views) or "sparse" in accessor:
        raise ValueError(f"has an accessor of {name} that is not read")
    view, kind = views[accessor["bufferView"]], np.dtype(NUMBERS[accessor["componentType"]])
    n, row = accessor["count"], width * kind.itemsize
    stride = view.get("byteStride", row)
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    if stride < row or start + n * stride - (stride - row) * (n > 0) > len(glb.binary):
        raise ValueError(f"is too short for its {n} numbers of {name}")
    values: NDArray[Any] = np.ndarray((n, width), kind, glb.binary, start, (stride, kind.itemsize))
    if kind.kind == "f":
        return values.astype(np.float32)
    unit_of = float(np.iinfo(kind).max) if accessor.get("normalized") else 1.0
    return np.maximum(values / unit_of, -1.0 if unit_of > 1 else -np.inf).astype(np.float32)
