"""The command line of train.py: what the defaults follow from, and how flags are read over them.

Two passes: the first reads the choice (method, preset, schedule, length, start), from which the
defaults of all other settings follow; the second reads everything over those defaults.
"""

import argparse
import dataclasses
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import tyro

from .blocks.config import BlocksConfig
from .blocks.presets import GROWTH, MOMENTUM_ITERATIONS, VOXEL_SIZE, large_scene, with_blocks
from .blocks.saved import blocks_folder
from .config import (
    PUBLISHED_ITERATIONS,
    SceneConfig,
    TrainConfig,
    as_plain,
    iterations_after_ply,
)
from .config_file import CHOICE, STARTS, as_words, read_config
from .densification.adaptive import DensifierConfig, DensifyConfig
from .densification.error import ErrorConfig
from .densification.growth import GrowthConfig
from .densification.mcmc import MCMCConfig
from .densification.taming import TamingConfig
from .errors import SplatrimError
from .model.rates import OptimConfig
from .neural.config import NeuralConfig
from .neural.momentum import MomentumConfig
from .run_record import BASELINE
from .training.depth_supervision import DepthConfig
from .training.pose_refinement import PoseConfig
from .training.start import Heritage, Origin, find_origin
from .training.strategy import Strategy

Recipe = Literal["default", "fast", "faster", "momentum"]
Schedule = Literal["auto", "published", "scaled"]
SCHEDULES = get_args(Schedule)
RECIPES = get_args(Recipe)
# Of recipes whose runs are short for their quality: settings of the run beside the defaults.
SHORT_RECIPES: dict[str, dict[str, Any]] = {
    "fast": {"iterations": 14_000},
    "faster": {"iterations": 9000, "resolution_schedule": "0:2,0.15:1"},
}
SCALE_BELOW = 7000  # iterations under which --schedule auto scales
DEMO_SCENE = Path("output") / "demo_scene"
DEMO_ITERATIONS = 500
BASELINE_METHOD = "3dgs"
_PATHS = ("source_path", "model_path")
# Flags of Inria's program that change no result, and whether a value follows.
FOREIGN = {
    "data_device": True,
    "ip": True,
    "port": True,
    "debug_from": True,
    "disable_viewer": False,
    "debug": False,
    "detect_anomaly": False,
    "convert_SHs_python": False,
    "compute_cov3D_python": False,
}

logger = logging.getLogger("splatrim")


