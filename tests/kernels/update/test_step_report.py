"""kernels.report_step and add_losses: the kernels beside their reference."""

import pytest
import torch
from torch import Tensor

from kernels import add_losses, report_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def words(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_what_does_not_fit_is_told(backend: str) -> None:
    limits, serial = words(7, 90), words(41)
    for counts, missing, skip in (
        ((7, 90), None, 0),
        ((8, 0), None, 1),
        ((0, 91), 0, 1),
        ((7, 90), 0, 0),
        ((0, 0), 3, 1),
    ):
        lacking = None if missing is None else words(missing)
        got = report_step(words(*counts), limits, serial, missing=lacking, backend=backend)
        assert got[0].tolist() == [*counts, missing or 0, 41] and got[1].tolist() == [skip]


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_losses_of_steps_that_count_add_up(backend: str) -> None:
    sums = torch.zeros(4, device=DEVICE)
    losses = torch.tensor([0.5, 9.0, 0.25, 2.0], device=DEVICE)
    for skip in (None, 0, 1, 0):
        word = None if skip is None else words(skip)
        if skip == 1:
            losses[0] = float("nan")  # as where buffers overflow
        add_losses(sums, losses[:1], losses[2:], 5, skip=word, backend=backend)
        losses[0] = 0.5
    assert sums.tolist() == [1.5, 0.75, 6.0, 15.0]
