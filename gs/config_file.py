"""Settings of a former run as the start of a new command line: `--config OUT/config.json`.

A file holds every setting, of which most follow from a few: method, preset, densifier, recipe,
schedule, length and start. So what counts as given is what differs from that which follows; flags
come on top. A file read with another --iterations thus has its schedule scaled anew, and a file of
an older version keeps the defaults of that version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import as_plain
from .errors import SplatrimError
from .run_settings import CONFIG, SETTINGS
from .schema import read_checked

TEXTS = ("method", "preset", "densifier", "recipe", "schedule", "representation")
CHOICE = (*TEXTS, "scene_preset", "demo", "baseline")
STARTS = ("start_ply", "start_checkpoint")
PARTS = ("optim", "densify", "pruning", "neural", "poses", "depths", "blocks", "momentum")
# What follows from others, and cannot be given.
IMPLIED = {"post_start", "iterations"}


def read_config(path: Path) -> dict[str, Any]:
    """A config.json by its path, or by that of its run's folder.

    Raises:
        SplatrimError: it is missing or broken.
    """
    path = path / CONFIG if path.is_dir() else path
    settings = read_checked(path, SETTINGS)
    wrong = [name for name in TEXTS if not isinstance(settings.get(name, ""), str)]
    if "iterations" not in settings or "method" not in settings or wrong:
        raise SplatrimError(f"{path} is not the config.json of a run of this program")
    return settings


def as_words(former: Mapping[str, Any], implied: Any, config: Any) -> list[str]:
    """The words that say how a former run's settings differ from what its choice implies.

    Args:
        former: Its settings, as config.json has them.
        implied: The config that its choice implies.
        config: The config that the new choice implies: of another method or densifier there are
            no words.
    """
    words: list[str] = []
    for name in ("scene", "train", *PARTS):
        part = getattr(implied, name)
        if type(part) is not type(getattr(config, name)):
            continue
        values = former.get(name, {}) if name in PARTS else former
        for field in dataclasses.fields(part):
            default = as_plain(getattr(part, field.name, None))
            value = values.get(field.name, default)
            if field.name in IMPLIED | {*STARTS} or value == default:
                continue
            words += _words(field.name, value)
    return words


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
