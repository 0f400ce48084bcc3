"""PSNR, SSIM, LPIPS and FLIP of a run's test views: `python -m gs.metrics -m OUT [OUT ...]`.

They are taken from the 8-bit images that `splatrim render` wrote, and go to results.json and
per_view.json in the layout of the original code. LPIPS (Zhang et al., CVPR 2018; VGG, version 0.1)
is fed images in 0..1 as the original does, though the network is made for -1..1: so the figures
compare with published tables. Without the package or its weights the others are written alone.
FLIP (gs.evaluation.flip) needs neither. --color_correct adds figures of renderings whose colours
are fitted to the photographs (gs.evaluation.color_correction).

Where views have masks, PSNR and FLIP are over the pixels that count, SSIM over those whose windows
have such pixels alone, and LPIPS sees black elsewhere; "counted" is the share of the pixels then.

Of runs that learnt what images did to the light (--exposure), test views are rendered in the mean
light of the training images, which no test image had a part in; figures with fitted colours stand
beside those of these.
"""

import importlib
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from ..command_line import read_settings_of
from ..config import resolve_device
from ..data.image_file import UNREADABLE
from ..errors import SplatrimError
from ..files import write_json
from ..invocation import command
from ..logs import show_log
from ..losses import ssim, to_float
from ..run_settings import CONFIG, read_settings
from .color_correction import correct_colors, half_of
from .flip import flip_map
from .rendered import COUNTED, MASKS, PER_VIEW, RESULTS, is_current, read_stats
from .views import psnr

__all__ = ["compute_metrics", "load_lpips", "psnr", "read_image", "ssim"]

VGG_FILE = "vgg16-397923af.pth"
VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"
VGG_MIN_SIZE = 16  # four halvings must leave a pixel

LPIPS = Callable[[Tensor, Tensor], Tensor]  # [1, 3, H, W] twice -> one number

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class MetricsConfig:
    """Which runs to measure."""

    model_paths: Annotated[tuple[Path, ...], tyro.conf.arg(name="model_path", aliases=("-m",))]
    """Output folders of runs whose test views are rendered."""
    device: str = "auto"
    """auto, cpu or cuda."""
    lpips_weights: Path | None = None
    """File with the weights of VGG-16 for LPIPS, as torchvision has it (vgg16-397923af.pth); by
    default that of torch's cache. Nothing is downloaded."""
    color_correct: bool = False
    """Also measure with colours fitted to the photograph (PSNR_cc, SSIM_cc, LPIPS_cc), and with the
    fit of the left half on the right one (PSNR_half, ...); of runs that learnt exposures always."""


