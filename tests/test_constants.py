"""Every published number, once, as the papers and their code have it.

The tables are literal: nothing in them comes from the code under test. They are compared with what
the command line gives, which is what a run is made of, and where a number is no setting, with what
the code does.
"""

import math
import shlex
from typing import Any

import pytest
import torch

import train
from gs.cli import describe
from gs.data.camera import NEAR_PLANE
from gs.densification.adaptive import MAX_RELATIVE_SCALE, N_CHILDREN, RESET_OPACITY, rotate, split
from gs.densification.mcmc import STEEPNESS, THRESHOLD
from gs.densification.taming import EDGE_WEIGHT, ERROR_WEIGHT, LOSS_WEIGHT, PRUNED_SHARE, WEIGHTS
from gs.losses import photometric_loss, ssim
from gs.model.gaussians import Gaussians
from gs.training.optimizer import build_optimizer
from kernels import rasterization

# Kerbl et al. (2023): rates and schedule of 30,000 iterations
GAUSSIAN_SPLATTING = {
    "iterations": 30_000,
    "sh_degree": 3,
    "sh_degree_interval": 1000,
    "sh_degree_from_iter": 0,
    "lambda_dssim": 0.2,
    "random_background": False,
    "position_lr_init": 0.00016,
    "position_lr_final": 0.0000016,
    "position_lr_max_steps": 30_000,
    "feature_lr": 0.0025,
    "feature_rest_divisor": 20.0,
    "opacity_lr": 0.05,
    "scaling_lr": 0.005,
    "rotation_lr": 0.001,
    "anneal_to": 1.0,
    "densify_from_iter": 500,
    "densify_until_iter": 15_000,
    "densification_interval": 100,
    "densify_grad_threshold": 0.0002,
    "percent_dense": 0.01,
    "opacity_reset_interval": 3000,
    "min_opacity": 0.005,
}

# Liu et al. (2025); post-training runs from iteration 30000 to 35000
MASK_GAUSSIAN = {
    "mask_lr": 0.01,
    "lambda_mask": 0.0005,
    "lambda_mask_factor": 1.0,
    "mask_from_iter": 0,
    "mask_until_iter": 30_000,
    "mask_prune_iter": 1000,
    "mean_over": "present",
    "final_mask": "sample",
}
ALPHA = MASK_GAUSSIAN | {
    "lambda_mask": 0.1,
    "mask_from_iter": 19_000,
    "mask_until_iter": 20_000,
}
GAMMA = MASK_GAUSSIAN | {"lambda_mask": 0.001}
POST = MASK_GAUSSIAN | {
    "lambda_mask": 0.1,
    "lambda_mask_factor": 0.2,
    "mask_from_iter": 30_000,
    "mask_until_iter": 35_000,
    "mask_prune_iter": 0,
    "iterations": 35_000,
    "position_lr_max_steps": 35_000,
}

# Zhang et al. (2024)
LP_3DGS = {
    "score": "radsplat",
    "score_scale": "none",
    "score_source": "masked",
    "score_interval": 20,
    "mask_from_iter": 19_500,
    "mask_until_iter": 20_000,
    "lambda_mask": 0.0005,
    "relaxation": "gumbel-sigmoid",
    "gumbel_temp": 0.5,
    "decision": "sample",
    "logit_lr": 0.05,
    "logit_decay": 0.01,
}

# Niemeyer et al. (2025), Fang and Wang (2024), Fan et al. (2024)
RADSPLAT = {"prune_iterations": [16_000, 24_000], "threshold": 0.01, "ratio": None}
MINI_SPLATTING = {
    "prune_iterations": [15_000, 20_000],
    "metric": "outdoor",
    "sampling": 0.5,
    "ratio": None,
    "cut": 0.99,
}
LIGHT_GAUSSIAN = {"prune_iterations": [20_000], "ratio": 0.6, "decay": 0.6, "v_pow": 0.1}

# Mallick et al. (2024), indoor scenes
TAMING = {
    "densify_from_iter": 500,
    "densify_until_iter": 15_000,
    "densification_interval": 500,
    "densify_grad_threshold": 0.0002,
    "budget": "2x",
    "score_views": 10,
}
TAMING_WEIGHTS = {
    "gradient": 25,
    "opacity": 100,
    "depth": 5,
    "extent": 10,
    "volume": 25,
    "pixels": 0.1,
    "weights": 50,
    "saliency": 10,
    "distance": 50,
}

