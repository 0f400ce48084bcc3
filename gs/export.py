"""Write a model as a small file: `python -m gs.export OUT --format spz`."""

from .errors import run_cli
from .evaluation.export import main

if __name__ == "__main__":
    run_cli(main)
