r"""Importance of every Gaussian over the training views, and rules that turn it into a kept set.

With w = alpha T, the weight of Gaussian i in a pixel, over pixels p and views v:

    radsplat                max_vp w                        RadSplat, Niemeyer et al. 2024
    mini-splatting          sum_vp w                        as in LP-3DGS, Zhang et al. 2024
    mini-splatting-indoor   sum_vp w, 0 if never heaviest   Mini-Splatting, Fang and Wang 2024
    mini-splatting-outdoor  sum_v [X_v > 0] A_v / C_v       the same
    light-gaussian          H (V / V_90)^beta               LightGaussian, Fan et al. 2024
    opacity                 o

A_v is the sum of w in a view, C_v the number of pixels reached and X_v of those in which no other
Gaussian weighs more. H is the opacity o times the pixels reached in all views, V the product of the
scales, V_90 the volume that 90 % of all Gaussians exceed (a common factor: no ranking depends on
it). The weights come from the rasterizer's contributions; nothing leaves the device between views.

Rules return `keep` [N] bool. All of them refuse scores that are not finite, and equal scores go by
row: the lower row is kept first, so that a rule with a number keeps exactly that many.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gs import Camera, Gaussians, Model, SplatrimError, atomic_write, render
from kernels import uniform

ScoreKind = Literal[
    "radsplat",
    "mini-splatting",
    "mini-splatting-indoor",
    "mini-splatting-outdoor",
    "light-gaussian",
    "opacity",
]

VOLUME_RANK = 0.9  # of LightGaussian's reference volume, from the largest down
UNIFORM_MIN = 2.0**-32  # below the smallest draw that is not 0


@torch.no_grad()
def accumulate_scores(
    gaussians: Model,
    cameras: Sequence[Camera],
    kind: ScoreKind,
    *,
    masks: Tensor | None = None,  # [N]
    opacity_factors: Tensor | None = None,  # [N]
    v_pow: float = 0.1,
) -> Tensor:  # [N] float32
    """Score of every Gaussian over `cameras`, summed up on the device from view to view.

    Args:
        gaussians: The model. Colours and background have no part in any score. Where a row stands
            for several Gaussians, each of them has a score, and N is their number; opacities and
            volumes are then those that nobody looks at (`Model.to_ply`).
        cameras: The views, usually all training cameras; "opacity" needs none.
        kind: Which score, as in the module's docstring.
        masks: Factor on each Gaussian's alpha while rendering, as `masks` of the rasterizer (and on
            the opacity itself for "opacity"); None renders every Gaussian. [N]
        opacity_factors: Factor on each Gaussian's opacity while rendering. [N]
        v_pow: Exponent beta of the volume in "light-gaussian".

    Returns:
        Scores on the model's device, at least 0. Sums are taken over views in float64. [N]

    Raises:
        SplatrimError: A score is not finite.
        ValueError: No such kind, or no cameras where the kind needs them.
    """
    if kind not in get_args(ScoreKind):
        raise ValueError(f"kind: expected one of {get_args(ScoreKind)}, got {kind!r}")
    n = len(gaussians) * gaussians.parts
    opacities = gaussians.to_ply()["opacities"].sigmoid()
    if kind == "opacity":
        scores = opacities if masks is None else opacities * masks
        check_scores(scores, kind)
        return scores
    if not cameras:
        raise ValueError(f"cameras: the score {kind!r} needs at least one")

    # degree 0: no score depends on colours, and these are the cheapest
    plain: Model = gaussians
    if isinstance(gaussians, Gaussians):
        plain = gaussians.exported(shN=gaussians.params["shN"].detach()[:, :0])
    total = torch.zeros(n, dtype=torch.float64, device=gaussians.device)
    heaviest = torch.zeros_like(total, dtype=torch.bool)
    for camera in cameras:
        keywords = {"masks": masks, "opacity_factors": opacity_factors}
        given: dict[str, Any] = {name: x for name, x in keywords.items() if x is not None}
        out = render(plain, camera, contributions=True, **given)
        assert out.splats is not None
        found = {
            name: out.splats.scatter(out.info[f"contrib_{name}"], len(plain))
            for name in ("max", "sum", "count", "top")
        }
        top = found["top"] > 0
        if kind == "radsplat":
            total = torch.maximum(total, found["max"].double())
        elif kind == "light-gaussian":
            total += found["count"]
        elif kind == "mini-splatting-outdoor":
            mean = found["sum"].double() / found["count"].clamp_min(1)
            total += torch.where(top, mean, 0.0)
        else:
            total += found["sum"]
            heaviest |= top
    if kind == "mini-splatting-indoor":
        total = torch.where(heaviest, total, 0.0)
    elif kind == "light-gaussian":
        total = total * opacities * volume_factors(gaussians, v_pow)
    scores = total.float()
    check_scores(scores, kind)
    return scores


def volume_factors(gaussians: Model, v_pow: float) -> Tensor:  # [N] float64
    """(V / V_90)^v_pow: V_90 is the volume at rank int(0.9 N), counted from the largest down."""
    log_volumes = gaussians.to_ply()["scales"].detach().double().sum(-1)
    if not len(log_volumes):
        return log_volumes
    reference = log_volumes.sort(descending=True).values[int(VOLUME_RANK * len(log_volumes))]
    return (v_pow * (log_volumes - reference)).exp()


def check_scores(scores: Tensor, name: str = "importance") -> None:
    """Raise SplatrimError where a score is NaN or infinite."""
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise SplatrimError(
            f"{bad} of {len(scores)} {name} scores are not finite, so nothing was pruned:"
            " the model has parameters that are NaN or too large"
        )


@torch.no_grad()
def top_k(scores: Tensor, k: int) -> Tensor:  # [N] -> [N] bool
    """Keep the k highest scores: exactly k, whatever is equal; of equals the lower rows.

    Raises:
        ValueError: k is not in 0..N.
        SplatrimError: A score is not finite.
    """
    check_scores(scores)
    return _largest(scores, k)


def n_kept(n: int, ratio: float) -> int:
    """How many of n Gaussians stay when the share `ratio` goes."""
    return n - round(n * ratio)


@torch.no_grad()
def keep_by_threshold(scores: Tensor, threshold: float) -> Tensor:  # [N] -> [N] bool
    """Drop scores strictly below `threshold` (RadSplat)."""
    check_scores(scores)
    return scores >= threshold


@torch.no_grad()
def keep_by_cumulative(scores: Tensor, share: float = 0.99) -> Tensor:  # [N] -> [N] bool
    """Keep the highest scores that hold about `share` of the sum (Mini-Splatting's second cut).

    In ascending order, everything up to and including the first score at which the cumulative sum
    exceeds 1 - share of the total goes. Scores that equal that one stay if they come after it.
    """
    check_scores(scores)
    cumulative = scores.double().sort().values.cumsum(0)
    if not len(cumulative):
        return scores.bool()
    return _largest(scores, max(int((cumulative > (1.0 - share) * cumulative[-1]).sum()) - 1, 0))


@torch.no_grad()
def sample_keep(
    scores: Tensor,  # [N], at least 0
    k: int,
    *,
    seed: int,
    ids: Tensor,  # [N] int32
) -> Tensor:  # [N] bool
    """Draw k Gaussians without replacement, with probabilities proportional to their scores.

    An exponential race (Efraimidis and Spirakis 2006): Gaussian i arrives at time -log(1 - u_i)/S_i
    with u_i the counter-based uniform number of (seed, id), and the first k stay. A draw depends on
    nobody else and on no order of rows. Scores of 0 never arrive; where k needs them all the same,
    they fill up by row.
    """
    check_scores(scores)
    if bool((scores < 0).any()):
        raise ValueError("scores: sampling needs scores of at least 0")
    u = uniform(seed, ids).double().clamp(UNIFORM_MIN, 1.0 - UNIFORM_MIN)
    # logarithms of speed: -inf for a score of 0
    return _largest(scores.double().log() - torch.log(-torch.log1p(-u)), k)


def save_scores(path: str | Path, gaussians: Model, scores: Tensor) -> None:
    """Write an .npz with `ids` [N] int32 and `scores` [N] float32. Raises SplatrimError."""
    with atomic_write(path) as file:
        np.savez(file, ids=gaussians.part_ids().cpu().numpy(), scores=scores.cpu().numpy())


def _largest(keys: Tensor, k: int) -> Tensor:  # [N] -> [N] bool, exactly k True
    if not 0 <= k <= len(keys):
        raise ValueError(f"k: expected 0 to {len(keys)}, got {k}")
    keep = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    # stable: equal keys stay in the order of their rows
    keep[keys.sort(descending=True, stable=True).indices[:k]] = True
    return keep
