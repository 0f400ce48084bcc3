"""The kernels of light against the reference in float64."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from kernels import LENS_NUMBERS, corrected, neutral_rows
from kernels.light import kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Kind = Literal["affine", "ppisp"]


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(77)


def tables(kind: Kind, n_images: int, n_lenses: int, scale: float = 0.2) -> list[Tensor]:
    g = torch.Generator().manual_seed(n_images)
    rows = neutral_rows(n_images, kind)
    rows += scale * torch.randn(rows.shape, generator=g)
    if kind == "affine":
        return [rows.to(DEVICE)]
    lenses = scale * torch.randn(n_lenses, LENS_NUMBERS, generator=g)
    return [rows.to(DEVICE), lenses.to(DEVICE)]


def check(
    kind: Kind,
    shape: tuple[int, int],
    n_images: int,
    n_lenses: int,
    regularised: bool,
    assert_close: Callable[..., None],
) -> None:
    g = torch.Generator().manual_seed(0)
    colors, v_out = (torch.rand(*shape, 3, generator=g).to(DEVICE) + 0.05 for _ in range(2))
    v_out -= 0.4
    index = torch.tensor([n_images // 2], dtype=torch.int32, device=DEVICE)
    lens_of = (torch.arange(n_images, device=DEVICE) % n_lenses).int()
    learnt = tables(kind, n_images, n_lenses)
    found = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in (colors, *learnt)]
        more = {} if kind == "affine" else {"lenses": leaves[2], "lens_of": lens_of}
        out = corrected(
            leaves[0], leaves[1], index, regularised=regularised, backend=backend, **more
        )
        found.append((out.detach(), *torch.autograd.grad(out, leaves, v_out.to(dtype))))
    names = ("out", "v_colors", "v_rows", "v_lenses")
    for name, got, want in zip(names, found[1], found[0], strict=False):
        assert_close(name, got, want, 1e-5)


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
@pytest.mark.parametrize("regularised", [False, True])
@pytest.mark.parametrize(
    ("shape", "n_images", "n_lenses"), [((1, 1), 1, 1), ((33, 41), 5, 2), ((7, 90), 300, 140)]
)
def test_sizes(
    kind: Kind,
    regularised: bool,
    shape: tuple[int, int],
    n_images: int,
    n_lenses: int,
    assert_close: Callable[..., None],
) -> None:
    check(kind, shape, n_images, n_lenses, regularised, assert_close)


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_many_programs(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, assert_close: Callable[..., None]
) -> None:
    """More partial sums than are added at a time."""
    monkeypatch.setattr(kernel, "BWD_BLOCK", 1)
    check(kind, (23, 25), 3, 1, True, assert_close)


def test_a_lens_that_lets_all_through_can_darken() -> None:
    """Its share is cut at 1, where it begins: the gradient passes there."""
    colors = torch.full((6, 6, 3), 0.5, device=DEVICE)
    rows, lenses = neutral_rows(1, "ppisp").to(DEVICE), torch.zeros(1, LENS_NUMBERS, device=DEVICE)
    index, lens_of = (torch.zeros(1, dtype=torch.int32, device=DEVICE) for _ in range(2))
    for backend in ("reference", "triton"):
        lens = lenses.clone().requires_grad_()
        out = corrected(colors, rows, index, lenses=lens, lens_of=lens_of, backend=backend)
        (v,) = torch.autograd.grad(out.sum(), lens)
        assert (v.view(3, 5)[:, 2:] > 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_full_size(kind: Kind, assert_close: Callable[..., None]) -> None:
    check(kind, (533, 801), 200, 2, True, assert_close)
