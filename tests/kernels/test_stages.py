"""project, bin_tiles and blend one by one, and with something between them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import (
    Capacity,
    RasterInputs,
    Records,
    RenderSettings,
    bin_tiles,
    blend,
    project,
    rasterization,
)
from kernels.projection.record import record_means
from kernels.reference.binning import bin_tiles as reference_bin_tiles
from kernels.reference.blending import blend as reference_blend
from kernels.reference.projection import project as reference_project

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, HEIGHT = 21, 19
SETTINGS = RenderSettings(WIDTH, HEIGHT, 0.2, sh_degree=1, exact=True)
LEAVES = ("means", "quats", "scales", "opacities", "colors", "masks", "viewmats", "backgrounds")
Close = Callable[[str, Tensor, Tensor, float], None]
# Lanes without a visible Gaussian divide by zero; nothing of theirs is used.
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(0x7F7F)


def scene(C: int = 1, dtype: torch.dtype = torch.float32) -> RasterInputs:
    """40 Gaussians before C cameras, some of them out of view."""
    g = torch.Generator().manual_seed(C)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    viewmats = torch.eye(4).repeat(C, 1, 1)
    viewmats[:, :3, 3] = 0.3 * rand(C, 3)
    K = torch.tensor([[18.0, 0, 11], [0, 17, 9], [0, 0, 1]])
    tensors = {
        "means": rand(40, 3) * torch.tensor([5.0, 4.0, 4.0]) - torch.tensor([2.5, 2.0, 0.5]),
        "quats": torch.randn(40, 4, generator=g),
        "scales": 0.03 + 0.25 * rand(40, 3) ** 2,
        "opacities": 0.1 + 0.9 * rand(40),
        "colors": torch.randn(40, 4, 3, generator=g),
        "viewmats": viewmats,
        "Ks": K.repeat(C, 1, 1),
        "masks": (rand(40) < 0.7).float(),
        "backgrounds": rand(C, 3),
    }
    tensors = {k: x.to(DEVICE, dtype).requires_grad_(k in LEAVES) for k, x in tensors.items()}
    return RasterInputs(**tensors)


def gradients(x: RasterInputs, *outputs: Tensor) -> dict[str, Tensor]:
    """Of the leaves, under random gradients of the outputs."""
    g = torch.Generator().manual_seed(5)
    v = [torch.randn(out.shape, generator=g).to(out) for out in outputs]
    torch.autograd.backward(outputs, v)
    found = {name: getattr(x, name).grad for name in LEAVES}
    return {name: v for name, v in found.items() if v is not None}


def rendered(x: RasterInputs, settings: RenderSettings = SETTINGS) -> tuple[Tensor, Tensor]:
    """What the whole pipeline makes of it."""
    keywords = {k: v for k, v in x._asdict().items() if k not in ("covars", "mask_words")}
    image, alphas, _ = rasterization(
        **keywords,
        width=settings.width,
        height=settings.height,
        near_plane=settings.near_plane,
        sh_degree=settings.sh_degree,
        precision="exact",
        deterministic=settings.deterministic,
        render_mode=settings.render_mode,
        backend="triton",
    )
    return image, alphas


@pytest.mark.parametrize("render_mode", ["RGB", "RGB+ED"])
@pytest.mark.parametrize("C", [1, 2])
def test_three_lines_are_the_pipeline(C: int, render_mode: str, assert_close: Close) -> None:
    settings = SETTINGS._replace(render_mode=render_mode, deterministic=C == 2)
    x, y = scene(C), scene(C)
    records = project(x, settings)
    lists = bin_tiles(records, deterministic=settings.deterministic)
    image, alphas = blend(records, lists, settings, backgrounds=x.backgrounds)
    want = rendered(y, settings)
    assert torch.equal(image, want[0]) and torch.equal(alphas, want[1])
    got_v, want_v = gradients(x, image, alphas), gradients(y, *want)
    assert got_v.keys() == want_v.keys() == set(LEAVES)
    for name, v in got_v.items():
        assert_close(f"v_{name}", v, want_v[name], 1e-6)
    again = bin_tiles(records, deterministic=settings.deterministic)
    assert torch.equal(again.offsets, lists.offsets)


def test_stages_against_those_of_the_reference(assert_close: Close) -> None:
    x, y = scene(2), scene(2, torch.float64)
    records, want_records = project(x, SETTINGS), reference_project(y, SETTINGS)
    radii = torch.stack([view.radii for view in want_records.views])
    assert torch.equal(records.radii, radii)
    assert_close("means2d", records.means2d, want_records.means2d, 2e-6)
    lists, spans = bin_tiles(records), reference_bin_tiles(want_records)
    offsets, ids = lists.offsets.tolist(), lists.flatten_ids.tolist()
    assert records.gaussian_ids is not None
    names = records.gaussian_ids.tolist()
    layout = lists.layout
    for c, view in enumerate(want_records.views):
        (band,) = spans[c]
        reached: list[dict[int, None]] = [{} for _ in range(layout.tiles_x * layout.tiles_y)]
        for k, row, start, length in torch.stack(tuple(band), 1).tolist():
            for column in range(start, start + length):
                reached[row // 8 * layout.tiles_x + column // 8][k] = None
        order = {name: k for k, name in enumerate(view.ids.tolist())}
        for t, want in enumerate(reached):
            at = c * len(reached) + t
            got = [order[names[r] - 40 * c] for r in ids[offsets[at] : offsets[at + 1]]]
            assert got == sorted(got) and set(want) <= set(got)
            assert len(got) <= len(want) + 2  # slivers between pixel centres
    image, alphas = blend(records, lists, SETTINGS, backgrounds=x.backgrounds)
    wanted = reference_blend(want_records, spans, SETTINGS, backgrounds=y.backgrounds)
    assert_close("image", image, wanted[0], 1e-5)
    assert_close("alphas", alphas, wanted[1], 1e-5)
    got_v, want_v = gradients(x, image, alphas), gradients(y, *wanted)
    for name, v in want_v.items():
        assert_close(f"v_{name}", got_v[name], v, 2e-4)


def test_records_of_two_projections(assert_close: Close) -> None:
    """Own Gaussians among frozen ones: images of all, gradients of the own."""
    x, y = scene(), scene()
    per_gaussian = ("means", "quats", "scales", "opacities", "colors", "masks")
    own = x._replace(**{k: getattr(x, k)[::2] for k in per_gaussian})
    frozen = x._replace(**{k: getattr(x, k).detach()[1::2] for k in per_gaussian})
    parts = [project(own, SETTINGS, Capacity(20, 0)), project(frozen, SETTINGS, Capacity(20, 0))]
    counts = [int(part.workspace[0]) for part in parts]
    values = torch.cat([p.values[:n] for p, n in zip(parts, counts, strict=True)])
    spare = torch.full((7, 16), torch.nan, device=DEVICE)
    n_rows = torch.tensor([sum(counts)], dtype=torch.int32, device=DEVICE)
    records = Records(torch.cat([values, spare]), None, n_rows, 1, 40, WIDTH, HEIGHT)
    image, alphas = blend(records, bin_tiles(records), SETTINGS, backgrounds=x.backgrounds)
    want = rendered(y)
    assert 0 < counts[1] < 20
    assert_close("image", image, want[0], 1e-6)
    got_v, want_v = gradients(x, image, alphas), gradients(y, *want)
    for name in per_gaussian:
        assert_close(f"v_{name}", got_v[name][::2], want_v[name][::2], 1e-5)
        assert not got_v[name][1::2].any(), name


@pytest.mark.parametrize(("y0", "height"), [(0, 8), (8, 11)])
def test_a_band_of_the_image(y0: int, height: int, assert_close: Close) -> None:
    """Records moved up by whole tiles make the rows of the whole image, bit for bit."""
    x, y = scene(), scene()
    records = project(x, SETTINGS)
    shift = torch.zeros(16, device=DEVICE)
    record_means(shift)[1] = y0
    moved = Records(
        records.values - shift, None, records.n_rows, 1, records.n_gaussians, WIDTH, height
    )
    image, alphas = blend(moved, bin_tiles(moved), SETTINGS, backgrounds=x.backgrounds)
    whole = [out[:, y0 : y0 + height] for out in rendered(y)]
    assert torch.equal(image, whole[0]) and torch.equal(alphas, whole[1])
    got_v, want_v = gradients(x, image, alphas), gradients(y, *whole)
    for name, v in got_v.items():
        assert_close(f"v_{name}", v, want_v[name], 1e-5)


def test_entries_beyond_the_capacity_are_counted() -> None:
    records = project(scene(), SETTINGS)
    whole = bin_tiles(records)
    assert whole.counts is not None
    n_rows, needed, _, entries = whole.counts.tolist()
    assert n_rows == int(records.workspace[0]) and needed >= entries > 0
    lists = bin_tiles(records, Capacity(0, entries - 3))
    assert lists.counts is not None and lists.counts.tolist()[1] == needed
    assert lists.flatten_ids.shape == (entries - 3,) and int(lists.offsets.max()) <= entries - 3
