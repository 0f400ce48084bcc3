"""Which Gaussians survive repeated draws of their mask: checks arguments and calls a backend."""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from ..backend import uses_triton
from ..reference import masks as reference


def sampled_in_any(
    mask_logits: Tensor,  # [N] or [N, 2] (keep, drop)
    seeds: Sequence[int],
    ids: Tensor,  # [N] int32
    *,
    backend: str = "auto",
) -> Tensor:  # [N] bool
    """Which Gaussians have a mask of 1 in at least one of several draws.

    Args:
        mask_logits: Of existing, or of keeping and dropping, float32. [N] or [N, 2]
        seeds: One per draw, as `sample_masks` takes them; at least one.
        ids: Names of the Gaussians in the draws. [N]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes disagree, no seed is given, or the backend is unknown.
    """
    n = len(mask_logits)
    if mask_logits.shape not in ((n,), (n, 2)) or ids.shape != (n,):
        shapes = f"{list(mask_logits.shape)}, {list(ids.shape)}"
        raise ValueError(f"mask_logits and ids: expected [N] or [N 2], and [N], got {shapes}")
    if not seeds:
        raise ValueError("seeds: expected at least one")
    run: ModuleType = reference
    if uses_triton(backend, mask_logits):
        from . import kernel as run
    return run.sampled_in_any(mask_logits, seeds, ids)
