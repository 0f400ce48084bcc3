import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Capacity, rasterization
from kernels.reference import projection as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PARAMETERS = ("means", "quats", "scales", "opacities", "colors")


def scene(
    n: int = 20, width: int = 20, height: int = 15, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "means": torch.rand(n, 3, generator=g) * 2 - 1 + torch.tensor([0, 0, 3.0]),
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.rand(n, 3, generator=g) * 0.2 + 0.05,
        "opacities": torch.rand(n, generator=g) * 0.8 + 0.1,
        "colors": torch.rand(n, 3, generator=g),
        "viewmats": torch.eye(4)[None],
        "Ks": torch.tensor([[[15.0, 0, width / 2], [0, 15.0, height / 2], [0, 0, 1]]]),
    }
    return {k: v.to(dtype) for k, v in tensors.items()} | {
        "width": width,
        "height": height,
        "backend": "reference",
    }


def render(values: dict[str, Any], **changes: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """`rasterization` of these keywords, some of them changed."""
    return rasterization(**(values | changes))


def with_grad(values: dict[str, Any]) -> list[Tensor]:
    return [values[k].requires_grad_() for k in PARAMETERS]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quats": torch.rand(9, 4)}, r"quats: expected \[N 4\] with N=20, got \[9, 4\]"),
        ({"means": torch.rand(20, 2)}, r"means: expected \[N 3\], got \[20, 2\]"),
        ({"scales": None}, "scales: expected a tensor"),
        ({"opacities": torch.rand(20, 1)}, r"opacities: expected \[N\] with N=20, got \[20, 1\]"),
        ({"Ks": torch.eye(3)}, r"Ks: expected \[C 3 3\]"),
        ({"Ks": torch.eye(3).repeat(2, 1, 1)}, "Ks: .* with C=1"),
        ({"viewmats": torch.eye(4)}, r"viewmats: expected \[C 4 4\]"),
        ({"viewmats": torch.zeros(0, 4, 4), "Ks": torch.zeros(0, 3, 3)}, "at least one camera"),
        ({"colors": torch.rand(2, 20, 3)}, r"colors: expected \[C N D\] with C=1, N=20"),
        ({"colors": torch.rand(20, 16, 3), "sh_degree": 4}, "sh_degree: expected 0 to 3, got 4"),
        ({"colors": torch.rand(20, 4, 3), "sh_degree": 2}, "needs 9 coefficients, got 4"),
        ({"sh_degree": 0}, r"colors: expected \[N K 3\]"),
        ({"backgrounds": torch.rand(3)}, r"backgrounds: expected \[C D\]"),
        ({"backgrounds": torch.rand(1, 4)}, "backgrounds: .*D=3"),
        ({"masks": torch.rand(19)}, "masks: .*N=20"),
        ({"masks": torch.rand(20), "mask_logits": torch.rand(20)}, "give only one"),
        ({"mask_logits": torch.rand(20, 3)}, r"mask_logits: expected \[N 2\]"),
        ({"mask_ids": torch.arange(20)}, "without mask_logits"),
        ({"mask_logits": torch.rand(20), "mask_ids": torch.rand(20)}, "mask_ids: expected int32"),
        ({"means": torch.rand(20, 3).double()}, "quats: expected torch.float64 as means"),
        ({"means": torch.rand(20, 3).half()}, "means: expected float32 or float64"),
        ({"width": 0}, "width: expected a positive integer"),
        ({"height": 3.5}, "height: expected a positive integer"),
        ({"render_mode": "rgb"}, "render_mode"),
        ({"rasterize_mode": "sharp"}, "rasterize_mode"),
        ({"precision": "high"}, "precision: expected 'default' or 'exact', got 'high'"),
        ({"backend": "cuda"}, "backend"),
        ({"capacity": Capacity(9, 9)}, "capacity: only backend 'triton'"),
        ({"colors_rest": torch.rand(20, 3, 3)}, "colors_rest: given without sh_degree"),
        (
            {"colors": torch.rand(20, 1, 3), "colors_rest": torch.rand(20, 2, 3), "sh_degree": 1},
            "needs 4 coefficients, got 3",
        ),
    ],
)
def test_wrong_arguments(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        render(scene(), **change)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_raw_parameters(backend: str, assert_close: Callable[..., None]) -> None:
    """Logarithms, logits and SH in two tensors give what the activated ones in one give."""
    values: dict[str, Any] = scene(8, 12, 9) | {"backend": backend, "sh_degree": 1}
    values["colors"] = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(1))
    values = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in values.items()}
    raw = {"scales": values["scales"].log(), "opacities": values["opacities"].logit()}
    raw |= {"colors": values["colors"][:, :1], "colors_rest": values["colors"][:, 1:]}
    want = rasterization(**values)[0]
    assert_close("image", rasterization(**(values | raw), raw=True)[0], want, 1e-5)
    assert want.any()


