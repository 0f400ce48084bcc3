"""Projection through lenses in float32 against the reference in float64: records and gradients."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import Distortion, RasterInputs, RenderSettings, lenses_of
from kernels.device.angles import atan2
from kernels.projection import project
from kernels.projection.record import (
    record_colors,
    record_conics,
    record_depths,
    record_log2_opacities,
    spread,
)
from kernels.reference import projection as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, HEIGHT = 75, 50
# Lanes without a visible Gaussian divide by zero; nothing of theirs is used.
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")
# float32 against float64, RMS over a tensor
FORWARD, GRADIENT = 1e-5, 1e-4

PRISM = (0.012, 0.003, -0.007, 0.002)
LENSES = {
    "pinhole, unscented": Distortion("distorted"),
    "SIMPLE_RADIAL": Distortion("distorted", (-0.12,)),
    "OPENCV": Distortion("distorted", (-0.15, 0.04), (), (0.002, -0.0015)),
    "FULL_OPENCV": Distortion(
        "distorted", (-0.15, 0.04, 0.01), (0.05, -0.02, 0.004), (0.002, -0.0015), PRISM
    ),
    "FISHEYE": Distortion("fisheye"),
    "OPENCV_FISHEYE": Distortion("fisheye", (0.03, -0.008, 0.002, -0.0004)),
    "RADIAL_FISHEYE": Distortion("fisheye", (-0.05, -0.01)),
    "THIN_PRISM_FISHEYE": Distortion(
        "fisheye", (0.03, -0.008, 0.002, -0.0004), (), (0.001, -0.0008), PRISM
    ),
    "EQUIRECTANGULAR": Distortion("equirectangular"),
}


def scene(n: int, lens: Distortion, cameras: int = 2) -> dict[str, Tensor]:
    """Gaussians all around two cameras; float32 numbers."""
    g = torch.Generator().manual_seed(n)
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[-1, :3, :3] = reference.quats_to_rotmats(
        torch.nn.functional.normalize(torch.tensor([1.0, 0.1, 0.3, -0.05]), dim=0)
    )
    viewmats[-1, :3, 3] = torch.tensor([0.2, -0.1, 0.5])
    fx, fy, cx, cy = 30.0, 27.0, 36.0, 26.0
    if lens.family == "equirectangular":
        fx, fy, cx, cy = WIDTH / (2 * math.pi), HEIGHT / math.pi, WIDTH / 2, HEIGHT / 2
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    means = torch.randn(n, 3, generator=g) * torch.tensor([1.5, 1.0, 2.0])
    means[:, 2] += 1.0
    t = {
        "means": means,
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.rand(n, 3, generator=g) * 2.0 - 3.5,
        "opacities": torch.randn(n, generator=g) * 3.0,
        "colors": torch.randn(n, 4, 3, generator=g) * 0.4,
        "viewmats": viewmats,
        "Ks": K.repeat(cameras, 1, 1),
    }
    t = {name: x.to(DEVICE) for name, x in t.items()}
    t["lenses"] = lenses_of([lens] * cameras, t["Ks"], WIDTH, HEIGHT).words
    return t


def settings(lens: Distortion, t: dict[str, Tensor], **options: Any) -> RenderSettings:
    kind = lenses_of([lens] * len(t["Ks"]), t["Ks"], WIDTH, HEIGHT).kind
    made = RenderSettings(WIDTH, HEIGHT, 0.2, 8.0, sh_degree=1, raw=True, lens=kind)
    return made._replace(**options)


def inputs(t: dict[str, Any]) -> RasterInputs:
    return RasterInputs(**t)


def columns(views: Iterable[reference.View]) -> Tensor:  # [C, N, 11]
    """Records of the reference, in the order of a record's first columns."""
    rows = []
    for view in views:
        p = view.projected
        assert view.colors is not None
        parts = [p.means2d, p.conics, p.opacities.log2()[:, None], p.depths[:, None], view.colors]
        rows.append(view.spread(torch.cat(parts, 1)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("antialiased", [False, True])
def test_records_and_gradients(
    assert_close: Callable[..., None],
    spoil_memory: Callable[[int], None],
    name: str,
    antialiased: bool,
) -> None:
    spoil_memory(0x7F7F7F7)
    lens = LENSES[name]
    t = scene(300, lens)
    s = settings(lens, t, antialiased=antialiased, raw=not antialiased)
    if antialiased:
        t["scales"], t["opacities"] = t["scales"].exp(), t["opacities"].sigmoid()
    learnt = ["means", "quats", "scales", "opacities", "colors", "viewmats"]
    narrow = t | {k: t[k].clone().requires_grad_() for k in learnt}
    wide = {k: x.double() for k, x in t.items()}
    wide["lenses"] = lenses_of([lens] * 2, wide["Ks"], WIDTH, HEIGHT).words
    wide |= {k: wide[k].requires_grad_() for k in learnt}

    got = project(inputs(narrow), s)
    want = reference.project(inputs(wide), s)
    radii = torch.stack([view.radii for view in want.views])
    both = (got.radii > 0).all(-1) & (radii > 0).all(-1)
    assert both.sum() > 60
    assert (got.radii != radii).any(-1).sum() <= 0.01 * both.sum()
    values = spread(got.values, got.rows)
    parts = [
        record_conics(values),
        record_log2_opacities(values)[..., None],
        record_depths(values)[..., None],
        record_colors(values),
    ]
    got_columns = torch.cat([got.means2d, *parts], -1) * both[..., None]
    want_columns = columns(want.views) * both[..., None]
    for k in range(got_columns.shape[-1]):
        assert_close(f"column {k}", got_columns[..., k], want_columns[..., k], FORWARD)

    g = torch.Generator().manual_seed(2)
    weights = torch.randn(want_columns.shape, generator=g).to(DEVICE)
    # Conics of 10 by pixels of 50: so that every column counts.
    weights = weights / want_columns.detach().square().mean((0, 1)).sqrt()
    (got_columns * weights).sum().backward()
    (want_columns * weights.double()).sum().backward()
    for k in learnt:
        assert_close(f"v_{k}", narrow[k].grad, wide[k].grad, GRADIENT)


@pytest.mark.parametrize("name", ["OPENCV", "OPENCV_FISHEYE", "EQUIRECTANGULAR"])
def test_nothing_to_see(name: str) -> None:
    lens = LENSES[name]
    t = scene(5, lens)
    leaf = t["means"].clone().requires_grad_()
    got = project(inputs(t | {"means": leaf}), settings(lens, t, far_plane=0.3))
    assert (got.rows == -1).all()
    (got.means2d.sum() + got.values.nan_to_num(0.0).sum()).backward()
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("name", ["FULL_OPENCV", "THIN_PRISM_FISHEYE", "EQUIRECTANGULAR"])
def test_special_places_have_finite_gradients(name: str) -> None:
    """On the axis, sigma points behind and beside the camera, Gaussians all round it."""
    lens = LENSES[name]
    t = scene(6, lens, cameras=1)
    t["means"] = torch.tensor(
        [[0, 0, 1.0], [0.0, 0, 3.0], [0.5, 0, 0.5], [0.3, 0.2, 0.25], [1, 0, 1e-3], [0, 1.0, 0.4]]
    ).to(DEVICE)
    t["scales"] = torch.tensor([-2.0, -9, -0.4, 1.0, -1.0, -0.5]).to(DEVICE)[:, None].repeat(1, 3)
    leaves = {k: t[k].clone().requires_grad_() for k in ("means", "quats", "scales", "viewmats")}
    got = project(inputs(t | leaves), settings(lens, t))
    assert (got.rows >= 0).sum() >= 3
    (got.means2d.sum() + got.values[:, :12][got.rows[got.rows >= 0].long()].sum()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all(), name


@triton.jit
def _atan2_kernel(y_ptr, x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, atan2(tl.load(y_ptr + i), tl.load(x_ptr + i)))


def test_atan2() -> None:
    g = torch.Generator().manual_seed(0)
    y, x = torch.randn(2, 1024, generator=g)
    special = torch.tensor(
        [[0.0, 0.0, 1.0, -1.0, 0.0, 1e-20, 1.0, -1e-30], [0.0, 1.0, 0.0, 0.0, -1.0, 1.0, 1e-20, 1]]
    )
    y[:8], x[:8] = special
    x[8:200] *= 1e-4
    y[200:400] *= 1e-4
    y, x, out = y.to(DEVICE), x.to(DEVICE), torch.empty(1024, device=DEVICE)
    _atan2_kernel[(1,)](y, x, out, BLOCK=1024)  # pyright: ignore[reportArgumentType]
    want = np.arctan2(y.cpu().double().numpy(), x.cpu().double().numpy())
    error = np.abs(out.cpu().double().numpy() - want)
    assert error.max() < 4e-7
    # also relative to small angles
    assert (error <= 4e-7 * np.maximum(np.abs(want), 1e-30) + 1e-30).all()
