"""What scores look like, and what pruning by them costs: for the report, written on request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gs import (
    Camera,
    Images,
    Model,
    evaluate_views,
    fields,
    integer,
    listed,
    mean_scores,
    read_checked,
    write_json,
)

from .scores import n_kept, top_k

RATIOS = tuple(i / 10 for i in range(10))
CURVE_VIEWS = 16  # of the training views, evenly spread: the curve takes ten models through them
_PRUNINGS = listed(fields({"iteration": integer(0)}, needs=("iteration",)))


@torch.no_grad()
def quality_curve(
    gaussians: Model,
    cameras: Sequence[Camera],
    images: Images,
    scores: Tensor,  # [N]
    ratios: Sequence[float] = RATIOS,
    *,
    background: Tensor | None = None,  # [3]
    indices: Sequence[int] | None = None,
) -> list[dict[str, float]]:
    """Image quality without the lowest-scored Gaussians, without refinement.

    Args:
        gaussians: The model; it stays as it is.
        cameras: The views.
        images: Their ground truth, by the same index.
        scores: What is pruned by. [N]
        ratios: Shares that go, each in 0..1.
        background: Colour behind the Gaussians; None is black. [3]
        indices: Which of `cameras` to look at; None is all.

    Returns:
        One dictionary per ratio: ratio, n_gaussians left, psnr (mean over the views, dB).
    """
    curve = []
    for ratio in ratios:
        keep = top_k(scores, n_kept(len(scores), ratio))
        model = gaussians.exported(keep)
        views = evaluate_views(model, cameras, images, background, indices=indices)
        psnr = mean_scores(views)["psnr"]
        curve.append({"ratio": ratio, "n_gaussians": int(keep.sum()), "psnr": psnr})
    return curve


def score_histogram(scores: Tensor, bins: int = 50) -> dict[str, Any]:  # scores [N], at least 0
    """Counts over logarithmic bins from the lowest positive score to the highest.

    Returns:
        edges (bins + 1), counts (bins), and n_zero, the number of scores that are 0; edges and
        counts are empty where no score is above 0.
    """
    values = scores.detach().double().cpu().numpy()
    positive = values[values > 0]
    if not len(positive):
        return {"edges": [], "counts": [], "n_zero": len(values)}
    logs = np.log10(positive)
    counts, edges = np.histogram(logs, bins)
    return {
        "edges": (10.0**edges).tolist(),
        "counts": counts.tolist(),
        "n_zero": len(values) - len(positive),
    }


def write_pruning(
    path: Path,
    step: int,
    gaussians: Model,
    scores: Tensor,  # [N]
    n_left: int,
    cameras: Sequence[Camera],
    images: Images | None,
    *,
    white_background: bool = False,
) -> None:
    """Add one pruning to pruning.json; what it says of this iteration and later ones is replaced.

    The file is a list of prunings: iteration, n_gaussians before, n_left after, histogram
    (`score_histogram`) and curve (`quality_curve` on training views; [] without images).
    """
    curve: list[dict[str, float]] = []
    if images is not None and cameras:
        spread = range(0, len(cameras), -(-len(cameras) // CURVE_VIEWS))
        background = torch.full((3,), float(white_background), device=gaussians.device)
        curve = quality_curve(
            gaussians, cameras, images, scores, background=background, indices=spread
        )
    entry = {
        "iteration": step,
        "n_gaussians": len(scores),
        "n_left": n_left,
        "histogram": score_histogram(scores),
        "curve": curve,
    }
    there = read_checked(path, _PRUNINGS) if path.exists() else []
    earlier = [e for e in there if e["iteration"] < step]
    write_json(path, [*earlier, entry])
