"""A COLMAP scene from photographs or a video: `splatrim prepare PHOTOS SCENE`.

Five steps: pictures, features, matches, model, images; on a CPU. What is done so far is kept in
SCENE.preparing, where the same command goes on after it was interrupted; SCENE appears once it is
complete.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image
from tqdm import tqdm

from ..command_line import read_settings_of
from ..errors import SplatrimError
from ..files import check_writable, lock_file, write_json
from ..invocation import command
from ..logs import show_log
from ..ranges import AT_LEAST_ONE, POSITIVE, SEED, Range, check_ranges
from ..schema import anything, fields, mapped, number, read_checked
from . import reconstruction
from .pictures import VIDEOS, Tell, copy_photos, extract_frames, find_photos

STEPS = ("pictures", "features", "matches", "model", "images")
PROGRESS, RECORD, LOCK = "progress.json", "prepare.json", ".lock"
_PROGRESS = fields(
    {"settings": mapped(anything), "seconds": mapped(number(0))}, needs=("settings", "seconds")
)
MANY = 500  # photographs of which to match all pairs takes hours
SHOWN = 5  # names in a message
PAIR = 2  # pictures are no scene where there are more

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class PrepareConfig:
    """From which pictures, and how."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of photographs, sub-folders included, or a video file."""
    scene: Annotated[Path, tyro.conf.Positional]
    """Folder to write the scene to; must be absent or empty."""
    matching: Literal["auto", "exhaustive", "sequential", "vocabulary"] = "auto"
    """Which pairs to match. exhaustive: all. sequential: neighbours by name. vocabulary: those that
    look alike, by --vocab_tree. auto: sequential for a video, exhaustive for photographs."""
    vocab_tree: Path | None = None
    """File of a vocabulary tree for COLMAP 3.12 or newer, from its page of releases. Nothing is
    downloaded."""
    width: Annotated[int, Range(16, 100_000)] = 1600
    """Wider pictures are made so wide."""
    every: Annotated[int, AT_LEAST_ONE] = 1
    """Take every n-th photograph, by name."""
    fps: Annotated[float, POSITIVE] = 2.0
    """Frames to take per second of a video; of each window the sharpest."""
    camera_model: Literal["SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"] = "SIMPLE_RADIAL"
    """COLMAP's model of the lens; the scene's images are without distortion."""
    features: Annotated[int, Range(100, 100_000)] = 8192
    """Most features of a picture."""
    seed: Annotated[int, SEED] = 0
    """Seed of COLMAP's random samples."""
    quiet: bool = False
    """Show warnings only."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def is_video(self) -> bool:
        return self.photos.suffix.lower() in VIDEOS and self.photos.is_file()

    @property
    def how(self) -> reconstruction.Matching:
        """Which pairs are matched, decided."""
        if self.matching != "auto":
            return self.matching
        return "sequential" if self.is_video else "exhaustive"


def prepare_scene(config: PrepareConfig) -> dict[str, float]:
    """Make a scene, or go on where an interrupted call of the same settings stopped.

    Returns:
        Seconds of each step.

    Raises:
        SplatrimError: no such pictures, a scene in the way, other settings than those of what is
            there, a missing package, or pictures that COLMAP cannot place.
    """
    _check(config)
    work = config.scene.with_name(f"{config.scene.name}.preparing")
    settings = _settings(config)
    seconds = _begun(work, settings)
    work.mkdir(parents=True, exist_ok=True)
    with open(work / LOCK, "a+b") as lock:
        if not lock_file(lock.fileno()):
            raise SplatrimError(f"another process is preparing {config.scene}")
        write_json(work / PROGRESS, {"settings": settings, "seconds": seconds})
        for name, step in zip(STEPS, _steps(config, work), strict=True):
            if name in seconds:
                continue
            started = time.perf_counter()
            with tqdm(desc=name, disable=config.quiet, unit="", smoothing=0.1) as bar:
                try:
                    step(_teller(bar))
                except reconstruction.NotPlaced:
                    shutil.rmtree(work, ignore_errors=True)  # other flags have to begin anew
                    raise
            seconds[name] = round(time.perf_counter() - started, 2)
            write_json(work / PROGRESS, {"settings": settings, "seconds": seconds})
            logger.info(f"{name}: {seconds[name]:.1f} s")
        write_json(work / "scene" / RECORD, {"settings": settings, "seconds": seconds})
        if config.scene.is_dir():
            config.scene.rmdir()  # it is empty
        (work / "scene").rename(config.scene)
    shutil.rmtree(work, ignore_errors=True)
    return seconds


def _check(config: PrepareConfig) -> None:
    """Refuse what cannot be done before anything is written."""
    if not config.photos.exists():
        raise SplatrimError(f"no such folder or video: {config.photos}")
    if config.photos.is_file() and not config.is_video:
        kinds = ", ".join(sorted(VIDEOS))
        raise SplatrimError(f"{config.photos} is neither a folder nor a video ({kinds})")
    scene = config.scene
    if scene.exists() and (not scene.is_dir() or any(scene.iterdir())):
        raise SplatrimError(f"{scene} is there already and not empty: choose another folder")
    if scene.absolute().is_relative_to(config.photos.absolute()):
        raise SplatrimError(f"{scene} lies within the photographs: choose another folder")
    if config.how == "vocabulary" and config.vocab_tree is None:
        raise SplatrimError(
            "--matching vocabulary needs --vocab_tree FILE; github.com/colmap/colmap/releases has"
            " such files, and nothing is downloaded here"
        )
    if config.vocab_tree is not None and not config.vocab_tree.is_file():
        raise SplatrimError(f"no such file: {config.vocab_tree}")
    check_writable(scene.absolute().parent)


def _advice(config: PrepareConfig) -> str:
    """What helps where few pictures can be placed."""
    if config.is_video:
        return f"take more of them, with --fps above {config.fps:g} and a slower camera"
    if config.how == "exhaustive":
        return "neighbours need to overlap by two thirds, so take more between them"
    return "try --matching exhaustive, which compares all with all"


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """What decides a scene, as JSON can hold it."""
    kept = {name: value for name, value in vars(config).items() if name not in ("scene", "quiet")}
    paths = {"photos": str(config.photos.absolute()), "matching": config.how}
    tree = config.vocab_tree
    return {**kept, **paths, "vocab_tree": None if tree is None else str(tree.absolute())}


def _begun(work: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of the steps that an interrupted call has done."""
    if not (work / PROGRESS).is_file():
        if work.exists() and (not work.is_dir() or any(p.name != LOCK for p in work.iterdir())):
            raise SplatrimError(f"{work} is in the way: nothing that is prepared here made it")
        return {}
    progress = read_checked(work / PROGRESS, _PROGRESS)
    former = progress["settings"]
    others = [name for name, value in settings.items() if former.get(name) != value]
    if not progress["seconds"]:  # nothing is lost
        return {}
    if others:
        raise SplatrimError(
            f"{work} was begun with another --{others[0]} ({former.get(others[0])}): give the same,"
            " or remove that folder"
        )
    seconds: dict[str, float] = progress["seconds"]
    if seconds:
        logger.info(f"going on after {', '.join(seconds)}")
    return seconds


