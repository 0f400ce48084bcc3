"""The photometric loss and its gradient, beside the same from plain PyTorch convolutions.

pytest bench/bench_ssim.py             through pytest-benchmark, synchronised
python -m bench.bench_ssim [WxH ...]   a table of GPU times, and of the host's time per call

The limit is the time to move colours, maps, gradient and ground truth once at a copy's speed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from bench.bench_projection import BANDWIDTH, microseconds
from kernels import photometric_gradient, photometric_values

SIZES = ("800x533", "979x546", "1296x840", "1237x822", "1600x1060")


def prepare(size: str) -> tuple[Tensor, Tensor]:
    """A rendering, and the uint8 image that it is to become."""
    width, height = (int(n) for n in size.split("x"))
    torch.manual_seed(0)
    target = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, device="cuda")
    return target / 255.0 + 0.05 * torch.randn(height, width, 3, device="cuda"), target


def calls(colors: Tensor, target: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    graph = torch.cuda.CUDAGraph()
    photometric_gradient(colors, target, backend="triton")
    with torch.cuda.graph(graph):
        photometric_gradient(colors, target, backend="triton")
    masked = torch.cat([target, torch.full_like(target[..., :1], 255)], 2)
    return {
        "values": lambda: photometric_values(colors, target, backend="triton"),
        "gradient": lambda: photometric_gradient(colors, target, backend="triton"),
        "in a graph": graph.replay,
        "with mask": lambda: photometric_gradient(colors, masked, backend="triton"),
        "PyTorch": lambda: photometric_gradient(colors, target, backend="reference"),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("size", SIZES)
def test_gradient(size: str, timed: Callable[..., Any], backend: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    colors, target = prepare(size)
    values, v_colors = timed(lambda: photometric_gradient(colors, target, backend=backend))
    assert torch.isfinite(values).all() and torch.isfinite(v_colors).all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"{'size':10} {'call':11} {'us':>8} {'host us':>8} {'limit us':>8}")
    for size in arguments.sizes:
        colors, target = prepare(size)
        # colours are read twice, so is the target; three maps go both ways
        limit = 1e6 * colors.numel() * (2 * 4 + 2 + 6 * 4 + 4) / BANDWIDTH
        for name, f in calls(colors, target).items():
            gpu, host = microseconds(f)
            print(f"{size:10} {name:11} {gpu:8.1f} {host:8.1f} {limit:8.1f}")


if __name__ == "__main__":
    main()
