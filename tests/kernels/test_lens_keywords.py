"""gsplat's keywords for lenses, and `lenses`, through the public rasterizer and both backends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Distortion, Lenses, LensKind, lenses_of, rasterization

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
W, H, N = 40, 30, 30
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")
RADIAL = torch.tensor([[0.03, -0.008, 0.002, -0.0004]], device=DEVICE)


def scene() -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    K = torch.tensor([[18.0, 0, 21], [0, 17, 14], [0, 0, 1]])
    tensors = {
        "means": torch.randn(N, 3, generator=g) + torch.tensor([0, 0, 1.5]),
        "quats": torch.randn(N, 4, generator=g),
        "scales": torch.rand(N, 3, generator=g) * 0.3 + 0.05,
        "opacities": torch.rand(N, generator=g),
        "colors": torch.rand(N, 3, generator=g),
        "viewmats": torch.eye(4)[None],
        "Ks": K[None],
    }
    return {name: x.to(DEVICE) for name, x in tensors.items()} | {"width": W, "height": H}


def image(t: dict[str, Any], **options: Any) -> Tensor:
    keywords: dict[str, Any] = t | {"backend": "reference"} | options
    return rasterization(**keywords)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"camera_model": "fisheye", "radial_coeffs": RADIAL, "with_ut": True},
        {"radial_coeffs": torch.tensor([[-0.15, 0.04, 0.01, 0.05, -0.02, 0.004]])},
        {"camera_model": "equirectangular"},
    ],
)
def test_backends_agree(assert_close: Callable[..., None], options: dict[str, Any]) -> None:
    t = scene()
    options = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in options.items()}
    if options.get("camera_model") == "equirectangular":
        t["Ks"][0, 0, 0], t["Ks"][0, 0, 2] = W / (2 * torch.pi), W / 2
        t["Ks"][0, 1, 1], t["Ks"][0, 1, 2] = H / torch.pi, H / 2
    found = []
    for backend in ("triton", "reference"):
        leaf = t["means"].clone().requires_grad_()
        out = image(t | {"means": leaf}, backend=backend, render_mode="RGB+ED", **options)
        out.square().sum().backward()
        found.append((out, leaf.grad))
    assert found[0][0].amax() > 0.1
    assert_close("image", found[0][0], found[1][0], 2e-4)
    assert_close("v_means", found[0][1], found[1][1], 2e-3)


def test_lenses_are_what_gsplats_keywords_say() -> None:
    t = scene()
    lens = Distortion("fisheye", tuple(RADIAL[0].double().tolist()))
    made = lenses_of([lens], t["Ks"], W, H)
    assert made.kind == LensKind("fisheye", 4)
    bent = image(t, lenses=made)
    for with_ut in (False, True):
        options = {"camera_model": "fisheye", "radial_coeffs": RADIAL, "with_ut": with_ut}
        assert torch.equal(image(t, **options), bent)
    assert not torch.allclose(image(t, camera_model="fisheye"), bent, atol=1e-2)


def test_pinholes_take_the_transform_when_asked() -> None:
    t = scene()
    straight, bent = image(t), image(t, with_ut=True)
    assert not torch.equal(straight, bent)
    t["scales"] = t["scales"] * 0.05
    assert torch.allclose(image(t), image(t, with_ut=True), atol=2e-2)
    # no coefficient: not the transform
    assert torch.equal(image(t, radial_coeffs=None, tangential_coeffs=None), image(t))


def test_batches_and_clips_have_lenses() -> None:
    t = scene()
    two = {k: x.repeat(2, *[1] * (x.dim() - 1)) for k, x in t.items() if k in ("viewmats", "Ks")}
    radial = torch.cat([RADIAL, 0.5 * RADIAL])
    want = [image(t, camera_model="fisheye", radial_coeffs=row[None]) for row in radial]
    options = {"camera_model": "fisheye", "radial_coeffs": radial}
    assert torch.allclose(image(t | two, **options), torch.cat(want))
    clipped = image(t | two, radius_clip=1e-3, **options)
    assert torch.allclose(clipped, torch.cat(want))
    batched = {k: x[None] for k, x in (t | two).items() if isinstance(x, Tensor)}
    got = image(t | batched, camera_model="fisheye", radial_coeffs=radial[None])
    assert torch.allclose(got[0], torch.cat(want))


def test_refusals() -> None:
    t = scene()
    with pytest.raises(NotImplementedError, match="camera_model='ortho' is not supported"):
        image(t, camera_model="ortho")
    with pytest.raises(NotImplementedError, match="with_eval3d=True is not supported"):
        image(t, camera_model="fisheye", with_eval3d=True)
    covars = torch.eye(3, device=DEVICE).repeat(N, 1, 1)
    with pytest.raises(ValueError, match="covars: expected none where lenses bend lines"):
        image(t, camera_model="fisheye", covars=covars)
    with pytest.raises(ValueError, match=r"radial_coeffs: expected \[1, 4\] with camera_model='f"):
        image(t, camera_model="fisheye", radial_coeffs=RADIAL[:, :3])
    lenses = lenses_of([Distortion("fisheye")], t["Ks"], W, H)
    with pytest.raises(ValueError, match="lenses: expected none beside with_ut, camera_model"):
        image(t, lenses=lenses, with_ut=True)
    with pytest.raises(ValueError, match=r"lenses: expected \[C 20\], got \[1, 19\]"):
        image(t, lenses=Lenses(lenses.kind, lenses.words[:, :19]))
    with pytest.raises(ValueError, match="lenses: expected torch.float32 as means, got"):
        image(t, lenses=Lenses(lenses.kind, lenses.words.double()))
    with pytest.raises(ValueError, match="lenses: expected vectors of the kind"):
        image(t, lenses=Lenses(LensKind(), lenses.words))
