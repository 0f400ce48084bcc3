"""Make one model of a run's blocks: `python -m gs.merge -m OUT`.

Every block's own rows, once, in the order of their ids, without those that its strategies give up
in the end; of blocks that were trained alone what lies in their cells. Nothing is fitted. Anchors
come with the decoder of all blocks. Writes an ordinary model, which gs.render,
gs.metrics and gs.report take: OUT/point_cloud/iteration_N/point_cloud.ply.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ..command_line import read_settings_of
from ..errors import SplatrimError
from ..files import check_writable
from ..logs import show_log
from ..model.ply import save_ply
from ..model.specs import PUBLISHED
from ..neural.anchors import OFF, OWN, Anchors
from ..neural.config import NeuralConfig
from ..neural.surrounded import joined_anchors
from ..run_record import model_file, read_record, write_record
from .decoder_file import load_decoder
from .manifest import (
    FOLDER,
    KEPT,
    KEPT_ROWS,
    MANIFEST,
    decoder_file,
    kept_rows,
    load_block,
    read_manifest,
)
from .partition import Partition
from .partition_file import NAME, read_partition
from .store import public_part
from .whole import kept_rows_of

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class MergeConfig:
    """Which run to merge."""

    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Output folder of a run with --blocks."""
    quiet: bool = False
    """Show warnings only."""


def merge_blocks(folder: Path) -> Path:
    """Write the model of a run's blocks.

    Args:
        folder: The run's output folder.

    Returns:
        The model's file.

    Raises:
        SplatrimError: blocks are missing, damaged, of another partition, or own a row twice.
    """
    manifest, partition = read_manifest(folder), read_partition(folder)
    if manifest.partition != partition.hash or len(manifest.blocks) != partition.n_blocks:
        raise SplatrimError(
            f"{folder / MANIFEST} belongs to another partition than {folder / NAME}: "
            "put back the one that the blocks were trained with"
        )
    check_writable(folder)
    states = [load_block(folder, block, saved) for block, saved in enumerate(manifest.blocks)]
    found = [state for state in states if state is not None]
    if not found:
        raise SplatrimError(f"{folder}: none of the {len(states)} blocks holds a Gaussian")
    if was_alone(found[0]):
        cut_to_cells(states, partition)
    path, offset = model_file(folder, manifest.iteration), _offset(found[0])
    if manifest.decoder:
        decoder = load_decoder(folder / FOLDER / decoder_file(manifest.decoder))
        model = merge_anchors(found, decoder["parameters"], partition.names)
        model.save(path, offset)
        n = len(model)
    else:
        params, ids = merge_states(found)
        antialiased = bool((found[0].get("config") or {}).get("antialiased", False))
        save_ply(path, params, world_offset=offset, antialiased=antialiased)
        n = len(ids)
    record = read_record(folder)
    if record is not None:
        models = {**record.models, manifest.iteration: secrets.token_hex(4)}
        write_record(folder, replace(record, models=models))
    total = sum(saved.n_gaussians for saved in manifest.blocks)
    noun = "anchors" if manifest.decoder else "Gaussians"
    logger.info(f"merged {n:,} of {total:,} {noun} of {len(states)} blocks: {path}")
    return path


def merge_states(states: Sequence[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
    """The parameters of 3DGS of all blocks, each Gaussian once, in the order of ids.

    Args:
        states: Of blocks with rows (gs.training.run_state), at least one; on the host.

    Returns:
        Raw parameters by name [N, ...], and ids [N] int32.

    Raises:
        SplatrimError: two rows have one id, blocks differ in their SH degree, or none is kept.
    """
    degrees = sorted({int(state["sh_degree"]) for state in states})
    if len(degrees) > 1:
        raise SplatrimError(f"blocks have SH degrees {' and '.join(map(str, degrees))}")
    ids = torch.cat([state["rows"]["ids"] for state in states])
    if len(ids.unique()) < len(ids):
        twice = len(ids) - len(ids.unique())
        raise SplatrimError(f"{twice} Gaussians belong to two blocks: the blocks are not one run's")
    kept = torch.cat([_kept(state) for state in states])
    order = ids.argsort()
    order = order[kept[order]]
    if not len(order):
        raise SplatrimError("no Gaussian of any block is kept")
    params = {
        name: torch.cat([state["params"][name] for state in states])[order] for name in PUBLISHED
    }
    return params, ids[order]


def merge_anchors(
    states: Sequence[dict[str, Any]], decoder: Mapping[str, Tensor], names: Sequence[str]
) -> Anchors:
    """The anchors of all blocks, one block after the other, with the decoder of all.

    Args:
        states: Of blocks with rows, at least one; on the host.
        decoder: Its parameters by name.
        names: Of the training images, by their row of the decoder's appearances.

    Raises:
        SplatrimError: blocks were trained with other settings than the decoder, or none is kept.
    """
    try:
        config = NeuralConfig(**(states[0].get("config") or {})["neural"])
        nothing = {name: states[0]["params"][name][:0] for name in OWN}
        like = Anchors(nothing, config, decoder, names)
        parts = []
        for state in states:
            kept, tensors = _kept(state), state["params"]
            own = {name: tensors[name][kept] for name in OWN}
            parts.append({**own, OFF: state["rows"][OFF][kept]})
        model = joined_anchors(like, parts)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SplatrimError(f"the blocks are damaged, or of another decoder: {error}") from error
    if model is None:
        raise SplatrimError("no anchor of any block is kept")
    return model


def was_alone(state: Mapping[str, Any]) -> bool:
    """Whether the block was trained without its surroundings, and is cut to its cell in the end."""
    blocks = (state.get("config") or {}).get("blocks") or {}
    return blocks.get("surroundings") == "none"


def cut_to_cells(states: Sequence[dict[str, Any] | None], partition: Partition) -> None:
    """Let blocks' states keep what lies in their cells alone."""
    for block, state in enumerate(states):
        if state is not None:
            keep = kept_rows_of(public_part(state), block, partition)
            state["strategies"] = {**state["strategies"], KEPT: {KEPT_ROWS: keep}}


def _kept(state: dict[str, Any]) -> Tensor:  # [N] bool
    keep, n = kept_rows(state), len(state["rows"]["ids"])
    if keep is None:
        return torch.ones(n, dtype=torch.bool)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != (n,):
        raise SplatrimError("a block is damaged: its kept rows are not one for each Gaussian")
    return keep


def _offset(state: dict[str, Any]) -> tuple[float, float, float]:
    known = state.get("world_offset") or (state.get("config") or {}).get("world_offset")
    x, y, z = known or (0.0, 0.0, 0.0)
    return float(x), float(y), float(z)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.merge`."""
    config = read_settings_of(MergeConfig, args, __doc__)
    show_log(quiet=config.quiet)
    merge_blocks(config.model_path)
