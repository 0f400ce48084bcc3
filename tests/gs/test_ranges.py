"""Every number that a command line can give has a range, and what is out of it is refused."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

import pytest

import train
from gs.cli import DENSIFIERS
from gs.config import SceneConfig, TrainConfig
from gs.densification.budget import budget_limit
from gs.errors import SplatrimError
from gs.evaluation.render import RenderConfig
from gs.model.rates import OptimConfig
from gs.ranges import AT_LEAST_ONE, INNER_SHARE, POSITIVE, PRUNED_SHARE, SHARE, Range
from pruning import METHODS

CONFIGS: list[Any] = [
    SceneConfig(Path("scene")),
    TrainConfig(Path("out")),
    RenderConfig(Path("out")),
    OptimConfig(),
    *(config() for config in DENSIFIERS.values()),
    *(config() for config in METHODS.values()),
]


def numbers(config: Any) -> list[tuple[str, bool]]:
    """Fields that hold numbers, and whether several of them."""
    hints = typing.get_type_hints(type(config))
    found = []
    for field in dataclasses.fields(config):
        kinds = {hints[field.name], *typing.get_args(hints[field.name])}
        if kinds & {int, float}:
            found.append((field.name, tuple in (typing.get_origin(k) for k in kinds)))
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**80, -(2**80), -2])
def test_every_number_has_a_range(config: Any, value: float) -> None:
    for name, has_several in numbers(config):
        if value == 2**80 and isinstance(getattr(config, name), float):
            continue  # a rate may be large
        with pytest.raises(SplatrimError, match=rf"^--{name} must be .*, not -?[\dni.]") as caught:
            dataclasses.replace(config, **{name: (value,) if has_several else value})
        assert "\n" not in str(caught.value)


def test_numbers_are_found() -> None:
    found = {name for config in CONFIGS for name, _ in numbers(config)}
    assert {"seed", "test_iterations", "init_points", "lambda_mask", "ratio", "noise_lr"} <= found


@pytest.mark.parametrize(
    ("held", "inside", "outside", "text"),
    [
        (POSITIVE, [1e-30, 5, 1e30], [0, -1, math.inf, math.nan], "positive"),
        (AT_LEAST_ONE, [1, 2**31 - 1], [0, 2**31], "at least 1"),
        (SHARE, [0, 1], [-0.1, 1.1], "0 to 1"),
        (INNER_SHARE, [0.5], [0, 1], "between 0 and 1"),
        (PRUNED_SHARE, [0], [1], "at least 0 and below 1"),
        (Range(0, 1, is_above=True), [1], [0], "above 0 and at most 1"),
    ],
)
def test_ranges(held: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert all(held.holds(x) for x in inside)
    assert not any(held.holds(x) for x in outside)
    assert str(held) == text


@pytest.mark.parametrize(
    "flags",
    [
        "--lambda_mask nan",
        "--position_lr_init 0",
        "--position_lr_final -1e-6",
        "--feature_rest_divisor 0",
        f"--seed {2**80}",
        "--seed -1",
        "--lambda_dssim 1.5",
        "--densification_interval 0",
        "--opacity_reset_interval 0",
        "--test_iterations 5 -7",
        "--init_points -3",
        "--opacity_lr inf",
        f"--iterations {2**40}",
        "--percent_dense nan",
        "--resolution -2",
        "--method lp-3dgs --gumbel_temp nan",
        "--method radsplat --ratio 1",
        "--densifier mcmc --growth nan",
        "--densifier taming --score_views 0",
    ],
)
def test_flags_are_refused_by_name(flags: str) -> None:
    name = [word for word in flags.split() if word.startswith("--")][-1]
    with pytest.raises(SplatrimError, match=f"^{name} must be "):
        train.parse(["-s", "scene", *flags.split()])


@pytest.mark.parametrize("flags", ["--iterations x", "--iterations 1e3", "--port", "--method"])
def test_flags_without_a_number(flags: str) -> None:
    with pytest.raises(SplatrimError, match=f"^argument {flags.split()[0]}: ") as caught:
        train.parse(["-s", "scene", *flags.split()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", ["nanx", "infx", "1e308x", "0.5x", "-3", "1e5", "x", "9" * 5000])
def test_budgets_are_numbers(budget: str) -> None:
    with pytest.raises(SplatrimError, match="--budget"):
        budget_limit(budget, 6000)
