"""What a block takes of a GPU's memory, and how many blocks fit: an estimate before training.

A Gaussian that is trained takes 1,034 bytes at the peak (parameters, gradients, Adam's moments, row
buffers, a step's records; estimated for SH degree 3), a frozen one of the surroundings 244
(parameters, id, mask). A block trains its share of all Gaussians among those that its cameras see,
while the state of the next block comes, 730 bytes per Gaussian (gs.blocks.prefetch).
"""

from __future__ import annotations

from ..data.scene import Scene
from .partition import LEAST_CAMERAS, Partition, PartitionConfig, make_partition

OWN_BYTES = 1034
FROZEN_BYTES = 244
COMING_BYTES = 730
GROWTH = 5  # Gaussians at the end per starting point, where nobody knows better
USABLE = 0.9  # of a GPU's memory: the rest is the driver's, images' and what is between tensors
WIDEN = 1.15  # from one number of blocks that is tried to the next


def block_gaussians(partition: Partition, n_gaussians: float) -> list[float]:
    """How many of all Gaussians each block owns, if they are spread as the starting points are."""
    total = max(sum(partition.n_points), 1)
    return [n_gaussians * n / total for n in partition.n_points]


def block_memory(partition: Partition, n_gaussians: float) -> list[float]:
    """Bytes on the GPU while each block is trained, for so many Gaussians in all."""
    owned = block_gaussians(partition, n_gaussians)
    needed = []
    for block, (own, outside) in enumerate(zip(owned, partition.outside, strict=True)):
        coming = max([n for other, n in enumerate(owned) if other != block], default=0.0)
        needed.append(own * (OWN_BYTES + outside * FROZEN_BYTES) + coming * COMING_BYTES)
    return needed


def most_gaussians(memory: float) -> float:
    """How many Gaussians a GPU of so many bytes holds in one piece."""
    return USABLE * memory / OWN_BYTES


def suggest_blocks(scene: Scene, config: PartitionConfig, n: float, memory: float) -> int | None:
    """The fewest blocks that fit, within a seventh.

    Args:
        scene: The scene.
        config: How it is cut, but for the number of blocks.
        n: Gaussians expected in all.
        memory: Of the GPU, in bytes.

    Returns:
        None where no number of blocks that the cameras allow fits.
    """
    most = max(len(scene.train) // LEAST_CAMERAS, 1)
    blocks = max(int(-(-n // most_gaussians(memory))), 1)
    while blocks <= most:
        cut = PartitionConfig(blocks=blocks, up=config.up, camera_share=config.camera_share)
        if max(block_memory(make_partition(scene, cut), n)) <= USABLE * memory:
            return blocks
        blocks = max(blocks + 1, int(blocks * WIDEN))
    return None
