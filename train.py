"""Train 3D Gaussians on a scene: `python train.py -s SCENE -m OUT --eval`, as 3DGS is called.

The same as `splatrim train`, but without its report unless --report is given.
"""

import sys

import splatrim.train
from gs.errors import run_cli
from splatrim.commands import run
from splatrim.train import build_trainer, parse

__all__ = ["build_trainer", "main", "parse"]


def main(args: list[str] | None = None) -> None:
    """Train, and say what to run next."""
    splatrim.train.main(args, report=False)


if __name__ == "__main__":
    run_cli(lambda: run("train", sys.argv[1:], report=False))
