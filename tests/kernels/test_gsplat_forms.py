"""gsplat's forms of a call against the plain form: batches, packing, covariances, clips, keys."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Capacity, rasterization
from kernels.reference.projection import quats_to_rotmats
from kernels.reference.spherical_harmonics import spherical_harmonics

F64 = torch.float64
WIDTH, HEIGHT, N, C = 20, 15, 30, 2
draw: Any = rasterization  # takes keywords as they come
BY_PAIR = ("radii", "depths", "conics", "opacities", "tiles_per_gauss")


def scene(seed: int = 0, dtype: torch.dtype = F64) -> dict[str, Any]:
    """Some Gaussians before two cameras, a few of them out of view."""
    g = torch.Generator().manual_seed(seed)
    turned = torch.eye(4)
    turned[:3, :3] = quats_to_rotmats(torch.tensor([[0.98, 0.0, 0.2, 0.0]]))[0]
    tensors = {
        "means": torch.rand(N, 3, generator=g) * torch.tensor([8, 4, 4.0])
        - torch.tensor([4, 2, -2.0]),
        "quats": torch.randn(N, 4, generator=g),
        "scales": torch.rand(N, 3, generator=g) * 0.2 + 0.05,
        "opacities": torch.rand(N, generator=g) * 0.8 + 0.1,
        "colors": torch.rand(N, 3, generator=g),
        "viewmats": torch.stack([torch.eye(4), turned]),
        "Ks": torch.tensor([[15.0, 0, WIDTH / 2], [0, 15.0, HEIGHT / 2], [0, 0, 1]]).repeat(
            C, 1, 1
        ),
    }
    values = {k: v.to(dtype) for k, v in tensors.items()}
    return values | {"width": WIDTH, "height": HEIGHT, "backend": "reference"}


def weights(image: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(9)
    return torch.rand(image.shape, generator=g, dtype=image.dtype)


def means2d_gradients(values: dict[str, Any], **form: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Info, gradient and absolute gradient of image positions."""
    means = values["means"].clone().requires_grad_()
    image, _, info = draw(**(values | {"means": means}), absgrad=True, **form)
    info["means2d"].retain_grad()
    (image * weights(image)).sum().backward()
    assert means.grad is not None and means.grad.any()
    return info, info["means2d"].grad, info["means2d"].absgrad


def test_packed_has_a_row_for_each_visible_pair() -> None:
    values = scene()
    plain, grad, absgrad = means2d_gradients(values)
    packed, v_packed, a_packed = means2d_gradients(values, packed=True)
    seen = (plain["radii"] > 0).all(-1)
    assert 0 < int(seen[0].sum()) < N and not torch.equal(seen[0], seen[1])
    cameras, gaussians = seen.nonzero(as_tuple=True)
    assert torch.equal(packed["camera_ids"], cameras)
    assert torch.equal(packed["gaussian_ids"], gaussians)
    assert not packed["batch_ids"].any()
    for name in (*BY_PAIR, "means2d"):
        assert torch.equal(packed[name], plain[name][seen]), name
    assert torch.equal(v_packed, grad[seen]) and v_packed.any()
    assert torch.equal(a_packed, absgrad[seen]) and (a_packed >= v_packed.abs()).all()
    # entries of the tile lists name rows instead of pairs
    rows = cameras * N + gaussians
    assert torch.equal(rows[packed["flatten_ids"].long()], plain["flatten_ids"].long())


@pytest.mark.parametrize("form", [{}, {"packed": True}, {"radius_clip": 0.5}])
def test_a_loss_may_read_positions(form: dict[str, Any]) -> None:
    values = scene()
    leaf = values["means"].clone().requires_grad_()
    image = draw(**(values | {"means": leaf}))[0]
    image_gradient = torch.autograd.grad((image * weights(image)).sum(), leaf)[0]

    def gradients(**form: Any) -> tuple[Tensor, Tensor]:
        means = values["means"].clone().requires_grad_()
        image, _, info = draw(**(values | {"means": means}), **form)
        seen = (info["radii"] > 0).all(-1)
        ((image * weights(image)).sum() + info["means2d"][seen].square().sum()).backward()
        assert means.grad is not None
        return means.grad, info["means2d"].grad[seen]

    for got, want in zip(gradients(**form), gradients(), strict=True):
        torch.testing.assert_close(got, want)
    assert not torch.allclose(gradients()[0], image_gradient)