def test_keywords_of_gsplat() -> None:
    class RollingShutterType:
        name = "GLOBAL"

    neutral: dict[str, Any] = {
        "radius_clip": 0.0,
        "packed": False,
        "tile_size": 16,
        "sparse_grad": False,
        "channel_chunk": 32,
        "distributed": False,
        "camera_model": "pinhole",
        "segmented": False,
        "covars": None,
        "with_ut": False,
        "with_eval3d": False,
        "radial_coeffs": None,
        "tangential_coeffs": None,
        "thin_prism_coeffs": None,
        "ftheta_coeffs": None,
        "rolling_shutter": RollingShutterType(),
        "viewmats_rs": None,
    }
    assert torch.equal(rasterization(**scene())[0], rasterization(**scene(), **neutral)[0])
    refused: dict[str, Any] = {
        "sparse_grad": True,
        "camera_model": "ftheta",
        "with_eval3d": True,
        "viewmats_rs": torch.eye(4),
        "distributed": True,
    }
    for name, value in refused.items():
        with pytest.raises(NotImplementedError, match=name):
            rasterization(**scene(), **{name: value})
    with pytest.raises(TypeError, match="colour"):
        rasterization(**scene(), colour=1)


def test_positional_order_is_that_of_gsplat() -> None:
    values = scene()
    backend = values.pop("backend")
    backgrounds = torch.rand(1, 3)
    planes, rest = (2.5, 3.5), (0.0, 0.7, None, False, 16, backgrounds, "RGB+ED", False, True)
    more = ("antialiased", 32, False, "pinhole", False, None)
    arguments: list[Any] = [*values.values(), *planes, *rest, *more]
    by_position = rasterization(*arguments, backend=backend)
    values |= {"near_plane": 2.5, "far_plane": 3.5, "eps2d": 0.7, "backgrounds": backgrounds}
    modes: dict[str, Any] = {"render_mode": "RGB+ED", "rasterize_mode": "antialiased"}
    by_name = rasterization(**values, **modes, absgrad=True, backend=backend)
    assert torch.equal(by_position[0], by_name[0])
    assert not torch.equal(by_position[0][..., :3], rasterization(**scene())[0])


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_render_modes(mode: str) -> None:
    values = scene(dtype=torch.float64)
    values["backgrounds"] = torch.rand(1, 3).double()
    image, alphas, _ = rasterization(**values, render_mode=mode)
    colors, _, _ = rasterization(**values)
    assert image.shape == (1, 15, 20, 3 * ("RGB" in mode) + ("D" in mode))
    assert alphas.shape == (1, 15, 20, 1)
    if "RGB" in mode:
        assert torch.allclose(image[..., :3], colors)
    if "D" in mode:
        # Depth is a channel without background.
        z = values["means"][:, 2:]
        depth, _, _ = render(values, colors=z, backgrounds=None)
        if "ED" in mode:
            assert (alphas == 0).any()
            assert (image[..., -1:][alphas == 0] == 0).all()
            depth = torch.where(alphas > 0, depth / alphas, 0.0)
        assert torch.allclose(image[..., -1:], depth)


@pytest.mark.parametrize("channels", [1, 2, 5, 33])
def test_channels_are_independent(channels: int) -> None:
    values = scene()
    colors = torch.rand(20, channels, generator=torch.Generator().manual_seed(1))
    whole = render(values, colors=colors)[0]
    assert whole.shape[-1] == channels
    for d in (0, channels - 1):
        single = render(values, colors=colors[:, d : d + 1])[0]
        assert torch.allclose(whole[..., d : d + 1], single, atol=1e-6)


def test_colors_per_camera() -> None:
    values = scene()
    two = {"viewmats": values["viewmats"].repeat(2, 1, 1), "Ks": values["Ks"].repeat(2, 1, 1)}
    colors = torch.rand(2, 20, 4, generator=torch.Generator().manual_seed(1))
    both = render(values, **two, colors=colors)[0]
    for c in range(2):
        assert torch.equal(both[c], render(values, colors=colors[c])[0][0])


