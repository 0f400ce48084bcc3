"""Compile kernels before they are needed: `splatrim warmup [FLAGS] [-- FLAGS OF A TRAINING]`.

For images of machines and for first runs. Every kernel variant that a training with these flags
launches is compiled for a GPU, which need not be there, into Triton's cache ($TRITON_CACHE_DIR, or
~/.triton/cache). Without flags after "--": the variants of the usual configurations.
"""

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from gs import cli
from gs.cli import Config
from gs.command_line import read_settings_of
from gs.compiler import cache_folder, write_note
from gs.errors import SplatrimError, run_cli
from gs.logs import show_log
from gs.ranges import AT_LEAST_ONE, check_ranges
from gs.rehearsal import rehearse_training
from kernels import Launch, Target
from pruning import METHODS

FEW = 4  # of so many cores, none is left to the training, which waits
MOST_PROCESSES = 32
MULTIPROCESSORS = 132  # more than 73 make no difference
# Flags of trainings whose variants are compiled where none are given.
USUAL = (
    *(("--method", name) for name in METHODS),
    ("--recipe", "fast"),
    *(("--method", "3dgs", "--densifier", name) for name in cli.DENSIFIERS),
    ("--representation", "neural"),
)

TELL = "--tell"  # says to stdout what is planned and done, for a training that waits for it

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class WarmupConfig:
    """For which GPU to compile, and how."""

    capability: Annotated[int | None, AT_LEAST_ONE] = None
    """Compute capability times ten, 90 for H100 and H200; None is that of the GPU here."""
    multiprocessors: Annotated[int | None, AT_LEAST_ONE] = None
    """How many that GPU has; None is those of the GPU here, or 132."""
    processes: Annotated[int | None, AT_LEAST_ONE] = None
    """How many compile at the same time; None is about as many as there are cores."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def target(self) -> Target:
        """The GPU to compile for."""
        if self.capability is not None:
            return Target(self.capability, self.multiprocessors or MULTIPROCESSORS)
        if not torch.cuda.is_available():
            raise SplatrimError("no GPU is here: say for which with --capability (90: H100, H200)")
        found = torch.cuda.get_device_properties(0)
        n = self.multiprocessors or found.multi_processor_count
        return Target(10 * found.major + found.minor, n)

    def n_processes(self) -> int:
        """How many compile at the same time."""
        n_cores = count_cores()
        return self.processes or min(n_cores - (n_cores > FEW), MOST_PROCESSES)


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use, by its affinity and the quota of its container."""
    n = len(os.sched_getaffinity(0))
    try:
        used, period = map(int, quota.read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return n
    return min(n, max(used // period, 1))


def compile_for(
    config: WarmupConfig, trainings: Sequence[Sequence[str]], *, tells: bool = False
) -> None:
    """Compile the variants of trainings, given by their flags.

    Args:
        config: For which GPU, and how.
        trainings: The flags of each.
        tells: Whether a training waits, which reads stdout, and without which there is no need.

    Raises:
        SplatrimError: A flag is wrong, there is no GPU to ask, or a variant does not compile.
    """
    from kernels import Compiled, compile_variants

    started, target = time.perf_counter(), config.target()
    labels: list[set[str]] = []
    launches: dict[str, Launch] = {}
    turns: dict[str, int] = {}
    for words in trainings:
        found: dict[str, Launch] = {}
        for training in _trainings(words):
            logger.setLevel(logging.WARNING)  # what strategies say of it is not for anybody
            rehearsed = rehearse_training(training, METHODS, target)
            show_log(quiet=tells)
            found |= rehearsed.launches
            turns = rehearsed.turns | turns
        labels.append({*found})
        launches |= found
    tell = _say if tells else lambda *_: None
    for name in launches:
        tell("plan", name)
    tell("planned")
    n_processes = config.n_processes()
    logger.info(
        f"compiling {len(launches)} kernel variants for sm_{target.capability}"
        f" in {min(n_processes, len(launches))} processes"
    )

    def told(one: Compiled) -> None:
        tell("done", one.label)  # failed or not: nobody has to wait for it any more
        logger.debug(f"{one.seconds:.1f} s {one.label} {one.error}")

    parent = os.getppid()
    done = compile_variants(
        launches,
        target,
        n_processes,
        turns=turns,
        tell=told,
        stops=lambda: tells and os.getppid() != parent,
    )
    sound = {one.label for one in done if not one.error}
    for words, own in zip(trainings, labels, strict=True):
        if own <= sound:
            write_note(words, target.capability, own)
    if len(sound) < len(launches):
        error = next((one.error for one in done if one.error), "a process ended")
        raise SplatrimError(f"{len(launches) - len(sound)} variants were not compiled: {error}")
    logger.info(f"{time.perf_counter() - started:.1f} s; they lie in {cache_folder()}")


def _trainings(words: Sequence[str]) -> Iterator[Config[Any, Any, Any]]:
    """What is trained with these flags."""
    given = [*words]
    if not {"-s", "--source_path", "--demo"} & {word.split("=")[0] for word in given}:
        given = ["-s", ".", *given]
    with contextlib.redirect_stdout(io.StringIO()):
        config = cli.parse(given, METHODS, "")
    yield config
    baseline = cli.baseline_of(config, METHODS)
    if baseline is not None:
        yield baseline


def _say(*words: str) -> None:
    print(*words, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `splatrim warmup`."""
    words = list(sys.argv[1:] if words is None else words)
    split = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:split] if word != TELL]
    config = read_settings_of(WarmupConfig, own, __doc__)
    tells = TELL in words[:split]
    show_log(quiet=tells)
    compile_for(config, [words[split + 1 :]] if split < len(words) else USUAL, tells=tells)


if __name__ == "__main__":
    run_cli(main)
