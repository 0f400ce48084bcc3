"""Train 3D Gaussians on a scene: `python train.py -s SCENE -m OUT --eval`, as 3DGS is called.

The same as `splatrim train`, but without its report unless --report is given.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gs.errors import run_cli
from splatrim.commands import run

if TYPE_CHECKING:
    from gs import Trainer
    from gs.blocks.trainer import BlockTrainer
    from gs.cli import Config

# splatrim.train imports torch: a wrong flag is told before.


def parse(args: list[str]) -> Config[Any, Any, Any]:
    """Read the command line."""
    from splatrim import train

    return train.parse(args)


def build_trainer(config: Config[Any, Any, Any]) -> Trainer[Any] | BlockTrainer:
    """Check every input and make the trainer. Of the run, nothing is written yet."""
    from splatrim import train

    return train.build_trainer(config)


def main(args: list[str] | None = None) -> None:
    """Train, and say what to run next."""
    from splatrim import train

    train.main(args, report=False)


if __name__ == "__main__":
    run_cli(lambda: run("train", sys.argv[1:], report=False))
