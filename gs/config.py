"""Settings of a run that belong to no single part: where the scene is, what is written, how long.

Optimizer and densifier keep theirs beside their code (gs.training.optimizer,
gs.densification.adaptive), pruners in pruning/. All are frozen dataclasses; `train.py` joins them
into flat command-line flags.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Suppress, arg

from .errors import SplatrimError
from .invocation import command
from .ranges import AT_LEAST_ONE, COUNT, ITERATION, POSITIVE, SEED, SHARE, Range, check_ranges
from .schedule import multiple_in
from .stages import read_stages, value_at

PUBLISHED_ITERATIONS = 30_000


@dataclass(frozen=True)
class SceneConfig:
    """Which images are trained on."""

    source_path: Annotated[Path, arg(aliases=("-s",))]
    """Folder of a COLMAP scene (images/, sparse/0/), a Blender one (transforms_train.json) or a
    nerfstudio one (transforms.json)."""
    images: Annotated[str | None, arg(aliases=("-i",))] = None
    """Sub-folder with the images; None is the scene's own."""
    resolution: Annotated[int, arg(aliases=("-r",)), ITERATION] = -1
    """1, 2, 4, 8 divide the size; other positive numbers are the width; -1 limits it to 1600."""
    white_background: Annotated[bool, arg(aliases=("-w",))] = False
    """Render and composite over white instead of black."""
    eval: bool = False
    """Keep every 8th image (or the test set that the scene names, in test.txt beside a COLMAP
    model) for testing."""
    init_points: Annotated[int | None, AT_LEAST_ONE] = None
    """Start from this many random points instead of the scene's point cloud."""
    distortion: Literal["undistort", "native", "refuse"] = "undistort"
    """undistort: remove the distortion of lenses while images are decoded, and keep the results in
    the output folder. native: leave images as they are and draw through their lenses, which keeps
    all pixels of a fisheye or panorama. refuse: train on pinhole cameras only."""
    masks: str = "auto"
    """Which pixels count: auto, those that are not black in masks/NAME.png of the scene, if it has
    such a folder; none, all; alpha, those that are not transparent; or another folder's name."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, what it writes, and where."""

    model_path: Annotated[Path, arg(aliases=("-m",))]
    """Output folder."""
    iterations: Annotated[int, AT_LEAST_ONE] = PUBLISHED_ITERATIONS
    """Number of iterations, one image each. After --start_ply: so many more, or beyond 30000 the
    iteration at which to end."""
    batch: Annotated[int, AT_LEAST_ONE] = 1
    """Images per step of the optimizer, whose learning rates grow by the square root of it.
    Iterations go on counting images: what is due at one happens in the step that has it."""
    multi_view_updates: str = ""
    """Multiply the images per step from shares of the run on, with learning rates as they were:
    0.5:5,0.75:20 takes 5 images per step in the third quarter and 20 in the last."""
    resolution_schedule: str = ""
    """Divide the size of images from shares of the run on: 0:4,0.1:2,0.25:1 begins with a quarter
    of width and height, and has all of them after a quarter of the run."""
    regularise: Literal["all", "seen"] = "all"
    """Whom mask losses and MCMC's regularisers are means over: all Gaussians, as published, or
    those that the step's images see, as often as they do. For scenes that an image shows little
    of."""
    adam_rows: Literal["all", "seen"] = "all"
    """Which Gaussians a step moves: all, by momentum too, or those that its images see."""
    sh_degree: Annotated[int, Range(0, 3)] = 3
    """Highest degree of the spherical harmonics, 0 to 3."""
    sh_degree_interval: Annotated[int, AT_LEAST_ONE] = 1000
    """One more degree is used after so many iterations."""
    sh_degree_from_iter: Annotated[int, COUNT] = 0
    """Up to this iteration only degree 0 is used."""
    lambda_dssim: Annotated[float, SHARE] = 0.2
    """Share of D-SSIM in the photometric loss; L1 has the rest."""
    random_background: bool = False
    """Train over a random background colour in each iteration, transparent images too."""
    antialiased: bool = False
    """Lower the opacity of Gaussians that the rasterizer widens to the size of a pixel, so that
    views at other resolutions fit too. The .ply says so; viewers that do not read it draw edges
    too thick."""
    exposure: Literal["none", "affine", "ppisp"] = "none"
    """Learn what each image did to the light: affine, gains, mixing and offsets of its channels;
    ppisp, its exposure and colour, and the vignetting of its lens."""
    test_iterations: Annotated[tuple[int, ...], ITERATION] = (7000, 30_000)
    """Iterations at which the test views are evaluated, besides the last."""
    save_iterations: Annotated[tuple[int, ...], ITERATION] = (7000, 30_000)
    """Iterations at which the model is saved as .ply, besides the last."""
    checkpoint_iterations: Annotated[tuple[int, ...], ITERATION] = ()
    """Iterations at which a checkpoint (chkpntN.pth) is saved."""
    checkpoint_interval: Annotated[int, COUNT] = 0
    """Also save one after so many iterations, and keep the last two of these; 0 for none."""
    start_checkpoint: Path | None = None
    """Go on from this checkpoint: of this project, of Inria's 3DGS, or of a method's published
    code. One from the end of its schedule is post-trained, as --start_ply."""
    other_scene: bool = False
    """Go on from the checkpoint though its views, split or image sizes were others."""
    start_ply: Path | None = None
    """Post-train this finished model: no densification, 5000 iterations counted from 30000."""
    post_start: Annotated[Suppress[int | None], COUNT] = None
    """Iteration at which post-training begins; set from the two above."""
    overwrite: bool = False
    """Where -m holds another run, set that aside as a whole (it becomes OUT.1, OUT.2, ...)."""
    seed: Annotated[int, SEED] = 0
    """Seed of everything random."""
    device: str = "auto"
    """Device to train on: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    rank_timeout: Annotated[float, POSITIVE] = 60.0
    """Seconds after which a silent rank is given up: all others then stop."""
    rank_backend: Literal["auto", "gloo"] = "auto"
    """How ranks talk: auto is NCCL between GPUs and gloo between CPUs. gloo also lets several ranks
    share a GPU, to try things out."""
    cuda_graphs: bool = True
    """On a GPU, capture iterations as CUDA graphs and replay them."""
    precompile: bool = True
    """On a GPU, compile kernels that are not cached in several processes while the scene loads."""
    deterministic: bool = False
    """Gradients do not depend on the order in which a GPU's threads run: equal runs, but slower."""
    viewer: bool = False
    """Show the training in a browser, at http://localhost:8080 unless told otherwise."""
    viewer_host: str = "127.0.0.1"
    """Address that the viewer listens on; 0.0.0.0 lets other machines in."""
    viewer_port: Annotated[int, Range(0, 65535)] = 8080
    """Port of the viewer; the next free one where it is taken."""
    report: bool = False
    """After training, measure the test views and write report.html (`splatrim train` does;
    --no_report leaves it out)."""
    quiet: bool = False
    """Show nothing but warnings and errors on the terminal; train.log has the rest."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self.images_after(0)
        self.reduction_after(0)

    def images_after(self, done: int) -> int:
        """Images of the step that follows iteration `done`: at the end as many as are left."""
        stages = read_stages("multi_view_updates", self.multi_view_updates, whole=True)
        n_images = self.batch * int(value_at(stages, self._share(done)))
        return max(min(n_images, self.iterations - done), 1)

    def reduction_after(self, done: int) -> float:
        """What the sides of images are divided by in the step that follows iteration `done`."""
        stages = read_stages("resolution_schedule", self.resolution_schedule)
        return value_at(stages, self._share(done))

    def _share(self, done: int) -> float:
        """Share of the run's iterations, after its iteration `done`."""
        begin = self.post_start or 0
        return (done - begin) / max(self.iterations - begin, 1)

    def sh_degree_grows_at(self, step: int, n_images: int = 1) -> bool:
        """Whether one more degree is used from `step` on: 1000, 2000, 3000 by default."""
        due = multiple_in(step, self.sh_degree_interval, n_images)
        return due is not None and due > self.sh_degree_from_iter

    def scaled(self, factor: float) -> "TrainConfig":
        """The same schedule over `factor` times as many iterations."""
        return dataclasses.replace(
            self,
            sh_degree_interval=max(round(self.sh_degree_interval * factor), 1),
            sh_degree_from_iter=round(self.sh_degree_from_iter * factor),
        )