def _steps(config: PrepareConfig, work: Path) -> list[Callable[[Tell], None]]:
    """The steps of STEPS."""
    photos, database = work / "pictures", work / "database.db"
    models, chosen = work / "models", work / "chosen"

    def names() -> list[str]:
        return sorted(str(p.relative_to(photos)) for p in photos.rglob("*") if p.is_file())

    def pictures(tell: Tell) -> None:
        shutil.rmtree(photos, ignore_errors=True)
        if config.is_video:
            extract_frames(config.photos, photos, config.width, config.fps, tell)
        else:
            found = find_photos(config.photos, config.every)
            if len(found) > MANY and config.how == "exhaustive":
                logger.warning(
                    f"matching all pairs of {len(found)} photographs takes hours: --matching"
                    " sequential is for those in order, vocabulary for others"
                )
            copy_photos(found, config.photos, photos, config.width, tell)

    def features(tell: Tell) -> None:
        reconstruction.extract_features(
            database,
            photos,
            len(names()),
            camera_model=config.camera_model,
            is_one_camera=_have_one_size([photos / name for name in names()]),
            n_features=config.features,
            tell=tell,
        )

    def matches(tell: Tell) -> None:
        tree = config.vocab_tree
        reconstruction.match(database, len(names()), config.how, vocab_tree=tree, tell=tell)

    def model(tell: Tell) -> None:
        total = names()
        found = reconstruction.reconstruct(
            database, photos, models, chosen, len(total), seed=config.seed, tell=tell
        )
        logger.info(
            f"{len(found.names)} of {len(total)} pictures placed, {found.n_points} points, "
            f"mean error {found.error:.2f} pixels"
        )
        left = [name for name in total if name not in found.names]
        if len(found.names) <= PAIR < len(total):
            raise reconstruction.NotPlaced(
                f"only {len(found.names)} of {len(total)} pictures hang together: {_advice(config)}"
            )
        if left:
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            hint = f"; {_advice(config)}" if 2 * len(left) > len(total) else ""
            logger.warning(f"not placed: {', '.join(left[:SHOWN])}{more}{hint}")

    def images(tell: Tell) -> None:
        reconstruction.undistort(chosen, photos, work / "scene", tell)

    return [pictures, features, matches, model, images]


def _have_one_size(paths: list[Path]) -> bool:
    """Whether one camera may have taken all pictures."""
    sizes = set()
    for path in paths:
        with Image.open(path) as image:
            sizes.add(image.size)
    return len(sizes) == 1


def _teller(bar: tqdm) -> Tell:
    def tell(done: int, total: int) -> None:
        bar.total = total or None
        bar.n = done
        bar.refresh()

    return tell


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `splatrim prepare`."""
    config = read_settings_of(PrepareConfig, args, __doc__)
    show_log(quiet=config.quiet)
    seconds = prepare_scene(config)
    out = Path("output") / config.scene.name
    if out.absolute() == config.scene.absolute():
        out = out.with_name(f"{out.name}_model")
    logger.info(
        f"{config.scene} is a scene, made in {sum(seconds.values()):.0f} s; "
        f"next: {command('train', '-s', config.scene, '-m', out, '--eval')}"
    )
