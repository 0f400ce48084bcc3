"""All blocks of a run: the states of those that this rank trains, and what is seen of each.

A wave's results become the blocks' states once the wave is over, on all ranks at the same time:
blocks of one wave see each other as they were before, whoever trains them and in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.ranks import Ranks
from ..neural.anchors import OFF
from .manifest import FACTORS, KEPT, KEPT_ROWS
from .state import BlockState, HostArena

IDS, KEEP = "ids", "keep"
_TRUTHS = {KEEP, OFF}


class BlockStore:
    """Blocks 0 to n_blocks - 1.

    Args:
        n_blocks: How many there are.
    """

    def __init__(self, n_blocks: int) -> None:
        self.states: dict[int, BlockState] = {}
        self.seen: list[Mapping[str, Tensor]] = [{IDS: torch.empty(0)} for _ in range(n_blocks)]
        self._next: dict[int, BlockState] = {}
        self._spare: list[HostArena] = []
        self._kept: dict[int, tuple[Tensor, float]] = {}

    def __len__(self) -> int:
        return len(self.seen)

    def n_gaussians(self, block: int) -> int:
        return len(self.seen[block][IDS])

    def put(self, block: int, state: dict[str, Any]) -> None:
        """Copy a state of this rank's to the host; it counts from the next `commit` on."""
        arena = self._spare.pop() if self._spare else HostArena()
        self._next[block] = BlockState.to_host(state, arena)

    def forget(self) -> None:
        """Give up what has been put and not been committed."""
        self._spare += [state.arena for state in self._next.values()]
        self._next.clear()

    def commit(self, shares: Sequence[Sequence[int]], ranks: Ranks | None) -> None:
        """Make what has been put the blocks' states, and show it to all ranks.

        Args:
            shares: Blocks that each rank has put, by rank.
            ranks: All ranks, which call this together; None for one.
        """
        for block, state in self._next.items():
            if block in self.states:
                self._spare.append(self.states[block].arena)
            self.states[block] = state
            self.seen[block] = public_part(state.on_host())
        self._next.clear()
        if ranks is None:
            return
        for turn in range(max(map(len, shares), default=0)):
            turns = [share[turn] if turn < len(share) else None for share in shares]
            mine = turns[ranks.rank]
            shown = exchange_parts(None if mine is None else self.seen[mine], ranks)
            for rank, block in enumerate(turns):
                if block is not None and rank != ranks.rank:
                    self.seen[block] = shown[rank]

    def kept(self, block: int) -> float:
        """Sum of the means of a block's masks; of Gaussians without masks their number."""
        logits = self.seen[block].get("mask_logits")
        if logits is None or logits.dim() != 2:
            return float(self.n_gaussians(block))
        known = self._kept.get(block)
        if known is None or known[0] is not logits:
            total = float(torch.sigmoid(logits[:, 0] - logits[:, 1]).sum(dtype=torch.float64))
            known = self._kept[block] = logits, total
        return known[1]

    def others(self, block: int) -> Iterable[Mapping[str, Tensor]]:
        """What is seen of all blocks but one, in their order."""
        return [seen for other, seen in enumerate(self.seen) if other != block]


def public_part(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a block's state: parameters by name, ids, which rows stay in the end, offsets off."""
    ids, told = state["rows"][IDS], state["strategies"].get(KEPT, {})
    keep = told.get(KEPT_ROWS)
    if keep is None:
        keep = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    factors = {FACTORS: told[FACTORS]} if FACTORS in told else {}
    off = {OFF: state["rows"][OFF]} if OFF in state["rows"] else {}
    return {**state["params"], **factors, **off, IDS: ids, KEEP: keep}


def exchange_parts(mine: Mapping[str, Tensor] | None, ranks: Ranks) -> list[dict[str, Tensor]]:
    """What each rank shows of a block, in the order of ranks; nothing where it has none."""
    layout = None
    if mine is not None:
        layout = {name: tuple(x.shape[1:]) for name, x in mine.items()}
    layouts = ranks.tell(layout)
    columns = max(sum(map(_width, known.values())) if known else 0 for known in layouts)
    rows = torch.zeros(0, columns)
    if mine is not None:
        parts = [_as_floats(x) for x in mine.values()]
        rows = torch.cat(parts, 1)
        rows = torch.nn.functional.pad(rows, (0, columns - rows.shape[1]))
    gathered = ranks.gather(rows.to(ranks.device))
    found: list[dict[str, Tensor]] = []
    for known, table in zip(layouts, gathered, strict=True):
        table, block = table.cpu(), {}
        first = 0
        for name, tail in (known or {}).items():
            values = table[:, first : first + _width(tail)]
            first += _width(tail)
            block[name] = _from_floats(name, values).reshape(len(table), *tail)
        found.append(block)
    return found


def _width(tail: tuple[int, ...]) -> int:
    return int(torch.Size(tail).numel())


def _as_floats(x: Tensor) -> Tensor:  # [N, ...] -> [N, K] float32
    """Rows as floats of the same bits; truth as 0 and 1."""
    if x.dtype == torch.int32:
        x = x.contiguous().view(torch.float32)
    return x.float().reshape(len(x), -1)


def _from_floats(name: str, x: Tensor) -> Tensor:
    if name == IDS:
        return x.contiguous().view(torch.int32)
    return x > 0.5 if name in _TRUTHS else x.contiguous()