def resolve_device(name: str) -> torch.device:
    """The device that `name` asks for; "auto" is a GPU if there is one.

    Raises:
        SplatrimError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SplatrimError(f"unknown device {name!r}: use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise SplatrimError(f"device {name!r} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SplatrimError(f"device {name!r} is not there: torch sees no such GPU")
    return device


def as_plain(config: Any) -> Any:
    """A config as JSON can hold it: nested dicts, lists, paths as text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {str(key): as_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [as_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def resume_command(
    args: Sequence[str], model_path: Path, checkpoint: Path, n_ranks: int = 1
) -> str:
    """The command that goes on from `checkpoint`: that of `args`, pointed at it."""
    words = resume_arguments(args, model_path, checkpoint)
    return command("train", *words, n_ranks=n_ranks)


def resume_arguments(args: Sequence[str], model_path: Path, checkpoint: Path) -> list[str]:
    """The arguments of `resume_command`."""
    kept: list[str] = []
    skip = False
    for word in args:
        if _plain(word) in ("__start_checkpoint", "__start_ply"):
            skip = "=" not in word  # the next word is its value
        elif skip:
            skip = False
        elif word != "--overwrite":
            kept.append(word)
    if not {_plain(word) for word in kept} & {"_m", "__model_path"}:
        kept += ["-m", str(model_path)]
    if any(_plain(word) == "__start_ply" for word in args):
        kept = _counted_on(kept)
    return [*kept, "--start_checkpoint", str(checkpoint)]


def iterations_after_ply(iterations: int) -> int:
    """The last iteration of a run from a finished .ply: so many more, or itself if it is beyond."""
    more = 0 < iterations <= PUBLISHED_ITERATIONS
    return PUBLISHED_ITERATIONS + iterations if more else iterations


def _counted_on(args: Sequence[str]) -> list[str]:
    """Arguments whose --iterations counted from a finished .ply, for a start that counts from 0."""
    words = [*args]
    for i, word in enumerate(args):
        if _plain(word) != "__iterations":
            continue
        if "=" in word:
            name, value = word.split("=", 1)
            words[i] = f"{name}={iterations_after_ply(int(value))}"
        elif i + 1 < len(words):
            words[i + 1] = str(iterations_after_ply(int(words[i + 1])))
    return words


def _plain(word: str) -> str:
    """A flag without its value, with underscores."""
    return word.split("=")[0].replace("-", "_")
