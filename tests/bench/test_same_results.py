"""What short trainings leave, as hashes: equal for equal results; and which trainings."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.same_results import CASES, differences, fingerprint
from gs.cli import DENSIFIERS
from gs.files import write_json
from gs.model.ply import save_ply
from gs.training.checkpoint import save_checkpoint
from pruning import METHODS


def test_cases_have_every_method_and_densifier() -> None:
    flags = [case.flags.split() for case in CASES.values()]
    assert {words[words.index("--method") + 1] for words in flags} == set(METHODS)
    assert {case.densifier for case in CASES.values()} - {None} == set(DENSIFIERS)
    starts = [case.start[1].split(":")[0] for case in CASES.values() if case.start]
    assert starts and set(starts) <= set(CASES)


def _write(out: Path, params: dict[str, Tensor], rows: dict[str, Tensor], moment: Tensor) -> None:
    state = {
        "method": "3dgs",
        "step": 60,
        "params": params,
        "rows": rows,
        "next_id": 5,
        "active_sh_degree": 0,
        "sh_degree": 0,
        "strategies": {},
        "extent": 1.0,
        "optimizer": {"lrs": {"means": 0.1}, "means": {"exp_avg": moment}},
    }
    save_checkpoint(out / "chkpnt60.pth", state)
    save_ply(out / "point_cloud" / "iteration_60" / "point_cloud.ply", params)
    write_json(out / "history.json", {"loss": [0.5, 0.25], "test": [{"psnr": 20.0}]})


@pytest.fixture
def params() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"means": (5, 3), "quats": (5, 4), "scales": (5, 3), "opacities": (5,)}
    shapes |= {"sh0": (5, 1, 3), "shN": (5, 0, 3)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def test_a_fingerprint_does_not_depend_on_the_order_in_a_file(
    tmp_path: Path, params: dict[str, Tensor]
) -> None:
    rows, moment = {"ids": torch.arange(5), "views": torch.ones(5)}, torch.zeros(5, 3)
    _write(tmp_path / "a", params, rows, moment)
    turned = dict(reversed(params.items())), dict(reversed(rows.items()))
    _write(tmp_path / "b", *turned, moment)
    before, after = (fingerprint(tmp_path / name, 60) for name in "ab")
    assert differences(before, after) == []
    assert before["n_gaussians"] == 5 and before["loss"] == 0.25
    names = {"params.shN", "rows.ids", "optimizer.means.exp_avg", "optimizer.lrs.means", "ply.x"}
    assert names < before.keys()


def test_one_bit_of_any_tensor_is_seen(tmp_path: Path, params: dict[str, Tensor]) -> None:
    rows, moment = {"ids": torch.arange(5)}, torch.zeros(5, 3)
    _write(tmp_path / "before", params, rows, moment)
    before = fingerprint(tmp_path / "before", 60)
    changed = params | {"means": params["means"].clone()}
    changed["means"][4, 0] = torch.nextafter(params["means"][4, 0], torch.tensor(9.0))
    minus_zero = moment.clone()
    minus_zero[0, 0] = -0.0
    others = [(changed, rows, moment), (params, {"ids": rows["ids"] + 1}, moment)]
    others += [(params, rows, minus_zero), (params, {"ids": rows["ids"].int()}, moment)]
    names = [["params.means", "ply.x"], ["rows.ids"], ["optimizer.means.exp_avg"], ["rows.ids"]]
    for count, other, want in zip(itertools.count(), others, names, strict=False):
        _write(tmp_path / str(count), *other)
        lines = differences(before, fingerprint(tmp_path / str(count), 60))
        assert [line.split(":")[0] for line in lines] == want


def test_a_name_that_only_one_has_is_a_difference() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": 2}) == ["b: only before", "c: only after"]
