"""Little Python runs between a call of the rasterizer and its first kernel."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from kernels import Capacity, caches, rasterization
from kernels.runtime import launch, recording
from kernels.runtime.capacity import learned_capacity

TESTS = str(Path(__file__).parents[1])
MOST = 120  # lines, of Python of any file
CALLS = 6  # those after are in steady state: capacities are learnt, kernels recorded
N, DEGREE = 40, 1

MEANS = torch.rand(N, 3) * 2 + torch.tensor([-1.0, -1.0, 2.0])
HARMONICS = {"colors": torch.rand(N, 4, 3), "sh_degree": DEGREE}
PLAIN: dict[str, Any] = {
    "means": MEANS,
    "quats": torch.rand(N, 4),
    "scales": 0.05 + 0.2 * torch.rand(N, 3),
    "opacities": torch.rand(N),
    "colors": torch.rand(N, 3),
    "viewmats": torch.eye(4)[None],
    "Ks": torch.tensor([[14.0, 0, 8], [0, 14, 5], [0, 0, 1]])[None],
}
TWO_CAMERAS = {name: PLAIN[name].expand(2, -1, -1).contiguous() for name in ("viewmats", "Ks")}
RAW = {"colors": torch.rand(N, 1, 3), "colors_rest": torch.rand(N, 3, 3), "sh_degree": DEGREE}
RAW |= {"raw": True}
MASKS, COLUMN, IDS = torch.rand(N), torch.rand(N, 1), torch.arange(N, dtype=torch.int32)
WORDS, BEHIND = torch.zeros(2, dtype=torch.int32), {"backgrounds": torch.rand(1, 3)}

# of a batch every element is a call
FORMS: dict[str, dict[str, Any]] = {
    "colors": {},
    "colors by camera": {**TWO_CAMERAS, "colors": torch.rand(2, N, 3)},
    "wide colors": {"colors": torch.rand(N, 9)},
    "harmonics": HARMONICS,
    "cameras": {**HARMONICS, **TWO_CAMERAS},
    "depth": {"render_mode": "D"},
    "colors and depth": {"render_mode": "RGB+D", **BEHIND},
    "colors and expected depth": {"render_mode": "RGB+ED"},
    "harmonics and depth": {**HARMONICS, **BEHIND, "render_mode": "RGB+D"},
    "harmonics and expected depth": {**HARMONICS, "render_mode": "RGB+ED"},
    "masks": {**HARMONICS, "masks": MASKS},
    "column of masks": {**HARMONICS, "masks": COLUMN},
    "raw": RAW,
    "raw, masks": {**RAW, "masks": MASKS},
    "raw, column of masks": {**RAW, "masks": COLUMN},
    "raw, column of logits": {**RAW, "mask_logits": COLUMN, "mask_seed": 3},
    "raw, pairs of logits": {**RAW, "mask_logits": torch.rand(N, 2), "mask_ids": IDS},
    "raw, seed on the device": {**RAW, "mask_logits": MASKS, "mask_ids": IDS, "mask_seed": WORDS},
    "spaced rows": {"colors": torch.rand(N, 9, 3)[:, :4], "sh_degree": DEGREE},
    "not contiguous": {**HARMONICS, "means": MEANS.T.contiguous().T},
    "background": {**HARMONICS, **BEHIND},
    "covars": {**HARMONICS, "covars": 0.01 * torch.eye(3).repeat(N, 1, 1)},
    "contributions": {**HARMONICS, "contributions": True, "absgrad": True},
    "exact": {**HARMONICS, "precision": "exact", "rasterize_mode": "antialiased"},
    "deterministic": {**HARMONICS, "deterministic": True},
    "gsplat's keywords": {"packed": False, "sparse_grad": False, "channel_chunk": 16},
    "packed": {**HARMONICS, "packed": True},
    "fixed capacity": {**RAW, "capacity": Capacity(64, 256)},
    "training": {**RAW, **BEHIND, "mask_logits": COLUMN, "mask_seed": 5, "render_mode": "RGB+ED"},
}


class FirstKernel(Exception):
    """It is being launched."""


class Doubles:
    """In place of compiled kernels: nothing is computed."""

    def __init__(self) -> None:
        self.launches = 0

    def get(self, key: object) -> launch.Start:
        return launch.Start(self.started, (), ())

    def started(self, *args: object) -> None:
        self.launches += 1
        if sys.gettrace() is not None:
            raise FirstKernel


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Doubles]:
    """The launches of a GPU, of kernels that do nothing, for tensors on the CPU."""
    caches.clear()
    # what kernels do not write is read all the same
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_strided", lambda shape, _, **of: torch.zeros(shape, **of))
    doubles = Doubles()
    monkeypatch.setattr(launch, "_compiled", doubles)
    for module in (launch, recording):
        monkeypatch.setattr(module, "INTERPRET", False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    yield doubles
    caches.clear()


def lines_until_launch(**arguments: Any) -> list[str]:
    """Those that a call runs before its first kernel, as "file:line"."""
    lines: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename.startswith(TESTS):
            return None
        if event == "line":
            lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    with pytest.raises(FirstKernel):
        sys.settrace(trace)
        try:
            rasterization(**arguments)
        finally:
            sys.settrace(before)
    return lines


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
@pytest.mark.parametrize("form", FORMS)
def test_lines(
    form: str, gradients: bool, interpreted: None, doubles: Doubles, one_thread: None
) -> None:
    arguments = {**PLAIN, **FORMS[form], "width": 16, "height": 11, "backend": "triton"}
    if gradients:
        for name in ("means", "colors", "opacities", "masks", "mask_logits"):
            if name in arguments:
                arguments[name] = arguments[name].detach().requires_grad_()
    for _ in range(CALLS):
        rasterization(**arguments)
    learned_capacity(MEANS.device)._pinned = True  # as a GPU's
    lines = lines_until_launch(**arguments)
    assert 20 < len(lines) <= MOST, "\n".join(lines)
    assert doubles.launches > CALLS
