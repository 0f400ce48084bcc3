"""Importance scores against a brute-force renderer, and the rules that keep by score."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pruning.scores
from gs.data.camera import Camera
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from pruning.scores import (
    accumulate_scores,
    keep_by_cumulative,
    keep_by_threshold,
    n_kept,
    sample_keep,
    save_scores,
    top_k,
    volume_factors,
)

WIDTH, HEIGHT, FOCAL = 48, 32, 50.0
ALPHA_MAX = float(torch.tensor(0.99))  # the cap is a float32 number in every precision


def camera(angle: float = 0.0, distance: float = 4.0) -> Camera:
    """Turned about the vertical axis, `distance` in front of the origin."""
    viewmat = torch.eye(4)
    viewmat[0, 0] = viewmat[2, 2] = math.cos(angle)
    viewmat[0, 2], viewmat[2, 0] = math.sin(angle), -math.sin(angle)
    viewmat[2, 3] = distance
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    return Camera(f"{angle}.png", None, WIDTH, HEIGHT, viewmat, K, WIDTH, HEIGHT)


CAMERAS = [camera(-0.4), camera(0.0), camera(0.5)]


def model(
    means: Tensor, scales: Tensor, opacities: Tensor, quats: Tensor | None = None
) -> Gaussians:
    """A model of activated values; scales [N, 3], opacities in 0..1."""
    n = len(means)
    tensors = {
        "means": means,
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1) if quats is None else quats,
        "scales": scales.log(),
        "opacities": opacities.logit(),
        "sh0": torch.zeros(n, 1, 3),
        "shN": torch.zeros(n, 0, 3),
    }
    return Gaussians.from_tensors(tensors)


@pytest.fixture(scope="module")
def cloud() -> Gaussians:
    """48 Gaussians, dense and opaque enough that rays saturate; some are never seen."""
    generator = torch.Generator().manual_seed(3)
    n = 48
    means = (torch.rand(n, 3, generator=generator) - 0.5) * torch.tensor([2.4, 1.6, 2.0])
    means[:3, 2] = -9.0  # behind every camera
    scales = 0.05 + 0.3 * torch.rand(n, 3, generator=generator)
    opacities = torch.rand(n, generator=generator).clamp(0.02, 0.999)
    opacities[10:20] = 0.9995
    quats = torch.randn(n, 4, generator=generator)
    return model(means, scales, opacities, quats)


def rotations(quats: Tensor) -> Tensor:  # [N, 4] wxyz -> [N, 3, 3]
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def brute_weights(gaussians: Gaussians, view: Camera) -> tuple[Tensor, Tensor]:
    """Weights [H W, N] and what is left of the light [H W], one Gaussian at a time, in float64."""
    p = {name: x.double() for name, x in gaussians.to_tensors().items()}
    W, t = view.viewmat.double()[:3, :3], view.viewmat.double()[:3, 3]
    local = p["means"] @ W.T + t
    half = rotations(p["quats"]) * p["scales"].exp()[:, None, :]
    covariances = half @ half.transpose(1, 2)
    ys, xs = torch.meshgrid(
        torch.arange(HEIGHT).double() + 0.5, torch.arange(WIDTH).double() + 0.5, indexing="ij"
    )
    T = torch.ones(HEIGHT, WIDTH, dtype=torch.float64)
    going = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    weights = torch.zeros(HEIGHT, WIDTH, len(local), dtype=torch.float64)
    limits = [1.3 * WIDTH / 2 / FOCAL, 1.3 * HEIGHT / 2 / FOCAL]
    for i in local[:, 2].argsort().tolist():
        x, y, z = local[i].tolist()
        if z <= 0.2:
            continue
        u, v = (min(max(a / z, -m), m) for a, m in zip((x, y), limits, strict=True))
        J = torch.tensor([[FOCAL / z, 0, -FOCAL * u / z], [0, FOCAL / z, -FOCAL * v / z]]).double()
        conic = (J @ W @ covariances[i] @ W.T @ J.T + 0.3 * torch.eye(2).double()).inverse()
        dx, dy = xs - (FOCAL * x / z + WIDTH / 2), ys - (FOCAL * y / z + HEIGHT / 2)
        power = conic[0, 0] * dx * dx + 2 * conic[0, 1] * dx * dy + conic[1, 1] * dy * dy
        alpha = (p["opacities"][i].sigmoid() * (-0.5 * power).exp()).clamp_max(ALPHA_MAX)
        reached = going & (alpha >= 1 / 255)
        after = T * (1 - alpha)
        stopped = reached & (after < 1e-4)  # before it counts
        going &= ~stopped
        reached &= ~stopped
        weights[..., i] = torch.where(reached, alpha * T, 0.0)
        T = torch.where(reached, after, T)
    return weights.reshape(-1, len(local)), T.reshape(-1)


@pytest.fixture(scope="module")
def brute(cloud: Gaussians) -> dict[str, Tensor]:
    """Every score from the weights of every pixel and Gaussian."""
    views = [brute_weights(cloud, view)[0] for view in CAMERAS]
    A = torch.stack([w.sum(0) for w in views])
    C = torch.stack([(w > 0).sum(0) for w in views])
    X = torch.stack(
        [torch.bincount(w.argmax(1)[w.amax(1) > 0], minlength=len(cloud)) for w in views]
    )
    volumes = cloud.get_scales().detach().double().prod(-1)
    reference = volumes.sort(descending=True).values[43]  # int(0.9 * 48)
    hits = C.sum(0) * cloud.get_opacities().detach().double()
    outdoor = torch.where(X > 0, A / C.clamp_min(1), 0.0).sum(0)
    return {
        "radsplat": torch.stack([w.amax(0) for w in views]).amax(0),
        "mini-splatting": A.sum(0),
        "mini-splatting-indoor": torch.where(X.sum(0) > 0, A.sum(0), 0.0),
        "mini-splatting-outdoor": outdoor,
        "light-gaussian": hits * (volumes / reference) ** 0.1,
        "opacity": cloud.get_opacities().detach().double(),
    }


KINDS: list[Any] = [
    "radsplat",
    "mini-splatting",
    "mini-splatting-indoor",
    "mini-splatting-outdoor",
    "light-gaussian",
    "opacity",
]


def test_the_cloud_tells_the_kinds_apart(brute: dict[str, Tensor]) -> None:
    plain, indoor = brute["mini-splatting"], brute["mini-splatting-indoor"]
    assert ((plain > 0) & (indoor == 0)).sum() >= 3  # seen, but never the heaviest
    assert (brute["radsplat"] == 0).sum() >= 3
    assert brute["radsplat"].max() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_brute_force(cloud: Gaussians, brute: dict[str, Tensor], kind: Any) -> None:
    got = accumulate_scores(cloud, CAMERAS, kind)
    assert got.dtype == torch.float32 and not got.requires_grad
    limit = 1e-6 if kind == "radsplat" else 1e-5
    # absolute: float32 of the whole projection against float64, on weights of up to 1
    torch.testing.assert_close(got.double(), brute[kind], rtol=limit, atol=2e-6)


def test_scores_of_the_kernels(
    cloud: Gaussians,
    monkeypatch: pytest.MonkeyPatch,
    assert_close: Callable[[str, Tensor, Tensor, float], None],
) -> None:
    """On a GPU where there is one, else in Triton's interpreter, which is slow: one view."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(pruning.scores, "render", partial(render, backend="triton"))
    tensors = {name: values.to(device) for name, values in cloud.to_tensors().items()}
    got = accumulate_scores(Gaussians.from_tensors(tensors), CAMERAS[1:2], "mini-splatting-outdoor")
    assert got.device.type == device
    weights, _ = brute_weights(cloud, CAMERAS[1])
    top = torch.bincount(weights.argmax(1)[weights.amax(1) > 0], minlength=len(cloud))
    mean = weights.sum(0) / (weights > 0).sum(0).clamp_min(1)
    # a pixel at the rim, where alpha is 1/255 up to rounding, may count or not
    assert_close("scores", got, torch.where(top > 0, mean, 0.0), 1e-4)


