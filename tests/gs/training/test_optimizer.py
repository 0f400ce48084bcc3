import math

import pytest
import torch
from torch import Tensor

import gs.training.optimizer
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig, position_lr
from gs.model.rows import NoneLeft, copy_rows, gather_rows, keep_rows, replace_values
from gs.model.specs import ParameterSpec
from gs.training.optimizer import (
    build_optimizer,
    learning_rates,
    load_optimizer_state,
    optimizer_state,
    set_learning_rates,
)

MASK_LOGITS = ParameterSpec("mask_logits", (2,), lr=0.01, order=35)

EXTENT = 2.5


def model(n: int = 12, *, masks: bool = True, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 3, generator=generator)
    gaussians = Gaussians.from_points(points, torch.rand(n, 3, generator=generator), sh_degree=1)
    if masks:
        gaussians.add_parameter(MASK_LOGITS, torch.tensor([10.0, 1.0]).repeat(n, 1))
    gaussians.rows["sums"] = torch.arange(1.0, n + 1)
    return gaussians


@pytest.fixture(params=["torch", "kernel"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All tests with both optimizers: on the CPU, the kernel is interpreted."""
    if request.param == "kernel":
        monkeypatch.setattr(gs.training.optimizer, "uses_triton", lambda backend, x: True)
    return request.param


def optimizer_of(gaussians: Gaussians) -> torch.optim.Adam:
    return build_optimizer(gaussians, OptimConfig(), extent=EXTENT)


def train(gaussians: Gaussians, optimizer: torch.optim.Optimizer, steps: int, first: int) -> None:
    """Steps with gradients that depend on a Gaussian's id and the step, not on its row."""
    ids = gaussians.rows["ids"].float()
    for step in range(first, first + steps):
        for name, parameter in gaussians.params.items():
            shape = (-1,) + (1,) * (parameter.dim() - 1)
            wave = torch.sin(0.7 * ids + 1.3 * step + len(name)).reshape(shape)
            parameter.grad = wave.expand_as(parameter).clone() + 0.1 * parameter.detach()
        optimizer.step()


def moments(optimizer: torch.optim.Optimizer, name: str) -> tuple[Tensor, Tensor]:
    state = optimizer_state(optimizer)[name]
    return state["exp_avg"], state["exp_avg_sq"]


def close(got: Tensor, want: Tensor) -> None:
    # Fused Adam rounds the tail of a tensor otherwise than its vectorised body.
    torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)


def test_groups_have_the_published_rates_in_the_published_order() -> None:
    optimizer = optimizer_of(model())
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert list(rates) == ["means", "sh0", "shN", "opacities", "mask_logits", "scales", "quats"]
    want = [1.6e-4 * EXTENT, 0.0025, 0.000125, 0.05, 0.01, 0.005, 0.001]
    assert list(rates.values()) == pytest.approx(want)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-15)
        assert len(group["params"]) == 1
    without = optimizer_of(model(masks=False))
    assert [g["name"] for g in without.param_groups] == [n for n in rates if n != "mask_logits"]


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 1.6e-4), (15_000, 1.6e-5), (30_000, 1.6e-6), (40_000, 1.6e-6)]
)
def test_position_rate_is_log_linear(step: int, rate: float) -> None:
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    assert position_lr(OptimConfig(), EXTENT, step) == pytest.approx(rate * EXTENT, rel=1e-12)
    before = [group["lr"] for group in optimizer.param_groups]
    rates = learning_rates(optimizer, OptimConfig(), extent=EXTENT, step=step)
    assert [group["lr"] for group in optimizer.param_groups] == before  # that only tells them
    set_learning_rates(optimizer, rates)
    after = [group["lr"] for group in optimizer.param_groups]
    assert after[0] == pytest.approx(rate * EXTENT, rel=1e-12)
    assert after[1:] == before[1:]


def test_position_rate_of_one_published_iteration() -> None:
    # exp((1 - t) log a + t log b) at t = 7000 / 30000
    want = 1.6e-4 ** (23 / 30) * 1.6e-6 ** (7 / 30)
    assert position_lr(OptimConfig(), 1.0, 7000) == pytest.approx(want, rel=1e-12)


def test_annealed_rates_fall_log_linearly_to_their_share() -> None:
    config = OptimConfig(anneal_to=0.01, anneal_from=0.6)
    optimizer = optimizer_of(model())
    at_start = {group["name"]: group["lr"] for group in optimizer.param_groups}
    for step, share in ((0, 1.0), (18_000, 1.0), (24_000, 0.1), (30_000, 0.01), (40_000, 0.01)):
        set_learning_rates(optimizer, learning_rates(optimizer, config, extent=EXTENT, step=step))
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates.pop("means") == position_lr(config, EXTENT, step)
        assert rates.pop("mask_logits") == MASK_LOGITS.lr
        assert rates == pytest.approx({name: share * at_start[name] for name in rates})
        assert len(rates) == 5


