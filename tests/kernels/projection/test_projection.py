"""kernels.projection against kernels/reference in float64: records and every gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Capacity, RasterInputs, RenderSettings
from kernels.constants import TILE_SIZE
from kernels.projection import project
from kernels.projection.record import (
    HALVES,
    RECORD_SIZE,
    record_colors,
    record_conics,
    record_depths,
    record_log2_opacities,
    record_means,
    spread,
)
from kernels.projection.records import Projected
from kernels.reference.masks import sample_masks
from kernels.reference.projection import projection, quats_to_rotmats
from kernels.reference.spherical_harmonics import spherical_harmonics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, HEIGHT = 75, 50
PLANES = {"near_plane": 0.2, "far_plane": 6.0}
# Lanes without a visible Gaussian divide by zero; nothing of theirs is used.
pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")
LIMIT = 2e-4  # float32 against float64, RMS over a tensor


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(0x7F7F7F7)


def scene(n: int, *, cameras: int = 2, bases: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Gaussians around and behind two cameras with off-centre principal points; raw, float64."""
    g = torch.Generator().manual_seed(seed + n)
    tensors = {
        "means": torch.randn(n, 3, generator=g) * torch.tensor([1.5, 1.0, 2.0]),
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.rand(n, 3, generator=g) * 2.5 - 4.0,
        "opacities": torch.randn(n, generator=g) * 3.0,
        "sh": torch.randn(n, bases, 3, generator=g) * 0.4,
        "mask_logits": torch.randn(n, 2, generator=g),
        "masks": torch.rand(n, generator=g),
    }
    tensors["means"][:, 2] += 2.0
    angle = 0.3
    turn = torch.tensor([0.1, angle, -0.05, 1.0])
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[-1, :3, :3] = quats_to_rotmats(
        torch.nn.functional.normalize(turn, dim=0)[[3, 0, 1, 2]]
    )
    viewmats[-1, :3, 3] = torch.tensor([0.2, -0.1, 0.5])
    K = torch.tensor([[60.0, 0, 30.0], [0, 55.0, 31.0], [0, 0, 1]])
    tensors |= {"viewmats": viewmats, "Ks": K.repeat(cameras, 1, 1)}
    # Both precisions see the same float32 numbers.
    return {name: t.float().to(DEVICE).double() for name, t in tensors.items()}


def activated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = dict(tensors)
    out["scales"] = tensors["scales"].exp().float().double()
    out["opacities"] = tensors["opacities"].sigmoid().float().double()
    return out