# Kheradmand et al. (2024)
MONTE_CARLO = {
    "densify_from_iter": 500,
    "densify_until_iter": 25_000,
    "densification_interval": 100,
    "growth": 0.05,
    "min_opacity": 0.005,
    "initial_opacity": 0.5,
    "initial_scale": 0.1,
    "noise_lr": 500_000.0,
    "lambda_opacity": 0.01,
    "lambda_scale": 0.01,
}

# Deng et al. (2025): Improved-GS, and natural selection
ERROR = {
    "densify_from_iter": 500,
    "densify_until_iter": 15_000,
    "densification_interval": 100,
    "densify_grad_threshold": 0.0003,
    "split_distance": 0.45,
    "child_opacity": 0.6,
    "min_opacity": 0.005,
    "first_prune_iter": 300,
    "opacity_reset_interval": 3000,
    "recovery_delay": 300,
    "score_views": 10,
}
SELECTION = {
    "select_from_iter": 15_000,
    "select_until_iter": 23_000,
    "select_interval": 50,
    "lambda_select": 0.0002,
    "faint_opacity": 0.001,
    "opacity_gain": 4.0,
}


def settings(line: str) -> dict[str, Any]:
    """All settings of a run by name."""
    known = describe(train.parse(shlex.split(f"-s x -m y {line}")))
    parts = [known.pop(name) for name in ("optim", "densify", "pruning")]
    return known | {name: value for part in parts for name, value in part.items()}


@pytest.mark.parametrize(
    "line, want",
    [
        ("--method 3dgs", GAUSSIAN_SPLATTING),
        ("--preset published-beta", GAUSSIAN_SPLATTING | MASK_GAUSSIAN),
        ("--preset published-alpha", GAUSSIAN_SPLATTING | ALPHA),
        ("--preset published-gamma", GAUSSIAN_SPLATTING | GAMMA),
        ("--start_ply a.ply --preset published-post", GAUSSIAN_SPLATTING | POST),
        ("--method lp-3dgs --preset published-radsplat", GAUSSIAN_SPLATTING | LP_3DGS),
        (
            "--method lp-3dgs --preset published-mini-splatting",
            GAUSSIAN_SPLATTING
            | LP_3DGS
            | {"score": "mini-splatting", "sh_degree_from_iter": 15_000},
        ),
        ("--method radsplat", GAUSSIAN_SPLATTING | RADSPLAT),
        ("--method radsplat --preset light", RADSPLAT | {"threshold": 0.25}),
        ("--method radsplat --preset zip-nerf", RADSPLAT | {"threshold": 0.005}),
        ("--method radsplat --preset zip-nerf-light", RADSPLAT | {"threshold": 0.03}),
        ("--method mini-splatting", GAUSSIAN_SPLATTING | MINI_SPLATTING),
        ("--method mini-splatting --preset indoor", MINI_SPLATTING | {"metric": "indoor"}),
        ("--method light-gaussian", GAUSSIAN_SPLATTING | LIGHT_GAUSSIAN),
        (
            "--method light-gaussian --preset two-step",
            LIGHT_GAUSSIAN | {"prune_iterations": [16_000, 24_000], "ratio": 0.5, "decay": 0.8},
        ),
        (
            "--start_ply a.ply --method light-gaussian",
            {"prune_iterations": [30_001], "ratio": 0.66, "decay": 1.0, "v_pow": 0.1},
        ),
        ("--method 3dgs --densifier taming", TAMING),
        ("--method 3dgs --densifier mcmc --initial_scale 0.1", MONTE_CARLO),
        ("--method natural-selection --densifier error", ERROR | SELECTION),
    ],
)
def test_settings(line: str, want: dict[str, Any]) -> None:
    got = settings(line)
    if "--start_ply" in line:  # nothing is densified after the start
        want = want | {"densify_until_iter": 15_000}
    assert {name: got[name] for name in want} == want


def test_better_defaults() -> None:
    """What is set otherwise than published, where nothing is said."""
    assert (settings("")["final_mask"], settings("")["final_threshold"]) == ("threshold", 0.8)
    ours = settings("--method lp-3dgs")
    assert (ours["decision"], ours["score_source"]) == ("threshold", "unmasked")
    assert settings("--method 3dgs --densifier mcmc")["initial_scale"] == 1.0


def cloud(n: int = 4) -> Gaussians:
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    return Gaussians.from_points(points, points)


def test_adam() -> None:
    config = train.parse(["-s", "x", "-m", "y", "--method", "3dgs"])
    optimizer = build_optimizer(cloud(), config.optim, extent=2.0)
    for group in optimizer.param_groups:
        assert (tuple(group["betas"]), group["eps"]) == ((0.9, 0.999), 1e-15)
    rates = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
    assert rates == pytest.approx(
        {
            "means": 2 * 0.00016,
            "sh0": 0.0025,
            "shN": 0.0025 / 20,
            "opacities": 0.05,
            "scales": 0.005,
            "quats": 0.001,
        }
    )


