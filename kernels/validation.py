"""Shape, dtype and device checks with named dimensions."""

import torch
from torch import Tensor


def check(dims: dict[str, int] | None = None, **tensors: tuple[object, str]) -> dict[str, int]:
    """Check shapes such as `means=(means, "N 3")` and return the size of every name.

    Args:
        dims: Sizes known before, e.g. {"N": 10}.
        tensors: Argument name -> (value, shape), the shape in names and numbers.

    Raises:
        ValueError: something is no tensor, or a shape disagrees with a number or a known name.
    """
    dims = dict(dims or {})
    for name, (value, spec) in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: expected a tensor [{spec}], got {type(value).__name__}")
        words = spec.split()
        known = {w: dims[w] for w in words if w in dims}
        fits = value.dim() == len(words)
        for word, size in zip(words, value.shape, strict=False):
            fits = fits and size == (int(word) if word.isdigit() else dims.setdefault(word, size))
        if not fits:
            where = ", ".join(f"{k}={v}" for k, v in known.items())
            raise ValueError(
                f"{name}: expected [{spec}]{' with ' + where if where else ''}, "
                f"got {list(value.shape)}"
            )
    return dims


def check_same(first: str, **tensors: Tensor | None) -> None:
    """Check that all tensors given share dtype (float32 or float64) and device with `first`."""
    reference = tensors[first]
    assert reference is not None
    if reference.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{first}: expected float32 or float64, got {reference.dtype}")
    for name, value in tensors.items():
        if value is None:
            continue
        if value.dtype != reference.dtype:
            raise ValueError(f"{name}: expected {reference.dtype} as {first}, got {value.dtype}")
        if value.device != reference.device:
            raise ValueError(
                f"{name}: expected on {reference.device} as {first}, got on {value.device}"
            )
