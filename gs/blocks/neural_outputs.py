"""What a run of neural Gaussians in blocks leaves behind: models with the decoder of all blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SplatrimError
from ..neural.anchors import OFF, OWN, Anchors
from ..neural.surrounded import joined_anchors
from ..run_record import model_file
from ..training.finite import check_model
from .outputs import Outputs
from .seams import save_owners
from .store import IDS
from .whole import kept_rows_of


class NeuralOutputs(Outputs):
    """As `Outputs`; `like` has settings and decoder of the blocks, once it is known."""

    like: Anchors

    def whole(self) -> Anchors:
        """The model as it is saved and tested, on the device."""
        return self._joined()[0]

    def save(self, iteration: int) -> Path:
        """Write the merged model as point_cloud/iteration_N/point_cloud.ply, and its decoder."""
        path = model_file(self.run.train.model_path, iteration)
        model, blocks = self._joined()
        check_model(model, self.n_gaussians, iteration, None)
        model.save(path, self.scene.world_offset)
        save_owners(path, blocks)
        self.folder.add_model(iteration)
        self.progress.say(
            f"iteration {iteration}: saved {len(model)} of {self.n_gaussians} anchors"
        )
        return path

    def _joined(self) -> tuple[Anchors, Tensor]:  # [N] int64
        """All anchors that are kept, and the block of each."""
        parts, blocks = [], []
        for block, seen in enumerate(self.store.seen):
            if not len(seen[IDS]):
                continue
            keep = kept_rows_of(seen, block, self._cut)
            parts.append({name: x[keep] for name, x in drawn_of(seen).items()})
            blocks.append(torch.full((int(keep.sum()),), block))
        model = joined_anchors(self.like, parts)
        if model is None:
            raise SplatrimError("no anchor of any block is kept")
        return model, torch.cat(blocks)


def drawn_of(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is shown of a block's anchors (gs.blocks.store), without their names."""
    return {name: seen[name] for name in (*OWN, OFF)}
