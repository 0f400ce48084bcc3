"""A run's blocks on disk while it is trained: checkpoints of all, and going on from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..distributed.ranks import Ranks
from ..errors import SplatrimError
from ..training.finite import check_state
from .decoder_file import save_decoder
from .manifest import (
    FOLDER,
    MANIFEST,
    Manifest,
    SavedBlock,
    decoder_file,
    load_block,
    read_manifest,
    save_block,
    write_manifest,
)
from .partition import Partition
from .partition_file import NAME, read_partition
from .state import BlockState
from .store import BlockStore


def blocks_folder(path: Path | None) -> Path | None:
    """The output folder whose blocks a path names (OUT/blocks or its manifest), or None."""
    if path is None:
        return None
    folder = path.parent if path.name == Path(MANIFEST).name else path
    is_one = folder.name == FOLDER and (folder.parent / NAME).is_file()
    return folder.parent if is_one else None


class SavedBlocks:
    """Which generation of each block is on disk.

    Args:
        folder: The run's output folder.
        partition: Of the run.
        known: What the manifest names, where the run goes on from it.
    """

    def __init__(self, folder: Path, partition: Partition, known: Manifest | None = None) -> None:
        self.folder, self.partition = folder, partition
        empty = SavedBlock(0, 0)
        self.blocks = list(known.blocks) if known else [empty] * partition.n_blocks
        self.decoder = known.decoder if known else 0
        self._written: dict[int, BlockState] = {}

    def save(
        self,
        store: BlockStore,
        owners: Sequence[int],
        iteration: int,
        run: str,
        ranks: Ranks | None,
        decoder: dict[str, Any] | None = None,
    ) -> Path:
        """Write the blocks that have changed; the manifest comes last. All ranks call it together.

        Args:
            store: The blocks.
            owners: The rank that has each block's state.
            iteration: How far the run is.
            run: The run's name.
            ranks: All of them; None for one.
            decoder: State of the decoder that blocks have in common.

        Returns:
            The folder of the blocks.

        Raises:
            SplatrimError: something cannot be written, or is not finite.
        """
        mine: dict[int, SavedBlock] = {}
        for block, state in sorted(store.states.items()):
            if self._written.get(block) is state:
                continue
            whole = {**state.on_host(), "run": run}
            check_state(whole, iteration, None)
            generation = self.blocks[block].generation + 1
            mine[block] = save_block(self.folder, block, generation, whole)
            self._written[block] = state
        for told in [mine] if ranks is None else ranks.tell(mine):
            for block, saved in told.items():
                self.blocks[block] = saved
        self.decoder += decoder is not None
        manifest = Manifest(self.partition.hash, iteration, tuple(self.blocks), self.decoder)

        def conclude() -> None:
            if decoder is not None:
                save_decoder(self.folder / FOLDER / decoder_file(self.decoder), decoder)
            write_manifest(self.folder, manifest)

        if ranks is None:
            conclude()
        else:
            ranks.first_only(conclude)
        return self.folder / FOLDER


def load_states(folder: Path, partition: Partition) -> tuple[Manifest, dict[int, dict[str, Any]]]:
    """All blocks' states, on the CPU; those without a Gaussian are left out.

    Raises:
        SplatrimError: blocks are missing, damaged, or of another partition.
    """
    manifest = read_manifest(folder)
    same = manifest.partition == partition.hash == read_partition(folder).hash
    if not same or len(manifest.blocks) != partition.n_blocks:
        raise SplatrimError(
            f"{folder / MANIFEST} belongs to another partition than {folder / NAME} or this run's"
            " settings: go on with the settings that the blocks were trained with"
        )
    found = {}
    for block, saved in enumerate(manifest.blocks):
        state = load_block(folder, block, saved)
        if state is not None:
            found[block] = state
    return manifest, found