def test_info() -> None:
    n, values = 20, scene()
    values["means"][0, 2] = -1.0
    two = {"viewmats": values["viewmats"].repeat(2, 1, 1), "Ks": values["Ks"].repeat(2, 1, 1)}
    with_grad(values)
    image, _, info = render(values, **two, absgrad=True)
    shapes = {
        "radii": (2, n, 2),
        "means2d": (2, n, 2),
        "depths": (2, n),
        "conics": (2, n, 3),
        "tiles_per_gauss": (2, n),
    }
    assert {name: tuple(info[name].shape) for name in shapes} == shapes
    assert (info["width"], info["height"]) == (20, 15)
    assert info["radii"].dtype == torch.int32
    assert info["n_isects"] == info["tiles_per_gauss"].sum()
    assert info["n_nonfinite"] == 0
    assert info["masks"] is None
    assert "contrib_sum" not in info
    assert (info["radii"][:, 0] == 0).all()
    assert (info["radii"][:, 1:] > 0).all()
    assert torch.equal((info["tiles_per_gauss"] > 0), (info["radii"] > 0).all(-1))
    image.square().sum().backward()
    v_means2d = info["means2d"].grad
    assert (v_means2d[:, 0] == 0).all()
    assert (info["means2d"].absgrad >= v_means2d.abs() - 1e-6).all()
    assert (info["means2d"].absgrad > v_means2d.abs() * 1.01).any()


def test_orders_of_equal_depth_and_permutation() -> None:
    values = scene(dtype=torch.float64)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    shuffled: dict[str, Any] = values | {k: values[k][order] for k in PARAMETERS}
    assert torch.allclose(rasterization(**values)[0], rasterization(**shuffled)[0], atol=1e-14)

    twins = values | {k: values[k][:1].repeat(2, *[1] * (values[k].dim() - 1)) for k in PARAMETERS}
    twins["opacities"] = torch.tensor([0.5, 0.9], dtype=torch.float64)
    twins["colors"] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    image, _, info = rasterization(**twins)
    x, y = (info["means2d"][0, 0]).long().tolist()
    assert image[0, y, x, 0] > image[0, y, x, 1]  # the first row is in front


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (15, 16), (17, 1), (31, 17), (33, 15)])
def test_any_image_size(size: tuple[int, int]) -> None:
    width, height = size
    values = scene(width=width, height=height, dtype=torch.float64)
    values["means"][:, :2] *= 0.08
    leaves = with_grad(values)
    image, alphas, _ = rasterization(**values)
    assert image.shape == (1, height, width, 3)
    assert alphas.max() > 0
    # A pixel does not depend on the size of the image around it, but for the clamp of the
    # Jacobian, which nothing here reaches.
    wide = scene(width=width + 8, height=height + 8, dtype=torch.float64)
    wide["Ks"][:, :2, 2] -= 4
    wide["means"][:, :2] *= 0.08
    assert torch.allclose(rasterization(**wide)[0][:, :height, :width], image, atol=1e-12)
    assert all(torch.isfinite(v).all() for v in torch.autograd.grad(image.sum(), leaves))


@pytest.mark.parametrize("case", ["none", "one", "culled"])
def test_nothing_to_see_is_background(case: str) -> None:
    values = scene(n={"none": 0, "one": 1, "culled": 257}[case])
    if case != "none":
        values["means"][:, 2] *= -1
    leaves = with_grad(values)
    n = len(values["means"])
    extra: dict[str, Tensor] = {
        "backgrounds": torch.rand(1, 3, requires_grad=True),
        "masks": torch.ones(n, requires_grad=True),
        "viewmats": values["viewmats"].requires_grad_(),
    }
    for mode in ("classic", "antialiased"):
        image, alphas, info = render(
            values,
            **extra,
            rasterize_mode=mode,
            render_mode="RGB+ED",
            contributions=True,
            absgrad=True,
        )
        assert torch.equal(image[..., :3], extra["backgrounds"].expand(1, 15, 20, 3))
        assert (image[..., 3] == 0).all()
        assert (alphas == 0).all()
        (image.sum() + alphas.sum()).backward()
        for leaf in [*leaves, extra["masks"], extra["viewmats"], info["means2d"]]:
            assert leaf.grad is not None
            assert (leaf.grad == 0).all()
        assert info["contrib_sum"].shape == (n,)
        assert info["n_isects"] == 0


