"""The commands by name, and what runs them: `splatrim COMMAND [FLAGS]`.

A command is a module with a `main(words)`; its settings are dataclasses called ...Config. They are
read from its source (splatrim.flags), so that help and wrong flags are answered before torch, which
takes a second or two, is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from gs.compiler import start_compiler
from gs.errors import SplatrimError, run_cli, told_by_first

from .flags import Source, check_values, check_words, nearest, show_help

# One line per command: its name, the module with its main(), further modules with flags of it.
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (
        "splatrim.train",
        "gs.cli",
        "gs.config",
        "gs.model.rates",
        "gs.densification",
        "gs.neural.config",
        "gs.blocks.config",
        "gs.blocks.partition",
        "gs.neural.momentum",
        "gs.training.pose_refinement",
        "gs.training.depth_supervision",
        "pruning.mask_gaussian",
        "pruning",
    ),
    "prepare": ("gs.prepare.prepare",),
    "render": ("gs.evaluation.render",),
    "metrics": ("gs.evaluation.metrics",),
    "report": ("gs.report.sections",),
    "view": ("gs.viewer.__main__",),
    "export": ("gs.evaluation.export",),
    "bake": ("gs.bake",),
    "partition": ("gs.blocks.look", "gs.blocks.partition"),
    "merge": ("gs.blocks.merge",),
    "seams": ("gs.blocks.seam_figures",),
    "warmup": ("splatrim.warmup",),
}

# What --help of a command with many flags shows; --help_all shows the others too.
EVERYDAY: dict[str, tuple[str, ...]] = {
    "train": (
        "source_path",
        "model_path",
        "eval",
        "iterations",
        "method",
        "preset",
        "recipe",
        "densifier",
        "budget",
        "images",
        "resolution",
        "white_background",
        "init_points",
        "lambda_mask",
        "pose_refinement",
        "depth_loss",
        "sh_degree",
        "test_iterations",
        "save_iterations",
        "checkpoint_iterations",
        "start_ply",
        "start_checkpoint",
        "config",
        "blocks",
        "scene_preset",
        "overwrite",
        "report",
        "viewer",
        "seed",
        "device",
        "quiet",
        "demo",
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `splatrim`."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
    elif words[0] == "--version":
        print(f"splatrim {_version()}")
    else:
        run(words[0], list(words[1:]))


def run(name: str, words: list[str], **options: bool) -> None:
    """Run a command.

    Args:
        name: One of COMMANDS.
        words: What follows it on the command line.
        options: Keywords of its main().

    Raises:
        SplatrimError: no such command or flag, or what the command raises.
    """
    if name not in COMMANDS:
        guess = nearest(name, COMMANDS)
        hint = f": did you mean {guess}?" if guess else f": choose {', '.join(COMMANDS)}"
        raise SplatrimError(f"there is no command {name!r}{hint}")
    source = Source(COMMANDS[name])
    if source.begins_with_run and words and not words[0].startswith("-"):
        words = ["-m", *words]
    if {"-h", "--help"} & {*words} and source.flags:
        print(show_help(name, source, EVERYDAY.get(name)))
        return
    with told_by_first():
        check_words(words, source)
        if not any(word.replace("-", "_") == "__help_all" for word in words):
            check_values(words, source)
    words = ["--help" if word.replace("-", "_") == "__help_all" else word for word in words]
    # before torch is imported: by then it has done as much
    more = {"compiler": start_compiler(words)} if name == "train" else {}
    importlib.import_module(COMMANDS[name][0]).main(words, **options, **more)


def overview() -> str:
    """What the commands are, one line each."""
    lines = ["splatrim COMMAND [FLAGS]", ""]
    lines += [f"  {name:10} {Source(modules).title}" for name, modules in COMMANDS.items()]
    return "\n".join([*lines, "", "splatrim COMMAND --help lists the flags of a command."])


def console() -> None:
    """The console script; exits with the status that `gs.errors.run_cli` gives."""
    run_cli(main)


def _version() -> str:
    try:
        return version("splatrim")
    except PackageNotFoundError:  # run from a clone
        return "(not installed)"
