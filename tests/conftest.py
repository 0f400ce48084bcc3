"""Fixtures that the whole suite shares."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

# Without a GPU, Triton kernels run in its interpreter; it must know before they are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPO = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with data/, golden/ and models/: $SPLATRIM_DATA, else ../shared; skips without."""
    root = Path(os.environ.get("SPLATRIM_DATA", REPO.parent / "shared"))
    if not (root / "golden").is_dir() and not (root / "data").is_dir():
        pytest.skip(f"no measuring data at {root}; set SPLATRIM_DATA")
    return root


@pytest.fixture(scope="session")
def assert_close() -> Callable[[str, Tensor, Tensor, float], None]:
    """Compare by RMS-relative error: assert_close("v_means", got, want, 1e-3)."""

    def check(name: str, got: Tensor, want: Tensor, limit: float) -> None:
        assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, want {list(want.shape)}"
        assert torch.isfinite(got).all(), f"{name}: not finite"
        got64, want64 = got.detach().double().cpu(), want.detach().double().cpu()
        scale = want64.square().mean().sqrt().item() if want64.numel() else 0.0
        error = (got64 - want64).square().mean().sqrt().item() if want64.numel() else 0.0
        assert error <= limit * scale + 1e-12, f"{name}: RMS error {error:.3e} of {scale:.3e}"

    return check
