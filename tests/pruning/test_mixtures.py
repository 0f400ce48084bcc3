"""Two Gaussians as one: moments, opacities, costs, and turns as quaternions."""

import math

import pytest
import torch
from torch import Tensor

from pruning.mixtures import LARGEST_OPACITY, Mixture, quaternions, rotation_matrices

pytestmark = pytest.mark.usefixtures("one_thread")


def params(n: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "means": torch.randn(n, 3, generator=g),
        "quats": torch.randn(n, 4, generator=g),
        "scales": 0.5 * torch.randn(n, 3, generator=g) - 1.0,
        "opacities": torch.randn(n, generator=g),
        "sh0": torch.randn(n, 1, 3, generator=g),
        "shN": torch.randn(n, 3, 3, generator=g),
    }


def covariance(p: dict[str, Tensor]) -> Tensor:
    axes = rotation_matrices(p["quats"].double()) * p["scales"].double().exp()[:, None, :]
    return axes @ axes.mT


ROWS = torch.arange(0, 12, 2), torch.arange(1, 12, 2)


def test_moments_are_kept() -> None:
    p = params(12)
    got = Mixture(p).parameters(*ROWS)
    P, p = covariance(p), {name: x.double() for name, x in p.items()}
    depth = -torch.log1p(-p["opacities"].sigmoid())
    mass = depth * torch.linalg.det(P) ** (1 / 3)
    for k in range(6):
        i, j = 2 * k, 2 * k + 1
        m = mass[i] + mass[j]
        mu = (mass[i] * p["means"][i] + mass[j] * p["means"][j]) / m
        want = sum(
            mass[r] / m * (P[r] + torch.outer(p["means"][r] - mu, p["means"][r] - mu))
            for r in (i, j)
        )
        torch.testing.assert_close(got["means"][k].double(), mu, rtol=1e-5, atol=1e-6)
        one = {name: x[k : k + 1] for name, x in got.items()}
        torch.testing.assert_close(covariance(one)[0], want, rtol=1e-4, atol=1e-6)
        area = torch.linalg.det(covariance(one)[0]) ** (1 / 3)
        found = -torch.log1p(-one["opacities"].double().sigmoid())[0] * area
        capped = -math.log1p(-LARGEST_OPACITY) * area
        torch.testing.assert_close(found, torch.minimum(m, capped), rtol=1e-4, atol=0)
        color = (mass[i] * p["shN"][i] + mass[j] * p["shN"][j]) / m
        torch.testing.assert_close(got["shN"][k].double(), color, rtol=1e-5, atol=1e-6)
    assert got["sh0"].shape == (6, 1, 3) and all(x.dtype == torch.float32 for x in got.values())


def test_two_in_one_place_blend_as_before() -> None:
    p = {name: x.repeat(2, *[1] * (x.dim() - 1)) for name, x in params(1).items()}
    p["opacities"] = torch.tensor([0.3, 0.6]).logit()
    a, b = torch.tensor([0]), torch.tensor([1])
    mixture = Mixture(p)
    got = mixture.parameters(a, b)
    assert got["opacities"].sigmoid().item() == pytest.approx(1 - 0.7 * 0.4, rel=1e-5)
    torch.testing.assert_close(covariance(got), covariance(p)[:1], rtol=1e-5, atol=1e-8)
    assert mixture.costs(a, b, 10.0).item() == pytest.approx(0.0, abs=1e-9)


def test_costs() -> None:
    p = params(12)
    mixture = Mixture(p)
    plain = mixture.costs(*ROWS, 0.0)
    assert (plain > 0).all()
    torch.testing.assert_close(plain, mixture.costs(ROWS[1], ROWS[0], 0.0))
    m = mixture.masses
    color = (0.28209479 * (p["sh0"][::2] - p["sh0"][1::2])[:, 0]).double().square().sum(-1)
    want = plain + 3.0 * m[::2] * m[1::2] / (m[::2] + m[1::2]) * color
    torch.testing.assert_close(mixture.costs(*ROWS, 3.0), want, rtol=1e-6, atol=1e-9)
    far = {**p, "means": p["means"] * 3.0}
    assert (Mixture(far).costs(*ROWS, 0.0) > plain).all()


def test_quaternions_of_turns() -> None:
    quats = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)).double()
    quats[:4] = torch.eye(4)  # each of the four forms has its case
    quats[4:8] = torch.eye(4) + 1e-9
    matrices = rotation_matrices(quats)
    got = quaternions(matrices)
    torch.testing.assert_close(rotation_matrices(got), matrices, rtol=0, atol=1e-12)
