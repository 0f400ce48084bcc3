"""blocks/manifest.json: which files hold the blocks of a run, and what is in them.

    version 1   partition (hash)   iteration
    blocks      [{"file", "generation", "gaussians"}], block 0 first

A block's file is a checkpoint (gs.training.checkpoint) of that block, blocks/block_BBB.GGGG.pth
with its generation G; files of a new generation are written first, the manifest is renamed over the
old one last, and older files go after that. So whatever stops a run, the manifest names whole files
of one moment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import SplatrimError
from ..files import remove_temporaries, write_json
from ..schema import fields, integer, listed, read_checked, text

FOLDER = "blocks"
MANIFEST = f"{FOLDER}/manifest.json"
VERSION = 1

_FILE_NAME = re.compile(r"block_(\d{3,})\.(\d{4,})\.pth", re.ASCII)
_ENTRY = fields(
    {"file": text, "generation": integer(0), "gaussians": integer(0)},
    needs=("file", "generation", "gaussians"),
)
_FILE = fields(
    {"version": integer(), "partition": text, "iteration": integer(0), "blocks": listed(_ENTRY)},
    needs=("version", "partition", "iteration", "blocks"),
)


@dataclass(frozen=True)
class SavedBlock:
    """A block on disk."""

    generation: int
    """Counts the times that the block was written."""
    n_gaussians: int
    file: str = ""
    """Name in the folder of the blocks."""


@dataclass(frozen=True)
class Manifest:
    """All blocks of a run at one moment."""

    partition: str
    """Hash of the partition that they belong to."""
    iteration: int
    blocks: tuple[SavedBlock, ...]


def block_file(block: int, generation: int) -> str:
    """Name of a block's file."""
    return f"block_{block:03d}.{generation:04d}.pth"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the manifest's files the valid ones, and remove all others.

    Args:
        folder: The run's output folder.
        manifest: Names files that are there.

    Raises:
        SplatrimError: it cannot be written; the old one is valid still.
    """
    place = folder / FOLDER
    names = [entry.file for entry in manifest.blocks]
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise ValueError(f"manifest: {place / missing[0]} has not been written")
    entries = [
        {"file": entry.file, "generation": entry.generation, "gaussians": entry.n_gaussians}
        for entry in manifest.blocks
    ]
    write_json(
        folder / MANIFEST,
        {
            "version": VERSION,
            "partition": manifest.partition,
            "iteration": manifest.iteration,
            "blocks": entries,
        },
    )
    remove_temporaries(place)
    for path in place.glob("block_*.pth"):
        if _FILE_NAME.fullmatch(path.name) and path.name not in names:
            path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Read a run's manifest.

    Raises:
        SplatrimError: it is absent or broken, or a file that it names is absent.
    """
    path, place = folder / MANIFEST, folder / FOLDER
    if not path.is_file():
        if any(place.glob("block_*.pth")):
            raise SplatrimError(
                f"{place} is incomplete: manifest.json is missing (the run was stopped before its "
                "first checkpoint was whole)"
            )
        raise SplatrimError(f"{folder} holds no blocks ({MANIFEST} is missing)")
    data = read_checked(path, _FILE)
    if data["version"] != VERSION:
        raise SplatrimError(
            f"{path} has version {data['version']}; this program reads version {VERSION}"
        )
    blocks = []
    for index, entry in enumerate(data["blocks"]):
        name = block_file(index, entry["generation"])
        if entry["file"] != name:
            raise SplatrimError(f"{path} is broken: block {index} is in {entry['file']!r:.40}")
        if not (place / name).is_file():
            raise SplatrimError(f"{place / name} is missing, and {path} names it")
        blocks.append(SavedBlock(entry["generation"], entry["gaussians"], name))
    return Manifest(data["partition"], data["iteration"], tuple(blocks))
