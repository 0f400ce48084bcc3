"""Where a comparison decides: limits that are met exactly, equal weights, the clamp of alpha.

Wide Gaussians of opacity 1 lie one behind the other, so that alpha is 0.99 around their centre to
the last bit, and masks alone make the numbers. In the reference and in the kernels.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import rasterization

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALPHA_MAX = torch.tensor(0.99)
BACKENDS: list[dict[str, Any]] = [
    {"backend": "reference"},
    {"backend": "triton", "precision": "exact"},
]


def column(masks: list[float], how: dict[str, Any]) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Alpha of the central pixel, its gradients by the masks, and contributions."""
    n = len(masks)
    leaf = torch.tensor(masks, device=DEVICE, requires_grad=True)
    K = torch.tensor([[8.0, 0, 4.5], [0, 8.0, 2.5], [0, 0, 1]])
    inputs = [
        torch.tensor([[0.0, 0, 1.0 + i] for i in range(n)]),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        torch.full((n, 3), 0.5),
        torch.ones(n),
        torch.ones(n, 3),
        torch.eye(4)[None],
        K[None],
    ]
    means, quats, scales, opacities, colors, viewmats, Ks = (x.to(DEVICE) for x in inputs)
    options = {"masks": leaf, "contributions": True, **how}
    _, alphas, info = rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, 9, 5, **options
    )
    alpha = alphas[0, 2, 4, 0]
    alpha.backward()
    assert leaf.grad is not None
    return alpha.item(), leaf.grad, info


def mask_of(effective: float) -> float:
    """The mask in float32 whose product with 0.99 rounds to a number."""
    want = torch.tensor(effective)
    near = (want / ALPHA_MAX).view(torch.int32) + torch.arange(-4, 5)
    masks = near.int().view(torch.float32)
    return masks[masks * ALPHA_MAX == want][0].item()


@pytest.mark.parametrize("how", BACKENDS, ids=["reference", "kernels"])
def test_a_ray_goes_on_where_its_transmittance_equals_the_limit(how: dict[str, Any]) -> None:
    # six times 1/4, and 1 - m alpha = 2^12 limit: every product is exact
    quarter, limit = mask_of(0.75), torch.tensor(1e-4)
    last = mask_of((1.0 - limit * 2**12).item())
    alpha, v_masks, _ = column([quarter] * 6 + [last, quarter], how)
    assert alpha == (1.0 - limit).item()
    assert (v_masks != 0).tolist() == [True] * 7 + [False]
    alpha, v_masks, _ = column([quarter] * 6 + [last + 1e-6, quarter], how)
    assert alpha == 1.0 - 2.0**-12
    assert (v_masks != 0).tolist() == [True] * 6 + [False] * 2


@pytest.mark.parametrize("how", BACKENDS, ids=["reference", "kernels"])
def test_the_nearest_of_equals_weighs_most(how: dict[str, Any]) -> None:
    # the reference rounds what is in front of others to 1; the kernels take weights as differences
    # of transmittances, here five units of the last place
    few = 1e-9 if how["backend"] == "reference" else 5 * 2.0**-24 / 0.99
    for nearest in (1, 3):
        masks = [0.0] * 40
        for i in (nearest, 9, 30):  # the last in another chunk of a tile's list
            masks[i] = few
        _, _, info = column(masks, how)
        largest, top = info["contrib_max"], info["contrib_top"]
        assert largest[nearest] == largest[9] == largest[30] > 0
        assert top[nearest] > 0 and int(top.sum()) == int(top[nearest])


@pytest.mark.parametrize("how", BACKENDS, ids=["reference", "kernels"])
def test_mask_gradients_of_clamped_alphas(how: dict[str, Any]) -> None:
    alpha, v_masks, _ = column([0.7, 0.5, 1.0], how)
    a = ALPHA_MAX.double().item()
    rests = [1 - 0.7 * a, 1 - 0.5 * a, 1 - a]
    assert 1 - alpha == pytest.approx(rests[0] * rests[1] * rests[2], rel=1e-4)
    want = [a * rests[1] * rests[2], a * rests[0] * rests[2], a * rests[0] * rests[1]]
    # without the clamp they would be 1 % larger
    assert v_masks.tolist() == pytest.approx(want, rel=1e-4)
