"""The unscented transform in float64: vectors, its limit EWA, gradients of whole renderings."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from kernels import RasterInputs, RenderSettings
from kernels.lenses import Distortion, LensKind, lenses_of, pack_lens, project_points
from kernels.reference.projection import projection, quats_to_rotmats
from kernels.reference.rasterization import rasterize
from kernels.reference.unscented import unscented

F64 = torch.float64
FISHEYE = Distortion("fisheye", (0.03, -0.008, 0.002, -0.0004))
K = torch.tensor([[400.0, 0, 505], [0, 395, 395], [0, 0, 1]], dtype=F64)
WORDS = pack_lens(FISHEYE, (400.0, 395.0, 505.0, 395.0), 1010, 790)
MEAN, SCALES, SHIFT = (0.9, -0.6, 0.8), (0.25, 0.10, 0.04), (0.2, -0.1, 0.3)
# alpha: mean, covariance
MOMENTS = {
    0.1: (
        (714.0194846943625, 184.99337952269022),
        (659.3950808717137, -631.0717968407275, 914.4028529988531),
    ),
    1.0: (
        (714.075771944758, 184.87796394508226),
        (696.0266458602094, -689.9781883445362, 1008.1712896144188),
    ),
}
EWA = (
    (712.3185406560917, 187.99237315205005),
    (653.2539781648203, -620.3049102409512, 895.5252394933827),
)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def unit(*values: float) -> Tensor:
    return torch.nn.functional.normalize(tensor(*values), dim=0)


def view() -> tuple[Tensor, Tensor]:
    """World to camera."""
    return quats_to_rotmats(unit(0.96, 0.1, -0.2, 0.05)), tensor(*SHIFT)


def lens(points: Tensor) -> Tensor:
    return project_points("fisheye", K, WORDS, points)


def moments(mean: Tensor, scales: Tensor, shift: Tensor, alpha: float) -> tuple[Tensor, ...]:
    R, _ = view()
    axes = R @ quats_to_rotmats(unit(0.8, 0.3, -0.4, 0.2)) * scales
    mean2d, xx, xy, yy, det = unscented((R @ mean + shift)[None], axes[None], lens, alpha=alpha)
    return mean2d[0], torch.cat([xx, xy, yy]), det[0]


@pytest.mark.parametrize("alpha", MOMENTS)
def test_moments(alpha: float) -> None:
    mean2d, cov, det = moments(tensor(*MEAN), tensor(*SCALES), tensor(*SHIFT), alpha)
    want_mean, want_cov = MOMENTS[alpha]
    assert torch.allclose(mean2d, tensor(*want_mean), rtol=1e-12)
    assert torch.allclose(cov, tensor(*want_cov), rtol=1e-10)
    assert torch.allclose(det, cov[0] * cov[2] - cov[1] ** 2, rtol=1e-9)


def test_a_small_alpha_is_ewa_and_a_shift() -> None:
    R, shift = view()
    mean, scales = tensor(*MEAN), tensor(*SCALES)
    J = torch.autograd.functional.jacobian(lens, R @ mean + shift)
    half = J @ R @ quats_to_rotmats(unit(0.8, 0.3, -0.4, 0.2)) * scales
    cov = half @ half.T
    want_mean, want_cov = EWA
    assert torch.allclose(lens(R @ mean + shift), tensor(*want_mean), rtol=1e-12)
    assert torch.allclose(cov[[0, 0, 1], [0, 1, 1]], tensor(*want_cov), rtol=1e-12)
    mean2d, got, _ = moments(mean, scales, shift, 1e-3)
    x, y = mean2d - tensor(*want_mean)  # half of the second derivative
    assert torch.allclose(
        got, tensor(*want_cov) + 2 * torch.stack([x * x, x * y, y * y]), rtol=1e-5
    )


def test_gradient_vector() -> None:
    leaves = [x.requires_grad_() for x in (tensor(*MEAN), tensor(*SCALES), tensor(*SHIFT))]
    mean2d, cov, _ = moments(leaves[0], leaves[1], leaves[2], 1.0)
    loss = (mean2d * tensor(0.7, -0.3)).sum() + (cov * tensor(0.02, -0.01, 0.03)).sum()
    wanted = (
        (33.82177160378903, -103.17415216145369, -223.65986364642987),
        (356.28555373542906, 236.8077980406638, 104.56386707467422),
        (131.1481478602313, -49.90522278367763, -205.23689864821014),
    )
    for got, want in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        assert torch.allclose(got, tensor(*want), rtol=1e-10)


def test_conic_and_antialiasing() -> None:
    R, shift = view()
    viewmat = torch.eye(4, dtype=F64)
    viewmat[:3, :3], viewmat[:3, 3] = R, shift
    got = projection(
        tensor(*MEAN)[None],
        tensor(0.8, 0.3, -0.4, 0.2)[None],
        tensor(*SCALES)[None],
        tensor(1.0),
        viewmat,
        K,
        1010,
        790,
        near_plane=0.2,
        far_plane=1e10,
        eps2d=0.3,
        antialiased=True,
        lens=LensKind("fisheye", 4),
        lens_words=WORDS,
    )
    conic = tensor(0.004459193586533996, 0.0030509012442889393, 0.003078972446047293)
    assert torch.allclose(got.conics[0], conic, rtol=1e-10)
    assert got.opacities.item() == pytest.approx(0.9988688343053095, rel=1e-10)
    assert (got.radii > 0).all()
    assert got.depths.item() == pytest.approx((R @ tensor(*MEAN) + shift).norm().item())


@pytest.mark.parametrize("family", ["distorted", "fisheye"])
def test_without_coefficients_a_small_gaussian_looks_as_in_a_pinhole(family: str) -> None:
    g = torch.Generator().manual_seed(1)
    means = torch.randn(20, 3, generator=g, dtype=F64) * 0.3 + tensor(0, 0, 2)
    if family == "fisheye":
        means = means * tensor(1e-3, 1e-3, 1)  # there theta is tan theta
    geometry = means, torch.randn(20, 4, generator=g, dtype=F64), means.new_full((20, 3), 1e-4)
    common: dict[str, Any] = {"near_plane": 0.2, "far_plane": 10.0, "eps2d": 0.0}
    words = pack_lens(Distortion(family), (400.0, 395.0, 505.0, 395.0), 1010, 790)
    opacities, eye = means.new_full((20,), 0.9), torch.eye(4, dtype=F64)
    bent, straight = (
        projection(*geometry, opacities, eye, K, 1010, 790, **common, **options)
        for options in ({"lens": LensKind(family), "lens_words": words}, {})
    )
    assert torch.allclose(bent.means2d, straight.means2d, atol=1e-4)
    assert torch.allclose(bent.covars2d, straight.covars2d, rtol=1e-4, atol=1e-9)
    assert torch.equal(bent.radii, straight.radii)


def one(means: list[list[float]], size: float, lens: Distortion, **options: Any) -> list[bool]:
    """Which round Gaussians are drawn in an image of 120x80 pixels."""
    intrinsics = (40.0, 40.0, 60.0, 40.0)
    if lens.family == "equirectangular":
        intrinsics = (60 / torch.pi, 40 / torch.pi * 2, 60.0, 40.0)
    fx, fy, cx, cy = intrinsics
    got = projection(
        tensor(*(x for mean in means for x in mean)).view(-1, 3),
        tensor(1, 0, 0, 0).repeat(len(means), 1),
        tensor(size).repeat(len(means), 3),
        tensor(0.9).repeat(len(means)),
        torch.eye(4, dtype=F64),
        tensor(fx, 0, cx, 0, fy, cy, 0, 0, 1).view(3, 3),
        120,
        80,
        near_plane=options.get("near", 0.2),
        far_plane=100.0,
        eps2d=0.3,
        lens=LensKind(lens.family, len(lens.radial)),
        lens_words=pack_lens(lens, intrinsics, 120, 80),
    )
    return (got.radii > 0).all(-1).tolist()


def test_who_is_drawn() -> None:
    fisheye = Distortion("fisheye")  # the corner is 103 degrees from the axis
    # beside the camera, in the corner behind it, behind it, before the near plane
    means = [[2.0, 0, 0.3], [2.0, 1.3, -0.3], [0.1, 0, -2.0], [0.1, 0.0, 0.17]]
    assert one(means, 0.05, fisheye) == [True, True, False, False]
    assert one([[0.1, 0, -2.0]], 1.5, fisheye) == [False]
    assert one([[0.3, 0, -2.0]], 0.05, Distortion("equirectangular")) == [True]
    assert one([[0.3, 0, -2.0]], 2.1, Distortion("equirectangular")) == [False]
    # a lens of perspective sees nothing behind it
    assert one([[2.0, 0, -0.1], [2, 0, 1.9]], 0.05, Distortion("distorted")) == [False, True]
    assert one([[0.9, 0, 0.8]], 0.05, Distortion("distorted", (-0.12,))) == [True]


LENSES = {
    "distorted": Distortion("distorted", (-0.15, 0.04), (0.05, 0.01, 0.0), (0.02, -0.015)),
    "fisheye": Distortion("fisheye", (0.03, -0.008), (), (0.01, -0.008), (0.012, 0.002, -0.007, 0)),
    "equirectangular": Distortion("equirectangular"),
}


@pytest.mark.parametrize("family", LENSES)
def test_renderings_have_the_gradients_of_finite_differences(family: str) -> None:
    """Every input's, also of Gaussians beyond the ends of lenses."""
    g = torch.Generator().manual_seed(5)
    n, width, height = 6, 13, 9
    focal, centre = ((14.0, 13.0), (6.0, 5.0))
    if family == "equirectangular":
        focal, centre = (width / (2 * torch.pi), height / torch.pi), (width / 2, height / 2)
    K = tensor(focal[0], 0, centre[0], 0, focal[1], centre[1], 0, 0, 1).view(3, 3)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=F64)

    viewmats = torch.eye(4, dtype=F64).repeat(2, 1, 1)
    viewmats[1, 0, 3], viewmats[1, 0, 2], viewmats[1, 2, 0] = 0.1, 0.1, -0.1
    lenses = lenses_of([LENSES[family]] * 2, K.repeat(2, 1, 1), width, height)
    inputs = {
        "means": (rand(n, 3) - 0.5) * tensor(2.6, 1.8, 1.6) + tensor(0.0, 0, 2.5),
        "quats": rand(n, 4) - 0.5,
        "scales": rand(n, 3) * 0.3 + 0.1,
        "opacities": rand(n) * 0.6 + 0.2,
        "colors": rand(n, 4, 3) - 0.3,
        "viewmats": viewmats,
    }
    weights = rand(2, height, width, 5)
    settings = RenderSettings(
        width, height, 0.2, sh_degree=1, render_mode="RGB+ED", antialiased=True, lens=lenses.kind
    )

    def loss(*values: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(inputs, values, strict=True))
        x = RasterInputs(**named, Ks=K.repeat(2, 1, 1), lenses=lenses.words)
        image, alphas, _ = rasterize(x, settings)
        return (torch.cat([image, alphas], -1) * weights[..., : image.shape[-1] + 1]).sum()

    leaves = [x.requires_grad_() for x in inputs.values()]
    assert gradcheck(loss, leaves, eps=1e-6, atol=1e-6, rtol=1e-6)
