"""Training loops as scripts of other rasterizers have them, on the Triton backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import rasterization
from kernels.compat import GaussianRasterizationSettings, GaussianRasterizer

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
EDGE = 24 if ON_GPU else 16  # interpreted kernels are slow


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(2**14 - 3)


def make_scene(N: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(N)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    means = rand(N, 3) * torch.tensor([5.0, 4.0, 2.5]) - torch.tensor([2.5, 2.0, -1.5])
    scene = {
        "means": means,
        "quats": torch.nn.functional.normalize(torch.randn(N, 4, generator=g), dim=-1),
        "scales": 0.02 + 0.25 * rand(N, 3) ** 2,
        "colors": torch.randn(N, 16, 3, generator=g) * 0.3,
    }
    return {k: v.to(DEVICE) for k, v in scene.items()}


def inria_settings(**changes: Any) -> GaussianRasterizationSettings:
    view = torch.eye(4, device=DEVICE)
    tan = 0.6
    near, far = 0.01, 100.0
    project = torch.zeros(4, 4, device=DEVICE)
    project[0, 0] = project[1, 1] = 1 / tan
    project[2, 2], project[2, 3], project[3, 2] = far / (far - near), -far * near / (far - near), 1
    defaults: dict[str, Any] = {
        "image_height": EDGE,
        "image_width": EDGE,
        "tanfovx": tan,
        "tanfovy": tan,
        "bg": torch.zeros(3, device=DEVICE),
        "scale_modifier": 1.0,
        "viewmatrix": view.T,
        "projmatrix": (project @ view).T,
        "sh_degree": 1,
        "campos": torch.zeros(3, device=DEVICE),
        "prefiltered": False,
        "debug": False,
    }
    return GaussianRasterizationSettings(**(defaults | changes))


@pytest.mark.parametrize("style", ["inria", "mask", "gsplat"])
def test_scripts_of_each_style_train(style: str) -> None:
    """Loops as written for the three rasterizers, with nothing but the import changed."""
    scene = make_scene(40)
    target = torch.rand(3, EDGE, EDGE, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    means = scene["means"].clone().requires_grad_()
    quats, scales = scene["quats"], scene["scales"]
    logits = torch.zeros(40, 1, device=DEVICE).requires_grad_()
    sh = scene["colors"].clone().requires_grad_()
    optimizer = torch.optim.Adam([means, logits, sh], lr=0.03)
    losses = []
    for _ in range(8 if ON_GPU else 3):
        screen = torch.zeros_like(means, requires_grad=True)
        opacities = torch.sigmoid(logits)
        if style == "gsplat":
            K = torch.tensor([[20.0, 0, 12], [0, 20, 12], [0, 0, 1]], device=DEVICE)
            gaussians = (means, quats, scales, opacities[:, 0], sh)
            camera = (torch.eye(4, device=DEVICE)[None], K[None], EDGE, EDGE)
            colors, _, info = rasterization(
                *gaussians, *camera, sh_degree=1, packed=False, backend="triton"
            )
            info["means2d"].retain_grad()
            image, grads = colors[0].permute(2, 0, 1), info["means2d"]
        else:
            rasterizer = GaussianRasterizer(raster_settings=inria_settings())
            options = {"masks": torch.ones(40, 1, device=DEVICE)} if style == "mask" else {}
            image, radii = rasterizer(
                means3D=means,
                means2D=screen,
                shs=sh,
                opacities=opacities,
                scales=scales,
                rotations=quats,
                **options,
            )
            assert radii.shape == (40,) and bool((radii > 0).any())
            grads = screen
        loss = (image - target).abs().mean()
        loss.backward()
        assert grads.grad is not None and bool((grads.grad != 0).any())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
