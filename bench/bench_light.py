"""Light on the colours of a rendering, both ways, beside the same from plain PyTorch.

pytest bench/bench_light.py            through pytest-benchmark, synchronised
python -m bench.bench_light [WxH ...]  a table of GPU times, and of the host's time per call

The limit is the time to move colours and gradients once at a copy's speed.
"""

import argparse
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import triton
from torch import Tensor

from bench.bench_projection import BANDWIDTH, microseconds
from kernels import LENS_NUMBERS, corrected, neutral_rows

SIZES = ("800x533", "1296x840")
N_IMAGES = 200
Kind = Literal["affine", "ppisp"]


def call(size: str, kind: Kind, backend: str) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of one image."""
    width, height = (int(n) for n in size.split("x"))
    device = torch.device("cuda")
    colors = torch.rand(height, width, 3, device=device, requires_grad=True)
    v_out = torch.rand(height, width, 3, device=device)
    rows = neutral_rows(N_IMAGES, kind).to(device).requires_grad_()
    index, more = torch.tensor([3], dtype=torch.int32, device=device), {}
    leaves = [colors, rows]
    if kind == "ppisp":
        lenses = torch.zeros(1, LENS_NUMBERS, device=device, requires_grad=True)
        lens_of = torch.zeros(N_IMAGES, dtype=torch.int32, device=device)
        more, leaves = {"lenses": lenses, "lens_of": lens_of}, [*leaves, lenses]

    def both() -> tuple[Tensor, ...]:
        out = corrected(colors, rows, index, regularised=True, backend=backend, **more)
        return torch.autograd.grad(out, leaves, v_out)

    return both


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("kind", ["affine", "ppisp"])
@pytest.mark.parametrize("size", SIZES)
def test_both_ways(size: str, kind: Kind, timed: Callable[..., Any], backend: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gradients = timed(call(size, kind, backend))
    assert all(torch.isfinite(v).all() for v in gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"{'size':10} {'kind':7} {'backend':10} {'us':>8} {'host us':>8} {'limit us':>8}")
    kinds: tuple[Kind, ...] = ("affine", "ppisp")
    for size in arguments.sizes:
        width, height = (int(n) for n in size.split("x"))
        # colours read twice, their result and two gradients once
        limit = 1e6 * 5 * 12 * width * height / BANDWIDTH
        for kind in kinds:
            for backend in ("triton", "reference"):
                gpu, host = microseconds(call(size, kind, backend))
                print(f"{size:10} {kind:7} {backend:10} {gpu:8.1f} {host:8.1f} {limit:8.1f}")


if __name__ == "__main__":
    main()
