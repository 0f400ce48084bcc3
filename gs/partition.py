"""Look at a scene's blocks before training: `python -m gs.partition -s SCENE -m OUT --blocks 8`."""

from .blocks.look import main
from .errors import run_cli

if __name__ == "__main__":
    run_cli(main)
