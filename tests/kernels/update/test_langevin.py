"""Langevin noise and regularisers: their statistics, autograd, and the kernel by the reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import add_langevin_noise, add_regularizer_gradients
from kernels.reference.langevin import normals
from kernels.reference.projection import quats_to_rotmats

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("triton", "reference")
SEED = (-123456789, 77)


def model(n: int, *, opacity: float | None = None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(n)
    opacities = torch.randn(n, generator=g) * 3 - 4  # about the threshold and far from it
    if opacity is not None:
        opacities = torch.full((n,), math.log(opacity / (1 - opacity)))
    tensors = {
        "means": torch.randn(n, 3, generator=g),
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.randn(n, 3, generator=g) - 1,
        "opacities": opacities,
        "ids": torch.randperm(4 * n + 1, generator=g)[:n].int(),
    }
    return {name: x.to(DEVICE) for name, x in tensors.items()}


def add(t: dict[str, Tensor], *, seed: tuple[int, int] = SEED, lr: float = 0.01, **more: Any):
    words = torch.tensor(seed, dtype=torch.int32, device=DEVICE)
    rate = torch.tensor([lr], device=DEVICE)
    add_langevin_noise(**t, seed=words, lr=rate, **{"noise_lr": 50.0, **more})


def shifts(t: dict[str, Tensor], **more: Any) -> Tensor:
    """What is added to means of 0."""
    t = t | {"means": torch.zeros_like(t["means"])}
    add(t, **more)
    return t["means"]


@pytest.mark.parametrize("n", [0, 1, 300])
def test_kernel_is_the_reference(n: int) -> None:
    t = model(n)
    got, want = (shifts(t, backend=backend) for backend in BACKENDS)
    # exponentials differ in the last bits, which the gate magnifies, and a cosine near 0 all over
    torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)
    assert n < 2 or want.abs().max() > 1e-3


def test_normals_are_normal() -> None:
    x = normals(5, torch.arange(40_000))
    # five sigma of a mean, a variance, a covariance and a fourth moment of 40000
    assert x.mean(0).abs().max() < 5 / 200
    covariance = x.T @ x / len(x)
    assert (covariance - torch.eye(3)).abs().max() < 5 * math.sqrt(2) / 200
    assert (x.pow(4).mean(0) - 3).abs().max() < 5 * math.sqrt(96) / 200
    assert 3.5 < x.abs().max() < 5.8


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_has_the_squared_covariance_of_the_gaussian(backend: str) -> None:
    n = 20_000 if backend == "reference" or DEVICE == "cuda" else 4096
    t = model(1, opacity=0.005)
    t = {name: x.repeat_interleave(n, 0) for name, x in t.items()}
    t["ids"] = torch.arange(n, dtype=torch.int32, device=DEVICE)
    R = quats_to_rotmats(torch.nn.functional.normalize(t["quats"][0].cpu(), dim=-1))
    sigma = R @ torch.diag(torch.exp(2 * t["scales"][0].cpu())) @ R.T
    size = 0.01 * 50.0 * 0.5  # half of it at the threshold
    x = shifts(t, backend=backend).cpu()
    want = size**2 * sigma @ sigma
    got = x.T @ x / n
    # five sigma of sample covariances, over the largest entry
    assert (got - want).abs().max() < 5 * math.sqrt(2 / n) * want.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gate_shuts_on_what_is_opaque(backend: str) -> None:
    sizes = {}
    for opacity in (0.001, 0.005, 0.01, 0.1, 0.9):
        t = model(20, opacity=opacity)
        sizes[opacity] = (shifts(t, backend=backend) / shifts(model(20, opacity=1e-9))).median()
        at_zero = 1 / (1 + math.exp(-0.5))
        want = 1 / (1 + math.exp(100 * (opacity - 0.005))) / at_zero
        assert sizes[opacity].item() == pytest.approx(want, rel=1e-4, abs=1e-30)
    assert sizes[0.9] < 1e-30 < 0.1 < sizes[0.01]


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_of_seed_and_id(backend: str) -> None:
    t = model(70)
    first = shifts(t, backend=backend)
    assert torch.equal(first, shifts(t, backend=backend))
    for other in ((SEED[0] + 1, SEED[1]), (SEED[0], SEED[1] + 1)):
        assert not torch.isclose(first, shifts(t, seed=other, backend=backend)).any(-1).all()
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    moved = shifts({name: x[order] for name, x in t.items()}, backend=backend)
    # the interpreter's and torch's vectors round by their length
    torch.testing.assert_close(moved, first[order], rtol=1e-6, atol=1e-30)
    double = shifts(t, lr=0.02, backend=backend)
    # numbers so small that they are denormal aside
    torch.testing.assert_close(double, 2 * first, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip(backend: str) -> None:
    t = model(20)
    before = t["means"].clone()
    skip = torch.full((1,), 2, dtype=torch.int32, device=DEVICE)
    add(t, skip=skip, backend=backend)
    assert torch.equal(t["means"], before)
    add(t, skip=torch.zeros_like(skip), backend=backend)
    assert not torch.equal(t["means"], before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [0, 1, 300])
def test_regularizers_are_autograds(n: int, backend: str) -> None:
    t = model(n)
    opacities, scales = (t[k].clone().requires_grad_() for k in ("opacities", "scales"))
    if n:
        (0.3 * opacities.sigmoid().mean() + 0.2 * scales.exp().mean()).backward()
    got = [torch.ones_like(t["opacities"]), torch.full_like(t["scales"], 2.0)]
    add_regularizer_gradients(
        t["opacities"], t["scales"], *got, lambda_opacity=0.3, lambda_scale=0.2, backend=backend
    )
    for x, start, p in zip(got, (1.0, 2.0), (opacities, scales), strict=True):
        want = start + (p.grad if p.grad is not None else torch.zeros_like(p))
        torch.testing.assert_close(x, want.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_are_weights_of_the_means(backend: str) -> None:
    t = model(300)
    shares = torch.rand(300, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    shares = torch.where(shares < 0.4, 0.0, shares)
    shares /= shares.sum()
    opacities, scales = (t[k].clone().requires_grad_() for k in ("opacities", "scales"))
    spread = scales.exp().mean(-1)
    (0.3 * (shares * opacities.sigmoid()).sum() + 0.2 * (shares * spread).sum()).backward()
    got = [torch.zeros_like(t["opacities"]), torch.zeros_like(t["scales"])]
    add_regularizer_gradients(
        t["opacities"],
        t["scales"],
        *got,
        lambda_opacity=0.3,
        lambda_scale=0.2,
        shares=shares,
        backend=backend,
    )
    for x, p in zip(got, (opacities, scales), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(x, p.grad, rtol=1e-5, atol=1e-9)


def test_bad_input_is_named() -> None:
    t = model(5)
    for name, wrong in (
        ("quats", t["quats"][:4]),
        ("ids", t["ids"].long()),
        ("means", t["means"].double()),
        ("scales", t["scales"].T),
    ):
        with pytest.raises(ValueError, match=name):
            add(t | {name: wrong})
    with pytest.raises(ValueError, match="skip"):
        add(t, skip=torch.zeros(1, device=DEVICE))
    with pytest.raises(ValueError, match="backend"):
        add(t, backend="cuda")
    with pytest.raises(ValueError, match="v_scales"):
        add_regularizer_gradients(
            t["opacities"],
            t["scales"],
            t["opacities"],
            t["opacities"],
            lambda_opacity=1.0,
            lambda_scale=1.0,
        )
