"""Measure the seams of a run in blocks: `python -m gs.seams -m OUT --one_piece OTHER`."""

from .blocks.seam_figures import main
from .errors import run_cli

if __name__ == "__main__":
    run_cli(main)
