"""Waves: which blocks are trained at once, and which ranks train them.

A round trains every block for one interval. It is a sequence of waves; blocks that touch are in
different ones, since neighbours that fill the same gap at their border at once would overshoot.
The plan follows from the partition alone. Ranks only share the work of a wave:

    fewer ranks than blocks     the dearest block first, each to the rank with the least to do
    as many or more             every block has ranks / blocks of them, rounded down or up

With several ranks for a block, its step is sharded (gs.training.sharded_step), and results are the
same for every number of ranks to rounding; otherwise bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cells import Cells

ONE_WAVE = "one"
COLOURED = "coloured"


@dataclass(frozen=True)
class Group:
    """Ranks that train blocks together, one block after the other."""

    ranks: tuple[int, ...]
    blocks: tuple[int, ...]


def colours(touching: Sequence[set[int]]) -> list[int]:
    """A number for each block that no block which it touches has: greedily, few of them.

    Blocks with many neighbours choose first, of equals the lowest; each takes the lowest number
    that is free.
    """
    found = [-1] * len(touching)
    for block in sorted(range(len(touching)), key=lambda b: (-len(touching[b]), b)):
        taken = {found[other] for other in touching[block]}
        found[block] = next(k for k in range(len(touching)) if k not in taken)
    return found


def plan_round(cells: Cells, waves: str = COLOURED) -> list[list[int]]:
    """Waves of a round: blocks by colour, each ascending.

    Args:
        cells: Who touches whom.
        waves: "coloured", or "one" for all blocks at once.

    Raises:
        ValueError: `waves` is neither.
    """
    if waves not in (COLOURED, ONE_WAVE):
        raise ValueError(f"waves: expected {COLOURED} or {ONE_WAVE}, got {waves!r}")
    if waves == ONE_WAVE:
        return [list(range(cells.n_blocks))]
    found = colours(cells.touching())
    return [
        [block for block, colour in enumerate(found) if colour == wave]
        for wave in range(max(found) + 1)
    ]


def assign(
    wave: Sequence[int],
    costs: Sequence[float],  # [B]
    n_ranks: int,
) -> list[Group]:
    """Share the blocks of a wave out to the ranks.

    Args:
        wave: Blocks that are trained at once.
        costs: Work of every block of the partition, not negative.
        n_ranks: At least 1.

    Returns:
        Groups with blocks. Ranks that are in none have no work.
    """
    if n_ranks < 1:
        raise ValueError(f"n_ranks: expected at least 1, got {n_ranks}")
    dearest_first = sorted(wave, key=lambda block: (-costs[block], block))
    if n_ranks < len(wave):
        loads, blocks = [0.0] * n_ranks, [[] for _ in range(n_ranks)]
        for block in dearest_first:
            # of equal loads the rank with fewer blocks: none waits while another has two for free
            rank = min(range(n_ranks), key=lambda r: (len(blocks[r]) > 0, loads[r], len(blocks[r])))
            loads[rank] += costs[block]
            blocks[rank].append(block)
        return [Group((rank,), tuple(found)) for rank, found in enumerate(blocks)]
    groups, first = [], 0
    for place, block in enumerate(dearest_first):
        # the dearest blocks get the ranks that are left over
        size = n_ranks // len(wave) + (place < n_ranks % len(wave))
        groups.append(Group(tuple(range(first, first + size)), (block,)))
        first += size
    return groups


def shares_of(wave: Sequence[int], costs: Sequence[float], n_ranks: int) -> list[list[int]]:
    """The blocks of a wave that each rank trains, as `assign` shares them out; one rank a block."""
    shares: list[list[int]] = [[] for _ in range(n_ranks)]
    for group in assign(wave, costs, n_ranks):
        shares[group.ranks[0]] += group.blocks
    return shares
