"""Reading a run's settings back: config.json, or cfg_args of Inria's program."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from .errors import SplatrimError
from .schema import (
    Check,
    Mismatch,
    anything,
    fields,
    flag,
    integer,
    mapped,
    maybe,
    number,
    read_checked,
    text,
)

CONFIG, CFG_ARGS = "config.json", "cfg_args"

_OPTIM = fields({"position_lr_max_steps": integer(1)})
SETTINGS: Check = fields(
    {
        "source_path": maybe(text),
        "model_path": maybe(text),
        "images": maybe(text),
        "resolution": integer(-1),
        "white_background": flag,
        "eval": flag,
        "method": maybe(text),
        "preset": maybe(text),
        "iterations": integer(0),
        "sh_degree": integer(0, 3),
        "seed": integer(),
        "batch": integer(1),
        "lambda_dssim": number(),
        "init_points": maybe(integer(1)),
        "post_start": maybe(integer(0)),
        "optim": _OPTIM,
        "densify": mapped(anything),
        "pruning": mapped(anything),
        "neural": mapped(anything),
        "poses": mapped(anything),
        "depths": mapped(anything),
        "blocks": mapped(anything),
        "momentum": mapped(anything),
        "scene_preset": maybe(text),
        "representation": text,
    }
)
"""What of a run's settings is used again; whatever else is there is only shown."""


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's settings, from config.json or else from the original code's cfg_args.

    Raises:
        SplatrimError: neither is there, or it is broken.
    """
    if not folder.is_dir():
        raise SplatrimError(f"no such folder: {folder}")
    if (folder / CONFIG).is_file():
        return read_checked(folder / CONFIG, SETTINGS)
    if (folder / CFG_ARGS).is_file():
        return _parse_cfg_args(folder / CFG_ARGS)
    raise SplatrimError(f"{folder} is not the output of a run: it has no config.json")


def _parse_cfg_args(path: Path) -> dict[str, Any]:
    """Read `Namespace(name=literal, ...)` without evaluating it."""
    try:
        call = ast.parse(path.read_text(encoding="utf-8"), mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("not a Namespace")
        settings = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        SETTINGS(settings, "")
    except Mismatch as error:
        raise SplatrimError(f"{path} is broken: {error}") from error
    # a parser that runs out of stack or memory on nested brackets
    except (OSError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise SplatrimError(f"{path} is not readable: {error}") from error
    return settings
