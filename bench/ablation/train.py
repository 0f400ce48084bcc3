"""train.py with the published gradients: `python -m bench.ablation.train -s SCENE -m OUT ...`."""

import runpy
import sys

from bench.ablation.published_backward import published_gradients
from bench.sweep.run import ROOT
from gs import cli
from gs.config import resolve_device
from gs.errors import SplatrimError, run_cli
from pruning import METHODS


def main() -> None:
    """Train as sys.argv says. Raises SplatrimError on a CPU."""
    config = cli.parse(sys.argv[1:], METHODS, __doc__ or "")
    if resolve_device(config.train.device).type != "cuda":
        raise SplatrimError("published gradients need a GPU: on a CPU all gradients are exact")
    with published_gradients():
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
    run_cli(main)
