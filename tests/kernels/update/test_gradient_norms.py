"""Statistics of image-space gradients: kernel and reference against a loop over Gaussians."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import add_gradient_norms, count_views

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE: dict[str, Any] = {"width": 40, "height": 30}


def views(c: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the middle columns of a wider tensor, radii, and sums that are not zero."""
    g = torch.Generator().manual_seed(c * 1000 + n)
    v_means2d = torch.randn(c, n, 6, generator=g)[..., 2:5:2]
    radii = torch.randint(-1, 3, (c, n, 2), generator=g, dtype=torch.int32)
    return v_means2d, radii, torch.rand(n, generator=g), torch.ones(n)


def loop(v: Tensor, radii: Tensor, gradients: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    gradients, counts = gradients.double(), counts.double()
    for c in range(v.shape[0]):
        for n in range(v.shape[1]):
            if min(radii[c, n].tolist()) > 0:
                x, y = v[c, n].tolist()
                gradients[n] += math.hypot(20.0 * x, 15.0 * y)
                counts[n] += 1
    return gradients, counts


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("c", "n"), [(1, 1), (1, 300), (3, 70), (2, 0), (0, 5)])
def test_add_gradient_norms(c: int, n: int, backend: str) -> None:
    v, radii, gradients, counts = views(c, n)
    want = loop(v, radii, gradients, counts)
    storage = torch.zeros(c, n, 6, device=DEVICE)
    storage[..., 2:5:2] = v.to(DEVICE)
    got = [gradients.to(DEVICE), counts.to(DEVICE)]
    add_gradient_norms(storage[..., 2:5:2], radii.to(DEVICE), *got, backend=backend, **SIZE)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.double().cpu(), y, rtol=1e-6, atol=0.0)
    assert torch.equal(count_views(radii.to(DEVICE), backend=backend).cpu(), want[1].float() - 1.0)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_skip(shape: tuple[int, ...], backend: str) -> None:
    v, radii, gradients, counts = (x.to(DEVICE) for x in views(2, 20))
    got = gradients.clone(), counts.clone()
    skip = torch.full(shape, 2, dtype=torch.int32, device=DEVICE)
    add_gradient_norms(v, radii, *got, skip=skip, backend=backend, **SIZE)
    assert torch.equal(got[0], gradients) and torch.equal(got[1], counts)
    add_gradient_norms(v, radii, *got, skip=torch.zeros_like(skip), backend=backend, **SIZE)
    add_gradient_norms(v, radii, gradients, counts, backend=backend, **SIZE)
    assert torch.equal(got[0], gradients) and torch.equal(got[1], counts)
    assert counts.max() > 1


def test_unseen_gradients_are_not_read_as_numbers() -> None:
    v, radii, gradients, counts = (x.to(DEVICE) for x in views(1, 20))
    v[:, ::2] = float("nan")
    radii[:, ::2] = 0
    for backend in ("triton", "reference"):
        add_gradient_norms(v, radii, gradients, counts, backend=backend, **SIZE)
    assert gradients.isfinite().all()


def test_bad_input_is_named() -> None:
    v, radii, gradients, counts = (x.to(DEVICE) for x in views(1, 20))

    def add(v=v, radii=radii, gradients=gradients, **more: Any) -> None:
        add_gradient_norms(v, radii, gradients, counts, **SIZE, **more)

    with pytest.raises(ValueError, match="radii"):
        add(radii=radii[:, :3])
    with pytest.raises(ValueError, match="int32"):
        add(radii=radii.float())
    with pytest.raises(ValueError, match="gradients"):
        add(gradients=gradients.double())
    with pytest.raises(ValueError, match="skip"):
        add(skip=torch.zeros(1, device=DEVICE))
    with pytest.raises(ValueError, match="backend"):
        add(backend="cuda")