def test_scaled_schedule_keeps_its_shape() -> None:
    short = OptimConfig().scaled(0.008)
    assert short.position_lr_max_steps == 240
    for share in (0.0, 0.25, 1.0):
        got = position_lr(short, 1.0, round(240 * share))
        want = 5.0 * position_lr(OptimConfig(), 1.0, round(30_000 * share))
        assert got == pytest.approx(want)  # 5 = 0.008^(-1/3)
    assert short.feature_lr == pytest.approx(5.0 * OptimConfig().feature_lr)
    assert short.opacity_lr == OptimConfig().opacity_lr
    assert OptimConfig().scaled(1.0) == OptimConfig()
    assert OptimConfig().scaled(2.0).feature_lr == OptimConfig().feature_lr


def test_step_is_adam() -> None:
    gaussians = model()
    optimizer, start = optimizer_of(gaussians), gaussians.params["opacities"].detach().clone()
    gradient = torch.linspace(-1, 1, 12) * 1e-9  # far below torch's default eps of 1e-8
    gaussians.params["opacities"].grad = gradient.clone()
    optimizer.step()
    moved = gaussians.params["opacities"].detach() - start
    torch.testing.assert_close(moved, -0.05 * gradient.sign(), rtol=1e-3, atol=1e-6)


def test_kept_rows_train_on_as_if_alone() -> None:
    keep = torch.tensor(
        [True, False, True, True, False, True, False, True, True, True, False, True]
    )
    edited, control = model(), model()
    optimizer, control_optimizer = optimizer_of(edited), optimizer_of(control)
    train(edited, optimizer, 4, first=0)
    train(control, control_optimizer, 4, first=0)
    keep_rows(edited, optimizer, keep)
    assert edited.rows["ids"].tolist() == keep.nonzero()[:, 0].tolist()
    assert edited.rows["sums"].tolist() == [i + 1.0 for i in edited.rows["ids"].tolist()]
    train(edited, optimizer, 4, first=4)
    train(control, control_optimizer, 4, first=4)
    for name, parameter in edited.params.items():
        close(parameter, control.params[name][keep])
        for got, want in zip(
            moments(optimizer, name), moments(control_optimizer, name), strict=True
        ):
            close(got, want[keep])


def test_new_rows_leave_the_others_alone_and_start_afresh() -> None:
    edited, control = model(), model()
    optimizer, control_optimizer = optimizer_of(edited), optimizer_of(control)
    train(edited, optimizer, 3, first=0)
    train(control, control_optimizer, 3, first=0)
    sources, new_ids = torch.tensor([*range(12), 4, 4, 9]), torch.arange(12, 15, dtype=torch.int32)
    gather_rows(edited, optimizer, sources, n_kept=12, new_ids=new_ids)
    train(edited, optimizer, 3, first=3)
    train(control, control_optimizer, 3, first=3)
    for name, parameter in edited.params.items():
        assert len(parameter) == 15
        close(parameter[:12], control.params[name])
        for got, want in zip(
            moments(optimizer, name), moments(control_optimizer, name), strict=True
        ):
            close(got[:12], want)


def test_gathered_rows_are_kept_or_new() -> None:
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    train(gaussians, optimizer, 2, first=0)
    before = {name: x.clone() for name, x in gaussians.to_tensors().items()}
    old = {name: [x.clone() for x in moments(optimizer, name)] for name in before}
    sources = torch.tensor([7, 2, 2, 11])
    ids, means = torch.tensor([40, 41], dtype=torch.int32), torch.full((1, 3), 5.0)
    gather_rows(gaussians, optimizer, sources, n_kept=2, new_ids=ids, last={"means": means})
    assert gaussians.rows["ids"].tolist() == [7, 2, 40, 41]
    assert gaussians.rows["ids"].dtype == torch.int32
    assert gaussians.rows["sums"].tolist() == [8.0, 3.0, 0.0, 0.0]
    assert gaussians.params["means"][3].tolist() == [5.0] * 3
    for name, values in before.items():
        rows = 3 if name == "means" else 4
        assert torch.equal(gaussians.params[name][:rows], values[sources[:rows]]), name
        for x, y in zip(moments(optimizer, name), old[name], strict=True):
            assert torch.equal(x[:2], y[[7, 2]]) and x[2:].abs().max() == 0, name


def test_ids_are_never_used_twice() -> None:
    gaussians = model(4)
    keep_rows(gaussians, None, torch.tensor([True, True, True, False]))
    copy_rows(gaussians, None, torch.tensor([2]), torch.tensor([0]))
    keep_rows(gaussians, None, torch.tensor([True, True, False]))
    copy_rows(gaussians, None, torch.tensor([1]), torch.tensor([0]))
    assert gaussians.rows["ids"].tolist() == [0, 5]
    assert gaussians.next_id == 6


def test_edits_before_the_first_step() -> None:
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    keep_rows(gaussians, optimizer, torch.arange(12) < 5)
    new_ids = torch.tensor([12], dtype=torch.int32)
    gather_rows(gaussians, optimizer, torch.tensor([0, 1, 2, 3, 4, 2]), n_kept=5, new_ids=new_ids)
    replace_values(gaussians, optimizer, "opacities", torch.zeros(6))
    assert optimizer_state(optimizer).keys() == {"lrs"}
    train(gaussians, optimizer, 1, first=0)
    assert moments(optimizer, "means")[0].shape == (6, 3)