def test_many_gaussians_in_one_pixel() -> None:
    n = 70_000
    values = scene(n=1, width=3, height=2)
    far = torch.linspace(2, 5, n)
    values |= {
        "means": torch.stack([torch.zeros(n), torch.zeros(n), far], 1),
        "quats": values["quats"].repeat(n, 1),
        "scales": torch.full((n, 3), 0.01),
        "opacities": torch.full((n,), 0.02).requires_grad_(),
        "colors": torch.ones(n, 3),
    }
    image, alphas, _ = rasterization(**values)
    (v_opacities,) = torch.autograd.grad(image.sum(), values["opacities"])
    assert 0.999 < alphas.max() < 1
    assert torch.isfinite(v_opacities).all()
    assert (v_opacities[0] > 0) and (v_opacities[-1] == 0)


@pytest.mark.parametrize("name", [*PARAMETERS, "masks", "mask_logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_rows_are_culled_and_counted(name: str, value: float) -> None:
    values = scene()
    leaves = with_grad(values)
    masks: dict[str, Tensor] = {}
    if name == "masks":
        masks = {"masks": torch.ones(20)}
    elif name == "mask_logits":
        masks = {"mask_logits": torch.full((20, 2), 0.0)}
    broken = {k: v.detach().clone() for k, v in (values | masks).items() if isinstance(v, Tensor)}
    broken[name].view(20, -1)[3, 0] = value
    for k in PARAMETERS:
        broken[k].requires_grad_()
    image, _, info = render(values, **broken)
    assert info["n_nonfinite"] == 1
    assert (info["radii"][0, 3] == 0).all()
    assert info["masks"] is None or torch.isfinite(info["masks"]).all() or name == "masks"
    # The others are as if it were not there.
    others = torch.arange(20) != 3
    if name == "mask_logits":
        masks["mask_ids"] = torch.arange(20)
    alone = {k: (values | masks)[k].detach()[others] for k in [*PARAMETERS, *masks]}
    assert torch.equal(image, render(values, **alone)[0])
    v = torch.autograd.grad(image.sum(), [broken[k] for k in PARAMETERS])
    assert all(torch.isfinite(x).all() and (x[3] == 0).all() for x in v)
    assert len(leaves) == len(v)


def test_nonfinite_rows_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    reference._warn_once.cache_clear()
    values = scene()
    values["scales"][5, 1] = torch.nan
    with caplog.at_level(logging.WARNING, logger="splatrim"):
        for _ in range(3):
            rasterization(**values)
    assert [r.getMessage() for r in caplog.records] == [
        "some Gaussians have NaN or infinite parameters and are not drawn"
    ]


def test_no_gradients_asked() -> None:
    image, _, info = rasterization(**scene(), absgrad=True)
    assert not image.requires_grad
    assert not info["means2d"].requires_grad


def test_a_training_step_takes_a_fraction_of_a_second(one_thread: None) -> None:
    values = scene(5000, width=160, height=120)
    values["sh_degree"] = 3
    values["colors"] = torch.randn(5000, 16, 3, generator=torch.Generator().manual_seed(1)) * 0.2
    values["Ks"][:, [0, 1], [0, 1]] = 150.0
    values["scales"] *= 0.2
    leaves = with_grad(values)
    masks = torch.ones(5000, requires_grad=True)
    info: dict[str, Any] = {}
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        image, _, info = rasterization(**values, masks=masks)
        torch.autograd.grad(image.square().sum(), [*leaves, masks])
        seconds.append(time.perf_counter() - start)
    assert (info["radii"] > 0).all(-1).sum() > 2500
    # About 0.05 s on one core; the bound leaves room for a busy machine.
    assert min(seconds) < 1.0


@pytest.mark.gpu
def test_reference_on_cuda() -> None:
    values = scene(300, dtype=torch.float64)
    masks = (torch.arange(300) % 3 > 0).double()
    options: dict[str, Any] = {"render_mode": "RGB+ED", "rasterize_mode": "antialiased"}
    there = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in values.items()}
    results = []
    for inputs, mask in ((values, masks), (there, masks.cuda())):
        leaves = with_grad(inputs)
        for deterministic in (False, True):
            image, _, info = rasterization(
                **inputs,
                masks=mask,
                absgrad=True,
                contributions=True,
                deterministic=deterministic,
                **options,
            )
            v = torch.autograd.grad(image.square().sum(), [*leaves, info["means2d"]])
            results.append([image, info["contrib_sum"], info["means2d"].absgrad, *v])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert torch.allclose(got.cpu(), want.cpu(), rtol=1e-9, atol=1e-10)
