"""Masks that every camera draws for itself: kernels and reference, draws, and their gradients."""

import pytest
import torch
from torch import Tensor

from kernels import RasterInputs, RenderSettings, sample_masks
from kernels.exchange import ProjectedRecords, project_records
from kernels.projection.record import MASK

SEED, N, C = (5 << 40) + 77, 150, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")


def records(
    backend: str, logits: Tensor, n: int = N, *, by_camera: bool = True
) -> ProjectedRecords:
    """Of n Gaussians in view of three cameras, but that the last sees nothing of the first 70."""
    g = torch.Generator().manual_seed(n)
    means = torch.rand(n, 3, generator=g) - 0.5
    means[:, 2] += 3.0
    viewmats = torch.eye(4).repeat(C, 1, 1)
    means[:70, 1] += 40.0
    viewmats[:2, 1, 3] = -20.0
    K = torch.tensor([[4.0, 0.0, 20.0], [0.0, 2.0, 20.0], [0.0, 0.0, 1.0]])
    inputs = RasterInputs(
        means.to(DEVICE),
        torch.randn(n, 4, generator=g).to(DEVICE),
        torch.full((n, 3), 0.3, device=DEVICE),
        torch.full((n,), 0.8, device=DEVICE),
        torch.rand(n, 1, 3, generator=g).to(DEVICE),
        viewmats.to(DEVICE),
        K.repeat(C, 1, 1).to(DEVICE),
        mask_logits=logits,
        mask_seed=SEED,
    )
    settings = RenderSettings(40, 40, sh_degree=0, masks_by_camera=by_camera)
    return project_records(inputs, settings, backend=backend)


def draws_of(logits: Tensor) -> Tensor:  # [C, N]
    return torch.stack([sample_masks(logits, SEED ^ (c << 32)) for c in range(C)])


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_cameras_draw_for_themselves(backend: str, columns: int) -> None:
    logits = torch.randn(N, columns, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits = (logits[:, 0] if columns == 1 else logits).contiguous().requires_grad_()
    made, draws = records(backend, logits), draws_of(logits)
    rows = int(made.n_rows)
    assert N < rows < C * N and made.masks is not None
    camera, gaussian = made.gaussian_ids[:rows] // N, made.gaussian_ids[:rows] % N
    of_rows = draws[camera.long(), gaussian.long()]
    column = made.values[:rows, MASK.value if backend == "triton" else 6]
    assert torch.equal(column, of_rows)
    assert torch.equal(made.masks, draws.sum(0) / C)
    g = torch.Generator().manual_seed(2)
    v_rows, v_masks = (torch.randn(n, generator=g).to(DEVICE) for n in (rows, N))
    loss = (column * v_rows).sum() + (made.masks * v_masks).sum()
    (got,) = torch.autograd.grad(loss, logits)
    loss = (of_rows * v_rows).sum() + (draws.mean(0) * v_masks).sum()
    (want,) = torch.autograd.grad(loss, logits)
    assert (got - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("by_camera", [True, False])
def test_gradients_of_images_are_independent(by_camera: bool) -> None:
    """The square-root rule of batches is for sums whose variance grows as the number of images;
    that of images which share a draw grows as its square, and their masks would fall more slowly.
    """
    logits = torch.zeros(4000, device=DEVICE, requires_grad=True)
    made = records("reference", logits, 4000, by_camera=by_camera)
    assert made.masks is not None
    (got,) = torch.autograd.grad(C * made.masks.sum(), logits)
    (one,) = torch.autograd.grad(sample_masks(logits, SEED).sum(), logits)
    expected = C if by_camera else C * C
    assert float(got.var() / one.var()) == pytest.approx(expected, rel=0.1)
