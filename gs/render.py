"""Render a trained model's views: `python -m gs.render -m OUT [--skip_train]`."""

from .errors import run_cli
from .evaluation.render import main

if __name__ == "__main__":
    run_cli(main)
