"""Packing and unpacking kernels against their reference, and the stages with a cut between them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import RasterInputs, RenderSettings, exchange, projection, rasterization
from kernels.exchange import packing
from kernels.reference import exchange as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
C, N, HEIGHT = 2, 90, 64


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(123456)


def records(seed: int, n_rows: int, R: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, gaussian_ids, radii, n_rows and ids; one row was culled late, and has depth 0."""
    g = torch.Generator().manual_seed(seed)
    names = torch.randperm(C * N, generator=g)[:R].sort().values
    values = torch.randn(R, 16, generator=g)
    values[:, 1] = HEIGHT * torch.rand(R, generator=g)
    values[:, 7] = 0.5 + torch.rand(R, generator=g)
    if n_rows > 3:
        values[3, 7] = 0.0
    values[n_rows:] = float("nan")
    radii = torch.randint(1, 20, (C, N, 2), generator=g, dtype=torch.int32)
    ids = torch.randperm(10**6, generator=g)[:N].int()
    n = torch.tensor([n_rows], dtype=torch.int32)
    return tuple(x.to(DEVICE) for x in (values, names.int(), radii, n, ids))  # type: ignore[return-value]


def table(capacity: int) -> tuple[Tensor, int]:
    """Three tasks of either camera, and the rows of their buffer."""
    windows = [(0, 0, 32), (0, 16, 64), (1, 0, 16), (1, 0, 64), (1, 48, 64), (5, 0, 64)]
    rows = [(c, a, b, k * (capacity + 1), capacity) for k, (c, a, b) in enumerate(windows)]
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE), len(rows) * (capacity + 1)


@pytest.mark.usefixtures("interpreted" if DEVICE == "cpu" else "poisoned")
@pytest.mark.parametrize(("n_rows", "R", "capacity"), [(150, 170, 150), (170, 170, 20), (0, 5, 3)])
def test_kernels_do_what_the_reference_does(n_rows: int, R: int, capacity: int) -> None:
    values, names, radii, n, ids = records(1, n_rows, R)
    tasks, size = table(capacity)
    out = torch.full((size, 12), float("nan"), device=DEVICE)
    counts, sent = packing.pack_records(values, names, radii, n, ids, tasks, out)

    there = values[:n_rows, 7] > 0
    rows, want = values[:n_rows][there][:, :12].cpu(), torch.full((size, 12), float("nan"))
    given = names[:n_rows][there].long().cpu(), radii.cpu(), ids.cpu(), tasks.cpu()
    want_counts, want_sent = reference.pack_records(rows, *given, want)
    assert torch.equal(counts.cpu(), want_counts)
    if capacity == 20:
        assert (counts > capacity).any()
    held = [want_counts.clamp_max(capacity).tolist(), tasks[:, 3].tolist()]
    places = [base + k for count, base in zip(*held, strict=True) for k in range(1 + count)]
    bits = [reference.integers_of(x.cpu()[places]) for x in (out, want)]
    # of a header the first number alone
    heads = torch.tensor([place in tasks[:, 3].tolist() for place in places])
    assert torch.equal(bits[0][~heads], bits[1][~heads])
    assert torch.equal(bits[0][heads, 0], bits[1][heads, 0])

    # two sources that have sent the same
    both = torch.stack([out, out])[:, : 2 * (capacity + 1)]
    part = both[:, capacity + 1 :]
    got, got_ids = packing.unpack_records(part)
    expected = torch.stack([want, want])[:, capacity + 1 : 2 * (capacity + 1)]
    want_values, want_ids = reference.unpack_records(expected)
    visible = want_values[:, 7] > 0
    assert torch.equal(got[:, :12].cpu(), want_values)
    assert torch.equal(got_ids.cpu()[visible], want_ids[visible])
    assert torch.isfinite(got).all()

    v = torch.randn(2 * capacity, 16, device=DEVICE)
    back = torch.empty_like(both)
    packing.pack_gradients(v, back[:, capacity + 1 :])
    want_back = torch.empty_like(back)[:, capacity + 1 :].cpu()
    reference.pack_gradients(v[:, :12].cpu(), want_back)
    assert torch.equal(back[:, capacity + 1 :].cpu(), want_back)

    buffer = torch.randn(size, 12, device=DEVICE)
    v_values, want_v = torch.empty_like(values), torch.zeros_like(rows)
    packing.unpack_gradients(buffer, sent, v_values)
    reference.unpack_gradients(buffer.cpu(), want_sent, want_v)
    kept = v_values[:n_rows][there].cpu()
    torch.testing.assert_close(kept[:, :12], want_v, rtol=1e-6, atol=1e-6)
    assert not kept[:, 12:].any() and not v_values[:n_rows][~there].any()


def scene(seed: int = 0) -> tuple[RasterInputs, RenderSettings]:
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(40, 3, generator=g) * torch.tensor([4.0, 3.0, 3.0])
    means += torch.tensor([-2.0, -1.5, 1.0])
    K = torch.tensor([[20.0, 0, 12], [0, 20.0, 20], [0, 0, 1]])
    inputs = RasterInputs(
        means,
        torch.randn(40, 4, generator=g),
        0.05 + 0.3 * torch.rand(40, 3, generator=g),
        torch.rand(40, generator=g),
        0.4 * torch.randn(40, 1, 3, generator=g),
        torch.eye(4)[None],
        K[None],
        torch.zeros(40, 0, 3),
        masks=(torch.rand(40, generator=g) < 0.7).float(),
    )
    return inputs, RenderSettings(24, 40, sh_degree=0)


