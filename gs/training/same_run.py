"""Whether a resumed run is the run that its checkpoint is of: all settings, and the scene itself.

Settings that differ are told. Another scene, split or image size is refused unless it is asked for
(--other_scene): views that were held out would be trained on, or a model be bent to other images.
A scene is known by its views, not by its path, so that it may move.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.scene import Scene
from ..errors import SplatrimError
from ..schema import Mismatch, fields, integer, listed, text

# what a run writes, shows and runs on, and how it was told to begin: no result follows from them
HARMLESS = {
    "run",
    "model_path",
    "quiet",
    "report",
    "device",
    "cuda_graphs",
    "precompile",
    "test_iterations",
    "save_iterations",
    "checkpoint_iterations",
    "checkpoint_interval",
    "rank_timeout",
    "rank_backend",
    "start_checkpoint",
    "start_ply",
    "overwrite",
    "other_scene",
    "demo",
    "baseline",
    "viewer",
    "viewer_host",
    "viewer_port",
    "config",
}
PARTS = ("optim", "densify", "pruning", "neural", "poses", "depths", "blocks", "momentum")
TOLERANCE = 1e-3  # of the scene's extent, between positions of the same camera

logger = logging.getLogger("splatrim")


def scene_entry(scene: Scene) -> dict[str, Any]:
    """What a checkpoint keeps of a scene: names, sizes and positions [C, 3] of its cameras."""
    cameras = [*scene.train, *scene.test]
    return {
        "train": [camera.image_name for camera in scene.train],
        "test": [camera.image_name for camera in scene.test],
        "sizes": [[camera.width, camera.height] for camera in cameras],
        "positions": torch.stack([camera.position for camera in cameras]),
    }


_ENTRY = fields(
    {
        "train": listed(text),
        "test": listed(text),
        "sizes": listed(listed(integer(1))),
    },
    needs=("train", "test", "sizes", "positions"),
)


def check_entry(value: Any, where: str) -> None:
    """A check (gs.schema) of what `scene_entry` gives."""
    _ENTRY(value, where)
    n = len(value["train"]) + len(value["test"])
    positions = value["positions"]
    if not isinstance(positions, Tensor) or positions.shape != (n, 3):
        raise Mismatch(f"{where}.positions: expected [{n}, 3]")
    if len(value["sizes"]) != n or any(len(size) != 2 for size in value["sizes"]):
        raise Mismatch(f"{where}.sizes: expected {n} pairs")


def differing_scene(entry: Mapping[str, Any], scene: Scene) -> str:
    """How a scene differs from the one that a checkpoint was made with; "" where it does not."""
    now = scene_entry(scene)
    for split, word in (("train", "training"), ("test", "test")):
        old, new = entry[split], now[split]
        if len(old) != len(new):
            return f"it has {len(new)} {word} views and not {len(old)}"
        if old != new:
            name = next(b for a, b in zip(old, new, strict=True) if a != b)
            return f"{name} was not a {word} view, or not at its place"
    for old, new in zip(entry["sizes"], now["sizes"], strict=True):
        if list(old) != new:
            return f"its images have {new[0]}x{new[1]} pixels and not {old[0]}x{old[1]}"
    apart = (entry["positions"].float() - now["positions"]).norm(dim=1)
    if not bool((apart <= TOLERANCE * scene.extent).all()):
        return "its cameras stand elsewhere"
    return ""


def check_scene(state: Mapping[str, Any], scene: Scene, settings: Mapping[str, Any]) -> None:
    """Refuse to go on in another scene than that of the checkpoint, or warn of it if asked for.

    Args:
        state: The checkpoint's. Those of other programs say nothing of their scene.
        scene: Where training would go on.
        settings: The run's, as config.json has them. With "other_scene", or in post-training, which
            takes any finished model, another scene is told of only.

    Raises:
        SplatrimError: Views, image sizes or camera positions differ.
    """
    entry = state.get("scene")
    if entry is None:
        how = _differing_flags(state.get("config") or {}, settings)
    else:
        how = differing_scene(entry, scene)
    if not how:
        return
    sentence = f"{scene.source} is not the scene that the checkpoint was made with: {how}"
    if settings.get("other_scene") or settings.get("post_start") is not None:
        logger.warning(sentence)
        return
    raise SplatrimError(f"{sentence}; give --other_scene to go on in it all the same")


def _differing_flags(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The same for checkpoints that keep settings only."""
    for name in ("source_path", "images", "resolution", "eval"):
        if name in before and name in now and before[name] != now[name]:
            return f"{name} is {now[name]} and was {before[name]}"
    return ""


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """All settings that a resumed run has and its start had not, but for harmless ones.

    Both as config.json has them; no name is in two parts, and one may have moved to another part
    since. Given as "opacity_lr 0.1 (was 0.05)".
    """
    old, new = _flat(before), _flat(now)
    return [
        f"{name} {value} (was {old[name]})"
        for name, value in new.items()
        if name in old and name not in HARMLESS and _plain(old[name]) != _plain(value)
    ]


def rates_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether settings of optimizer, densifier or method differ, so that rates must be set anew."""
    return bool(changed_settings(_parts(before), _parts(now)))


def with_start(config: TrainConfig, start: Mapping[str, Any] | None) -> TrainConfig:
    """The settings with what the model to start from decides: its SH degree, and its run's seed."""
    if start is None:
        return config
    kept = {"sh_degree": start["sh_degree"]}
    seed = (start.get("rng") or {}).get("seed")
    if seed is not None:
        kept["seed"] = seed
    if config.start_checkpoint is not None:
        for name, value in kept.items():
            given = getattr(config, name)
            if given != value:
                logger.warning(
                    f"settings differ: {name} stays {value}, as in the checkpoint,"
                    f" and does not become {given}"
                )
    return dataclasses.replace(config, **kept)


def _parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in PARTS if isinstance(settings.get(name), dict)}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, those of the parts among the others."""
    flat = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    for part in _parts(settings).values():
        flat |= part
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
