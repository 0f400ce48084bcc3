"""Train methods on scenes, one after the other, and put the figures into one table:

    python -m bench.sweep --scenes data/garden data/bonsai --methods 3dgs mask-gaussian:alpha
        [--out output/sweep] [--seeds 0 1 2] [--iterations N] [-- further flags of train.py]
    python -m bench.sweep --suite mipnerf360 --data data --methods 3dgs mask-gaussian

A suite is the scenes of a benchmark at the sizes of papers (bench/sweep/suites.py); those that the
folder of the data lacks are named, with where they come from, and the others run.

A method is "name", "name:preset", or either after "post:", which starts from the model that 3dgs
trained on the same scene with the same seed (trained first if it is not there). Flags of its own
follow after "+": "mask-gaussian+densifier=taming+budget=2x". OUT gets sweep.json, sweep.md and two
plots, PSNR over Gaussians (sweep.png) and over seconds (seconds.png), written anew after each run;
runs lie in OUT/SCENE/METHOD/seedK.

The same command again goes on where it stopped: finished runs stay, an interrupted one goes on
from its last checkpoint or starts again, a failed one is tried again. A failure is noted in the
table, the others run, and the exit code is 1.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import tyro

from bench.sweep.plots import plot, plot_seconds
from bench.sweep.run import BASELINE, Job, Method, Runner, load_result
from bench.sweep.suites import Found, find_suite, odd_sizes
from bench.sweep.table import markdown, summarize, with_ratios
from gs.config import PUBLISHED_ITERATIONS, resolve_device
from gs.errors import SplatrimError
from gs.files import check_writable, write_json, write_text
from gs.logs import show_log
from gs.ranges import AT_LEAST_ONE, ITERATION, SEED, check_ranges
from pruning import METHODS

POST = "post:"


class _HasOut(Protocol):
    @property
    def out(self) -> Path: ...


C = TypeVar("C", bound=_HasOut)


@dataclass(frozen=True)
class SweepConfig:
    """What to train and measure; flags of train.py follow after a lone "--"."""

    scenes: tuple[Path, ...] = ()
    """Folders of scenes, each of another name."""
    methods: tuple[str, ...] = (BASELINE, "mask-gaussian")
    """name, name:preset, post:name or post:name:preset."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("output") / "sweep"
    """Where runs and tables go."""
    seeds: Annotated[tuple[int, ...], SEED] = (0,)
    """One run each."""
    iterations: Annotated[int | None, AT_LEAST_ONE] = None
    """Of every training but those after "post:"; None is train.py's own number."""
    post_iterations: Annotated[int | None, AT_LEAST_ONE] = None
    """Of those; None is train.py's own number."""
    resolution: Annotated[int | None, tyro.conf.arg(aliases=("-r",)), ITERATION] = None
    """As train.py's."""
    jobs: Annotated[int, AT_LEAST_ONE] = 1
    """Runs at once on each device; with more than one, times are not comparable."""
    device: tuple[str, ...] = ("auto",)
    """auto, cpu or cuda; or several GPUs, which share the runs: cuda:0 cuda:1."""
    suite: Literal["mipnerf360", "tandt", "db", "nerf_synthetic"] | None = None
    """In place of scenes: those of a benchmark."""
    data: Path = Path("data")
    """Folder that has the suite's scenes, or the suite's folder with them."""
    any_size: bool = False
    """Train the suite's scenes on their `images` where the downscaled ones are missing: figures
    that compare with no paper's."""
    lpips_weights: Path | None = None
    """As that of `splatrim metrics`: VGG-16's weights, without which there is no LPIPS."""
    keep_images: bool = False
    """Keep the rendered test views of every run."""

    def __post_init__(self) -> None:
        check_ranges(self)


def parse_method(text: str) -> Method:
    """Read "name", "name:preset", "post:name" or "post:name:preset", with "+flag=value" after it.

    Raises:
        SplatrimError: no such method or preset.
    """
    base, *flags = text.removeprefix(POST).split("+")
    name, _, preset = base.partition(":")
    if name not in METHODS:
        raise SplatrimError(f"unknown method {text!r}: choose {', '.join(METHODS)}")
    if preset and preset not in METHODS[name].PRESETS:
        known = ", ".join(METHODS[name].PRESETS)
        raise SplatrimError(f"method {name} has no preset {preset!r}: choose {known}")
    if any("=" not in flag for flag in flags):
        raise SplatrimError(f"method {text!r}: give flags as +flag=value")
    own = tuple(word for flag in flags for word in (f"--{flag.split('=')[0]}", flag.split("=")[1]))
    is_post = text.startswith(POST)
    if is_post and name == BASELINE:
        raise SplatrimError(f"{text!r} would train {BASELINE} after {BASELINE}")
    return Method(text, name, preset or None, is_post, own)


def plan(config: SweepConfig, extra: Sequence[str]) -> list[Job]:
    """Every run in the order of the table: by scene, method, seed.

    Raises:
        SplatrimError: an argument is impossible.
    """
    labels = list(dict.fromkeys(config.methods))
    methods = [parse_method(label) for label in labels]
    if any(m.is_post for m in methods) and BASELINE not in labels:
        methods.insert(0, parse_method(BASELINE))
    scenes, _ = scenes_of(config)
    names = [scene.folder.name for scene in scenes]
    for scene in config.scenes:
        if not scene.is_dir():
            raise SplatrimError(f"no such scene: {scene}")
        if names.count(scene.name) > 1:
            raise SplatrimError(f"two scenes are called {scene.name}: their runs would be mixed up")
    return [
        make_job(config, scene.folder, method, seed, [*scene.words, *extra])
        for scene in scenes
        for method in methods
        for seed in dict.fromkeys(config.seeds)
    ]


