"""Fixtures of the benchmarks: workloads, and a timer that waits for the GPU."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton

from bench.scenes import Workload, load

ROUNDS, WARMUP_ROUNDS = 20, 5


@functools.lru_cache(maxsize=1)
def _load(name: str) -> Workload:
    return load(name)


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> Workload:
    """A workload by name (parametrize indirectly); skips without a GPU or its data."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    try:
        return _load(request.param)
    except FileNotFoundError as error:
        pytest.skip(f"no measuring data: {error}")


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """timed(f, **info): benchmark f() until the GPU is done; the median of ROUNDS after warm-up."""

    def run(f: Callable[[], Any], **info: Any) -> Any:
        def synchronised() -> Any:
            result = f()
            torch.cuda.synchronize()
            return result

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)
        benchmark.extra_info |= {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "extra_bytes": torch.cuda.max_memory_allocated() - before,
        } | info
        return result

    return run