def test_edits_to_no_rows() -> None:
    """There are none: the model stays as it was."""
    gaussians = model(3)
    optimizer = optimizer_of(gaussians)
    train(gaussians, optimizer, 1, first=0)
    before = {name: x.clone() for name, x in gaussians.to_tensors().items()}
    with pytest.raises(NoneLeft):
        keep_rows(gaussians, optimizer, torch.zeros(3, dtype=torch.bool))
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(NoneLeft):
        gather_rows(gaussians, optimizer, none, n_kept=0)
    copy_rows(gaussians, optimizer, none, none)
    assert gaussians.next_id == 3
    assert all(torch.equal(before[name], x) for name, x in gaussians.to_tensors().items())
    train(gaussians, optimizer, 1, first=1)
    assert moments(optimizer, "means")[0].shape == (3, 3)


def test_step_after_an_edit_changes_nothing() -> None:
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    train(gaussians, optimizer, 2, first=0)
    for parameter in gaussians.params.values():
        parameter.grad = torch.ones_like(parameter)
    keep_rows(gaussians, optimizer, torch.ones(12, dtype=torch.bool))
    before = {name: x.clone() for name, x in gaussians.to_tensors().items()}
    optimizer.step()
    for name, want in before.items():
        assert torch.equal(gaussians.params[name], want), name


def test_replaced_values_lose_their_moments_and_only_theirs() -> None:
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    train(gaussians, optimizer, 2, first=0)
    means = moments(optimizer, "means")[0].clone()
    values = torch.linspace(-1, 1, 12)
    replace_values(gaussians, optimizer, "opacities", values)
    assert torch.equal(gaussians.params["opacities"], values)
    assert [x.abs().max().item() for x in moments(optimizer, "opacities")] == [0.0, 0.0]
    assert optimizer_state(optimizer)["opacities"]["step"].item() == 2
    assert torch.equal(moments(optimizer, "means")[0], means)
    assert means.abs().max() > 0
    train(gaussians, optimizer, 1, first=2)
    assert not torch.equal(gaussians.params["opacities"], values)
    assert values.tolist() == torch.linspace(-1, 1, 12).tolist()  # the caller's tensor is a copy


def test_state_by_name_resumes_bit_exactly() -> None:
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    train(gaussians, optimizer, 3, first=0)
    rates = learning_rates(optimizer, OptimConfig(), extent=EXTENT, step=20_000)
    set_learning_rates(optimizer, rates)
    state = optimizer_state(optimizer)
    assert state["lrs"]["means"] == position_lr(OptimConfig(), EXTENT, 20_000)

    tensors = {k: v.clone() for k, v in gaussians.to_tensors().items()}
    again = Gaussians.from_tensors(tensors, specs=[MASK_LOGITS])
    resumed = optimizer_of(again)
    load_optimizer_state(resumed, state)
    train(gaussians, optimizer, 3, first=3)
    train(again, resumed, 3, first=3)
    for name, parameter in gaussians.params.items():
        assert torch.equal(again.params[name], parameter), name


def test_state_of_another_model() -> None:
    gaussians, plain = model(), model(masks=False)
    optimizer, plain_optimizer = optimizer_of(gaussians), optimizer_of(plain)
    train(gaussians, optimizer, 1, first=0)
    train(plain, plain_optimizer, 1, first=0)
    # A pruner's parameter is new to a plain checkpoint: it starts without state.
    load_optimizer_state(optimizer, optimizer_state(plain_optimizer))
    assert "mask_logits" not in optimizer_state(optimizer)
    train(gaussians, optimizer, 1, first=1)
    with pytest.raises(ValueError, match="mask_logits"):
        load_optimizer_state(plain_optimizer, optimizer_state(optimizer))
    with pytest.raises(ValueError, match=r"means exp_avg: expected \[5, 3\], got \[12, 3\]"):
        load_optimizer_state(optimizer_of(model(5)), optimizer_state(optimizer))


def test_integer_step_is_accepted() -> None:
    # Older torch versions, and so imported checkpoints, store the count as an int.
    gaussians = model()
    optimizer = optimizer_of(gaussians)
    train(gaussians, optimizer, 2, first=0)
    state = optimizer_state(optimizer)
    for name in gaussians.params:
        state[name]["step"] = 2
    load_optimizer_state(optimizer, state)
    train(gaussians, optimizer, 1, first=2)
    assert optimizer_state(optimizer)["means"]["step"].item() == 3


def test_bad_edits_are_named() -> None:
    gaussians = model(4)
    with pytest.raises(ValueError, match="keep"):
        keep_rows(gaussians, None, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep"):
        keep_rows(gaussians, None, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"opacities: expected \[4\], got \[4, 1\]"):
        replace_values(gaussians, None, "opacities", torch.zeros(4, 1))
    assert len(gaussians) == 4
    assert math.isfinite(float(gaussians.rows["sums"].sum()))
