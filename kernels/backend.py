"""Which backend a call takes: Triton kernels or the PyTorch reference."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

from . import rehearsal


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; it is imported by those modules alone that need it."""
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Whether Triton interprets its kernels, which then take tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor is on a GPU, or a rehearsal pretends so."""
    return x.is_cuda or rehearsal.current() is not None


def uses_triton(backend: str, x: Tensor) -> bool:
    """Whether a call on `x` goes to the kernels: "auto" takes them for float32 on CUDA.

    Raises:
        ValueError: the backend is unknown; or it is "triton", x is not on a GPU, and kernels are
            not interpreted.
    """
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend: expected 'auto', 'triton' or 'reference', got {backend!r}")
    if backend == "triton" and not on_gpu(x) and not interprets():
        raise ValueError(f"backend 'triton': expected CUDA tensors, got a tensor on {x.device}")
    fast = on_gpu(x) and x.dtype == torch.float32
    return backend == "triton" or (backend == "auto" and fast and has_triton())