def scenes_of(config: SweepConfig) -> tuple[list[Found], list[str]]:
    """The scenes that are trained, and a line for each of a suite that is missing.

    Raises:
        SplatrimError: There are none, or scenes and a suite.
    """
    if (config.suite is None) == (not config.scenes):
        raise SplatrimError("give either --scenes or --suite")
    if config.suite is None:
        return [Found(scene, ()) for scene in config.scenes], []
    return find_suite(config.suite, config.data, any_size=config.any_size)


def make_job(
    config: SweepConfig, scene: Path, method: Method, seed: int, extra: Sequence[str]
) -> Job:
    """One run of a sweep."""

    def folder(label: str) -> Path:
        return config.out / scene.name / label.replace(":", ".") / f"seed{seed}"

    iterations = config.iterations
    if method.is_post:
        # train.py counts on from the end of the published schedule
        added = config.post_iterations
        iterations = None if added is None else PUBLISHED_ITERATIONS + added
    given = {"--preset": method.preset, "--iterations": iterations, "-r": config.resolution}
    args = ["--method", method.name, "--seed", str(seed)]
    for flag, value in given.items():
        args += [] if value is None else [flag, str(value)]
    start = folder(BASELINE) if method.is_post else None
    args += [*method.flags, *extra]
    return Job(scene, method, seed, folder(method.label), tuple(args), start)


def run_sweep(config: SweepConfig, extra: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Do what is not done yet, and write the tables.

    Args:
        config: What to train.
        extra: Further flags of train.py.

    Returns:
        The figures of all runs, in the order of the table; failed ones have "error".

    Raises:
        SplatrimError: an argument is impossible, or a finished run had other arguments.
        KeyboardInterrupt: Ctrl-C or SIGTERM; trainings have saved checkpoints by then.
    """
    jobs, (_, missing) = plan(config, extra), scenes_of(config)
    for line in missing:
        print(f"missing: {line}")

    def write(out: Path, results: list[dict[str, Any]]) -> None:
        sizes = [] if config.suite is None else odd_sizes(config.suite, results)
        write_tables(out, results, [*sizes, *(f"missing: {line}" for line in missing)])

    return run_jobs(config, jobs, write)


def run_jobs(
    config: SweepConfig,
    jobs: Sequence[Job],
    write_tables: Callable[[Path, list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """As `run_sweep`, of given runs; after each, `write_tables` gets the folder and all figures."""
    for device in config.device:
        resolve_device(device)
    check_writable(config.out)
    runs = {job.folder: result for job in jobs if (result := load_result(job)) is not None}
    if runs:
        print(f"{len(runs)} of {len(jobs)} runs are finished already")
    runner = Runner(
        devices=config.device,
        n_parallel=config.jobs,
        keep_images=config.keep_images,
        lpips_weights=config.lpips_weights,
    )

    def write() -> list[dict[str, Any]]:
        results = [runs[job.folder] for job in jobs if job.folder in runs]
        write_tables(config.out, results)
        return results

    waiting = [job for job in jobs if job.folder not in runs]
    # the first ones are what the second ones start from
    for stage in (
        [job for job in waiting if job.start_from is None],
        [job for job in waiting if job.start_from is not None],
    ):
        pool = ThreadPoolExecutor(config.jobs * len(config.device))
        try:
            futures = {pool.submit(_run, runner, job): job for job in stage}
            for future in as_completed(futures):
                runs[futures[future].folder] = future.result()
                write()
        except BaseException:
            runner.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return write()


def write_tables(out: Path, results: list[dict[str, Any]], remarks: Sequence[str] = ()) -> None:
    """Write sweep.json, sweep.md, sweep.png and seconds.png. Raises SplatrimError as files do."""
    rows = summarize(results)
    known = {"runs": with_ratios(results), "rows": rows, "remarks": list(remarks)}
    write_json(out / "sweep.json", known)
    write_text(out / "sweep.md", markdown(rows, remarks))
    plot(rows, out / "sweep.png")
    plot_seconds(rows, out / "seconds.png")


def _run(runner: Runner, job: Job) -> dict[str, Any]:
    if not runner.stopped:
        print(f"{job.title} ...", flush=True)
    result = runner.run(job)
    if "error" in result:
        print(f"{job.title}: failed: {result['error']}", flush=True)
    else:
        print(
            f"{job.title}: {result['psnr']:.2f} dB, {result['n_gaussians']:,} Gaussians, "
            f"{result['train_seconds']:.1f} s",
            flush=True,
        )
    return result


def run_command(
    config_type: type[C],
    description: str | None,
    args: Sequence[str] | None,
    run: Callable[[C, list[str]], list[dict[str, Any]]],
    table: str,
) -> None:
    """What commands that train a table have in common: read flags, run, print, tell of failures.

    Args:
        config_type: Its flags; it has `out`.
        description: What --help says first.
        args: Words of the command line; those after a lone "--" are for train.py.
        run: Trains, given the flags and those words, and returns the figures of all runs.
        table: Name of the Markdown file in `out`.
    """
    words = list(sys.argv[1:] if args is None else args)
    split = words.index("--") if "--" in words else len(words)
    config = tyro.cli(
        config_type,
        args=words[:split],
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        use_underscores=True,
    )
    show_log(quiet=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = run(config, words[split + 1 :])
    print(f"\n{(config.out / table).read_text(encoding='utf-8')}")
    failed = sum("error" in result for result in results)
    if failed:
        print(f"{failed} of {len(results)} runs failed", file=sys.stderr)
        sys.exit(1)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m bench.sweep`."""
    run_command(SweepConfig, __doc__, args, run_sweep, "sweep.md")
