"""PSNR, SSIM and LPIPS of a run's test views: `python -m gs.metrics -m OUT [OUT ...]`."""

from .errors import run_cli
from .evaluation.metrics import main

if __name__ == "__main__":
    run_cli(main)
