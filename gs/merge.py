"""Make one model of a run's blocks: `python -m gs.merge -m OUT`."""

from .blocks.merge import main
from .errors import run_cli

if __name__ == "__main__":
    run_cli(main)
