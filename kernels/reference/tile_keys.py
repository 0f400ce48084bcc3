"""gsplat's entries of `info` on tile lists: isect_ids, flatten_ids, isect_offsets.

An entry of the lists is an image, a tile of it and a pair of camera and Gaussian that reaches the
tile. Entries ascend by image, tile and depth. Nothing here has gradients.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TileKeys(NamedTuple):
    """Entries of the tile lists of I images of TH x TW tiles."""

    isect_ids: Tensor
    """image << (32 + bits) | tile << 32 | bits of the depth, where bits hold TH TW. [E] int64"""
    flatten_ids: Tensor
    """image N + Gaussian. [E] int32"""
    isect_offsets: Tensor
    """Where each tile's entries begin. [I, TH, TW] int32"""

    def after(self, images: int, pairs: int, entries: int) -> "TileKeys":
        """The same behind so many other images, with so many pairs and entries."""
        ids = self.isect_ids + (images << (32 + tile_bits(self.isect_offsets)))
        return TileKeys(ids, self.flatten_ids + pairs, self.isect_offsets + entries)


def tile_bits(offsets: Tensor) -> int:  # [I, TH, TW]
    """Bits that a tile's number takes in a key."""
    return (offsets.shape[1] * offsets.shape[2]).bit_length()


def keys_of_lists(
    pairs: Tensor,  # [E]
    offsets: Tensor,  # [I TH TW + 1]
    depths: Tensor,  # [I N]
    tiles_x: int,
    tiles_y: int,
) -> TileKeys:
    """Keys of lists that are there: list t holds pairs[offsets[t] : offsets[t + 1]]."""
    starts = offsets[:-1].view(-1, tiles_y, tiles_x).to(torch.int32)
    lengths = offsets.diff().long()
    tiles = torch.repeat_interleave(torch.arange(len(lengths), device=pairs.device), lengths)
    image, tile = tiles // (tiles_x * tiles_y), tiles % (tiles_x * tiles_y)
    bits = depths.detach().float()[pairs.long()].view(torch.int32).long()
    keys = (image << (32 + tile_bits(starts))) | (tile << 32) | bits
    return TileKeys(keys, pairs.to(torch.int32), starts)


@torch.no_grad()
def keys_of_boxes(
    means2d: Tensor,  # [I, N, 2]
    radii: Tensor,  # [I, N, 2] int32
    depths: Tensor,  # [I, N]
    width: int,
    height: int,
    tile_size: int,
) -> TileKeys:
    """Keys of the tiles that each visible Gaussian's bounding box touches."""
    tiles_x, tiles_y = -(-width // tile_size), -(-height // tile_size)
    pairs = (radii > 0).all(-1).flatten().nonzero().squeeze(1)
    middle, radius = means2d.flatten(0, 1)[pairs], radii.flatten(0, 1)[pairs].to(means2d.dtype)
    last = middle.new_tensor([tiles_x - 1, tiles_y - 1])
    low = torch.floor((middle - radius) / tile_size).clamp_min(0)
    high = torch.minimum(torch.floor((middle + radius) / tile_size), last)
    size = (high - low + 1).clamp_min(0).long()
    counts = size.prod(-1)
    owner = torch.repeat_interleave(counts)
    number = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    x = low[owner, 0].long() + number % size[owner, 0]
    y = low[owner, 1].long() + number // size[owner, 0]
    image = pairs[owner] // means2d.shape[1]
    tile = (image * tiles_y + y) * tiles_x + x
    order = depths.flatten()[pairs][owner].argsort(stable=True)
    order = order[tile[order].argsort(stable=True)]
    n_tiles = means2d.shape[0] * tiles_x * tiles_y
    lengths = torch.bincount(tile, minlength=n_tiles)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return keys_of_lists(pairs[owner[order]], offsets, depths.flatten(), tiles_x, tiles_y)
