"""`python -m gs.prepare PHOTOS SCENE`: photographs or a video as a COLMAP scene."""

from ..errors import run_cli
from .prepare import main

if __name__ == "__main__":
    run_cli(main)