def expected(
    t: dict[str, Tensor],
    *,
    sh_degree: int | None = 3,
    raw: bool = False,
    antialiased: bool = False,
    mask: str | None = None,
    mask_seed: int = 0,
    mask_ids: Tensor | None = None,
    normalize_quats: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """means2d, records, masks and radii by the reference, differentiable in the tensors."""
    n = t["means"].shape[0]
    scales = t["scales"].exp() if raw else t["scales"]
    opacities = t["opacities"].sigmoid() if raw else t["opacities"]
    masks = None
    if mask == "masks":
        masks = t["masks"]
    elif mask == "mask_logits":
        masks = sample_masks(t["mask_logits"], mask_seed, mask_ids)
    all_means2d, all_records, all_radii = [], [], []
    for viewmat, K in zip(t["viewmats"], t["Ks"], strict=True):
        settings: dict[str, Any] = PLANES | {
            "eps2d": 0.3, "antialiased": antialiased, "normalize_quats": normalize_quats,
        }  # fmt: skip

        def run(index: Tensor | slice, viewmat=viewmat, K=K, settings=settings):  # noqa: ANN001, ANN202
            geometry = (t["means"][index], t["quats"][index], scales[index], opacities[index])
            covars = t["covars"][index] if "covars" in t else None
            return projection(*geometry, viewmat, K, WIDTH, HEIGHT, covars=covars, **settings)

        with torch.no_grad():
            radii = run(slice(None)).radii
        index = (radii > 0).all(-1).nonzero()[:, 0]
        p = run(index)
        if sh_degree is None:
            colors = torch.zeros(len(index), 3).to(p.depths)
        else:
            dirs = t["means"][index] + viewmat[:3, :3].T @ viewmat[:3, 3]
            colors = spherical_harmonics(sh_degree, dirs, t["sh"][index])
        z = p.depths[:, None]
        log2o = torch.log2(p.opacities)[:, None]
        m = torch.ones_like(z) if masks is None else masks[index][:, None]
        columns = [p.means2d, p.conics, log2o, m, z, colors, z, z.new_zeros(len(z), 4)]
        spread = lambda x: x.new_zeros(n, x.shape[1]).index_copy(0, index, x)  # noqa: B023, E731
        all_means2d.append(spread(p.means2d))
        all_records.append(spread(torch.cat(columns, 1)))
        all_radii.append(radii)
    return torch.stack(all_means2d), torch.stack(all_records), masks, torch.stack(all_radii)


def call(
    t: dict[str, Tensor],
    *,
    mask: str | None = None,
    joint: bool = True,
    rows: int | None = None,
    mask_seed: int = 0,
    mask_ids: Tensor | None = None,
    **options: Any,
) -> Projected:
    """The kernels on the same tensors in float32."""
    sh0, shN = (t["sh"], None) if joint else (t["sh"][:, :1], t["sh"][:, 1:])
    chosen = {} if mask is None else {mask: t[mask]}
    inputs = RasterInputs(
        t["means"], t["quats"], t["scales"], t["opacities"], sh0, t["viewmats"], t["Ks"], shN,
        t.get("covars"), mask_seed=mask_seed, mask_ids=mask_ids, **chosen,
    )  # fmt: skip
    settings = RenderSettings(WIDTH, HEIGHT)._replace(**{"sh_degree": 3} | PLANES | options)
    return project(inputs, settings, None if rows is None else Capacity(rows, 0))


def records_of(got: Projected) -> Tensor:
    """Records [C, N, 16] from their rows, which are in ascending order of camera and Gaussian."""
    visible = got.rows >= 0
    assert got.rows[visible].tolist() == [*range(int(visible.sum()))]
    assert torch.equal(visible, (got.radii > 0).all(-1))
    return spread(got.values, got.rows)


def compare(
    assert_close: Callable[..., None], t: dict[str, Tensor], *, joint: bool = True, **options: Any
) -> Projected:
    """Records, masks, radii and all gradients of random v_means2d, v_records and v_masks."""
    names = ["means", "opacities", "viewmats"]
    names += ["covars"] if "covars" in t else ["quats", "scales"]
    names += ["sh"] * (options.get("sh_degree", 3) is not None)
    names += [options["mask"]] if options.get("mask") else []
    want_inputs = t | {name: t[name].clone().requires_grad_() for name in names}
    got_inputs = {name: x.float() for name, x in t.items()}
    got_inputs |= {name: got_inputs[name].requires_grad_() for name in names}

    got = call(got_inputs, joint=joint, **options)
    want_means2d, want_records, want_masks, want_radii = expected(want_inputs, **options)
    both = (got.radii > 0).all(-1) & (want_radii > 0).all(-1)
    flips = (got.radii != want_radii).any(-1).sum().item()
    assert flips <= 0.003 * want_radii.shape[1], f"{flips} radii differ"
    assert_close("means2d", got.means2d * both[..., None], want_means2d * both[..., None], 2e-6)
    records = records_of(got)
    # HALVES repeat others in the form that blending multiplies.
    for k in range(HALVES.value):
        kept = both.double()
        assert_close(f"record {k}", records[..., k] * both, want_records[..., k] * kept, 2e-5)
    assert torch.equal(record_means(records), got.means2d)

    g = torch.Generator().manual_seed(1)
    # MEAN adds to what comes to means2d; HALVES of v_records do not count.
    v_records = torch.randn(want_records.shape, generator=g).to(DEVICE) * both[..., None]
    v_records[..., HALVES.value :] = float("nan")
    v_means2d = torch.randn(want_means2d.shape, generator=g).to(DEVICE) * both[..., None]
    v_masks = torch.randn(t["means"].shape[0], generator=g).to(DEVICE)
    v_rows = torch.full_like(got.values, float("nan"))
    visible = got.rows >= 0
    v_rows[got.rows[visible].long()] = v_records[visible]
    outputs, v_outputs = [got.means2d, got.values], [v_means2d, v_rows]
    v_wanted = v_records.double().nan_to_num(0.0)
    v_wanted[..., HALVES.value :] = 0.0
    loss = (want_means2d * v_means2d).sum() + (want_records * v_wanted).sum()
    if want_masks is not None:
        assert got.masks is not None
        assert_close("masks", got.masks, want_masks, 1e-7)
        outputs.append(got.masks)
        v_outputs.append(v_masks)
        loss = loss + (want_masks * v_masks).sum()
    torch.autograd.backward(outputs, v_outputs)
    loss.backward()
    for name in names:
        v_got, v_want = got_inputs[name].grad, want_inputs[name].grad
        assert v_got is not None, name
        v_want = torch.zeros_like(t[name]) if v_want is None else v_want
        if name == "viewmats":
            assert not v_got[:, 3].any()
        assert_close(f"v_{name}", v_got, v_want, LIMIT)
    return got


@pytest.mark.parametrize("n", [0, 1, 63, 1000])
def test_sizes(n: int, assert_close: Callable[..., None]) -> None:
    got = compare(assert_close, scene(n), raw=True, mask="mask_logits", mask_seed=2**40 + 3)
    visible = (got.radii > 0).all(-1)
    assert got.workspace[0] == visible.sum() and got.workspace[2] == 0
    if n == 1000:
        assert 0.2 < visible.double().mean() < 0.8
        clamped = (record_colors(records_of(got)) == 0) & visible[..., None]
        assert clamped.any()


@pytest.mark.parametrize(
    ("degree", "bases", "joint"),
    [(0, 1, 1), (0, 16, 0), (1, 4, 1), (1, 16, 0), (2, 9, 1), (2, 16, 1), (2, 9, 0), (3, 16, 0)],
)
def test_sh_degrees(degree: int, bases: int, joint: int, assert_close: Callable[..., None]) -> None:
    compare(assert_close, scene(100, bases=bases), sh_degree=degree, joint=bool(joint), raw=True)


def test_activated_inputs(assert_close: Callable[..., None]) -> None:
    compare(assert_close, activated(scene(200)), mask="masks")


def test_one_camera_without_colors(assert_close: Callable[..., None]) -> None:
    got = compare(assert_close, activated(scene(200, cameras=1)), sh_degree=None)
    assert not record_colors(records_of(got)).any()
    assert got.masks is None


@pytest.mark.parametrize("raw", [True, False])
def test_antialiased(raw: bool, assert_close: Callable[..., None]) -> None:
    t = scene(300)
    compare(assert_close, t if raw else activated(t), raw=raw, antialiased=True)


def test_quaternions_as_they_are(assert_close: Callable[..., None]) -> None:
    t = scene(200)
    t["quats"] = (t["quats"] * 0.6).float().double()
    compare(assert_close, t, raw=True, normalize_quats=False)


@pytest.mark.parametrize("antialiased", [True, False])
def test_covariances(antialiased: bool, assert_close: Callable[..., None]) -> None:
    t = activated(scene(200))
    half = (
        quats_to_rotmats(torch.nn.functional.normalize(t["quats"], dim=-1)) * t["scales"][:, None]
    )
    # Not symmetric: only the symmetric part counts.
    skew = torch.linalg.cross(torch.eye(3).to(half), torch.ones(3, 3).to(half)) * 1e-2
    t["covars"] = (half @ half.mT + skew).float().double()
    compare(assert_close, t, antialiased=antialiased)


def test_mask_logits_in_one_column_with_ids(assert_close: Callable[..., None]) -> None:
    t = scene(200)
    t["mask_logits"] = t["mask_logits"][:, 0].contiguous()
    ids = torch.randperm(200, generator=torch.Generator().manual_seed(0)).int().to(DEVICE)
    got = compare(assert_close, t, raw=True, mask="mask_logits", mask_seed=-7, mask_ids=ids)
    assert got.masks is not None
    assert set(got.masks.tolist()) == {0.0, 1.0}


def test_depth_keys_sort_as_depths() -> None:
    t = {name: x.float() for name, x in scene(300).items()}
    got = call(t, raw=True)
    assert 0 < (n := int((got.rows >= 0).sum())) < 600
    depths = record_depths(got.values[:n]).contiguous()
    assert torch.equal(got.depth_keys[:n], depths.view(torch.int32))
    assert (got.depth_keys[n:] == 0x7F800000).all()
    assert not got.tile_counts[:, n:].any()
    assert got.gaussian_ids is not None
    assert torch.equal(got.gaussian_ids[:n], torch.nonzero(got.rows.view(-1) >= 0)[:, 0].int())


@pytest.mark.parametrize("spare", [-40, -1, 0, 1, 700])
def test_rows_beyond_the_capacity(spare: int) -> None:
    """Rows without room are counted and not written; rows left over sort last."""
    t = {name: x.float() for name, x in scene(300).items()}
    want = call(t, raw=True)
    n = int((want.rows >= 0).sum())
    got = call(t, raw=True, rows=n + spare)
    kept = min(n, n + spare)
    assert got.values.shape == (n + spare, RECORD_SIZE.value)
    assert torch.equal(got.values[:kept], want.values[:kept])
    assert torch.equal(got.rows, want.rows.where(want.rows < kept, -1))
    assert torch.equal(got.radii, want.radii)
    assert torch.equal(got.workspace[:3], want.workspace[:3])
    assert (got.depth_keys[kept:] == 0x7F800000).all() and not got.tile_counts[:, kept:].any()


def test_tiles_per_gauss() -> None:
    """Exactly the tiles with a pixel of alpha >= 1/255, but for a margin of a hundredth pixel."""
    t = {name: x.float() for name, x in scene(100).items()}
    got = call(t, raw=True)
    x, y = torch.meshgrid(torch.arange(WIDTH), torch.arange(HEIGHT), indexing="xy")
    records = records_of(got).double().cpu()[:, :, None, None]
    mx, my = record_means(records).unbind(-1)
    A, B, C = record_conics(records).unbind(-1)
    dx, dy = x + 0.5 - mx, y + 0.5 - my
    power = A * dx * dx + 2 * B * dx * dy + C * dy * dy
    t2 = 2 * torch.log(255 * torch.exp2(record_log2_opacities(records)))
    for slack, bound in ((1.0, torch.ge), (1.03, torch.le)):
        reached = (power <= t2 * slack + slack - 1) & (A > 0)
        tiles = torch.nn.functional.max_pool2d(reached.double(), TILE_SIZE, ceil_mode=True)
        n_tiles = tiles.sum((-1, -2))
        off = ~bound(spread(got.tile_counts[0], got.rows).cpu(), n_tiles)
        # The margin can count a tile whose nearest edge, not pixel, is touched.
        assert off.double().mean() <= (0.0 if slack == 1.0 else 0.05), f"slack {slack}"


def test_nonfinite_rows_are_culled_and_counted() -> None:
    t = {name: x.float() for name, x in scene(70).items()}
    clean = {
        name: x.clone().requires_grad_(name not in ("viewmats", "Ks")) for name, x in t.items()
    }
    bad = {"means": 3, "quats": 11, "scales": 20, "opacities": 33, "mask_logits": 41}
    for k, (name, row) in enumerate(bad.items()):
        t[name].view(70, -1)[row, -1] = (float("nan"), float("inf"), -float("inf"))[k % 3]
    # Coefficients are looked at where the Gaussian is visible.
    shown = (call(clean, raw=True).radii > 0).all(-1)[0]
    row = next(r for r in range(50, 70) if shown[r])
    t["sh"][row, 5, 1] = float("nan")
    rows = [*bad.values(), row]
    t = {name: x.requires_grad_(name not in ("viewmats", "Ks")) for name, x in t.items()}
    got = call(t, raw=True, mask="mask_logits")
    want = call(clean, raw=True, mask="mask_logits")
    assert got.workspace[2] == len(rows)
    assert not got.radii[:, rows].any() and (got.rows[:, rows] == -1).all()
    others = [r for r in range(70) if r not in rows]
    records, wanted = spread(got.values, got.rows), spread(want.values, want.rows)
    n = HALVES.value
    assert torch.equal(records[:, others, :n], wanted[:, others, :n])
    for result, r in ((got, records), (want, wanted)):
        (r[..., :n].sum() + result.means2d.sum()).backward()
    for name in ("means", "quats", "scales", "opacities", "sh", "mask_logits"):
        v_got, v_want = t[name].grad, clean[name].grad
        assert v_got is not None and v_want is not None
        assert not v_got[rows].any(), name
        # Nothing more than the order of a sum may differ.
        assert torch.allclose(v_got[others], v_want[others], rtol=1e-5), name


@pytest.mark.parametrize("joint", [True, False])
def test_programs_that_see_nothing(joint: bool, assert_close: Callable[..., None]) -> None:
    """Whole programs behind the cameras, others that a single camera of three sees, or two."""
    t = scene(420, cameras=3)
    t["means"][290:350, 0], t["viewmats"][0, 0, 3] = 64.0, -64.0
    for rows in (slice(0, 70), slice(130, 290), slice(350, 420)):
        t["means"][rows, 2] -= 40.0
    got = compare(assert_close, t, joint=joint, raw=True, mask="mask_logits")
    assert not got.radii[0, :290].any() and not got.radii[1:, 130:].any()
    assert got.radii[0, 290:350].any() and got.radii[1:, 70:130].any()
    single = {name: x.float() for name, x in t.items()}
    single["scales"][200, 1] = single["opacities"][10] = float("nan")
    assert call(single, raw=True).workspace[2] == 2


def test_everything_culled() -> None:
    t = {name: x.float() for name, x in scene(40).items()}
    t["means"][:, 2] = -1.0
    t = {name: x.requires_grad_(name != "Ks") for name, x in t.items()}
    got = call(t, raw=True, mask="mask_logits")
    assert not got.radii.any() and (got.rows == -1).all() and not got.tile_counts.any()
    (got.values.sum() + got.means2d.sum()).backward()
    for name in ("means", "quats", "scales", "opacities", "sh", "viewmats"):
        v = t[name].grad
        assert v is not None and torch.isfinite(v).all(), name


def test_strided_inputs_and_gradients(assert_close: Callable[..., None]) -> None:
    """Rows of sh may be spaced and v_means2d may be a view; neither changes a result."""
    t = {name: x.float() for name, x in scene(90).items()}
    t["sh"] = torch.randn(90, 20, 3).to(DEVICE)[:, 2:18].requires_grad_()
    dense = {**t, "sh": t["sh"].detach().clone().requires_grad_()}
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(180, RECORD_SIZE.value, generator=g).to(DEVICE)
    pixels = record_means(rows.view(2, 90, -1))
    for inputs, v_means2d in ((t, pixels), (dense, pixels.clone())):
        got = call(inputs, raw=True)
        torch.autograd.backward([got.means2d, got.values], [v_means2d, rows])
    assert t["sh"].grad is not None and dense["sh"].grad is not None
    assert torch.equal(t["sh"].grad, dense["sh"].grad)


def test_needs_only_what_is_asked_for() -> None:
    t = {name: x.float() for name, x in scene(50).items()}
    t["scales"].requires_grad_()
    got = call(t, raw=True)
    got.means2d.sum().backward()
    assert t["scales"].grad is not None and not t["scales"].grad.any()
    assert t["means"].grad is None