def test_initial_gaussians() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    gaussians = Gaussians.from_points(points, points)
    torch.testing.assert_close(gaussians.get_opacities().detach(), torch.full((4,), 0.1))
    assert gaussians.get_scales()[0].tolist() == pytest.approx([math.sqrt(14 / 3)] * 3)


def test_logits_begin_at_ten_and_one() -> None:
    for line, want in (("", [10.0, 1.0]), ("--method lp-3dgs", 1.0)):
        config = train.parse(shlex.split(f"-s x -m y {line}"))
        gaussians = cloud()
        strategy = config.pruning.build(densify_until=15_000)
        strategy.setup(gaussians, extent=1.0, iterations=30_000, seed=0)
        assert gaussians.params["mask_logits"].tolist() == [want] * 4


def test_ssim_window_and_constants() -> None:
    a = torch.zeros(31, 31, 1, dtype=torch.float64)
    b = a.clone()
    b[15, 15] = 1.0
    window = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2
    # the first image is black: S = c1 c2 / ((mu^2 + c1) (var + c2)) within the window, else 1
    c1, c2 = 0.0001, 0.0009
    inside = c1 * c2 / ((window**2 + c1) * (window - window**2 + c2))
    want = (inside.sum() + 31 * 31 - 121) / 31**2
    assert ssim(a, b).item() == pytest.approx(want.item(), abs=1e-12)
    loss = photometric_loss(a.expand(-1, -1, 3), b.expand(-1, -1, 3), 0.2).item()
    assert loss == pytest.approx(0.8 / 31**2 + 0.2 * (1 - want.item()))


def test_taming_weights() -> None:
    assert WEIGHTS == TAMING_WEIGHTS
    assert (LOSS_WEIGHT, ERROR_WEIGHT, EDGE_WEIGHT, PRUNED_SHARE) == (50, 50, 50, 0.5)


def test_monte_carlo_gate() -> None:
    assert (STEEPNESS, THRESHOLD) == (100, 0.005)


def test_densification_numbers() -> None:
    """Two children at 1 / 1.6 of the scale; resets to 0.01; sizes above a tenth of the extent."""
    assert (N_CHILDREN, RESET_OPACITY, MAX_RELATIVE_SCALE) == (2, 0.01, 0.1)
    gaussians = cloud()
    children = split(gaussians, torch.tensor([1, 2]), torch.zeros(2, 2, 3))
    want = gaussians.get_scales()[[1, 2, 1, 2]] / 1.6
    torch.testing.assert_close(children["scales"].exp(), want.detach())
    turn = torch.tensor([[math.cos(0.5), 0, 0, math.sin(0.5)]])  # by 1 radian about z
    turned = rotate(turn, torch.tensor([[1.0, 0, 0]]))
    assert turned[0].tolist() == pytest.approx([math.cos(1.0), math.sin(1.0), 0])


def test_rasterizer_numbers() -> None:
    """Blur of 0.3 pixels squared; alpha from 1/255 to 0.99; the near plane of training, 0.2."""
    one = torch.ones(1, dtype=torch.float64)
    K = torch.tensor([[100.0, 0, 8.5], [0, 100.0, 8.5], [0, 0, 1]], dtype=torch.float64)

    def render(opacity: float, z: float = 1.0) -> tuple[torch.Tensor, dict[str, Any]]:
        _, alphas, info = rasterization(
            torch.tensor([[0.0, 0, z]]).double(),
            torch.tensor([[1.0, 0, 0, 0]]).double(),
            torch.full((1, 3), 0.01).double(),
            opacity * one,
            torch.ones(1, 3).double(),
            torch.eye(4).double()[None],
            K[None],
            17,
            17,
            near_plane=0.2,
        )
        return alphas[0, ..., 0], info

    alphas, info = render(1.0)
    assert info["conics"][0, 0].tolist() == pytest.approx([1 / 1.3, 0, 1 / 1.3])
    assert alphas.max().item() == pytest.approx(0.99, abs=1e-8)
    assert alphas[alphas > 0].min().item() >= 1 / 255
    # the square root of 2 ln 255 standard deviations, 3.33, and not 3
    assert int((alphas[8] > 0).sum()) == 2 * math.floor(math.sqrt(2 * math.log(255) * 1.3)) + 1
    assert NEAR_PLANE == 0.2
    near = [int(render(1.0, z=z)[1]["radii"].max()) > 0 for z in (0.1999, 0.2001)]
    assert near == [False, True]
