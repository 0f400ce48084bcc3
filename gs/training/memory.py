"""Memory of a process: how much it has taken at most, and how what is freed is kept."""

import ctypes
import os
import sys

import torch

# glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LIMIT = 2**31 - 1  # bytes, the largest that mallopt takes


def keep_freed_memory() -> None:
    """Make freed memory fit what is asked for next. Call it before anything is on a GPU.

    On a GPU, the tensors of a model grow by a little a hundred times, and torch keeps each size:
    segments that can grow hold bonsai in 3 GB instead of 18 (iteration 6,000, 0.9 M Gaussians).

    On a CPU, glibc is asked to reuse memory instead of returning it to the system each time.
    Training on a CPU takes and frees large pieces in every step, and getting fresh pages from the
    system costs more than the arithmetic on them: a step of 1.5 M fragments took 0.6 s instead of
    0.7 to 11 s (2 virtual cores).
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LIMIT)


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most that this process has taken so far, in units of 10^6 bytes.

    Returns:
        peak_memory_mb: on a GPU what tensors took, on a CPU the process's resident memory (left out
        where the system does not tell). peak_reserved_mb: on a GPU what torch took from the driver.
    """
    if device.type == "cuda":
        return {
            "peak_memory_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1),
            "peak_reserved_mb": round(torch.cuda.max_memory_reserved(device) / 1e6, 1),
        }
    try:
        import resource  # not on Windows
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_mb": round(peak / 1e6, 1)}


def device_name(device: torch.device) -> str:
    """What a GPU is called; cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
