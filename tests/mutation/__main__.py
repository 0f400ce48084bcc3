"""Mutation test: break the code in one place at a time and see whether the tests notice.

    python tests/mutation                        all mutants, on two copies at a time
    python tests/mutation --only NAME [NAME ..]  those whose names contain one of the words
    python tests/mutation --check                only whether the table fits the code
    python tests/mutation --list

Each mutant is put into a temporary copy and its own few tests run there; first the same tests run
on the copy as it is, as a test that always fails notices nothing. Ends with status 1 if less than
95 % are caught, 2 if the table does not fit the code.
"""

import argparse
import queue
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutant import Mutant, MutantError, check, copy_tree, is_noticed, locate, run_tests
from mutants_blocks import BLOCKS
from mutants_cold import COLD
from mutants_gs import GS
from mutants_kernels import KERNELS
from mutants_neural import NEURAL
from mutants_pruning import PRUNING
from mutants_quality import QUALITY
from mutants_ranks import RANKS

ROOT = Path(__file__).resolve().parents[2]
MUTANTS: list[Mutant] = [*PRUNING, *GS, *KERNELS, *NEURAL, *RANKS, *BLOCKS, *QUALITY, *COLD]
ENOUGH = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="words of names")
    parser.add_argument("--workers", type=int, default=2, help="copies that are tested at a time")
    parser.add_argument("--check", action="store_true", help="check the table, run nothing")
    parser.add_argument("--list", action="store_true", help="list mutants, run nothing")
    args = parser.parse_args()
    mutants = [m for m in MUTANTS if not args.only or any(word in m.name for word in args.only)]
    try:
        check(ROOT, MUTANTS)
        if args.list:
            for mutant in mutants:
                print(f"{locate(ROOT, mutant).relative_to(ROOT)}: {mutant.name}")
        if args.list or args.check or not mutants:
            print(f"{len(mutants)} mutants")
            return 0
        return run_all(mutants, args.workers)
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2


def run_all(mutants: list[Mutant], workers: int) -> int:
    """Run all and print a line for each; the exit status."""
    copies: queue.Queue[Path] = queue.Queue()
    survivors: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            copies.put(Path(folder) / str(number))
            copy_tree(ROOT, copies.queue[-1])

        def healthy(tests: tuple[str, ...]) -> None:
            root = copies.get()
            status, output = run_tests(root, tests)
            copies.put(root)
            if status:
                raise MutantError(f"without a mutant fails: {' '.join(tests)}\n{output[-2000:]}")

        def attempt(mutant: Mutant) -> tuple[Mutant, bool, str, float]:
            root, start = copies.get(), time.monotonic()
            try:
                caught, by = is_noticed(root, mutant)
            finally:
                copies.put(root)
            return mutant, caught, by, time.monotonic() - start

        list(pool.map(healthy, dict.fromkeys(mutant.tests for mutant in mutants)))
        for mutant, caught, by, seconds in pool.map(attempt, mutants):
            word = "caught" if caught else "SURVIVED"
            place = locate(ROOT, mutant).relative_to(ROOT)
            print(f"{word:8} {seconds:4.0f} s  {place}: {mutant.name}  {by}", flush=True)
            survivors += [] if caught else [mutant.name]
    n_caught = len(mutants) - len(survivors)
    print(f"{n_caught} of {len(mutants)} caught ({n_caught / len(mutants):.1%})")
    return 0 if n_caught >= ENOUGH * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
