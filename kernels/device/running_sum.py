"""Running sums over the programs of one launch, without a second launch.

Program p publishes the sum of its own values, then adds up what the programs before it have
published, nearest first, until it meets one that already knows the sum of everything before
itself, and publishes its own sum of that kind. Value and kind share one 64-bit word, so nothing
depends on the order in which other memory is seen. A program waits only for programs of smaller
number; those were started before it, as CUDA hands out programs of a one-dimensional grid in
order. (Merrill and Garland, Single-pass Parallel Prefix Scan with Decoupled Look-back, 2016.)

A program that needs no sum may leave after the first; others then look back further, at WINDOW
programs at once, until they find one that did not. The sums do not depend on timing. Words are 0
before the launch.
"""

import triton
import triton.language as tl

# Programs looked at together, unless told. Not fewer than a program has threads: a word that two
# threads hold can change between their looks.
WINDOW = tl.constexpr(64)
SCAN = 1024  # values per program of a scan over rows
OWN = tl.constexpr(1)  # kinds of words: the program's values alone,
RUNNING = tl.constexpr(2)  # or with those of all programs before it


def scan_programs(n: int) -> int:
    """Programs of a scan over n values."""
    return -(-n // SCAN)


@triton.jit
def publish(words_ptr, pid, value, kind):
    """Tell the sum of program pid; value below 2^61."""
    tl.atomic_xchg(words_ptr + pid, (value.to(tl.int64) << 2) | kind, sem="relaxed")


@triton.jit
def sum_before(words_ptr, pid, WINDOW: tl.constexpr = WINDOW):
    """The sum over all programs before pid, once they have published theirs."""
    lane = tl.arange(0, WINDOW)
    total = tl.full([], 0, tl.int64)
    end = pid
    while end > 0:
        at = end - 1 - lane
        # nothing stands before the first program
        word = tl.load(words_ptr + at, mask=at >= 0, other=2, volatile=True)
        kind = (word & 3).to(tl.int32)
        # the nearest lane that ends the walk, and whether it does so by knowing its running sum
        stop = tl.min(tl.where(kind == OWN, 2 * WINDOW, 2 * lane + (kind == RUNNING)), 0)
        ready = (stop & 1) | (stop == 2 * WINDOW)
        found = tl.sum(tl.where(2 * lane <= stop, word >> 2, 0), 0)
        total += tl.where(ready != 0, found, 0)
        end = tl.where(ready != 0, end - WINDOW, end)
        end = tl.where((stop & 1) != 0, 0, end)
    return total


@triton.jit
def chain(words_ptr, pid, value, WINDOW: tl.constexpr = WINDOW):
    """The sum over all programs before pid; tells theirs to those after it."""
    publish(words_ptr, pid, value, OWN)
    before = sum_before(words_ptr, pid, WINDOW)
    publish(words_ptr, pid, before + value, RUNNING)
    return before
