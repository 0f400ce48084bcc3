import math
from typing import Any

import pytest
import torch

from gs.model.gaussians import MIN_SQUARED_DISTANCE, SH_C0, Gaussians
from gs.model.specs import ParameterSpec

MASK_LOGITS = ParameterSpec("mask_logits", (2,), lr=0.01, order=35)


def from_seed(n: int, **kwargs: Any) -> Gaussians:
    generator = torch.Generator().manual_seed(n)
    points = torch.randn(n, 3, generator=generator)
    return Gaussians.from_points(points, torch.rand(n, 3, generator=generator), **kwargs)


def test_from_points() -> None:
    # A unit square: two neighbours at distance 1 and one at sqrt(2).
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    colors = torch.tensor([[0.0, 0.5, 1.0]]).repeat(4, 1)
    gaussians = Gaussians.from_points(points, colors)
    assert len(gaussians) == 4
    assert (gaussians.sh_degree, gaussians.active_sh_degree) == (3, 0)
    torch.testing.assert_close(gaussians.get_scales(), torch.full((4, 3), math.sqrt(4 / 3)))
    torch.testing.assert_close(gaussians.get_opacities(), torch.full((4,), 0.1))
    torch.testing.assert_close(gaussians.get_sh()[:, 0] * SH_C0 + 0.5, colors)
    assert gaussians.get_sh().shape == (4, 16, 3)
    assert gaussians.params["shN"].abs().max() == 0
    assert gaussians.params["quats"].tolist() == [[1.0, 0, 0, 0]] * 4
    assert torch.equal(gaussians.params["means"], points)
    assert gaussians.rows["ids"].tolist() == [0, 1, 2, 3]
    assert gaussians.rows["ids"].dtype == torch.int32
    # The model must not write through to the scene's points.
    assert gaussians.params["means"].data_ptr() != points.data_ptr()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_from_points_at_one_place_has_finite_scales(n: int) -> None:
    gaussians = Gaussians.from_points(torch.ones(n, 3), torch.ones(n, 3))
    want = torch.full((n, 3), math.sqrt(MIN_SQUARED_DISTANCE))
    torch.testing.assert_close(gaussians.get_scales(), want)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_degrees(degree: int) -> None:
    gaussians = from_seed(7, sh_degree=degree)
    assert gaussians.params["shN"].shape == (7, (degree + 1) ** 2 - 1, 3)
    for _ in range(5):
        gaussians.one_up_sh_degree()
    assert gaussians.active_sh_degree == degree
    assert Gaussians.from_tensors(gaussians.to_tensors()).sh_degree == degree


def test_tensors_round_trip_and_parameter_order() -> None:
    gaussians = from_seed(9)
    gaussians.add_parameter(MASK_LOGITS, torch.tensor([10.0, 1.0]).repeat(9, 1))
    tensors = gaussians.to_tensors()
    shuffled = {name: tensors[name] for name in sorted(tensors)}
    again = Gaussians.from_tensors(shuffled, specs=[MASK_LOGITS], active_sh_degree=2)
    assert list(again.params) == [
        "means",
        "sh0",
        "shN",
        "opacities",
        "mask_logits",
        "scales",
        "quats",
    ]
    for name, want in tensors.items():
        assert torch.equal(again.params[name], want)
        assert not tensors[name].requires_grad
    assert again.active_sh_degree == 2


def test_to_carries_row_buffers() -> None:
    gaussians = from_seed(3)
    gaussians.rows["sums"] = torch.ones(3)
    moved = gaussians.to("meta")
    assert {x.device.type for x in moved.rows.values()} == {"meta"}
    assert moved.params["means"].device.type == "meta"


def test_bad_tensors_are_named() -> None:
    tensors = from_seed(4).to_tensors()
    with pytest.raises(ValueError, match=r"missing \['quats'\]"):
        Gaussians.from_tensors({k: v for k, v in tensors.items() if k != "quats"})
    with pytest.raises(ValueError, match="colour"):
        Gaussians.from_tensors({**tensors, "colour": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"scales: expected \[4, 3\], got \[4, 2\]"):
        Gaussians.from_tensors({**tensors, "scales": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="shN"):
        Gaussians.from_tensors({**tensors, "shN": torch.zeros(4, 5, 3)})
    with pytest.raises(ValueError, match="active_sh_degree"):
        Gaussians.from_tensors(tensors, active_sh_degree=4)
    with pytest.raises(ValueError, match="points"):
        Gaussians.from_points(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="not finite"):
        Gaussians.from_points(torch.full((2, 3), float("nan")), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="colors"):
        Gaussians.from_points(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"mask_logits: expected \[4, 2\], got \[5, 2\]"):
        from_seed(4).add_parameter(MASK_LOGITS, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="means is taken"):
        from_seed(4).add_parameter(ParameterSpec("means", (3,), lr=0.1), torch.zeros(4, 3))
