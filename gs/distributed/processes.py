"""Ranks that are processes under torchrun, over torch.distributed.

Tensors on GPUs go through NCCL, those on CPUs through gloo, as does all that is told. `staged`
ranks use gloo for GPUs too, by way of pinned memory, so that several may share one, which NCCL
refuses: to try things out, not for speed.

When a collective fails, or takes longer than the timeout, those that are left call the roll in
torchrun's store, which outlives any rank: who does not answer is lost, and the first of the others
says so. Then all end; nothing is written any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ..config import resolve_device
from ..errors import SplatrimError, ToldElsewhere
from .ranks import Ranks, Solo

T = TypeVar("T")

POLL = 0.02  # seconds between looks at the store
ROLL_CALL = 2.0  # seconds in which those that are left answer
TOLD = "told"  # in the store: a rank that has failed has said why
DEVICE_PATIENCE = 10  # times the timeout, until NCCL ends a process by itself


class RankLost(SplatrimError):
    """Another rank has ended or does not answer: nothing can go on."""


class Distributed(Ranks):
    """This process among those that torchrun has started.

    Args:
        device: "auto" and "cuda" give each rank of a node its own GPU.
        staged: Tensors on GPUs go through host memory.
        timeout: Seconds until a rank is given up.

    Raises:
        SplatrimError: Two ranks would share a GPU and are not staged, or there is no such device.
        ToldElsewhere: The same on all ranks but the first.
    """

    def __init__(self, device: str, *, staged: bool = False, timeout: float = 60.0) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.timeout, self._acts, self._has_lost = timeout, 0, False
        try:
            self.device = _device_of_rank(device, staged=staged)
        except SplatrimError:
            if self.rank == 0:
                raise
            raise ToldElsewhere from None
        self.staged = staged and self.device.type == "cuda"
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        patience = timedelta(seconds=timeout)
        store, _, _ = next(rendezvous("env://", timeout=patience))
        # torchrun's store outlives those who were here before
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"splatrim/{attempt}/{self.size}", store)
        on_gpu = self.device.type == "cuda" and not staged
        # gloo says at once what NCCL would end the process for
        logging.getLogger("torch.distributed").setLevel(logging.ERROR)
        with self._watched():
            dist.init_process_group(
                "gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=patience
            )
            self._tensors: dist.ProcessGroup | None = None
            if on_gpu:
                group = dist.new_group(backend="nccl", timeout=DEVICE_PATIENCE * patience)
                assert isinstance(group, dist.ProcessGroup)
                self._tensors = group

    def _exchange(
        self, x: Tensor, sent: Sequence[int], received: Sequence[int], out: Tensor | None
    ) -> Tensor:
        x, place = self._staged(x.contiguous()), out
        if place is None or self.staged:
            place = x.new_empty(sum(received), *x.shape[1:], pin_memory=self.staged)
        with self._watched():
            dist.all_to_all_single(
                place,
                x,
                output_split_sizes=list(received),
                input_split_sizes=list(sent),
                group=self._tensors,
            )
        return self._unstaged(place, out)

    def stack(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        x, place = self._staged(x.contiguous()), out
        if place is None or self.staged:
            place = x.new_empty(self.size, *x.shape)
        with self._watched():
            dist.all_gather(list(place.unbind()), x, group=self._tensors)
        return self._unstaged(place, out)

    def tell(self, value: T) -> list[T]:
        values: list[T] = [value] * self.size
        with self._watched():
            dist.all_gather_object(values, value)
        return values

    def first_only(self, act: Callable[[], T]) -> T | None:
        self._acts += 1
        key = f"first/{self._acts}"
        if self.rank > 0:
            with self._watched():
                while not self._store.check([key]):
                    time.sleep(POLL)
                if self._store.get(key) != b"done":
                    raise ToldElsewhere
            return None
        try:
            result = act()
        except BaseException:
            self._store.set(key, "failed")
            raise
        self._store.set(key, "done")
        return result

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the device, as long as a rank may be silent."""
        deadline = time.monotonic() + self.timeout
        while not event.query():
            if time.monotonic() > deadline:
                self._call_roll(f"has not answered for {self.timeout:.0f} s")

    def tell_failure(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(TOLD, "yes")

    def close(self) -> None:
        lost_on_gpu, self._tensors = self._has_lost and self._tensors is not None, None
        if dist.is_initialized() and not lost_on_gpu:  # NCCL would wait for the lost
            dist.destroy_process_group()

    def _staged(self, x: Tensor) -> Tensor:
        return x.cpu() if self.staged else x

    def _unstaged(self, x: Tensor, out: Tensor | None) -> Tensor:
        if not self.staged:
            return x
        return x.to(self.device) if out is None else out.copy_(x)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Where a failure of torch.distributed means that a rank is lost."""
        try:
            yield
        except RuntimeError as error:  # DistBackendError and its like are among them
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
            silent = f"has not answered for {self.timeout:.0f} s"
            self._call_roll(silent if late else "has ended")

    def _call_roll(self, how: str) -> NoReturn:
        self._has_lost = True
        lost, living, told = self._lost()
        if told or self.rank != living[0]:
            raise ToldElsewhere
        who = "a rank" if not lost else "rank " + " and ".join(map(str, lost))
        if len(lost) > 1:
            who, how = who.replace("rank", "ranks"), how.replace("has", "have", 1)
        raise RankLost(f"{who} {how} at iteration {self.step}: all ranks stop")

    def _lost(self) -> tuple[list[int], list[int], bool]:
        """Ranks that do not answer, the others, and whether one has said why it has ended."""
        try:
            self._store.set(f"alive/{self.rank}", str(self.step))
            deadline, living = time.monotonic() + ROLL_CALL, [self.rank]
            while time.monotonic() < deadline and len(living) < self.size:
                time.sleep(POLL)
                living = [r for r in range(self.size) if self._store.check([f"alive/{r}"])]
            told = self._store.check([TOLD])
        except RuntimeError:  # the store has gone: so has who held it
            return [], [self.rank], False
        return [rank for rank in range(self.size) if rank not in living], living, told


def _device_of_rank(name: str, *, staged: bool) -> torch.device:
    """The device of this process among those of its node."""
    local, n_local = (int(os.environ.get(key, "0")) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = resolve_device(name)
    if device.type != "cuda":
        return device
    n_gpus = torch.cuda.device_count() if device.index is None else 1
    if n_local > n_gpus and not staged:
        shared = 0 if device.index is None else device.index
        raise SplatrimError(
            f"two ranks share GPU {shared}, which NCCL refuses: start at most {n_gpus}"
            f" process{'es' if n_gpus > 1 else ''} here, or add --rank_backend gloo to try"
            " things out"
        )
    return device if device.index is not None else torch.device("cuda", local % n_gpus)


def find_ranks(device: str, *, backend: str = "auto", timeout: float = 60.0) -> Ranks:
    """The ranks that torchrun's environment speaks of; Solo without it, or with one rank.

    Args:
        device: As --device; "auto" and "cuda" give each rank of a node its own GPU.
        backend: "auto", or "gloo" for tensors on GPUs too, through host memory: then several ranks
            may share one.
        timeout: Seconds until a silent rank is given up.

    Raises:
        SplatrimError: No such device, or too few of them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Solo(resolve_device(device))
    return Distributed(device, staged=backend == "gloo", timeout=timeout)
