"""Train 3D Gaussians on a scene, and prune them: `python train.py -s SCENE -m OUT --eval`.

`python train.py --demo -m OUT` needs no data. The defaults that --help shows are those of the
--method, --preset, --schedule and --iterations given with it.
"""

import argparse
import dataclasses
import logging
import secrets
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro

from gs.config import (
    PUBLISHED_ITERATIONS,
    SceneConfig,
    TrainConfig,
    as_plain,
    resolve_device,
    resume_command,
)
from gs.data.demo import write_demo_scene
from gs.data.scene import load_scene
from gs.densify import DensifyConfig
from gs.errors import SplatrimError, run_cli
from gs.files import check_writable
from gs.logs import show_log
from gs.memory import keep_freed_memory
from gs.metrics import compute_metrics
from gs.optim import OptimConfig
from gs.render import render_views
from gs.report import write_report
from gs.trainer import Trainer, load_start
from pruning import METHODS, MethodConfig

SCALE_BELOW = 7000  # iterations under which --schedule auto scales
DEMO_SCENE = Path("output") / "demo_scene"
DEMO_ITERATIONS = 500

P = TypeVar("P", bound=MethodConfig)
logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class Choice:
    """What to train with; the defaults of all other settings follow from it."""

    method: str = "mask-gaussian"
    """Pruning method: mask-gaussian, or 3dgs for none."""
    preset: str | None = None
    """Setting of the method; mask-gaussian has beta (its default), alpha, gamma and demo."""
    recipe: Literal["default"] = "default"
    """Training schedule: default is the published one of 3DGS."""
    schedule: Literal["auto", "published", "scaled"] = "auto"
    """published: iteration numbers as published for 30000 iterations. scaled: those not given as
    flags are multiplied by iterations / 30000. auto: scaled below 7000 iterations."""
    demo: bool = False
    """Train on the built-in scene (written to -s if it is not there) with the preset demo, then
    evaluate and write the report."""


@dataclass(frozen=True)
class Config(Generic[P]):
    """All settings of a run."""

    choice: Choice
    scene: SceneConfig
    train: TrainConfig
    optim: OptimConfig
    densify: DensifyConfig
    pruning: P


def default_config(choice: Choice, iterations: int | None) -> Config[Any]:
    """The settings that `choice` and the number of iterations imply."""
    if choice.method not in METHODS:
        raise SplatrimError(f"unknown --method {choice.method!r}: choose {', '.join(METHODS)}")
    method = METHODS[choice.method]
    preset = choice.preset or ("demo" if choice.demo else next(iter(method.PRESETS)))
    if preset not in method.PRESETS:
        known = ", ".join(method.PRESETS)
        raise SplatrimError(f"--method {choice.method} has no preset {preset!r}: choose {known}")
    iterations = iterations or (DEMO_ITERATIONS if choice.demo else PUBLISHED_ITERATIONS)
    scene = SceneConfig(DEMO_SCENE if choice.demo else tyro.MISSING, eval=choice.demo)
    train = TrainConfig(Path("output") / secrets.token_hex(5), iterations=iterations)
    optim, densify, pruning = OptimConfig(), DensifyConfig(), method.preset(preset)
    if choice.schedule == "scaled" or (choice.schedule == "auto" and iterations < SCALE_BELOW):
        factor = iterations / PUBLISHED_ITERATIONS
        train, optim, densify = train.scaled(factor), optim.scaled(factor), densify.scaled(factor)
        pruning = pruning.scaled(factor)
    choice = dataclasses.replace(choice, preset=preset)
    return Config(choice, scene, train, optim, densify, pruning)


def parse(args: list[str]) -> Config[Any]:
    """Read the command line, in two passes: the choice first, then everything over its defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--method", "--preset", "--schedule"):
        first.add_argument(name)
    first.add_argument("--iterations", type=int)
    first.add_argument("--demo", action="store_true")
    given = {k: v for k, v in vars(first.parse_known_args(args)[0]).items() if v is not None}
    iterations = given.pop("iterations", None)
    default = default_config(Choice(**given), iterations)
    return tyro.cli(
        Config[type(default.pruning)],  # type: ignore[misc]
        args=args,
        default=default,
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )


def build_trainer(config: Config[Any], settings: dict[str, Any]) -> Trainer:
    """Check every input and make the trainer. Of the run, nothing is written yet."""
    train, method = config.train, config.choice.method
    resolve_device(train.device)
    check_writable(train.model_path)
    start = train.start_checkpoint and load_start(train.start_checkpoint, method, train.iterations)
    where = vars(config.scene).copy()
    source = where.pop("source_path")
    if config.choice.demo and not source.exists():
        logger.info(f"writing the built-in scene to {source}")
        write_demo_scene(source)
    pruner = config.pruning.build(densify_until=config.densify.densify_until_iter)
    return Trainer(
        train,
        load_scene(source, **where, seed=train.seed),
        strategies=[config.densify.build(), pruner],
        optim=config.optim,
        method=method,
        white_background=config.scene.white_background,
        settings=settings,
        start=start,
    )


def describe(config: Config[Any]) -> dict[str, Any]:
    """config.json: choice, scene and run flat, as other tools expect; the rest by part."""
    flat = as_plain(config.choice) | as_plain(config.scene) | as_plain(config.train)
    flat |= {key: str(Path(flat[key]).absolute()) for key in ("source_path", "model_path")}
    parts = ("optim", "densify", "pruning")
    return flat | {name: as_plain(getattr(config, name)) for name in parts}


def main(args: list[str] | None = None) -> None:
    """Train, and say what to run next."""
    args = sys.argv[1:] if args is None else args
    config = parse(args)
    out = config.train.model_path
    show_log(quiet=config.train.quiet)
    keep_freed_memory()
    checkpoint = build_trainer(config, describe(config)).fit()
    if checkpoint is not None:
        print(f"stopped; go on with: {resume_command(args, out, checkpoint)}", file=sys.stderr)
        sys.exit(130)
    if config.choice.demo:
        device = config.train.device
        render_views(out, skip_train=True, quiet=config.train.quiet, device=device)
        compute_metrics([out], device=device)
        logger.info(f"report: {write_report(out)}")
    else:
        path = shlex.quote(str(out))
        logger.info(f"next: python -m gs.render -m {path} && python -m gs.metrics -m {path}")


if __name__ == "__main__":
    run_cli(main)
