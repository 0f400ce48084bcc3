"""Inria's rasterizer classes in both forms, with the masks that MaskGaussian added.

A drop-in for `diff_gaussian_rasterization` and `mask_diff_gaussian_rasterization`:

    from kernels.compat import GaussianRasterizationSettings, GaussianRasterizer

The form of 2023 returns image and radii. Since October 2024 the settings say `antialiasing`, and
inverse depth comes third. `dc` holds degree 0 apart, as later training code has it; here it is the
last argument.

What differs: the support of a Gaussian is its exact ellipse and not a square of three standard
deviations, gradients under mixed masks are exact (the published backward is not), nothing in view
gives the background, masks are optional, and antialiasing scales opacities by sqrt(det /
det_blurred) however small that is (Inria's factor is at least 0.005).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import RasterInputs, RenderSettings
from .rasterization import rasterize_plain
from .validation import check, check_same

NEAR_PLANE = 0.2


class GaussianRasterizationSettings(NamedTuple):
    """One camera, as Inria's training code describes it."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor  # [3]
    scale_modifier: float
    viewmatrix: Tensor  # [4, 4] world to camera, transposed
    projmatrix: Tensor  # [4, 4] world to clip space, transposed
    sh_degree: int
    campos: Tensor  # [3], read from viewmatrix instead
    prefiltered: bool  # without effect
    debug: bool  # without effect
    antialiasing: bool | None = None  # None: the form of 2023


