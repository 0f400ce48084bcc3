"""kernels.adam_harmonics against gradients in memory and kernels.adam."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import FusedAdam, rasterize
from kernels.adam_harmonics import BLOCK, HarmonicsGradient

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
W, H = 40, 24
# Lanes without a visible Gaussian divide by zero; nothing of theirs is used.
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")
NAMES = ("means", "quats", "scales", "opacities", "sh0", "shN")


def model(n: int, degree: int = 3) -> dict[str, Tensor]:
    """Raw parameters before and, for whole programs, behind the camera."""
    g = torch.Generator().manual_seed(n)
    means = torch.rand(n, 3, generator=g) * torch.tensor([4.0, 3.0, 2.0]) - torch.tensor(
        [2.0, 1.5, -1.0]
    )
    means[(torch.arange(n) // BLOCK) % 2 == 1, 2] -= 20.0
    tensors = {
        "means": means,
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.rand(n, 3, generator=g) - 3.0,
        "opacities": torch.randn(n, generator=g),
        # bright and dark ones: below 0 a colour has no gradient
        "sh0": torch.randn(n, 1, 3, generator=g) * 2.0,
        "shN": torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g),
    }
    return {k: x.to(DEVICE).requires_grad_() for k, x in tensors.items()}


def backward(t: dict[str, Tensor], degree: int, **options: Any) -> dict[str, Any]:
    view, K = torch.eye(4), torch.tensor([[30.0, 0, 21.0], [0, 30.0, 11.0], [0, 0, 1]])
    view[:3, 3] = torch.tensor([0.1, -0.2, 0.5])
    image, _, info = rasterize(
        t["means"], t["quats"], t["scales"], t["opacities"], t["sh0"], view[None].to(DEVICE),
        K[None].to(DEVICE), W, H, colors_rest=t["shN"], sh_degree=degree, raw=True,
        deterministic=True, **options,
    )  # fmt: skip
    v = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    image.backward(v)
    return info


def optimizer_of(t: dict[str, Tensor]) -> FusedAdam:
    groups = [{"params": [t[name]], "lr": 0.01 / (k + 1)} for k, name in enumerate(NAMES)]
    return FusedAdam(groups, betas=(0.9, 0.999), eps=1e-15)


def steps(
    t: dict[str, Tensor], degree: int, count: int, skip: int = 0, **options: Any
) -> FusedAdam:
    optimizer = optimizer_of(t)
    for _ in range(count):
        info = backward(t, degree, **options)
        fused = options.get("factored_sh", False)
        assert (t["sh0"].grad is None) == fused
        optimizer.apply(
            optimizer.rates_for().to(DEVICE), harmonics=info.get("harmonics"),
            skip=torch.full((1,), skip, dtype=torch.int32, device=DEVICE),
        )  # fmt: skip
        for state in optimizer.state.values():
            state["step"] += 1
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(("n", "degree"), [(2 * BLOCK + 5, 3), (7, 1), (7, 0)])
def test_steps_are_those_of_gradients_in_memory(n: int, degree: int) -> None:
    got, want = model(n), model(n)
    optimizer, reference = steps(got, degree, 2, factored_sh=True), steps(want, degree, 2)
    start = model(n)
    for name in NAMES:
        # On a GPU the compiler may round a direction once less in one kernel than in the other,
        # and Adam's first steps are as large for a small gradient as for a large one.
        exact = {"rtol": 0.0, "atol": 0.0} if DEVICE == "cpu" else {"rtol": 1e-4, "atol": 1e-6}
        pairs = [(got[name], want[name])]
        for key in ("exp_avg", "exp_avg_sq"):
            pairs.append((optimizer.state[got[name]][key], reference.state[want[name]][key]))
        for x, y in pairs:
            torch.testing.assert_close(x, y, **exact, msg=lambda m, k=name: f"{k}: {m}")
    assert not torch.equal(got["sh0"], start["sh0"])
    assert torch.equal(got["shN"], start["shN"]) == (degree == 0)


def test_without_other_coefficients() -> None:
    got, want = model(8, degree=0), model(8, degree=0)
    steps(got, 0, 2, factored_sh=True)
    steps(want, 0, 2)
    assert torch.equal(got["sh0"], want["sh0"])


def test_skipped_step_changes_nothing() -> None:
    got, start = model(9), model(9)
    optimizer = steps(got, 3, 1, skip=1, factored_sh=True)
    for name in NAMES:
        assert torch.equal(got[name], start[name]), name
        assert not optimizer.state[got[name]]["exp_avg"].any(), name


def test_without_a_backward_nothing_is_stepped() -> None:
    t, start = model(9), model(9)
    records, rows = torch.zeros(9, 16, device=DEVICE), torch.zeros(1, 9, dtype=torch.int32)
    eyes = torch.eye(4, device=DEVICE)[None], torch.eye(3, device=DEVICE)[None]
    gradient = HarmonicsGradient(t["sh0"], t["shN"], t["means"], *eyes, rows, records, 3)
    optimizer = optimizer_of(t)
    optimizer.apply(optimizer.rates_for().to(DEVICE), harmonics=gradient)
    assert all(torch.equal(t[name], start[name]) for name in NAMES)
