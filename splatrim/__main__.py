"""`python -m splatrim`, where the command `splatrim` is not on the path."""

from gs.errors import run_cli

from .commands import main

if __name__ == "__main__":
    run_cli(main)
