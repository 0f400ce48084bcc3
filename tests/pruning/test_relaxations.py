"""The relaxations against their distributions and derivatives in closed form."""

import math

import pytest
import torch

from pruning.relaxations import gumbel_sigmoid, straight_through

TAU = 0.5
N = 1_000_000
IDS = torch.arange(N, dtype=torch.int32)


def draw(logit: float, seed: int = 3) -> torch.Tensor:
    return gumbel_sigmoid(torch.full((N,), logit, dtype=torch.float64), TAU, seed, IDS)


def test_noise_is_logistic() -> None:
    noise = TAU * torch.logit(draw(0.0))
    assert noise.isfinite().all() and noise.abs().max() <= 16.64
    # 5 sigma of a million draws; the variance is pi^2 / 3, the fourth moment 7 pi^4 / 15
    sd = math.pi / math.sqrt(3)
    assert abs(noise.mean().item()) < 5 * sd / N**0.5
    assert abs(noise.var().item() - sd**2) < 5 * sd**2 * (4.2 - 1) ** 0.5 / N**0.5


@pytest.mark.parametrize(
    ("logit", "mean", "sd"),
    [(0, 0.5, 0.3778), (1, 0.7031, 0.3434), (2, 0.8514, 0.2639), (-4, 1 - 0.9736, 0.1156)],
)
def test_mean_and_deviation(logit: float, mean: float, sd: float) -> None:
    y = draw(logit)
    assert y.mean().item() == pytest.approx(mean, abs=5 * sd / N**0.5 + 5e-5)
    assert y.std().item() == pytest.approx(sd, abs=1e-3)


@pytest.mark.parametrize("logit", [0.0, 1.0, -1.0, -4.0])
def test_distribution(logit: float) -> None:
    # Kolmogorov-Smirnov: the largest distance is below 1.95 / sqrt(N) with probability 0.999
    y = draw(logit).sort().values
    cdf = torch.sigmoid(TAU * torch.logit(y) - logit)
    empirical = torch.arange(1, N + 1, dtype=torch.float64) / N
    assert (cdf - empirical).abs().max().item() < 1.95 / N**0.5


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_keep_rate_does_not_depend_on_temperature(temperature: float) -> None:
    y = gumbel_sigmoid(torch.full((N,), 1.0), temperature, 9, IDS)
    rate = (y >= 0.5).double().mean().item()
    assert rate == pytest.approx(0.7311, abs=5 * (0.7311 * 0.2689 / N) ** 0.5)


def test_gradient_of_gumbel_sigmoid() -> None:
    x = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    y = gumbel_sigmoid(x, TAU, 1, IDS[:50])
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y * (1 - y) / TAU).detach())
    assert torch.autograd.gradcheck(lambda x: gumbel_sigmoid(x, TAU, 1, IDS[:50]), x)


def test_draws_belong_to_ids() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=g)
    whole = gumbel_sigmoid(x, TAU, 5, IDS[:1000])
    some = torch.randperm(1000, generator=g)[:300]
    assert torch.equal(gumbel_sigmoid(x[some], TAU, 5, IDS[some]), whole[some])
    assert not torch.equal(gumbel_sigmoid(x, TAU, 6, IDS[:1000]), whole)


def test_straight_through() -> None:
    x = torch.tensor([-5.0, -4.6, -4.59, 0.0, 3.0], requires_grad=True)  # logit(0.01) = -4.595
    y = straight_through(x, 0.01)
    assert y.tolist() == [0, 0, 1, 1, 1]
    (y * torch.arange(1.0, 6.0)).sum().backward()
    s = torch.sigmoid(x.detach())
    assert x.grad is not None
    torch.testing.assert_close(x.grad, s * (1 - s) * torch.arange(1.0, 6.0))
