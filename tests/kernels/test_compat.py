"""Inria's classes: against their own records, and against `rasterization`."""

import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import rasterization
from kernels.compat import GaussianRasterizationSettings, GaussianRasterizer
from kernels.reference.projection import quats_to_rotmats

F64 = torch.float64


def settings(
    viewmat: Tensor, K: Tensor, width: int, height: int, bg: Tensor, sh_degree: int = 3, **change
) -> GaussianRasterizationSettings:
    """Inria's description of a pinhole camera, with matrices as its scripts make them."""
    fx, fy, cx, cy = (float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    near, far = 0.01, 100.0
    P = torch.tensor(
        [
            [2 * fx / width, 0, (2 * cx - width) / width, 0],
            [0, 2 * fy / height, (2 * cy - height) / height, 0],
            [0, 0, far / (far - near), -far * near / (far - near)],
            [0, 0, 1, 0],
        ],
        dtype=viewmat.dtype,
    )
    view = viewmat.T
    return GaussianRasterizationSettings(
        **(
            {
                "image_height": height,
                "image_width": width,
                "tanfovx": width / (2 * fx),
                "tanfovy": height / (2 * fy),
                "bg": bg,
                "scale_modifier": 1.0,
                "viewmatrix": view,
                "projmatrix": view @ P.T,
                "sh_degree": sh_degree,
                "campos": torch.linalg.inv(viewmat)[:3, 3],
                "prefiltered": False,
                "debug": False,
            }
            | change
        )
    )


def load(root: Path, scene: str) -> dict[str, Tensor]:
    with np.load(root / "golden" / f"golden_{scene}.npz") as file:
        return {name: torch.from_numpy(np.asarray(value)) for name, value in file.items()}


@pytest.mark.parametrize("tag", ["dgr", "mask_all", "mask_some", "mask_none"])
@pytest.mark.parametrize("scene", ["faint", "solid"])
def test_records(scene: str, tag: str, data_root: Path) -> None:
    z = load(data_root, scene)
    if f"{tag}.image" not in z:
        tag = "dgr"
    names = ("means", "scales", "quats", "opacities", "sh")
    means, scales, quats, opacities, sh = (z["in_" + k].clone().requires_grad_() for k in names)
    ones = torch.ones_like(z["in_mask"])
    masks = {"mask_all": ones, "mask_some": z["in_mask"], "mask_none": 0 * ones}.get(tag)
    masks = None if masks is None else masks[:, None].clone().requires_grad_()
    means2D = torch.zeros_like(means, requires_grad=True)
    width, height = int(z["in_width"]), int(z["in_height"])
    camera = settings(z["in_viewmat"], z["in_K"], width, height, z["in_bg"])
    rasterizer = GaussianRasterizer(raster_settings=camera)
    given = {"means3D": means, "shs": sh, "opacities": opacities[:, None], "rotations": quats}
    none = {"colors_precomp": None, "cov3D_precomp": None}
    image, radii = rasterizer(means2D=means2D, **given, scales=scales, masks=masks, **none)
    assert image.shape == (3, height, width)
    assert (image - z[f"{tag}.image"]).abs().max() <= 2e-5
    assert radii.dtype == torch.int32
    # Inria also keeps what shares a tile with the image, but rounds at its upper left border.
    seen, inria = radii > 0, z[f"{tag}.radii"] > 0
    assert (seen & ~inria).sum() <= 2
    assert seen.sum() > 0.8 * inria.sum()
    (image * z["in_loss_weights"]).sum().backward()

    def hold(name: str, got: Tensor | None, want: Tensor) -> None:
        assert got is not None, name
        error = (got - want).double().norm() / want.double().norm().clamp_min(1e-30)
        assert error <= 1e-4, f"{name}: {error:.1e}"

    hold("sh", sh.grad, z[f"{tag}.grad_sh"])
    if tag == "mask_some":
        return
    hold("means2D", means2D.grad, z[f"{tag}.grad_means2d_ndc"])
    hold("means", means.grad, z[f"{tag}.grad_means"])
    # Quaternions as given: also the radial part of the gradient is Inria's.
    hold("quats", quats.grad, z[f"{tag}.grad_quats"])
    hold("scales", scales.grad, z[f"{tag}.grad_scales"])
    hold("opacities", opacities.grad, z[f"{tag}.grad_opacities"])
    if masks is not None:
        hold("masks", masks.grad, z[f"{tag}.grad_mask_published"])


def scene(n: int = 30, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "means3D": torch.rand(n, 3, generator=g) * 2 - 1 + torch.tensor([0, 0, 3.0]),
        "opacities": torch.rand(n, 1, generator=g) * 0.8 + 0.1,
        "shs": torch.randn(n, 16, 3, generator=g) * 0.3,
        "scales": torch.rand(n, 3, generator=g) * 0.2 + 0.05,
        "rotations": torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1),
    }
    return {k: v.to(dtype) for k, v in tensors.items()}