def test_sums_conserve_light(cloud: Gaussians) -> None:
    scores = accumulate_scores(cloud, CAMERAS[:1], "mini-splatting")
    _, T = brute_weights(cloud, CAMERAS[0])
    assert scores.sum().item() == pytest.approx((1 - T).sum().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_views_in_any_order_and_in_parts(cloud: Gaussians, kind: Any) -> None:
    whole = accumulate_scores(cloud, CAMERAS, kind)
    torch.testing.assert_close(accumulate_scores(cloud, CAMERAS[::-1], kind), whole)
    if kind == "mini-splatting-indoor":
        return  # a Gaussian may be heaviest in one part only
    parts = [accumulate_scores(cloud, [view], kind) for view in CAMERAS]
    if kind == "radsplat":
        assert torch.equal(torch.stack(parts).amax(0), whole)
        assert torch.equal(accumulate_scores(cloud, CAMERAS * 2, kind), whole)
    else:
        torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(accumulate_scores(cloud, CAMERAS * 2, kind), 2 * whole)


def test_one_opaque_gaussian_scores_the_cap() -> None:
    # the centre of a pixel is half a pixel off the axis
    off = 0.5 * 4.0 / FOCAL
    one = model(torch.tensor([[off, off, 0.0]]), torch.full((1, 3), 0.2), torch.tensor([0.99999]))
    assert accumulate_scores(one, [camera()], "radsplat").item() == pytest.approx(0.99, abs=1e-6)


def test_behind_three_opaque_layers_nothing_counts() -> None:
    means = torch.tensor([[0.0, 0.0, z] for z in (-1.0, -0.5, 0.0, 0.5)])
    scales = torch.tensor([[5.0, 5.0, 0.01]] * 3 + [[0.05, 0.05, 0.01]])
    layers = model(means, scales, torch.full((4,), 0.99999))
    for kind in KINDS[:-1]:
        assert accumulate_scores(layers, [camera()], kind)[3] == 0


def test_masked_gaussians_give_way(cloud: Gaussians) -> None:
    masks = torch.ones(len(cloud))
    masks[10:20] = 0.0
    got = accumulate_scores(cloud, CAMERAS, "radsplat", masks=masks)
    assert (got[10:20] == 0).all()
    rest = Gaussians.from_tensors({k: v[masks > 0] for k, v in cloud.to_tensors().items()})
    torch.testing.assert_close(got[masks > 0], accumulate_scores(rest, CAMERAS, "radsplat"))


def test_volume_does_not_change_with_its_reference(cloud: Gaussians) -> None:
    factors = volume_factors(cloud, 0.1)
    volumes = cloud.get_scales().detach().double().prod(-1)
    assert torch.equal(factors.argsort(), volumes.argsort())
    assert factors[volumes.argsort(descending=True)[43]].item() == 1.0
    assert (volume_factors(cloud, 0.0) == 1).all()


def test_scores_need_cameras_and_a_known_kind(cloud: Gaussians) -> None:
    with pytest.raises(ValueError, match="needs at least one"):
        accumulate_scores(cloud, [], "radsplat")
    unknown: Any = "magic"
    with pytest.raises(ValueError, match="magic"):
        accumulate_scores(cloud, CAMERAS, unknown)
    assert accumulate_scores(cloud, [], "opacity").shape == (48,)


def test_nan_scores_are_refused(cloud: Gaussians) -> None:
    broken = Gaussians.from_tensors({k: v.clone() for k, v in cloud.to_tensors().items()})
    broken.params["opacities"].data[4] = math.nan
    with pytest.raises(SplatrimError, match="1 of 48 opacity scores are not finite"):
        accumulate_scores(broken, [], "opacity")
    with pytest.raises(SplatrimError, match="1 of 48 light-gaussian scores"):
        accumulate_scores(broken, CAMERAS, "light-gaussian")
    scores = torch.tensor([1.0, math.nan, 2.0])
    ids = torch.arange(3)
    for rule in (
        lambda: top_k(scores, 1),
        lambda: keep_by_threshold(scores, 0.5),
        lambda: keep_by_cumulative(scores),
        lambda: sample_keep(scores, 1, seed=0, ids=ids),
    ):
        with pytest.raises(SplatrimError, match="1 of 3 .* are not finite"):
            rule()


@pytest.mark.parametrize("k", [0, 1, 29, 30, 31, 50, 100])
def test_top_k_is_exact_under_ties(k: int) -> None:
    scores = torch.zeros(100)
    scores[::10] = 1.0  # 10 high, 70 zeros, 20 in between
    scores[5::5][:20] = torch.where(scores[5::5][:20] == 0, 0.5, scores[5::5][:20])
    keep = top_k(scores, k)
    assert int(keep.sum()) == k
    want = sorted(range(100), key=lambda i: (-scores[i].item(), i))[:k]
    assert sorted(want) == keep.nonzero()[:, 0].tolist()


def test_top_k_of_impossible_numbers() -> None:
    for k in (-1, 4):
        with pytest.raises(ValueError, match="0 to 3"):
            top_k(torch.ones(3), k)


def test_share_that_goes() -> None:
    # 70 % of the scores are zero and half goes: a percentile with <= would take the 70 %
    scores = torch.zeros(10)
    scores[7:] = 1.0
    assert int(top_k(scores, n_kept(10, 0.5)).sum()) == 5
    assert [n_kept(100, ratio) for ratio in (0.0, 0.29, 0.66, 1.0)] == [100, 71, 34, 0]


def test_threshold_is_strict() -> None:
    scores = torch.tensor([0.0, 0.01, 0.02, 0.009999])
    assert keep_by_threshold(scores, scores[1].item()).tolist() == [False, True, True, False]


def test_cumulative_cut() -> None:
    # ascending 1 2 3 4 90, sums 1 3 6 10 100: with 5 % given up the sum first exceeds 5 at the 3
    scores = torch.tensor([4.0, 90.0, 1.0, 3.0, 2.0])
    assert keep_by_cumulative(scores, 0.95).tolist() == [True, True, False, False, False]
    # exactly 6 %: 6 does not exceed 6, the 4 does
    assert keep_by_cumulative(scores, 0.94).tolist() == [False, True, False, False, False]
    # with equal scores only as many go as the sum says, not all of them
    assert int(keep_by_cumulative(torch.ones(200), 0.99).sum()) == 197
    assert not keep_by_cumulative(torch.zeros(3)).any()


def test_sampling_keeps_exactly_k_and_spares_zeros() -> None:
    ids = torch.arange(1000, dtype=torch.int32)
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0)).clamp_min(1e-3)
    scores[:600] = 0.0
    for k in (0, 1, 200, 400):
        keep = sample_keep(scores, k, seed=7, ids=ids)
        assert int(keep.sum()) == k and not keep[:600].any()
    keep = sample_keep(scores, 500, seed=7, ids=ids)  # more than have a score
    assert keep[600:].all() and keep[:100].all() and int(keep.sum()) == 500


