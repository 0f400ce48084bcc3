"""The vectorised blending against a loop over pixels and Gaussians."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import rasterization

W, H = 23, 19


def render(values: dict[str, Any], **changes: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """`rasterization` of these keywords, some of them changed."""
    return rasterization(**(values | changes))


def scene(n: int, seed: int, opaque: bool) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(n, 3, generator=g) - 0.5) * 2 + torch.tensor([0, 0, 3.0])
    means[1::7, 2] = means[0, 2]  # equal depths
    opacities = torch.rand(n, generator=g) * 0.5 + (0.5 if opaque else 0.0)
    K = torch.tensor([[20.0, 0, 11], [0, 20.0, 9], [0, 0, 1]])
    masks = torch.rand(n, generator=g).mul(5).floor().clamp_max(2) / 2  # 0, 1/2 and 1
    tensors = {
        "means": means,
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.exp(torch.randn(n, 3, generator=g) * 0.5 - (1.0 if opaque else 2.0)),
        "opacities": opacities,
        "colors": torch.rand(n, 3, generator=g),
        "viewmats": torch.eye(4)[None],
        "Ks": K[None],
        "masks": masks,
        "backgrounds": torch.rand(1, 3, generator=g),
    }
    return {k: v.double() for k, v in tensors.items()} | {
        "width": W,
        "height": H,
        "backend": "reference",
    }


def cast(values: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in values.items()}


def loop(
    values: dict[str, Any], info: dict[str, Any], opacities: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """RGB, depth and alpha [H, W, 5], transmittances and contributions, one Gaussian at a time."""
    n = len(opacities)
    scores = {k: torch.zeros(n) for k in ("max", "sum", "count", "top")}
    image, stops = torch.zeros(H, W, 5).double(), torch.zeros(H, W)
    seen = [i for i in range(n) if (info["radii"][0, i] > 0).all()]
    order = sorted(seen, key=lambda i: (info["depths"][0, i].item(), i))
    means2d, conics = info["means2d"][0].tolist(), info["conics"][0].tolist()
    opacity, mask, depth = opacities.tolist(), values["masks"].tolist(), info["depths"][0].tolist()
    for y in range(H):
        for x in range(W):
            T, best = 1.0, (0.0, -1)
            for i in order:
                dx, dy = x + 0.5 - means2d[i][0], y + 0.5 - means2d[i][1]
                A, B, C = conics[i]
                alpha = opacity[i] * math.exp(-0.5 * (A * dx * dx + C * dy * dy) - B * dx * dy)
                alpha = min(0.9900000095367432, alpha)
                if alpha < 1 / 255:
                    continue
                after = T * (1 - mask[i] * alpha)
                if after < 1e-4:
                    stops[y, x] = 1
                    break
                w = mask[i] * alpha * T
                image[y, x, :3] += w * values["colors"][i]
                image[y, x, 3] += w * depth[i]
                scores["max"][i] = max(scores["max"][i], w)
                scores["sum"][i] += w
                scores["count"][i] += w > 0
                best = max(best, (w, i), key=lambda pair: pair[0])
                T = after
            if best[0] > 0:
                scores["top"][best[1]] += 1
            image[y, x, :3] += T * values["backgrounds"][0]
            image[y, x, 4] = 1 - T
    return image, stops, scores


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_against_a_loop(opaque: bool, dtype: torch.dtype) -> None:
    values = scene(90, seed=2, opaque=opaque)
    given = cast(values, dtype)
    image, alphas, info = rasterization(**given, render_mode="RGB+D", contributions=True)
    exact = rasterization(**values)[2]
    want, stops, scores = loop(values, exact, values["opacities"])
    assert bool(stops.any()) == opaque
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    got = torch.cat([image[0], alphas[0]], -1).double()
    assert (got - want).abs().max() < limit * 10
    limit = 1e-6 if dtype == torch.float64 else 1e-5
    for name, score in scores.items():
        assert torch.allclose(info[f"contrib_{name}"].float(), score, rtol=limit, atol=limit), name
    counted = torch.stack([info["contrib_count"], info["contrib_top"]])
    assert counted.dtype == torch.int64
    assert (scores["count"] > 0).sum() > 20


def test_contributions_add_up_over_cameras() -> None:
    values = scene(60, seed=3, opaque=False)
    other = values["viewmats"].clone()
    other[0, 0, 3] = 0.4
    names = ("contrib_max", "contrib_sum", "contrib_count", "contrib_top")

    def scores(viewmats: Tensor) -> list[Tensor]:
        c = len(viewmats)
        both = {k: values[k].repeat(c, *[1] * (values[k].dim() - 1)) for k in ("Ks", "backgrounds")}
        info = render(values, **both, viewmats=viewmats, contributions=True)[2]
        return [info[name].double() for name in names]

    first, second = scores(values["viewmats"]), scores(other)
    joint = scores(torch.cat([values["viewmats"], other]))
    assert torch.equal(joint[0], torch.maximum(first[0], second[0]))
    for i in (1, 2, 3):
        assert torch.allclose(joint[i], first[i] + second[i])
    assert (first[0] != second[0]).any()


def test_contributions_carry_no_graph_and_change_nothing() -> None:
    values = scene(60, seed=4, opaque=True)
    values["means"].requires_grad_()
    plain = rasterization(**values)[0]
    image, _, info = rasterization(**values, contributions=True)
    assert torch.equal(plain, image)
    assert not info["contrib_sum"].requires_grad
    # Every ray spends what it has: weights sum to the alphas.
    assert info["contrib_sum"].sum().item() == pytest.approx(
        rasterization(**values)[1].sum().item()
    )


def test_repeats_bit_for_bit() -> None:
    values = scene(200, seed=5, opaque=True)
    values = cast(values, torch.float32)
    leaves = [values[k].requires_grad_() for k in ("means", "scales", "colors", "masks")]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(rasterization(**values)[0].square().sum(), leaves))

    first = gradients()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(gradients(), first, strict=True))