def camera(**change) -> tuple[GaussianRasterizationSettings, Tensor, Tensor]:
    angle = 0.2
    viewmat = torch.eye(4, dtype=F64)
    viewmat[0, 0] = viewmat[2, 2] = math.cos(angle)
    viewmat[0, 2], viewmat[2, 0] = math.sin(angle), -math.sin(angle)
    viewmat[:3, 3] = torch.tensor([0.1, -0.2, 0.3])
    K = torch.tensor([[30.0, 0, 17.5], [0, 28.0, 9.25], [0, 0, 1]], dtype=F64)
    bg = torch.tensor([0.1, 0.6, 0.3])
    return settings(viewmat, K, 40, 23, bg, **change), viewmat, K


RECORD = Path(__file__).parent / "compat_record.npz"
INPUTS = ("means3D", "opacities", "shs", "scales", "rotations", "masks")


def recorded(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What compat_record.npz has of a rendering: the image, radii and every gradient.

    The file was written by this project, in float64 by the reference, when the same code equalled
    Inria's own records (test_records, whose data are not public). Its loss weighs every number of
    the image differently, so that neither axes nor channels can be exchanged.
    """
    leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
    leaves["means2D"] = torch.zeros_like(values["means3D"], requires_grad=True)
    image, radii = GaussianRasterizer(camera()[0])(**leaves)
    (image * torch.cos(0.37 * torch.arange(image.numel())).view_as(image)).sum().backward()
    results = {"image": image.detach(), "radii": radii}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        results[f"grad_{name}"] = leaf.grad
    return results


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
def test_record_of_this_project(dtype: torch.dtype) -> None:
    with np.load(RECORD) as file:
        record = {name: torch.from_numpy(file[name]) for name in file.files}
    got = recorded({name: record[f"in_{name}"].to(dtype) for name in INPUTS})
    assert record["image"].shape == (3, 23, 40)
    for name, value in got.items():
        want = record[name].to(value.dtype)
        error = (value - want).double().norm() / want.double().norm()
        # the record has float32; two terms of a gradient that cancel cost float32 some digits
        assert error <= (1e-6 if dtype == F64 else 1e-4), f"{name}: {error:.1e}"


def test_channels_rows_and_columns() -> None:
    """A red Gaussian right of the centre and a blue one below it: channel, row, column."""
    values = {
        "means3D": torch.tensor([[0.4, 0.0, 2.0], [0.0, 0.3, 2.0]]),
        "opacities": torch.full((2, 1), 0.9),
        "colors_precomp": torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]),
        "scales": torch.full((2, 3), 0.02),
        "rotations": torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
    }
    K = torch.tensor([[30.0, 0, 20], [0, 30.0, 11.5], [0, 0, 1]])
    described = settings(torch.eye(4), K, 40, 23, torch.zeros(3))
    image, _ = GaussianRasterizer(described)(means2D=None, **values)
    brightest = [divmod(int(channel.argmax()), 40) for channel in image[[0, 2]]]
    # 20 + 30 * 0.4 / 2 = 26 and 11.5 + 30 * 0.3 / 2 = 16, the left and upper edges of pixels
    assert brightest[0][0] == 11 and brightest[0][1] in (25, 26)
    assert brightest[1][0] in (15, 16) and brightest[1][1] in (19, 20)
    assert not image[1].any()


def test_screen_gradient_is_that_of_the_principal_point() -> None:
    """Moving it moves every projected mean alike: a pixel is W/2 or H/2 of a unit of means2D."""
    values = scene()
    values["means3D"] = values["means3D"] * torch.tensor([0.3, 0.3, 1.0])  # away from the clamp
    means2D = torch.zeros(30, 3, dtype=F64, requires_grad=True)
    K = torch.tensor([[30.0, 0, 17.5], [0, 28.0, 9.25], [0, 0, 1]], dtype=F64)
    weights = torch.cos(0.37 * torch.arange(3 * 23 * 40)).view(3, 23, 40).double()

    def loss(cx: float = 0.0, cy: float = 0.0) -> Tensor:
        moved = K + torch.tensor([[0, 0, cx], [0, 0, cy], [0, 0, 0]], dtype=F64)
        described = settings(torch.eye(4, dtype=F64), moved, 40, 23, torch.zeros(3))
        image, _ = GaussianRasterizer(described)(means2D=means2D, **values)
        return (image * weights).sum()

    loss().backward()
    assert means2D.grad is not None
    step = 1e-6
    v_cx = (loss(cx=step) - loss(cx=-step)).item() / (2 * step)
    v_cy = (loss(cy=step) - loss(cy=-step)).item() / (2 * step)
    sums = means2D.grad.sum(0).tolist()
    assert sums == pytest.approx([v_cx * 40 / 2, v_cy * 23 / 2, 0], rel=1e-4)


def test_is_rasterization_with_an_off_centre_principal_point() -> None:
    values = scene()
    for degree in range(4):
        described, viewmat, K = camera(sh_degree=degree)
        image, radii = GaussianRasterizer(described)(means2D=None, **values)
        want, _, info = rasterization(
            values["means3D"],
            values["rotations"],
            values["scales"],
            values["opacities"][:, 0],
            values["shs"],
            viewmat[None],
            K[None],
            40,
            23,
            0.2,
            sh_degree=degree,
            backgrounds=described.bg.double()[None],
        )
        assert torch.allclose(image, want[0].permute(2, 0, 1), atol=1e-6)
        assert torch.equal(radii, info["radii"][0].amax(-1))


@pytest.mark.parametrize("antialiasing", [False, True])
def test_form_of_2024(antialiasing: bool) -> None:
    values = scene()
    described, viewmat, K = camera(antialiasing=antialiasing)
    means, means2D = values["means3D"].requires_grad_(), torch.zeros(30, 3, dtype=F64)
    means2D.requires_grad_()
    image, radii, inverse = GaussianRasterizer(described)(means2D=means2D, **values)
    g = torch.Generator().manual_seed(6)
    weights = torch.rand(4, 23, 40, dtype=F64, generator=g)
    (torch.cat([image, inverse]) * weights).sum().backward()
    got = means.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
    means.grad = None
    shapes = values["rotations"], values["scales"], values["opacities"][:, 0]
    rest = viewmat[None], K[None], 40, 23, 0.2
    mode = "antialiased" if antialiasing else "classic"
    bg = described.bg.double()[None]
    keywords: dict[str, Any] = {"sh_degree": 3, "backgrounds": bg, "rasterize_mode": mode}
    want, _, info = rasterization(means, *shapes, values["shs"], *rest, **keywords)
    depths = (means @ viewmat[2, :3] + viewmat[2, 3])[:, None]
    third, _, more = rasterization(means, *shapes, 1 / depths, *rest, rasterize_mode=mode)
    both = torch.cat([want[0].permute(2, 0, 1), third[0].permute(2, 0, 1)])
    (both * weights).sum().backward()
    torch.testing.assert_close(torch.cat([image, inverse]), both.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got, means.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(radii, info["radii"][0].amax(-1))
    pixels = (info["means2d"].grad + more["means2d"].grad)[0] * torch.tensor([20.0, 11.5])
    assert means2D.grad is not None and more["means2d"].grad.any()
    torch.testing.assert_close(means2D.grad[:, :2], pixels, atol=1e-5, rtol=1e-5)


def test_degree_0_may_stand_apart() -> None:
    values = scene()
    image, _ = GaussianRasterizer(camera()[0])(means2D=None, **values)
    apart = values | {"shs": values["shs"][:, 1:]}
    dc = values["shs"][:, :1].clone().requires_grad_()
    again, _ = GaussianRasterizer(camera()[0])(means2D=None, **apart, dc=dc)
    assert torch.equal(again, image)
    assert torch.autograd.grad(again.sum(), dc)[0].any()
    with pytest.raises(ValueError, match="needs 16 coefficients, got 15"):
        apart["shs"] = apart["shs"][:, 1:]
        GaussianRasterizer(camera()[0])(means2D=None, **apart, dc=dc)
    del apart["shs"]
    with pytest.raises(ValueError, match="dc: expected shs"):
        colors = torch.rand(30, 3, dtype=F64)
        GaussianRasterizer(camera()[0])(means2D=None, **apart, dc=dc, colors_precomp=colors)


def test_precomputed_inputs_and_scale_modifier() -> None:
    values = scene()
    described, _, _ = camera(scale_modifier=0.7)
    image, _ = GaussianRasterizer(described)(means2D=None, **values)

    half = quats_to_rotmats(values["rotations"]) * (0.7 * values["scales"])[:, None]
    full = half @ half.mT
    upper = torch.stack(
        [full[:, i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], 1
    )
    given = {k: values[k] for k in ("means3D", "opacities", "shs")}
    again, _ = GaussianRasterizer(camera()[0])(means2D=None, **given, cov3D_precomp=upper)
    assert torch.allclose(image, again, atol=1e-12)

    # The gradient holds for the covariance and for the scale before the modifier.
    leaf = values["scales"].clone().requires_grad_()
    (v_scales,) = torch.autograd.grad(
        GaussianRasterizer(described)(means2D=None, **(values | {"scales": leaf}))[0].sum(), leaf
    )
    step = torch.zeros_like(leaf)
    step[3, 1] = 1e-6
    up, down = (
        GaussianRasterizer(described)(means2D=None, **(values | {"scales": leaf.detach() + s}))[0]
        for s in (step, -step)
    )
    assert v_scales[3, 1].item() == pytest.approx(((up - down).sum() / 2e-6).item(), rel=1e-4)


def test_raw_quaternions_are_used_as_given() -> None:
    values = scene()
    unit = GaussianRasterizer(camera()[0])(means2D=None, **values)[0]
    longer = values | {"rotations": 1.3 * values["rotations"]}
    assert not torch.allclose(GaussianRasterizer(camera()[0])(means2D=None, **longer)[0], unit)


def test_precomputed_colors() -> None:
    values = scene()
    values.pop("shs")
    colors = torch.rand(30, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    image, _ = GaussianRasterizer(camera()[0])(means2D=None, colors_precomp=colors, **values)
    assert image.shape == (3, 23, 40)
    assert image.max() > 0.5


def test_screen_gradient_without_other_gradients() -> None:
    values = scene()
    means2D = torch.zeros(30, 3, dtype=F64, requires_grad=True)
    rasterizer = GaussianRasterizer(camera()[0])
    for _ in range(2):
        rasterizer(means2D=means2D, **values)[0].sum().backward()
    assert means2D.grad is not None
    once = torch.autograd.grad(rasterizer(means2D=means2D, **values)[0].sum(), means2D)[0]
    assert torch.allclose(means2D.grad, 2 * once)
    assert (means2D.grad[:, 2] == 0).all()
    assert means2D.grad.abs().max() > 0


class Sentinel:
    """Lives as long as the graph that it is part of."""


class Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, sentinel: Sentinel) -> Tensor:
        ctx.sentinel = sentinel
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor, None]:
        return v[0], None


def test_graph_is_freed_without_backward() -> None:
    values, sentinel = scene(), Sentinel()
    values["means3D"] = Probe.apply(values["means3D"].requires_grad_(), sentinel)
    alive = weakref.ref(sentinel)
    means2D = torch.zeros(30, 3, dtype=F64, requires_grad=True)
    image, _ = GaussianRasterizer(camera()[0])(means2D=means2D, **values)
    del values, sentinel
    assert alive() is not None
    del image
    assert alive() is None


def test_mark_visible() -> None:
    described, viewmat, _ = camera()
    points = torch.randn(100, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    z = (points @ viewmat[:3, :3].T + viewmat[:3, 3])[:, 2]
    assert torch.equal(GaussianRasterizer(described).markVisible(points), z > 0.2)


def test_no_gaussians_give_the_background() -> None:
    values = {k: v[:0].requires_grad_() for k, v in scene().items()}
    described, _, _ = camera()
    image, radii = GaussianRasterizer(described)(
        means2D=torch.zeros(0, 3, dtype=F64, requires_grad=True), **values
    )
    image.sum().backward()
    assert torch.equal(image, described.bg.double()[:, None, None].expand(3, 23, 40))
    assert radii.shape == (0,)


@pytest.mark.parametrize(
    ("drop", "add", "sentence"),
    [
        (["shs"], {}, "exactly one of shs and colors_precomp"),
        ([], {"colors_precomp": torch.rand(30, 3)}, "exactly one of shs and colors_precomp"),
        (["scales"], {}, "exactly one of"),
        ([], {"cov3D_precomp": torch.rand(30, 6)}, "exactly one of"),
        (["scales", "rotations"], {"cov3D_precomp": torch.rand(30, 3, 3)}, "cov3D_precomp"),
        ([], {"masks": torch.rand(7)}, "masks: .*N=30"),
        ([], {"shs": torch.rand(30, 4, 3)}, "sh_degree=3 needs 16"),
        ([], {"rotations": torch.rand(30, 3)}, "rotations"),
    ],
)
def test_wrong_arguments(drop: list[str], add: dict, sentence: str) -> None:
    values = {k: v for k, v in scene().items() if k not in drop}
    add = {k: v.double() for k, v in add.items()}
    with pytest.raises(ValueError, match=sentence):
        GaussianRasterizer(camera()[0])(means2D=None, **(values | add))