class Method(Heritage, Protocol):
    """What a pruning method's settings offer here; pruning.MethodConfig is their base."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    POST_PRESET: ClassVar[str | None]
    RUN_SETTINGS: ClassVar[dict[str, dict[str, Any]]]

    @classmethod
    def preset(cls, name: str) -> Any: ...
    def scaled(self, factor: float) -> Any: ...
    def post_training(self, start: int, iterations: int) -> Any: ...
    def build(self, *, densify_until: int) -> Strategy: ...


DENSIFIERS: dict[str, type[DensifierConfig]] = {
    "default": DensifyConfig,
    "taming": TamingConfig,
    "mcmc": MCMCConfig,
    "error": ErrorConfig,
}

D = TypeVar("D", bound=DensifierConfig)
P = TypeVar("P", bound=Method)


@dataclass(frozen=True)
class ExplicitConfig:
    """Gaussians as they are: nothing to set."""


R = TypeVar("R", bound=ExplicitConfig | NeuralConfig)


@dataclass(frozen=True)
class Choice:
    """What to train with; the defaults of all other settings follow from it."""

    method: str
    """Pruning method, one of those above; 3dgs is none."""
    preset: str | None = None
    """Setting of the method, one of those above; the first is the default."""
    densifier: Literal["default", "taming", "mcmc", "error"] = "default"
    """default: that of 3DGS. taming: within a --budget, by Taming-3DGS's score. mcmc: within a
    --budget, 3DGS as Markov chain Monte Carlo. error: within a --budget, by absolute gradients."""
    representation: Literal["explicit", "neural"] = "explicit"
    """explicit: Gaussians. neural: anchors with features, which a network decodes into Gaussians
    for each view (Scaffold-GS); `python -m gs.bake` makes Gaussians of them."""
    recipe: Recipe = "default"
    """default: the published schedule of 3DGS. fast: 14000 iterations of the scaled one with other
    learning rates, densified every 150, without resets of opacity, evaluated at the end only.
    faster: 9000 of them, the first on images of half the size. momentum: Momentum-GS as published,
    of neural Gaussians in blocks: 60000 iterations."""
    scene_preset: Literal["building", "rubble", "residence", "sciart", "matrixcity"] | None = None
    """Published blocks, weights and image size of a large scene, of neural Gaussians unless
    --representation says otherwise (docs/howto/large_scenes.md)."""
    schedule: Schedule = "auto"
    """published: iteration numbers as published for 30000 iterations. scaled: those not given as
    flags are multiplied by iterations / 30000. auto: scaled below 7000 iterations."""
    config: Path | None = None
    """Begin with the settings of this config.json, which every run writes; flags win."""
    demo: bool = False
    """Train on the built-in scene (written to -s if it is not there) with the preset demo, then
    evaluate and write the report."""
    baseline: bool = True
    """With --demo: train 3DGS as long, in OUT/baseline, for the report to compare with."""


@dataclass(frozen=True)
class Config(Generic[D, P, R]):
    """All settings of a run."""

    choice: Choice
    scene: SceneConfig
    train: TrainConfig
    optim: OptimConfig
    densify: D
    pruning: P
    neural: R
    poses: PoseConfig
    depths: DepthConfig
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)


def default_config(
    choice: Choice,
    iterations: int | None,
    methods: Mapping[str, type[Method]],
    origin: Origin | None = None,
) -> Config[Any, Any, Any]:
    """The settings that the choice, the number of iterations and the start imply.

    Raises:
        SplatrimError: no such method or preset, or the method cannot post-train.
    """
    known = {"method": tuple(methods), "schedule": SCHEDULES, "densifier": tuple(DENSIFIERS)}
    known |= {"recipe": RECIPES, "representation": ("explicit", "neural")}
    for flag, names in known.items():
        if (name := getattr(choice, flag)) not in names:
            raise SplatrimError(f"unknown --{flag} {name!r}: choose {', '.join(names)}")
    method = methods[choice.method]
    post = origin is not None and origin.post_start is not None
    preset = choice.preset or ("demo" if choice.demo else post and method.POST_PRESET)
    preset = preset or next(iter(method.PRESETS))
    if preset not in method.PRESETS:
        names = ", ".join(method.PRESETS)
        raise SplatrimError(f"--method {choice.method} has no preset {preset!r}: choose {names}")
    short = {} if post else SHORT_RECIPES.get(choice.recipe, {})
    published = MOMENTUM_ITERATIONS if choice.recipe == "momentum" else PUBLISHED_ITERATIONS
    if iterations is None:
        iterations = int(short.get("iterations", published))
        iterations = DEMO_ITERATIONS if choice.demo else iterations
        iterations = origin.post_end if origin is not None and post else iterations
    scene = SceneConfig(DEMO_SCENE if choice.demo else tyro.MISSING, eval=choice.demo)
    run = {**short, **method.RUN_SETTINGS.get(preset, {}), "iterations": iterations}
    train = TrainConfig(Path("output") / secrets.token_hex(5), **run)
    optim, densify = OptimConfig(), DENSIFIERS[choice.densifier]()
    neural = NeuralConfig() if choice.representation == "neural" else ExplicitConfig()
    if isinstance(neural, NeuralConfig):
        if choice.densifier != "default":
            raise SplatrimError("anchors grow by rules of their own: leave --densifier out")
        if post:
            raise SplatrimError(
                "post-training takes Gaussians: make some of the anchors with python -m gs.bake"
            )
        densify, train = GrowthConfig(), dataclasses.replace(train, sh_degree=0)
        if choice.recipe == "momentum":
            densify = GrowthConfig(**GROWTH)
            neural = dataclasses.replace(neural, voxel_size=VOXEL_SIZE)
        if choice.demo:  # as many Gaussians as the explicit demo has
            neural = dataclasses.replace(neural, offsets=4, voxel_size=0.1)
    pruning, poses = method.preset(preset), PoseConfig()
    if origin is not None and origin.post_start is not None:
        start = origin.post_start
        if choice.densifier != "default":
            raise SplatrimError(
                f"nothing is densified after iteration {start}: leave --densifier out"
            )
        poses = dataclasses.replace(poses, pose_from_iter=start)
        # the first evaluation shows the model as it came
        train = dataclasses.replace(train, post_start=start, test_iterations=(start + 1,))
        optim = dataclasses.replace(optim, position_lr_max_steps=iterations)
        until = min(densify.densify_until_iter, start)
        densify = dataclasses.replace(densify, densify_until_iter=until)
        if iterations > start:  # otherwise the start is refused when it is read
            pruning = pruning.post_training(start, iterations)
    elif choice.schedule == "scaled" or (
        choice.schedule == "auto" and (short or iterations < SCALE_BELOW)
    ):
        factor = iterations / published
        train, optim, densify = train.scaled(factor), optim.scaled(factor), densify.scaled(factor)
        pruning, poses = pruning.scaled(factor), poses.scaled(factor)
    if short:
        train = dataclasses.replace(train, test_iterations=(), save_iterations=())
        optim, densify = optim.hastened(), densify.hastened()
    choice = dataclasses.replace(choice, preset=preset)
    scene, blocks, momentum = large_scene(
        scene, choice.scene_preset, as_published=choice.recipe == "momentum"
    )
    parts = scene, train, optim, densify, pruning, neural, poses, DepthConfig(), blocks, momentum
    return Config(choice, *parts)


def baseline_of(
    config: Config[Any, Any, Any], methods: Mapping[str, type[Method]]
) -> Config[Any, Any, Any] | None:
    """3DGS of the same length into OUT/baseline, where a demo is to be compared with it.

    Args:
        config: Of a run that begins at its scene's points.
        methods: As for `parse`.
    """
    choice, train = config.choice, config.train
    if not (choice.demo and choice.baseline) or choice.method == BASELINE_METHOD:
        return None
    if train.start_ply is not None or train.start_checkpoint is not None:
        return None
    factor = train.iterations / PUBLISHED_ITERATIONS
    return dataclasses.replace(
        config,
        choice=dataclasses.replace(choice, method=BASELINE_METHOD, preset="demo"),
        train=dataclasses.replace(train, model_path=train.model_path / BASELINE),
        pruning=methods[BASELINE_METHOD].preset("demo").scaled(factor),
    )


def parse(
    args: list[str], methods: Mapping[str, type[Method]], description: str
) -> Config[Any, Any, Any]:
    """Read the command line.

    Args:
        args: Its words, without the program's name.
        methods: Settings of the pruning methods by name; the first is the default.
        description: What --help says first; the methods follow.

    Raises:
        SplatrimError: settings that exclude each other or are out of range.
        SystemExit: from tyro, for --help and for unknown or malformed flags.
    """
    args = _without_foreign(args)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (
        "--method",
        "--preset",
        "--schedule",
        "--densifier",
        "--recipe",
        "--representation",
        "--scene_preset",
    ):
        first.add_argument(name)
    first.add_argument("--iterations", type=int)
    first.add_argument("--demo", action="store_true", default=None)
    first.add_argument("--config", type=Path)
    for name in STARTS:
        first.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=Path)
    try:
        found = first.parse_known_args(args)[0]
    except argparse.ArgumentError as error:
        raise SplatrimError(str(error)) from error
    given = {k: v for k, v in vars(found).items() if v is not None}
    given = with_blocks(given, args, BASELINE_METHOD)
    if (path := given.pop("config", None)) is None:
        default = _implied(given, methods)
    else:
        former = read_config(path)
        choice = {name: former[name] for name in CHOICE if former.get(name) is not None}
        starts = {name: Path(former[name]) for name in STARTS if former.get(name)}
        of_file = {**choice, **starts, "iterations": former["iterations"]}
        if given.get("method", former["method"]) != former["method"] or given.keys() & {*STARTS}:
            choice.pop("preset", None)  # it was meant for another method, or another start
        if not given.keys() & {"iterations", "recipe"}:
            choice["iterations"] = former["iterations"]
        if not given.keys() & {*STARTS}:
            given = {**starts, **given}
            args = [*(word for name in starts for word in (f"--{name}", str(starts[name]))), *args]
        default = _implied({**choice, **given}, methods)
        args = [*as_words(former, _implied(of_file, methods), default), *args]
    config: Config[Any, Any, Any] = tyro.cli(
        Config[  # type: ignore[misc]
            type(default.densify), type(default.pruning), type(default.neural)
        ],
        args=args,
        default=default,
        description=f"{description.strip()}\n\n{_list(methods)}",
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )
    # a flag may have counted them from a finished model
    train = dataclasses.replace(config.train, iterations=default.train.iterations)
    return dataclasses.replace(config, train=train)


def _implied(
    given: Mapping[str, Any], methods: Mapping[str, type[Method]]
) -> Config[Any, Any, Any]:
    """The settings that some flags, of those that others follow from, imply."""
    choice = {name: given[name] for name in CHOICE if name in given}
    ply, checkpoint = (given.get(name) for name in STARTS)
    iterations = given.get("iterations")
    if ply is not None and iterations is not None:
        iterations = iterations_after_ply(iterations)
    # blocks are resumed from the midst of their schedule alone
    origin = find_origin(ply, None if blocks_folder(checkpoint) else checkpoint)
    choice = Choice(**{"method": next(iter(methods)), **choice})
    return default_config(choice, iterations, methods, origin)


def _without_foreign(args: list[str]) -> list[str]:
    """The command line without flags that scripts made for Inria's program carry along."""
    foreign = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, has_value in FOREIGN.items():
        foreign.add_argument(f"--{name}", action="append" if has_value else "count")
    try:
        found, rest = foreign.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise SplatrimError(str(error)) from error
    names = [f"--{name}" for name, value in vars(found).items() if value]
    if names:
        logger.warning(f"flags that change nothing here are left out: {', '.join(names)}")
    return rest


def _list(methods: Mapping[str, type[Method]]) -> str:
    """Methods and their presets, for --help."""
    lines = ["Methods, and their presets in brackets:"]
    for name, method in methods.items():
        presets = [
            f"{preset} after a finished model" if preset == method.POST_PRESET else preset
            for preset in method.PRESETS
        ]
        lines.append(f"  {name} ({', '.join(presets)})")
    return "\n".join(lines)


def describe(config: Config[Any, Any, Any]) -> dict[str, Any]:
    """config.json: choice, scene and run flat, as other tools expect; the rest by part."""
    flat = as_plain(config.choice) | as_plain(config.scene) | as_plain(config.train)
    flat |= {key: str(Path(flat[key]).absolute()) for key in _PATHS}
    parts = ["optim", "densify", "pruning", "poses", "depths"]
    parts += ["neural"] if isinstance(config.neural, NeuralConfig) else []
    if config.blocks.n_blocks > 1:
        parts += ["blocks", "momentum"] if "neural" in parts else ["blocks"]
    return flat | {name: as_plain(getattr(config, name)) for name in parts}