class GaussianRasterizer(nn.Module):
    """Renders Gaussians into the camera of its settings."""

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    @torch.no_grad()
    def markVisible(self, positions: Tensor) -> Tensor:  # noqa: N802
        """Whether points [N, 3] lie beyond the near plane: bool [N]."""
        view = self.raster_settings.viewmatrix.to(positions)
        return positions @ view[:3, 2] + view[3, 2] > NEAR_PLANE

    def forward(
        self,
        means3D: Tensor,  # [N, 3]  # noqa: N803
        means2D: Tensor | None,  # [N, 3]  # noqa: N803
        opacities: Tensor,  # [N, 1]
        shs: Tensor | None = None,  # [N, K, 3]
        colors_precomp: Tensor | None = None,  # [N, 3]
        scales: Tensor | None = None,  # [N, 3]
        rotations: Tensor | None = None,  # [N, 4]
        cov3D_precomp: Tensor | None = None,  # [N, 6]  # noqa: N803
        masks: Tensor | None = None,  # [N] or [N, 1]
        dc: Tensor | None = None,  # [N, 1, 3]
    ) -> tuple[Tensor, ...]:
        """Render, differentiably in every argument.

        Args:
            means3D: Centres in the world.
            means2D: Any values; its gradient is that of the projected centres in NDC, i.e. per
                pixel times half the width and height, third column 0.
            opacities: In [0, 1].
            shs: Spherical harmonics, of which `sh_degree` counts; or else
            colors_precomp: colours.
            scales: Standard deviations, to be multiplied by `scale_modifier`, with
            rotations: quaternions (w, x, y, z), used as they are; or else
            cov3D_precomp: covariances (xx, xy, xz, yy, yz, zz).
            masks: Factor on each Gaussian's alpha.
            dc: Degree 0 of the spherical harmonics, of which `shs` are then the others.

        Returns:
            Image [3, H, W] and radii [N] int32: the larger half extent in pixels, 0 = culled. Where
            the settings give `antialiasing`, also the sum of weights over depths [1, H, W], which
            takes a second rendering.

        Raises:
            ValueError: both or none of two alternatives are given, or a shape does not fit.
        """
        if (shs is None) == (colors_precomp is None):
            raise ValueError("give exactly one of shs and colors_precomp")
        shape = scales is not None and rotations is not None
        if shape == (cov3D_precomp is not None) or (scales is None) != (rotations is None):
            raise ValueError("give exactly one of (scales, rotations) and cov3D_precomp")
        if dc is not None and shs is None:
            raise ValueError("dc: expected shs beside it")
        s = self.raster_settings
        n = check(means3D=(means3D, "N 3"))["N"]
        opacities = opacities.reshape(-1)
        covars = None
        if cov3D_precomp is None:
            assert scales is not None and rotations is not None
            scales = scales * s.scale_modifier
        else:
            check({"N": n}, cov3D_precomp=(cov3D_precomp, "N 6"))
            covars = cov3D_precomp[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(n, 3, 3)
            scales, rotations = means3D.new_zeros(n, 3), means3D.new_zeros(n, 4)
        colors = shs if shs is not None else colors_precomp
        masks = masks if masks is None else masks.reshape(-1)
        check(
            {"N": n},
            opacities=(opacities, "N"),
            scales=(scales, "N 3"),
            rotations=(rotations, "N 4"),
            colors=(colors, "N K 3" if shs is not None else "N 3"),
        )
        assert colors is not None
        least, bands = (s.sh_degree + 1) ** 2, int(dc is not None)
        if shs is not None and shs.shape[1] + bands < least:
            bands += shs.shape[1]
            raise ValueError(
                f"shs: sh_degree={s.sh_degree} needs {least} coefficients, got {bands}"
            )
        if dc is not None:
            check({"N": n}, dc=(dc, "N 1 3"))
        if masks is not None:
            check({"N": n}, masks=(masks, "N"))
        check_same(
            "means3D",
            means3D=means3D,
            opacities=opacities,
            scales=scales,
            rotations=rotations,
            colors=colors,
            covars=covars,
            masks=masks,
            dc=dc,
        )

        found: dict[str, Tensor] = {}
        if means2D is not None and means2D.requires_grad:
            check({"N": n}, means2D=(means2D, "N 3"))
            means3D = _ScreenGradient.apply(means3D, means2D, found, s.image_width, s.image_height)
        inputs = RasterInputs(
            means3D,
            rotations,
            scales,
            opacities,
            colors if dc is None else dc,
            s.viewmatrix.T.to(means3D)[None],
            _intrinsics(s, means3D)[None],
            colors_rest=None if dc is None else colors,
            covars=covars,
            masks=masks,
            backgrounds=s.bg.to(means3D).reshape(1, 3),
        )
        degree = None if shs is None else s.sh_degree
        size = s.image_width, s.image_height
        smooth = bool(s.antialiasing)
        settings = RenderSettings(
            *size, NEAR_PLANE, sh_degree=degree, normalize_quats=False, antialiased=smooth
        )
        image, radii = _render(inputs, settings, found)
        if s.antialiasing is None:
            return image, radii
        inputs = inputs._replace(
            colors=_inverse_depths(s, means3D), colors_rest=None, backgrounds=None
        )
        return image, radii, _render(inputs, settings._replace(sh_degree=None), found)[0]


def _render(
    inputs: RasterInputs, settings: RenderSettings, found: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Image [D, H, W] and radii [N]; in the backward the gradient of means2d adds to `found`."""
    image, _, info = rasterize_plain(inputs, settings)

    def add(v_means2d: Tensor) -> None:
        found["grad"] = found["grad"] + v_means2d if "grad" in found else v_means2d

    if info["means2d"].requires_grad:
        # A hook on the tensor and not the tensor itself: that would be a reference cycle.
        info["means2d"].register_hook(add)
    return image[0].permute(2, 0, 1), info["radii"][0].amax(-1)


def _inverse_depths(s: GaussianRasterizationSettings, means: Tensor) -> Tensor:  # [N, 1]
    view = s.viewmatrix.to(means)
    depths = means @ view[:3, 2] + view[3, 2]
    seen = depths > NEAR_PLANE
    return torch.where(seen, 1.0 / torch.where(seen, depths, 1.0), 0.0)[:, None]


class _ScreenGradient(torch.autograd.Function):
    """Passes means through; backward, which runs after blending's, gives means2D its gradient."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, means2d: Tensor, found: dict[str, Tensor], width: int, height: int
    ) -> Tensor:
        ctx.found, ctx.half_size, ctx.shape = found, (0.5 * width, 0.5 * height), means2d.shape
        return means.view_as(means)

    @staticmethod
    def backward(ctx: Any, v_means: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v_means2d = v_means.new_zeros(ctx.shape)
        v_pixels = ctx.found.pop("grad", None)
        if v_pixels is not None:
            v_means2d[:, :2] = v_pixels[0] * v_pixels.new_tensor(ctx.half_size)
        return v_means, v_means2d, None, None, None


def _intrinsics(s: GaussianRasterizationSettings, like: Tensor) -> Tensor:
    """K [3, 3]: focal lengths from the field of view, principal point from projmatrix."""
    width, height = s.image_width, s.image_height
    view, proj = s.viewmatrix.to(like), s.projmatrix.to(like)
    # projmatrix = viewmatrix @ P^T, so its part along the viewing axis is (P_02, P_12).
    axis = view[:3, 2]
    offset = (axis @ proj[:3, :2]) / axis.square().sum()
    fx, fy = 0.5 * width / s.tanfovx, 0.5 * height / s.tanfovy
    K = like.new_tensor([[fx, 0.0, 0.5 * width], [0.0, fy, 0.5 * height], [0.0, 0.0, 1.0]])
    K[:2, 2] += offset * like.new_tensor([0.5 * width, 0.5 * height])
    return K
