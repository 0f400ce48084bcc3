"""Write report.html of a run: `python -m gs.report -m OUT [OUT ...]`."""

from ..errors import run_cli
from .sections import main

if __name__ == "__main__":
    run_cli(main)