def compute_metrics(
    model_paths: Sequence[str | Path],
    *,
    device: str = "auto",
    lpips_weights: Path | None = None,
    color_correct: bool = False,
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the rendered test views of runs and write their results.json and per_view.json.

    Args:
        model_paths: Output folders.
        device: "auto", "cpu" or "cuda".
        lpips_weights: File of VGG's weights; None is that of torch's cache.
        color_correct: Whether to measure with fitted colours too (gs.evaluation.color_correction)
            of all runs, not only of those with --exposure.

    Returns:
        Per folder what results.json says: {"ours_N": {"SSIM", "PSNR", "FLIP", "LPIPS"}}; LPIPS is
        left out where it is not available, and the log says why. With masks also "counted"; with
        fitted colours "SSIM_cc" and so on, and "SSIM_half", of the right half after a fit of the
        left one.

    Raises:
        SplatrimError: given weights that cannot be used, no rendered views, or a broken or
            mismatched image; other runs' files that were written before stay.
    """
    where = resolve_device(device)
    views = {Path(path): _find_views(Path(path)) for path in model_paths}
    lpips = load_lpips(where, lpips_weights)
    if isinstance(lpips, str):
        if lpips_weights is not None:
            raise SplatrimError(lpips)
        logger.warning(lpips)
    all_results: dict[str, dict[str, dict[str, float]]] = {}
    for path, methods in views.items():
        results: dict[str, dict[str, float]] = {}
        per_view: dict[str, dict[str, dict[str, float]]] = {}
        corrects = color_correct or _learnt_light(path)
        for method, pairs in methods.items():
            network = None if isinstance(lpips, str) else lpips
            per_view[method] = _measure(pairs, network, where, color_correct=corrects)
            results[method] = {
                name: sum(values.values()) / len(values)
                for name, values in per_view[method].items()
                if values
            }
            figures = ", ".join(f"{name} {value:.4f}" for name, value in results[method].items())
            over = ", pixels that masks let through" if COUNTED in results[method] else ""
            logger.info(f"{path} {method}: {figures} ({len(pairs)} test views{over})")
        write_json(path / RESULTS, results)
        write_json(path / PER_VIEW, per_view)
        all_results[str(path)] = results
    return all_results


def read_image(path: Path, mode: str = "RGB") -> Tensor:  # [H, W, 3] uint8; of mode L [H, W]
    """Decode an image as RGB. Raises SplatrimError where it is broken."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert(mode)))
    except UNREADABLE as error:
        raise SplatrimError(f"cannot read the image {path}: {error}") from error


def load_lpips(device: torch.device | str = "cpu", weights: Path | None = None) -> LPIPS | str:
    """The LPIPS network if all of it is on this machine, else a line that says what is missing.

    Nothing is downloaded. `weights` is a file of VGG-16's; None is that of torch's cache.
    """
    try:
        lpips = importlib.import_module("lpips")
    except ImportError as error:
        return f"LPIPS is left out: {error}; `pip install lpips torchvision` brings it"
    # torchvision raises these when it does not fit the installed torch
    except (RuntimeError, AttributeError, OSError) as error:
        return (
            f"LPIPS is left out: torchvision does not work ({_first_sentence(error)}); "
            f"install the one made for torch {torch.__version__}"
        )
    if weights is None:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
        if not weights.is_file():
            return (
                f"LPIPS is left out: its VGG weights are not on this machine; "
                f"`curl -L --create-dirs -o {weights} {VGG_URL}` brings them, and a copy from "
                "elsewhere is read with `metrics --lpips_weights FILE`"
            )
    try:
        with warnings.catch_warnings():
            # lpips asks torchvision for a network in a way that is deprecated
            warnings.simplefilter("ignore", UserWarning)
            # pnet_rand: VGG's weights are not fetched, but come from the file
            network = lpips.LPIPS(net="vgg", version="0.1", pnet_rand=True, verbose=False)
        network.net.load_state_dict(_vgg_weights(weights, network.net.state_dict()))
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        return f"LPIPS is left out: {weights} cannot be used ({_first_sentence(error)})"
    return network.eval().requires_grad_(False).to(device)


def _vgg_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG-16 under the names that LPIPS gives its layers, which keep their numbers.

    "features.5.weight" there is "slice2.5.weight" here.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError("it is no file of weights that torch has saved") from error
    if not isinstance(state, Mapping):
        raise ValueError("it holds no weights by name")
    found: dict[str, Tensor] = {}
    for name, like in wanted.items():
        key = re.sub(r"^slice\d", "features", name)
        value = state.get(key)
        if not isinstance(value, Tensor) or value.shape != like.shape:
            said = "missing" if key not in state else f"not of {list(like.shape)} numbers"
            raise ValueError(f"it is not VGG-16 as torchvision saves it: {key} is {said}")
        found[name] = value
    return found


def _first_sentence(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0]


def _find_views(model_path: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Pairs of rendering and ground truth by method ("ours_N"), checked for completeness."""
    if not model_path.is_dir():
        raise SplatrimError(f"no such folder: {model_path}")
    methods: dict[str, list[tuple[Path, Path]]] = {}
    folders = (model_path / "test").glob("ours_*")
    stats = read_stats(model_path)
    for folder in sorted(folders, key=lambda f: (len(f.name), f.name)):
        if not is_current(model_path, folder.name, stats):
            logger.warning(f"{folder} is left out: it shows no model that the run has now")
            continue
        renders = sorted((folder / "renders").glob("*.png"))
        pairs = [(path, folder / "gt" / path.name) for path in renders]
        missing = [truth for _, truth in pairs if not truth.is_file()]
        if missing:
            raise SplatrimError(f"the ground truth {missing[0]} is missing")
        if pairs:
            methods[folder.name] = pairs
    if not methods:
        raise SplatrimError(
            f"{model_path} has no rendered test views: train with --eval, then run "
            f"{command('render', '-m', model_path, '--skip_train')}"
        )
    return methods


@torch.no_grad()
def _measure(
    pairs: list[tuple[Path, Path]],
    lpips: LPIPS | None,
    device: torch.device,
    *,
    color_correct: bool,
) -> dict[str, dict[str, float]]:
    """Metrics by name and view."""
    scores: dict[str, dict[str, float]] = {}
    for path, truth_path in pairs:
        a, b = read_image(path).to(device), read_image(truth_path).to(device)
        if a.shape != b.shape:
            sizes = f"{a.shape[1]}x{a.shape[0]}", f"{b.shape[1]}x{b.shape[0]}"
            raise SplatrimError(f"{path} has {sizes[0]} pixels, its ground truth {sizes[1]}")
        a, b = to_float(a), to_float(b)
        counted = _read_mask(truth_path, a)
        if counted is not None:
            scores.setdefault(COUNTED, {})[path.name] = counted.float().mean().item()
            if not counted.any():
                continue
        images = {"": (a, b, counted)}
        if color_correct:
            images |= _corrected(a, b, counted)
        for suffix, (shown, truth, counts) in images.items():
            found = _figures(shown, truth, counts, lpips, path, with_flip=not suffix)
            for name, value in found.items():
                scores.setdefault(f"{name}{suffix}", {})[path.name] = value.item()
    return scores


def _figures(
    a: Tensor,  # [H, W, 3]
    b: Tensor,
    counted: Tensor | None,  # [H, W] bool
    lpips: LPIPS | None,
    path: Path,
    *,
    with_flip: bool,
) -> dict[str, Tensor]:
    """Figures by name, over the pixels that count."""
    pixels = (a, b) if counted is None else (a[counted], b[counted])
    found = {"SSIM": ssim(a, b, counted=counted), "PSNR": psnr(*pixels)}
    if counted is not None:
        a, b = (x * counted[..., None] for x in (a, b))
    if with_flip:
        differences = flip_map(a, b)
        found["FLIP"] = (differences if counted is None else differences[counted]).mean()
    if lpips is not None:
        if min(a.shape[:2]) < VGG_MIN_SIZE:
            raise SplatrimError(f"{path} is too small for LPIPS: {VGG_MIN_SIZE} pixels a side")
        batch = [x.permute(2, 0, 1)[None] for x in (a, b)]
        found["LPIPS"] = lpips(*batch)
    return found


def _corrected(
    a: Tensor, b: Tensor, counted: Tensor | None
) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Rendering, truth and pixels by suffix: all fitted to all, and right half by left half."""
    left = half_of(a)
    whole = correct_colors(a, b, counted).float()
    by_half = correct_colors(a, b, left if counted is None else left & counted).float()
    right = slice(a.shape[1] // 2, None)
    found: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {"_cc": (whole, b, counted)}
    part = None if counted is None else counted[:, right].contiguous()
    if part is None or part.any():
        found["_half"] = by_half[:, right].contiguous(), b[:, right].contiguous(), part
    return found


def _learnt_light(path: Path) -> bool:
    """Whether a run has learnt what its images did to the light."""
    config = path / CONFIG
    return config.is_file() and read_settings(path).get("exposure", "none") != "none"


def _read_mask(truth: Path, like: Tensor) -> Tensor | None:  # [H, W] bool
    """Which pixels of a view count; None where it has no mask."""
    path = truth.parent.parent / MASKS / truth.name
    if not path.is_file():
        return None
    counted = read_image(path, "L").to(like.device) > 127
    if counted.shape != like.shape[:2]:
        raise SplatrimError(f"{path} has another size than {truth}")
    return counted


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.metrics`."""
    config = read_settings_of(MetricsConfig, args, __doc__, with_negations=True)
    show_log(quiet=False)
    compute_metrics(
        config.model_paths,
        device=config.device,
        lpips_weights=config.lpips_weights,
        color_correct=config.color_correct,
    )
