"""A process beside a training that compiles its kernels while the scene is loaded.

It is `python -m splatrim.warmup --tell -- FLAGS OF THE TRAINING`, started before torch is imported.
It rehearses the training (gs.rehearsal), compiles in several processes into Triton's cache, and
says on its output what it plans and has done; launches wait for what they need of it
(kernels.foresee). Once all is compiled it leaves a note beside the cache, and the next run of the
same flags starts no such process.

    CACHE/splatrim/KERNELS/RUN.json     labels of variants that are cached

KERNELS is a digest of the sources of kernels/ and the version of Triton, RUN one of all sources,
the flags and the GPUs. Whatever goes wrong costs time alone: kernels are then compiled as they are
launched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .files import write_json

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "gs", "pruning", "splatrim")
GPUS = Path("/proc/driver/nvidia/gpus")
NODES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # where a driver is: Linux, WSL
SCENE = ("-s", "--source_path")
IRRELEVANT = (*SCENE, "-m", "--model_path", "--seed")  # flags, with a value each
OFF = ("--no_precompile", "--help_all")


def start_compiler(words: Sequence[str]) -> subprocess.Popen[str] | None:
    """Start compiling for a training, unless there is no need or no way.

    Args:
        words: Flags of the training.

    Returns:
        The process; its output is for `kernels.Foreseen.follow`.
    """
    plain = [word.replace("-", "_").replace("__", "--", 1) for word in words]
    if any(word in OFF for word in plain) or _value(words, "--device").startswith("cpu"):
        return None
    if not any(node.exists() for node in NODES) or importlib.util.find_spec("triton") is None:
        return None
    # of several ranks, the first
    if os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    if note_of(words).is_file():
        return None
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "splatrim.warmup", "--tell", "--", *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the training, and this ends with it
        )
    except OSError:
        return None


def cache_folder() -> Path:
    """Where Triton keeps what it has compiled, without importing it."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def note_of(words: Sequence[str]) -> Path:
    """Where the labels of a training's variants are kept."""
    kept = [*words]
    # drawn through their lenses, images decide about kernels
    native = _value(words, "--distortion") == "native"
    for name in IRRELEVANT:
        if name in kept and not (native and name in SCENE):
            k = kept.index(name)
            del kept[k : k + 2]
    texts = [path.read_text(errors="replace") for path in sorted(GPUS.glob("*/information"))]
    models = [line for text in texts for line in text.splitlines() if line.startswith("Model")]
    digest = _digest(PACKAGES, [*kept, *models, _version("torch")])
    return notes_folder() / f"{digest}.json"


def notes_folder() -> Path:
    """Where the notes of these kernels are."""
    return cache_folder() / "splatrim" / _digest(("kernels",), [_version("triton")])


def write_note(words: Sequence[str], capability: int, labels: Iterable[str]) -> None:
    """Note that variants are cached. Raises SplatrimError as files do."""
    write_json(note_of(words), {"capability": capability, "labels": sorted(labels)})


def cached_labels(capability: int) -> set[str]:
    """Labels of all variants that are known to be cached for a GPU."""
    labels: set[str] = set()
    for path in notes_folder().glob("*.json"):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            labels |= {*note["labels"]} if note["capability"] == capability else set()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody else's, or half of one: then the launch finds out
    return labels


def _digest(packages: Iterable[str], words: Iterable[str]) -> str:
    """Of the sources of packages and of words."""
    found = hashlib.sha256("\0".join([sys.version, *words]).encode())
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _value(words: Sequence[str], flag: str) -> str:
    """The value that is given to a flag, or nothing."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""
