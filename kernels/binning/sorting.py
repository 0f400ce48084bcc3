r"""Stable least-significant-digit radix sort of (key, payload) pairs.

Keys are int32; only bits begin_bit to end_bit - 1 are compared, as an unsigned number. They are
cut into passes of at most 8 bits. For a pass with digit d(i) of key i,

    position(i) = #{j : d(j) < d(i)} + #{j < i : d(j) = d(i)}

The first term comes from one count of the digits of all passes, since a pass only reorders keys.
Each pass has one program per chunk of consecutive keys. It orders its chunk by the digit
(sort_digits.py), publishes how many keys of each digit it has, adds up what the chunks before it
have published (device/running_sum.py, here for 256 sums at once), and moves runs of equal digits to
their places, in whole sectors. (Adinets and Merrill, Onesweep, 2022.)

With at most a chunk per multiprocessor the whole sort is one launch of a program on each, with
barriers between its passes (device/grid_barrier.py); else the count and each pass are one. Where
the GPU alone knows how many keys there are, two chunks per multiprocessor: there are often many
fewer keys than the buffers hold.

On an H200, against torch.sort (stable, int64 indices out; GPU time): depths of 31 bits, 70 thousand
0.041 and 0.061 ms, 300 thousand 0.056 and 0.073, 1.27 million 0.108 and 0.118 ms, with 18 bytes of
memory per key and 32. Two launches per pass, counts and prefixes first, took 0.074, 0.076 and
0.150 ms; chunks of 1024 keys, 128 threads or at most 80 registers were no faster at any size. In
CUDA graphs, one launch and five: 70 thousand 0.034 and 0.034 ms, 112 thousand 0.036 and 0.038, 500
thousand 0.053 and 0.054. It saves the host 9 to 11 us per launch. Two of its programs, with half
the registers, on a multiprocessor took 0.083 ms for 600 thousand keys, five launches 0.071; one
program for two chunks each 0.091 ms for 906 thousand, five launches 0.077.

    keys, values   [n] int32
    words          [passes, n_chunks, 256] int32   keys per digit in a chunk, or up to its end,
                                  times 4, plus which of both; 0 before the chunk publishes
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rehearsal
from ..device.grid_barrier import programs_at_once
from ..device.intrinsics import INTERPRET
from ..runtime.launch import empty, launch, zeros
from .sort_digits import CHUNK_SIZES, DIGITS, THREADS
from .sort_passes import histograms_kernel, sort_kernel, sweep_kernel

MAX_REGISTERS = 128  # lets two programs of 8 warps share an SM
WARPS = THREADS.value // 32
SMALL = 150_000  # so many keys are sorted in smaller chunks: there are programs enough for few
SORT_WINDOW = 16  # chunks looked back at together


def passes(bits: int) -> int:
    """Passes of a sort by so many bits."""
    return -(-bits // 8)


class Sort(NamedTuple):
    """A sort by the Triton kernels that is about to be launched: what they get."""

    keys: Tensor
    values: Tensor | None
    n_valid: Tensor | None
    exchanged: Tensor | None
    words: Tensor  # [passes (n_chunks + 1), 256]
    arrived: Tensor  # [1], of device/grid_barrier.py
    buffers: tuple[tuple[Tensor, Tensor], ...]
    begin_bit: int
    end_bit: int
    n_passes: int
    n_chunks: int
    constants: dict[str, Any]

    @property
    def n_programs(self) -> int:
        """Of one launch for all passes."""
        return min(self.n_chunks, programs_at_once(self.keys.device))

    @property
    def together(self) -> bool:
        """Whether that is quicker: with a chunk per program, or room for two and fewer keys."""
        return self.n_chunks <= most_chunks(self.n_programs, self.n_valid is None)

    @property
    def arguments(self) -> tuple[object, ...]:
        """Of sort_kernel, and of kernels that go on after it."""
        return (
            self.keys,
            self.values,
            self.n_valid,
            self.exchanged,
            self.words,
            self.arrived,
            *self.buffers[0],
            *self.buffers[-1],
            self.keys.shape[0],
            self.begin_bit,
            self.end_bit,
            self.width,
            self.n_passes,
        )

    @property
    def width(self) -> int:
        """Bits of a pass."""
        return -(-(self.end_bit - self.begin_bit) // self.n_passes)

    @property
    def results(self) -> tuple[Tensor, Tensor]:
        return self.buffers[(self.n_passes - 1) % 2]

    def run(self) -> tuple[Tensor, Tensor]:
        """The results once they are there."""
        if self.together:
            launch(
                sort_kernel,
                (self.n_programs,),
                *self.arguments,
                **self.constants,
                cooperative=True,
            )
        else:
            self._run_by_passes()
        return self.results

    def _run_by_passes(self) -> None:
        """One launch for the counts and one for each pass."""
        n, width, grid = self.keys.shape[0], self.width, (self.n_chunks,)
        launch(
            histograms_kernel,
            grid,
            self.keys,
            self.n_valid,
            self.words,
            n,
            self.begin_bit,
            self.end_bit,
            width,
            CHUNK=self.constants["CHUNK"],
            SHARED=self.constants["SHARED"],
            num_warps=WARPS,
        )
        source = self.keys, self.values
        for k in range(self.n_passes):
            shift, target = self.begin_bit + k * width, self.buffers[k % 2]
            launch(
                sweep_kernel,
                grid,
                *source,
                self.n_valid,
                self.exchanged,
                self.words[k],
                self.words[self.n_passes + k * self.n_chunks :],
                *target,
                n,
                shift,
                (1 << min(width, self.end_bit - shift)) - 1,
                **self.constants,
                maxnreg=MAX_REGISTERS,
            )
            source = target


def chunk_of(n: int) -> int:
    """Keys of a chunk, where n are sorted."""
    return CHUNK_SIZES[n > SMALL]


def most_chunks(n_programs: int, is_full: bool) -> int:
    """Chunks that one launch sorts; `is_full` where every place of the buffers holds a key."""
    return n_programs if is_full else 2 * n_programs


def sizes_by_way(programs: int) -> list[int]:
    """Numbers of keys, one for each way in which a device sorts.

    Args:
        programs: How many run there at once.
    """
    limits = [SMALL, *(most_chunks(programs, x) * c for x in (True, False) for c in CHUNK_SIZES)]
    found: dict[tuple[int, ...], int] = {}
    for n in sorted({1, *(n + 1 for n in limits)}):
        chunk = chunk_of(n)
        together = (-(-n // chunk) <= most_chunks(programs, x) for x in (True, False))
        found.setdefault((chunk, *together), n)
    return list(found.values())


def plan_sort(
    keys: Tensor,  # [n]
    values: Tensor | None,  # [n]
    end_bit: int,
    n_valid: Tensor | None = None,  # [1]
    *,
    begin_bit: int = 0,
    exchange: str = "shared",
    buffers: tuple[tuple[Tensor, Tensor], ...] = (),
) -> Sort:
    """A stable sort of keys by their bits begin_bit to end_bit - 1, and of values with them.

    `run` launches it. It never waits for the device and can be captured in a CUDA graph. Arguments
    are not validated here.

    Args:
        keys: int32, non-negative. [n]
        values: int32; None stands for 0..n-1. [n]
        end_bit: One past the last bit that is compared, at most 31.
        n_valid: int32 on the device of the keys; only the first n_valid entries are sorted, and
            entries of the results past them are unspecified. None: all n. [1]
        begin_bit: First bit that is compared.
        exchange: Memory through which the threads of a program exchange keys; "shared" is inline
            PTX and falls back to "global" in the interpreter.
        buffers: Up to two pairs [n] that odd and even passes write. The second may be keys and
            values themselves. What is missing is allocated.

    Returns:
        The sort, whose results are sorted keys [n] int32 and the values [n] int32 in their order.
    """
    n, device = keys.shape[0], keys.device
    n_passes = passes(end_bit - begin_bit)
    for _ in range(len(buffers), min(n_passes, 2)):
        pair = empty((n,), torch.int32, device), empty((n,), torch.int32, device)
        buffers = (*buffers, pair)
    pretended = rehearsal.current()
    n_planned = n if pretended is None else pretended.n_keys
    chunk, digits = chunk_of(n_planned), int(DIGITS.value)
    n_chunks = -(-n_planned // chunk)
    n_words = n_passes * (n_chunks + 1) * digits
    words, arrived = zeros((n_words + 1,), torch.int32, device).split([n_words, 1])
    shared = exchange == "shared" and not INTERPRET.value
    exchanged = None if shared else empty((n_chunks * chunk,), torch.int32, device)
    constants = {"CHUNK": chunk, "SHARED": shared, "WINDOW": SORT_WINDOW, "num_warps": WARPS}
    return Sort(
        keys,
        values,
        n_valid,
        exchanged,
        words.view(-1, digits),
        arrived,
        buffers[:n_passes],
        begin_bit,
        end_bit,
        n_passes,
        n_chunks,
        constants,
    )