def test_sampling_follows_ids_and_not_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, ids = torch.rand(500, generator=generator), torch.arange(500, dtype=torch.int32)
    keep = sample_keep(scores, 100, seed=3, ids=ids)
    order = torch.randperm(500, generator=generator)
    assert torch.equal(sample_keep(scores[order], 100, seed=3, ids=ids[order]), keep[order])
    assert not torch.equal(sample_keep(scores, 100, seed=4, ids=ids), keep)
    # who is drawn stays drawn when another leaves
    gone = int(keep.nonzero()[0])
    rest = torch.arange(500) != gone
    again = sample_keep(scores[rest], 99, seed=3, ids=ids[rest])
    assert torch.equal(again, keep[rest])


def test_sampling_probabilities() -> None:
    # one of two: with probability proportional to the score
    n, scores = 500, torch.tensor([1.0, 3.0])
    pairs = [torch.tensor([2 * i, 2 * i + 1]) for i in range(n)]
    first = sum(bool(sample_keep(scores, 1, seed=5, ids=ids)[0]) for ids in pairs)
    assert first / n == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / n))
    # of many, drawn until time 0.5: a share 1 - exp(-S / 2) of those with score S
    n = 40_000
    scores = torch.tensor([1.0, 3.0]).repeat(n // 2)
    want = [1 - math.exp(-0.5), 1 - math.exp(-1.5)]
    keep = sample_keep(scores, round(sum(want) * n / 2), seed=6, ids=torch.arange(n))
    for column, share in zip(keep.reshape(-1, 2).float().mean(0).tolist(), want, strict=True):
        assert column == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / (n / 2)))


def test_scores_are_saved_by_id(cloud: Gaussians, tmp_path: Path) -> None:
    cloud.rows["ids"] = torch.arange(48, dtype=torch.int32) + 7
    scores = torch.rand(48)
    save_scores(tmp_path / "scores.npz", cloud, scores)
    with np.load(tmp_path / "scores.npz") as saved:
        assert saved["ids"].tolist() == list(range(7, 55))
        assert np.array_equal(saved["scores"], scores.numpy())
