"""partition.json: a partition on disk, and whether it is that of a scene and settings.

    version 1   hash   settings   frame {axes, origin, found_by}   cameras (training, by name)
    cells       {"kind": "kd", "tree": block or {axis, at, low, high}}
                {"kind": "grid", "aabb", "dims", "blocks"}
    blocks      [{"points", "outside", "cameras" (by name)}]

It alone says who owns what: training, merging and pictures read it, and refuse another hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.scene import Scene
from ..errors import SplatrimError
from ..files import write_json
from ..schema import Mismatch, anything, fields, integer, listed, number, read_checked, text
from .cells import Cells, Cut, Grid, Node, Tree
from .frame import Frame
from .partition import Partition, PartitionConfig, make_partition, partition_hash

NAME = "partition.json"
VERSION = 1

_NUMBERS = listed(number())
_FILE = fields(
    {
        "version": integer(),
        "hash": text,
        "settings": fields({}),
        "frame": fields(
            {"axes": listed(_NUMBERS), "origin": _NUMBERS, "found_by": text},
            needs=("axes", "origin", "found_by"),
        ),
        "cells": fields({"kind": text}, needs=("kind",)),
        "cameras": listed(text),
        "blocks": listed(
            fields(
                {"points": integer(0), "outside": number(0), "cameras": listed(text)},
                needs=("points", "outside", "cameras"),
            )
        ),
    },
    needs=("version", "hash", "settings", "frame", "cells", "cameras", "blocks"),
)
_GRID = fields(
    {"aabb": _NUMBERS, "dims": listed(integer(1)), "blocks": listed(integer(0))},
    needs=("aabb", "dims", "blocks"),
)
_CUT = fields(
    {"axis": integer(0, 1), "at": number(), "low": anything, "high": anything},
    needs=("axis", "at", "low", "high"),
)


def save_partition(folder: Path, partition: Partition) -> Path:
    """Write partition.json into a folder, atomically. Raises SplatrimError where it cannot."""
    path = folder / NAME
    frame, names = partition.frame, partition.names
    write_json(
        path,
        {
            "version": VERSION,
            "hash": partition.hash,
            "settings": partition.settings.to_json(),
            "frame": {"axes": frame.axes, "origin": frame.origin, "found_by": frame.found_by},
            "cells": _describe(partition.cells),
            "blocks": [
                {"points": n, "outside": outside, "cameras": [names[i] for i in cameras]}
                for n, outside, cameras in zip(
                    partition.n_points, partition.outside, partition.cameras, strict=True
                )
            ],
            "cameras": names,
        },
    )
    return path


def read_partition(folder: Path) -> Partition:
    """Read a folder's partition.json. Raises SplatrimError where it is absent or broken."""
    path = folder / NAME
    data = read_checked(path, _FILE)
    if data["version"] != VERSION:
        raise SplatrimError(
            f"{path} has version {data['version']}; this program reads version {VERSION}"
        )
    try:
        return _partition(data)
    except (Mismatch, KeyError, TypeError, ValueError, SplatrimError) as error:
        raise SplatrimError(f"{path} is broken: {error}") from error


def partition_of(folder: Path, scene: Scene, settings: PartitionConfig) -> Partition:
    """The folder's partition; where it has none a new one, which is not written.

    Raises:
        SplatrimError: it was made for another scene or other settings, or cannot be made.
    """
    if not (folder / NAME).is_file():
        return make_partition(scene, settings)
    partition = read_partition(folder)
    check_partition(folder / NAME, partition, scene, settings)
    return partition


def check_partition(
    path: Path, partition: Partition, scene: Scene, settings: PartitionConfig
) -> None:
    """Raise SplatrimError where a partition is that of another scene or of other settings."""
    if partition.hash == partition_hash(scene, settings):
        return
    before, now = vars(partition.settings), vars(settings)
    changed = [
        f"{k} {_shown(before[k])}, now {_shown(x)}" for k, x in now.items() if before[k] != x
    ]
    what = "other settings" if changed else "another scene"
    how = f" ({'; '.join(changed)})" if changed else ""
    raise SplatrimError(f"{path} was made for {what}{how}: give another -m or remove it")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _partition(data: dict[str, Any]) -> Partition:
    known: dict[str, Any] = {}
    for name, value in data["settings"].items():
        known[name] = tuple(value) if isinstance(value, list) else value
    settings = PartitionConfig(**known)
    first, second, up = (_vector(axis) for axis in data["frame"]["axes"])
    frame = Frame((first, second, up), _vector(data["frame"]["origin"]), data["frame"]["found_by"])
    cells, blocks = _cells(data["cells"], frame), data["blocks"]
    if cells.n_blocks != len(blocks):
        raise Mismatch(f"cells of {cells.n_blocks} blocks, and {len(blocks)} blocks")
    index = {name: k for k, name in enumerate(data["cameras"])}
    return Partition(
        settings,
        frame,
        cells,
        tuple(tuple(index[name] for name in block["cameras"]) for block in blocks),
        tuple(block["points"] for block in blocks),
        tuple(float(block["outside"]) for block in blocks),
        tuple(data["cameras"]),
        data["hash"],
    )


def _vector(values: list[float]) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z


def _describe(cells: Cells) -> dict[str, Any]:
    if isinstance(cells, Grid):
        return {"kind": "grid", "aabb": cells.aabb, "dims": cells.dims, "blocks": cells.blocks}
    assert isinstance(cells, Tree)
    return {"kind": "kd", "tree": _describe_node(cells.root)}


def _describe_node(node: Node) -> Any:
    if isinstance(node, int):
        return node
    low, high = _describe_node(node.low), _describe_node(node.high)
    return {"axis": node.axis, "at": node.at, "low": low, "high": high}


def _cells(data: dict[str, Any], frame: Frame) -> Cells:
    if data["kind"] == "grid":
        _GRID(data, "cells")
        x0, y0, z0, x1, y1, z1 = map(float, data["aabb"])
        dx, dy, dz = data["dims"]
        blocks = tuple(data["blocks"])
        if len(blocks) != dx * dy * dz or set(blocks) != set(range(len(set(blocks)))):
            raise Mismatch("cells.blocks: expected one per cell, from 0 on")
        return Grid((x0, y0, z0, x1, y1, z1), (dx, dy, dz), blocks)
    leaves: list[int] = []
    tree = Tree(frame, _node(data.get("tree"), "cells.tree", leaves))
    if sorted(leaves) != list(range(len(leaves))):
        raise Mismatch("cells.tree: expected each block once, from 0 on")
    return tree


def _node(data: Any, where: str, leaves: list[int]) -> Node:
    if not isinstance(data, dict):
        integer(0)(data, where)
        leaves.append(data)
        return data
    _CUT(data, where)
    low, high = (_node(data[side], f"{where}.{side}", leaves) for side in ("low", "high"))
    return Cut(data["axis"], float(data["at"]), low, high)
