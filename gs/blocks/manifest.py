"""Blocks on disk: blocks/block_BBB.GGGG.pth with generation G, and blocks/manifest.json.

    version 1   partition (hash)   iteration
    blocks      [{"file", "generation", "gaussians"}], block 0 first; one without rows has no file
    decoder     generation of decoder.GGGG.pth, where blocks have a decoder (gs.blocks.decoder_file)

A block's file is a checkpoint (gs.training.checkpoint) of its rows; strategies/blocks/keep says
which of them the strategies keep in the end. Files of a new generation are written first, the
manifest is renamed over the old one last, and older files go after that. So whatever stops a run,
the manifest names whole files of one moment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SplatrimError
from ..files import remove_temporaries, write_json
from ..run_record import BLOCKS
from ..schema import fields, integer, listed, maybe, read_checked, text
from ..training.checkpoint import load_checkpoint, save_checkpoint

FOLDER = BLOCKS
MANIFEST = f"{FOLDER}/manifest.json"
VERSION = 1
KEPT, KEPT_ROWS, FACTORS = "blocks", "keep", "opacity_factors"

_FILE_NAME = re.compile(r"(block_(\d{3,})|decoder)\.(\d{4,})\.pth", re.ASCII)
_ENTRY = fields(
    {"file": maybe(text), "generation": integer(0), "gaussians": integer(0)},
    needs=("file", "generation", "gaussians"),
)
_FILE = fields(
    {
        "version": integer(),
        "partition": text,
        "iteration": integer(0),
        "blocks": listed(_ENTRY),
        "decoder": integer(0),
    },
    needs=("version", "partition", "iteration", "blocks"),
)


@dataclass(frozen=True)
class SavedBlock:
    """A block on disk."""

    generation: int
    """Counts the times that the block was written."""
    n_gaussians: int

    def file(self, block: int) -> str | None:
        """Name in the folder of the blocks; None without rows."""
        return f"block_{block:03d}.{self.generation:04d}.pth" if self.n_gaussians else None


@dataclass(frozen=True)
class Manifest:
    """All blocks of a run at one moment."""

    partition: str
    """Hash of the partition that they belong to."""
    iteration: int
    blocks: tuple[SavedBlock, ...]
    decoder: int = 0
    """Generation of the decoder's file; 0 where blocks have none."""


def save_block(
    folder: Path,
    block: int,
    generation: int,
    state: dict[str, Any],
    keep: Tensor | None = None,  # [N] bool
) -> SavedBlock:
    """Write a block's file; it becomes valid with the manifest.

    Args:
        folder: The run's output folder.
        block: Which one.
        generation: A new one, which the valid manifest does not name.
        state: The block's (gs.training.run_state).
        keep: Rows of the model that is saved in the end; None for all.

    Raises:
        SplatrimError: the file cannot be written.
    """
    saved = SavedBlock(generation, len(state["rows"]["ids"]))
    name = saved.file(block)
    if name is not None:
        strategies = dict(state["strategies"])
        if keep is not None:
            strategies[KEPT] = {KEPT_ROWS: keep}
        save_checkpoint(folder / FOLDER / name, {**state, "strategies": strategies})
    return saved


def load_block(folder: Path, block: int, saved: SavedBlock) -> dict[str, Any] | None:
    """Read a block's state; None where it has no rows.

    Raises:
        SplatrimError: its file is damaged, or holds another number of Gaussians.
    """
    name = saved.file(block)
    if name is None:
        return None
    path = folder / FOLDER / name
    state = load_checkpoint(path, gaussians=False)
    found = len(state["rows"]["ids"])
    if found != saved.n_gaussians:
        raise SplatrimError(
            f"{path} holds {found} Gaussians, and {MANIFEST} says {saved.n_gaussians}"
        )
    return state


def kept_rows(state: dict[str, Any]) -> Tensor | None:  # [N] bool
    """Rows of the model that is saved in the end; None for all."""
    return state["strategies"].get(KEPT, {}).get(KEPT_ROWS)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the manifest's files the valid ones, and remove all others.

    Args:
        folder: The run's output folder.
        manifest: Names files that are there.

    Raises:
        SplatrimError: it cannot be written; the old one is valid still.
    """
    place = folder / FOLDER
    names = [saved.file(block) for block, saved in enumerate(manifest.blocks)]
    entries = [
        {"file": name, "generation": saved.generation, "gaussians": saved.n_gaussians}
        for name, saved in zip(names, manifest.blocks, strict=True)
    ]
    names += [decoder_file(manifest.decoder)] if manifest.decoder else []
    for name in names:
        if name is not None and not (place / name).is_file():
            raise ValueError(f"manifest: {place / name} has not been written")
    write_json(
        folder / MANIFEST,
        {
            "version": VERSION,
            "partition": manifest.partition,
            "iteration": manifest.iteration,
            "blocks": entries,
            **({"decoder": manifest.decoder} if manifest.decoder else {}),
        },
    )
    remove_temporaries(place)
    for path in place.glob("*.pth"):
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
        saved = SavedBlock(entry["generation"], entry["gaussians"])
        name = saved.file(index)
        if entry["file"] != name:
            raise SplatrimError(f"{path} is broken: block {index} is in {entry['file']!r:.40}")
        if name is not None and not (place / name).is_file():
            raise SplatrimError(f"{place / name} is missing, and {path} names it")
        blocks.append(saved)
    decoder = data.get("decoder", 0)
    if decoder and not (place / decoder_file(decoder)).is_file():
        raise SplatrimError(f"{place / decoder_file(decoder)} is missing, and {path} names it")
    return Manifest(data["partition"], data["iteration"], tuple(blocks), decoder)


def decoder_file(generation: int) -> str:
    """Name of the decoder's file of a generation."""
    return f"decoder.{generation:04d}.pth"