@pytest.mark.parametrize("form", [{}, {"packed": True}, {"radius_clip": 0.5}])
def test_positions_outlive_info(form: dict[str, Any]) -> None:
    values = scene()
    values["means"].requires_grad_()

    def positions_of_image() -> tuple[Tensor, Tensor]:
        image, _, info = draw(**values, absgrad=True, **form)
        return image, info["means2d"]

    image, means2d = positions_of_image()
    image.sum().backward()
    assert means2d.grad is not None and means2d.grad.any()
    assert means2d.absgrad.any()  # pyright: ignore[reportAttributeAccessIssue]


def test_without_packing_there_are_no_ids() -> None:
    info = draw(**scene())[2]
    assert info["gaussian_ids"] is info["camera_ids"] is info["batch_ids"] is None
    assert (info["n_cameras"], info["n_batches"]) == (C, 1)
    assert (info["tile_width"], info["tile_height"]) == (3, 2)


@pytest.mark.parametrize("batch", [(3,), (2, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_batches_are_calls_one_by_one(batch: tuple[int, ...], packed: bool) -> None:
    n = torch.Size(batch).numel()
    elements = [scene(seed) for seed in range(n)]
    names = [name for name, x in elements[0].items() if isinstance(x, Tensor)]
    stacked = {name: torch.stack([e[name] for e in elements]).unflatten(0, batch) for name in names}
    values: dict[str, Any] = elements[0] | stacked
    values["backgrounds"] = torch.rand(*batch, C, 3, dtype=F64)
    means = stacked["means"].requires_grad_()
    image, alphas, info = draw(**values, packed=packed, absgrad=True)
    assert image.shape == (*batch, C, HEIGHT, WIDTH, 3)
    assert alphas.shape == (*batch, C, HEIGHT, WIDTH, 1)
    assert info["n_batches"] == n and info["n_cameras"] == C
    (image * weights(image)).sum().backward()
    assert means.grad is not None
    w, rows = weights(image).flatten(0, len(batch) - 1), 0
    for k, element in enumerate(elements):
        leaf = element["means"].requires_grad_()
        backgrounds = values["backgrounds"].flatten(0, len(batch) - 1)[k]
        one, _, known = draw(**element, absgrad=True, backgrounds=backgrounds)
        (one * w[k]).sum().backward()
        torch.testing.assert_close(image.flatten(0, len(batch) - 1)[k], one)
        torch.testing.assert_close(means.grad.flatten(0, len(batch) - 1)[k], leaf.grad)
        grad, absgrad = info["means2d"].grad, info["means2d"].absgrad
        if packed:
            seen = (known["radii"] > 0).all(-1)
            here = slice(rows, rows + int(seen.sum()))
            rows = here.stop
            assert (info["batch_ids"][here] == k).all()
            torch.testing.assert_close(grad[here], known["means2d"].grad[seen])
            torch.testing.assert_close(absgrad[here], known["means2d"].absgrad[seen])
        else:
            torch.testing.assert_close(grad.flatten(0, len(batch) - 1)[k], known["means2d"].grad)
            assert torch.equal(info["radii"].flatten(0, len(batch) - 1)[k], known["radii"])


def test_batch_dimensions_agree() -> None:
    values = scene()
    batched = {k: torch.stack([x] * 3) for k, x in values.items() if isinstance(x, Tensor)}
    with pytest.raises(ValueError, match=r"viewmats: expected \[3\] as leading dimensions"):
        draw(**(values | batched | {"viewmats": values["viewmats"]}))
    with pytest.raises(ValueError, match=r"means: expected at least one .*, got \[0, 30, 3\]"):
        draw(**(values | {k: x[:0] for k, x in batched.items()}))
    with pytest.raises(ValueError, match=r"Ks: .* with C=2"):
        draw(**(values | batched | {"Ks": batched["Ks"][:, :1]}))


def test_covariances_take_the_place_of_shapes() -> None:
    values = scene()
    half = (
        quats_to_rotmats(torch.nn.functional.normalize(values["quats"])) * values["scales"][:, None]
    )
    covars = (half @ half.mT).requires_grad_()
    image = draw(**(values | {"quats": None, "scales": None}), covars=covars)[0]
    torch.testing.assert_close(image, draw(**values)[0])
    (image * weights(image)).sum().backward()
    assert covars.grad is not None and covars.grad.any()
    with pytest.raises(ValueError, match=r"covars: expected \[N 3 3\]"):
        draw(**values, covars=covars[:5])


def test_harmonics_by_camera() -> None:
    values = scene()
    bands = torch.rand(C, N, 9, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    bands.requires_grad_()
    image = draw(**(values | {"colors": bands}), sh_degree=2)[0]
    for c in range(C):
        one = {"viewmats": values["viewmats"][c : c + 1], "Ks": values["Ks"][c : c + 1]}
        want = draw(**(values | one | {"colors": bands[c]}), sh_degree=2)[0]
        torch.testing.assert_close(image[c], want[0])
    (image * weights(image)).sum().backward()
    assert bands.grad is not None and bands.grad[0].any() and bands.grad[1].any()
    center = -values["viewmats"][1, :3, :3].T @ values["viewmats"][1, :3, 3]
    colors = spherical_harmonics(2, values["means"] - center, bands[1])
    assert not torch.allclose(colors, spherical_harmonics(2, values["means"] - center, bands[0]))
    with pytest.raises(ValueError, match="needs 9 coefficients, got 4"):
        draw(**(values | {"colors": bands[:, :, :4]}), sh_degree=2)
    with pytest.raises(ValueError, match=r"colors: expected \[C N K 3\]"):
        draw(**(values | {"colors": bands[:1]}), sh_degree=2)


@pytest.mark.parametrize("raw", [False, True])
def test_small_gaussians_are_clipped_in_each_camera(raw: bool) -> None:
    values = scene()
    if raw:
        values |= {"scales": values["scales"].log(), "opacities": values["opacities"].logit()}
    plain = draw(**values, raw=raw)[2]
    clip = float(plain["radii"].max(-1).values[plain["radii"].max(-1).values > 0].float().median())
    image, _, info = draw(**values, raw=raw, radius_clip=clip)
    want = (plain["radii"] > 0).all(-1) & (plain["radii"] > clip).any(-1)
    assert torch.equal((info["radii"] > 0).all(-1), want)
    assert 0 < int(want.sum()) < int((plain["radii"] > 0).all(-1).sum())
    for c in range(C):
        kept: dict[str, Any] = values | {
            k: values[k][want[c]] for k in ("means", "quats", "scales", "opacities", "colors")
        }
        one = {"viewmats": values["viewmats"][c : c + 1], "Ks": values["Ks"][c : c + 1]}
        torch.testing.assert_close(image[c], draw(**(kept | one), raw=raw)[0][0])


def test_what_captures_cannot_have_forms() -> None:
    with pytest.raises(ValueError, match="capacity: expected none"):
        draw(**scene(), packed=True, capacity=Capacity(10, 10))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_tile_keys_are_sorted_and_name_every_entry(backend: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values: dict[str, Any] = scene(dtype=torch.float32) | {"backend": backend}
    if backend == "triton":
        values |= {k: x.to(device) for k, x in values.items() if isinstance(x, Tensor)}
    info = draw(**values)[2]
    ids, flat, offsets = info["isect_ids"], info["flatten_ids"].long(), info["isect_offsets"]
    assert len(ids) == len(flat) == int(info["n_isects"]) == int(info["tiles_per_gauss"].sum()) > 0
    assert offsets.shape == (C, 2, 3) and (ids.diff() >= 0).all()
    bits = (3 * 2).bit_length()
    camera, tile = ids >> (32 + bits), (ids >> 32) & ((1 << bits) - 1)
    assert torch.equal(camera, flat // N)
    depths = (ids & 0xFFFFFFFF).int().view(torch.float32)
    assert torch.equal(depths, info["depths"].flatten()[flat])
    counts = torch.bincount(camera * 6 + tile, minlength=C * 6)
    starts = counts.cumsum(0) - counts
    assert torch.equal(offsets.flatten().long(), starts)
    assert torch.equal(
        torch.bincount(flat, minlength=C * N).view(C, N), info["tiles_per_gauss"].long()
    )


def test_keys_of_several_calls_are_one_list() -> None:
    values = scene()
    plain = draw(**values)[2]
    clipped = draw(**values, radius_clip=0.5)[2]  # a call per camera, and nobody clipped
    for name in ("isect_ids", "flatten_ids", "isect_offsets"):
        assert torch.equal(clipped[name], plain[name]), name
