"""The whole of a run's blocks: as a model to test, and as the file that is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import SplatrimError
from ..model.gaussians import Gaussians
from ..model.specs import PUBLISHED
from .partition import Partition
from .store import IDS, KEEP


def kept_rows_of(
    seen: Mapping[str, Tensor], block: int, partition: Partition | None
) -> Tensor:  # [N] bool
    """Rows of a block that the saved model has.

    Args:
        seen: What is shown of the block (gs.blocks.store).
        block: Its number.
        partition: Where rows outside the block's cell go, as blocks were trained alone; else None.
    """
    keep = seen[KEEP]
    if partition is None or not len(keep):
        return keep
    places = seen["anchors"] if "anchors" in seen else seen["means"]
    return keep & (partition.owner(places) == block)


def merged_params(
    blocks: Sequence[Mapping[str, Tensor]],
    partition: Partition | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Parameters of 3DGS of all blocks in the order of ids, on a device.

    Args:
        blocks: What is shown of each.
        partition: As in `kept_rows_of`.
        device: Where to.

    Returns:
        Raw parameters by name [N, ...], ids [N] int32, and the block of each [N] int64.

    Raises:
        SplatrimError: nothing is left, or two Gaussians have one id.
    """
    there = [(block, seen) for block, seen in enumerate(blocks) if len(seen[IDS])]
    keep = {block: kept_rows_of(seen, block, partition) for block, seen in there}
    if not any(bool(rows.any()) for rows in keep.values()):
        raise SplatrimError("no Gaussian of any block is kept")
    ids = torch.cat([seen[IDS][keep[block]] for block, seen in there])
    if len(ids.unique()) < len(ids):
        raise SplatrimError(f"{len(ids) - len(ids.unique())} Gaussians belong to two blocks")
    order = ids.argsort()
    params = {
        name: torch.cat([seen[name][keep[block]] for block, seen in there])[order].to(device)
        for name in PUBLISHED
    }
    numbers = torch.cat([torch.full((int(keep[b].sum()),), b) for b, _ in there])
    return params, ids[order], numbers[order]


def merged_model(
    blocks: Sequence[Mapping[str, Tensor]],
    partition: Partition | None,
    device: torch.device,
) -> Gaussians:
    """The whole as a model on the device, to be tested."""
    params, ids, _ = merged_params(blocks, partition, device)
    model = Gaussians(params)
    model.rows["ids"] = ids.to(device)
    return model