def cut(
    backend: str, dtype: torch.dtype, rows: list[tuple[int, int]]
) -> tuple[Tensor, list[Tensor]]:
    """Image and gradients of a rendering whose records went to windows and back."""
    inputs, settings = scene()
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs[:5] if x is not None]
    rest: dict[str, Any] = {
        name: getattr(inputs, name).to(DEVICE, dtype) for name in ("viewmats", "Ks", "masks")
    }
    rest["colors_rest"] = inputs.colors_rest.to(DEVICE, dtype)  # type: ignore[union-attr]
    means, quats, scales, opacities, colors = leaves
    given = RasterInputs(means, quats, scales, opacities, colors, **rest)
    made = exchange.project_records(given, settings, backend=backend)
    tasks = torch.tensor(
        [(0, a, b, k * 41, 40) for k, (a, b) in enumerate(rows)], dtype=torch.int32, device=DEVICE
    )
    buffer = torch.empty(41 * len(rows), 12, dtype=dtype, device=DEVICE)
    ids = torch.arange(40, dtype=torch.int32, device=DEVICE)
    _, sent = exchange.pack_records(made, ids, tasks, buffer, backend=backend)
    v_image = torch.randn(40, 24, 3, generator=torch.Generator().manual_seed(5)).to(DEVICE, dtype)
    image, back = torch.zeros_like(v_image), torch.empty_like(buffer)
    background = torch.full((3,), 0.3, dtype=dtype, device=DEVICE)
    for k, (a, b) in enumerate(rows):
        part = slice(41 * k, 41 * (k + 1))
        received = exchange.unpack_records(buffer[None, part], backend=backend)
        leaf = received.values.requires_grad_()
        picture = exchange.blend_records(
            received, settings._replace(height=b - a), background, backend=backend
        )
        picture.colors.backward(v_image[a:b])
        assert leaf.grad is not None
        exchange.pack_gradients(leaf.grad, back[None, part], backend=backend)
        image[a:b] = picture.colors.detach()
    made.values.backward(exchange.unpack_gradients(back, sent, made))
    return image, [x.grad for x in leaves if x.grad is not None]


def whole(backend: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The same of a rendering in one piece."""
    inputs, settings = scene()
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs[:5] if x is not None]
    means, quats, scales, opacities, colors = leaves
    image, _, _ = rasterization(
        means,
        quats,
        scales,
        opacities,
        colors,
        inputs.viewmats.to(DEVICE, dtype),
        inputs.Ks.to(DEVICE, dtype),
        settings.width,
        settings.height,
        sh_degree=0,
        masks=inputs.masks.to(DEVICE, dtype),  # type: ignore[union-attr]
        backgrounds=torch.full((1, 3), 0.3, dtype=dtype, device=DEVICE),
        backend=backend,
    )
    v_image = torch.randn(40, 24, 3, generator=torch.Generator().manual_seed(5)).to(DEVICE, dtype)
    image[0].backward(v_image)
    return image[0].detach(), [x.grad for x in leaves if x.grad is not None]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_cut_between_the_stages_changes_nothing(
    backend: str, assert_close: Callable[..., None]
) -> None:
    if backend == "triton" and DEVICE == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are not interpreted here")
    image, gradients = cut(backend, torch.float32, [(0, 40)])
    want, want_gradients = whole(backend, torch.float32)
    assert torch.equal(image, want)
    for got, expected in zip(gradients, want_gradients, strict=True):
        assert_close("gradient", got, expected, 1e-6)


def test_windows_are_parts_of_the_image() -> None:
    image, gradients = cut("reference", torch.float64, [(0, 16), (16, 32), (32, 40)])
    want, want_gradients = whole("reference", torch.float64)
    torch.testing.assert_close(image, want, rtol=0.0, atol=1e-13)
    for got, expected in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("interpreted" if DEVICE == "cpu" else "poisoned")
def test_windows_of_kernels_are_parts_of_the_image(assert_close: Callable[..., None]) -> None:
    image, gradients = cut("triton", torch.float32, [(0, 16), (16, 40)])
    want, want_gradients = whole("reference", torch.float64)
    torch.testing.assert_close(image.double(), want, rtol=0.0, atol=2e-5)
    for got, expected in zip(gradients, want_gradients, strict=True):
        assert_close("gradient", got, expected, 1e-3)


@pytest.mark.usefixtures("interpreted" if DEVICE == "cpu" else "poisoned")
def test_records_that_travel_have_no_counts_of_tiles() -> None:
    inputs, settings = scene()
    given = {k: x.to(DEVICE) for k, x in inputs._asdict().items() if isinstance(x, Tensor)}
    inputs = inputs._replace(**given)
    want, got = (projection.project(inputs, settings, for_lists=x) for x in (True, False))
    assert want.n_rows is not None and got.n_rows is not None
    assert want.gaussian_ids is not None and got.gaussian_ids is not None
    n = int(want.n_rows)
    assert n > 0 and torch.equal(got.n_rows, want.n_rows)
    assert torch.equal(got.values[:n], want.values[:n])
    assert torch.equal(got.gaussian_ids[:n], want.gaussian_ids[:n])
    for name in ("radii", "rows", "means2d"):
        assert torch.equal(getattr(got, name), getattr(want, name))
    assert got.tile_counts.numel() == got.depth_keys.numel() == 0 < want.tile_counts.numel()
