"""The reference of light: literal vectors, gradients against finite differences, regularisers."""

from typing import Literal

import pytest
import torch

from kernels import LENS_NUMBERS, corrected, neutral_rows
from kernels.reference.light import homography, recolored, regulariser, vignetted

SIZES = {"affine": 12, "ppisp": 9}
RGB = (0.2, 0.5, 0.7)


def numbers(*shape: int, scale: float = 0.1, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def test_affine_is_of_row_vectors() -> None:
    row = torch.tensor(
        [[1.1, 0.02, -0.01, 0.03], [0, 0.9, 0.01, -0.02], [0.01, 0, 1.05, 0.01]],
        dtype=torch.float64,
    )
    colors = torch.tensor(RGB, dtype=torch.float64).view(1, 1, 3)
    out = corrected(colors, row.view(1, 12), torch.tensor([0]))
    assert out.flatten().tolist() == pytest.approx([0.257, 0.434, 0.748], abs=1e-15)


def test_ppisp_as_published() -> None:
    z = torch.tensor([0.5, -0.3, 0.2, 0.1, -0.4, 0.6, 0.8, -0.5], dtype=torch.float64)
    matrix = homography(z)
    want = [
        [0.9867005077058457, -0.05142337519186749, 0.02533603],
        [0.017334780577030265, 0.9817796232107749, -0.01662004],
        [0.0022022477533611595, -0.07378896174037873, 1.0],
    ]
    torch.testing.assert_close(matrix, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-14)
    lens = torch.tensor(
        [0.02, -0.01, -0.3, 0.05, -0.02, 0.01, 0, -0.25, 0.03, -0.01, 0, 0.01, -0.2, 0.02, -0.01],
        dtype=torch.float64,
    )
    # a pixel at uv (0.3, -0.2): column 80 and row 30 of 100x100 have their centres at +0.005
    x = torch.tensor(RGB, dtype=torch.float64) * 2.0**0.25
    shift = lens.view(3, 5).clone()
    shift[:, :2] += 0.005
    image = vignetted(x.expand(100, 100, 3), shift.flatten())
    out = recolored(image[30, 80], matrix)
    want = [0.2444345824961541, 0.5575223599023732, 0.8146705931934278]
    assert out.tolist() == pytest.approx(want, abs=1e-14)


def test_nothing_changes_at_first() -> None:
    colors = torch.rand(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([1])
    out = corrected(colors, neutral_rows(3, "affine").double(), index)
    assert torch.equal(out, colors)
    lens = torch.zeros(1, LENS_NUMBERS, dtype=torch.float64)
    rows, lens_of = neutral_rows(3, "ppisp").double(), torch.zeros(3, dtype=torch.int32)
    out = corrected(colors, rows, index, lenses=lens, lens_of=lens_of)
    torch.testing.assert_close(out, colors, rtol=1e-3, atol=0)  # the 1e-5 shows in dark pixels
    assert not torch.equal(out, colors)


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_gradients(kind: Literal["affine", "ppisp"]) -> None:
    index, colors = torch.tensor([1]), 0.5 + numbers(4, 5, 3)
    rows = (neutral_rows(3, kind).double() + numbers(3, SIZES[kind], seed=1)).requires_grad_()
    lenses, lens_of = None, None
    leaves = (colors.requires_grad_(), rows)
    if kind == "ppisp":
        lenses = (numbers(2, LENS_NUMBERS, seed=2) - 0.2).requires_grad_()
        lens_of = torch.tensor([0, 1, 0], dtype=torch.int32)
        leaves += (lenses,)
    assert torch.autograd.gradcheck(
        lambda colors, rows, lenses=None: corrected(
            colors, rows, index, lenses=lenses, lens_of=lens_of
        ),
        leaves,
    )


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_regularisers_come_with_the_gradient(kind: Literal["affine", "ppisp"]) -> None:
    rows = (neutral_rows(3, kind).double() + numbers(3, SIZES[kind])).requires_grad_()
    lenses = numbers(2, LENS_NUMBERS, seed=2).requires_grad_() if kind == "ppisp" else None
    lens_of = None if lenses is None else torch.zeros(3, dtype=torch.int32)
    colors, index = 0.5 + numbers(4, 5, 3), torch.tensor([2])
    leaves = [x for x in (rows, lenses) if x is not None]

    def gradients(regularised: bool) -> tuple[torch.Tensor, ...]:
        out = corrected(
            colors, rows, index, lenses=lenses, lens_of=lens_of, regularised=regularised
        )
        return torch.autograd.grad(out.square().sum(), leaves)

    assert torch.autograd.gradcheck(
        lambda rows, lenses=None: regulariser(index, rows, lenses), leaves
    )
    own = torch.autograd.grad(regulariser(index, rows, lenses), leaves)
    for with_it, without, v in zip(gradients(True), gradients(False), own, strict=True):
        torch.testing.assert_close(with_it, without + v, rtol=0, atol=1e-14)
        assert v.any()


def test_bad_arguments_are_named() -> None:
    colors, index = torch.zeros(4, 5, 3), torch.tensor([0])
    for wrong, message in [
        (lambda: corrected(colors[..., :2], neutral_rows(2, "affine"), index), "colors"),
        (lambda: corrected(colors, torch.zeros(2, 8), index), r"rows: expected \[I 12\]"),
        (lambda: corrected(colors, neutral_rows(2, "ppisp"), index), "lenses, lens_of"),
        (lambda: corrected(colors, neutral_rows(2, "affine").double(), index), "rows: expected"),
        (lambda: corrected(colors, neutral_rows(2, "affine"), index.float()), "index: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
