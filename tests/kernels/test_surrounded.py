"""A rendering among frozen Gaussians: image, gradients and scores are those in the whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    Capacity,
    Counts,
    RasterInputs,
    RenderSettings,
    rasterization,
    rasterization_among,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, HEIGHT, N = 29, 27, 40
SETTINGS = RenderSettings(WIDTH, HEIGHT, 0.2, sh_degree=1, exact=True, raw=True)
PARAMS = ("means", "quats", "scales", "opacities", "colors", "colors_rest")
BACKENDS = [("triton", torch.float32, 2e-4), ("reference", torch.float64, 1e-12)]
Close = Callable[[str, Tensor, Tensor, float], None]
# Lanes without a visible Gaussian divide by zero; nothing of theirs is used.
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(0x7F7F)


def scene(C: int, dtype: torch.dtype) -> RasterInputs:
    """40 Gaussians with masks before C cameras, some of them out of view."""
    g = torch.Generator().manual_seed(C)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    viewmats = torch.eye(4).repeat(C, 1, 1)
    viewmats[:, :3, 3] = 0.3 * rand(C, 3)
    tensors = {
        "means": rand(N, 3) * torch.tensor([5.0, 4.0, 4.0]) - torch.tensor([2.5, 2.0, 0.5]),
        "quats": torch.randn(N, 4, generator=g),
        "scales": (0.03 + 0.15 * rand(N, 3) ** 2).log(),
        "opacities": torch.randn(N, generator=g),
        "colors": torch.randn(N, 1, 3, generator=g),
        "colors_rest": torch.randn(N, 3, 3, generator=g),
        "viewmats": viewmats,
        "Ks": torch.tensor([[18.0, 0, 15], [0, 17, 13], [0, 0, 1]]).repeat(C, 1, 1),
        "backgrounds": rand(C, 3),
        "mask_logits": torch.randn(N, 2, generator=g),
    }
    tensors = {k: x.to(DEVICE, dtype) for k, x in tensors.items()}
    ids = torch.arange(N, dtype=torch.int32, device=DEVICE) * 3 + 1
    return RasterInputs(**tensors, mask_ids=ids, mask_seed=7)


def part(x: RasterInputs, rows: slice, *, learns: bool) -> RasterInputs:
    names = (*PARAMS, "mask_logits")
    leaves = {k: getattr(x, k)[rows].clone().requires_grad_(learns) for k in names}
    assert x.mask_ids is not None
    return x._replace(**leaves, mask_ids=x.mask_ids[rows].clone())


def whole_rendering(
    x: RasterInputs, backend: str, **more: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    keywords = {k: v for k, v in x._asdict().items() if k not in ("covars", "mask_words")}
    return rasterization(
        **keywords,
        width=WIDTH,
        height=HEIGHT,
        near_plane=0.2,
        sh_degree=1,
        raw=True,
        precision="exact",
        backend=backend,
        **more,
    )


def loss_of(image: Tensor, box: Tensor | None = None) -> Tensor:
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(5)).to(image)
    if box is not None:
        keep = torch.zeros_like(weights)
        for c, (left, top, right, bottom) in enumerate(box.tolist()):
            keep[c, top:bottom, left:right] = 1.0
        weights = weights * keep
    return (image * weights).square().sum()


@pytest.mark.parametrize("C", [1, 2])
@pytest.mark.parametrize(("backend", "dtype", "limit"), BACKENDS)
def test_gradients_are_those_in_the_whole(
    backend: str, dtype: torch.dtype, limit: float, C: int, assert_close: Close
) -> None:
    x = scene(C, dtype)
    whole = part(x, slice(None), learns=True)
    own, frozen = part(x, slice(0, N, 2), learns=True), part(x, slice(1, N, 2), learns=False)
    image, alphas, info = rasterization_among(own, frozen, SETTINGS, SETTINGS, backend=backend)
    want, want_alphas, want_info = whole_rendering(whole, backend)
    assert_close("image", image, want, 1e-6)
    assert_close("alphas", alphas, want_alphas, 1e-6)
    loss_of(image).backward()
    loss_of(want).backward()
    for name in (*PARAMS, "mask_logits"):
        expected = getattr(whole, name).grad[::2]
        assert expected.abs().max() > 0, name
        assert_close(f"v_{name}", getattr(own, name).grad, expected, limit)
        assert getattr(frozen, name).grad is None
    v_means2d = want_info["means2d"].grad
    assert v_means2d is not None
    assert_close("v_means2d", info["means2d"].grad, v_means2d[:, ::2], limit)
    assert torch.equal(info["radii"], want_info["radii"][:, ::2])
    assert torch.equal(info["frozen_radii"], want_info["radii"][:, 1::2])
    assert torch.equal(info["masks"], want_info["masks"][::2])
    assert torch.equal(info["frozen_masks"], want_info["masks"][1::2])


@pytest.mark.parametrize("C", [1, 2])
@pytest.mark.parametrize(("backend", "dtype", "limit"), BACKENDS)
def test_a_box_is_right_without_what_does_not_reach_it(
    backend: str, dtype: torch.dtype, limit: float, C: int, assert_close: Close
) -> None:
    x = scene(C, dtype)
    boxes = torch.tensor([[8, 4, 20, 15], [0, 16, 9, 27]], dtype=torch.int32, device=DEVICE)[:C]
    images, grads, entries, radii = [], [], [], []
    for given in (None, boxes):
        own, frozen = part(x, slice(0, N, 2), learns=True), part(x, slice(1, N, 2), learns=False)
        image, _, info = rasterization_among(
            own, frozen, SETTINGS, SETTINGS, boxes=given, backend=backend
        )
        loss_of(image, boxes).backward()
        images.append(image)
        grads.append({name: getattr(own, name).grad for name in PARAMS})
        entries.append(int(info["n_isects"]))
        radii.append(info["frozen_radii"])
    assert entries[1] < entries[0] and not torch.equal(*images)
    there = [(x > 0).all(-1) for x in radii]
    at = (x.means[1::2] + x.viewmats[:, None, :3, 3]) @ x.Ks.transpose(1, 2)  # no view is turned
    at, reach, box = at[..., :2] / at[..., 2:], radii[0], boxes[:, None]
    meets = ((at + reach > box[..., :2]) & (at - reach < box[..., 2:])).all(-1)
    assert torch.equal(there[1], there[0] & meets) and 0 < there[1].sum() < there[0].sum()
    for c, (left, top, right, bottom) in enumerate(boxes.tolist()):
        inside = [image[c, top:bottom, left:right] for image in images]
        assert torch.equal(*inside)
    for name in PARAMS:
        assert_close(f"v_{name}", grads[1][name], grads[0][name], limit)


@pytest.mark.parametrize(("backend", "dtype"), [b[:2] for b in BACKENDS])
def test_scores_are_those_in_the_whole(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    x = scene(1, dtype)
    own, frozen = part(x, slice(0, N, 2), learns=False), part(x, slice(1, N, 2), learns=False)
    settings = SETTINGS._replace(contributions=True)
    _, _, info = rasterization_among(own, frozen, settings, SETTINGS, backend=backend)
    want = whole_rendering(part(x, slice(None), learns=False), backend, contributions=True)[2]
    for name in ("contrib_max", "contrib_sum", "contrib_count", "contrib_top"):
        assert want[name][::2].any()
        assert_close(name, info[name], want[name][::2], 1e-5)
    assert_close("depths", info["depths"], want["depths"][:, ::2], 1e-6)


def test_a_capacity_is_kept_and_counts_say_what_was_needed() -> None:
    x = scene(1, torch.float32)
    own, frozen = part(x, slice(0, 30), learns=False), part(x, slice(30, N), learns=False)
    free, _, info = rasterization_among(own, frozen, SETTINGS, SETTINGS, backend="triton")
    visible, others = (int((info[k] > 0).all(-1).sum()) for k in ("radii", "frozen_radii"))
    rows, entries = info["counts"].tolist()
    assert rows == visible + others and entries >= int(info["n_isects"]) > 0
    for capacity in (Capacity(rows, entries), Capacity(rows - 8, entries - 3)):
        image, _, found = rasterization_among(
            own, frozen, SETTINGS, SETTINGS, capacity=capacity, backend="triton"
        )
        assert torch.equal(image, free) == capacity.holds(Counts(rows, entries))
        assert found["counts"].tolist()[0] == rows


@pytest.mark.parametrize(("backend", "dtype", "limit"), BACKENDS)
def test_decoded_gaussians_have_colours_and_are_not_raw(
    backend: str, dtype: torch.dtype, limit: float, assert_close: Close
) -> None:
    x, plain = scene(1, dtype), SETTINGS._replace(sh_degree=None, raw=False)
    assert x.scales is not None
    x = x._replace(
        scales=x.scales.exp(),
        opacities=x.opacities.tanh(),  # some are negative and draw nothing
        colors=x.colors[:, 0].sigmoid(),
        colors_rest=None,
        mask_logits=None,
        mask_ids=None,
    )

    def leaves(rows: slice, *, learns: bool) -> RasterInputs:
        names = ("means", "quats", "scales", "opacities", "colors")
        own = {k: getattr(x, k)[rows].clone().requires_grad_(learns) for k in names}
        return x._replace(**own)

    whole = leaves(slice(None), learns=True)
    own, frozen = leaves(slice(0, N, 2), learns=True), leaves(slice(1, N, 2), learns=False)
    image, _, info = rasterization_among(own, frozen, plain, plain, backend=backend)
    keywords = {k: v for k, v in whole._asdict().items() if k not in ("covars", "mask_words")}
    want, _, want_info = rasterization(
        **keywords,
        width=WIDTH,
        height=HEIGHT,
        near_plane=0.2,
        precision="exact",
        backend=backend,
    )
    assert_close("image", image, want, 1e-6)
    loss_of(image).backward()
    loss_of(want).backward()
    for name in ("means", "quats", "scales", "opacities", "colors"):
        expected = getattr(whole, name).grad[::2]
        assert expected.abs().max() > 0, name
        assert_close(f"v_{name}", getattr(own, name).grad, expected, limit)
    assert_close("v_means2d", info["means2d"].grad, want_info["means2d"].grad[:, ::2], limit)


def test_what_is_not_supported_is_refused() -> None:
    x = scene(1, torch.float32)
    with pytest.raises(ValueError, match="render_mode RGB without absgrad"):
        rasterization_among(x, x, SETTINGS._replace(absgrad=True), SETTINGS)
    with pytest.raises(ValueError, match="only backend 'triton'"):
        rasterization_among(x, x, SETTINGS, SETTINGS, capacity=Capacity(9, 9), backend="reference")
