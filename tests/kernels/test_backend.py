"""Which backend a call takes."""

import pytest
import torch

from kernels import caches, rasterization


def test_kernels_refuse_tensors_that_are_not_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels would read whatever lies at such an address."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    caches.clear()  # the backend of a kind of call is remembered
    means, quats, ones = torch.rand(5, 3), torch.rand(5, 4), torch.ones(5, 3)
    cameras = torch.eye(4)[None], torch.eye(3)[None]
    with pytest.raises(ValueError, match="expected CUDA tensors, got a tensor on cpu"):
        rasterization(means, quats, ones, ones[:, 0], ones, *cameras, 8, 8, backend="triton")
    image, _, _ = rasterization(means, quats, ones, ones[:, 0], ones, *cameras, 8, 8)
    assert image.shape == (1, 8, 8, 3)
