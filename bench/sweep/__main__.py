"""Entry point of `python -m bench.sweep`."""

from gs.errors import run_cli

from . import main

if __name__ == "__main__":
    run_cli(main)
