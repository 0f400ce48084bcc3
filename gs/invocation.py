"""Commands to print that work when they are pasted where this one was started."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "train.py"


def command(name: str, *words: str | Path, n_ranks: int = 1) -> str:
    """The line that runs a command of splatrim as this process was started.

    Args:
        name: The command: "train", "render", ...
        words: What follows it.
        n_ranks: Processes that torchrun starts; 1 is without it.
    """
    quoted = [shlex.quote(str(word)) for word in words]
    if n_ranks == 1:
        return " ".join([*_program(name), *quoted])
    started = Path(sys.argv[0])
    program = [shlex.quote(sys.argv[0])] if started.name == SCRIPT else ["-m", "splatrim", name]
    return " ".join(["torchrun", "--nproc_per_node", str(n_ranks), *program, *quoted])


def _program(name: str) -> list[str]:
    """The words before a command's flags."""
    started = Path(sys.argv[0])
    if started.stem == "splatrim":  # the console script
        found = shutil.which("splatrim")
        on_path = found is not None and started.exists() and os.path.samefile(found, started)
        return ["splatrim" if on_path else shlex.quote(sys.argv[0]), name]
    if started.name == SCRIPT and name == "train":
        return [python(), shlex.quote(sys.argv[0])]
    elsewhere = Path.cwd() != ROOT and str(ROOT) not in sys.path[1:]
    place = [f"PYTHONPATH={shlex.quote(str(ROOT))}"] if elsewhere else []
    return [*place, python(), "-m", "splatrim", name]


def python() -> str:
    """This interpreter: by its name where the shell finds it so, else by its path."""
    found = shutil.which("python")
    # not resolved: a virtual environment's is a link to the system's
    return "python" if found == sys.executable else shlex.quote(sys.executable)
