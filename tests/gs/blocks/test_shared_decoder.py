"""The decoder of all blocks: its gradient is a mean that does not depend on who found which."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gs.blocks.shared_decoder import SharedDecoder
from gs.distributed.ranks import Ranks
from gs.distributed.simulated import simulate
from gs.errors import SplatrimError
from gs.model.rates import OptimConfig
from gs.neural.anchors import Anchors
from gs.neural.config import NeuralConfig
from gs.neural.momentum import MomentumConfig, decoder_of

CONFIG = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.1, appearance_dim=2)
N_BLOCKS = 3
Owner = Callable[[int], int]

pytestmark = pytest.mark.usefixtures("one_thread")


def made(ranks: Ranks | None = None, n_slots: int = 1, **settings: object) -> SharedDecoder:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    model = Anchors.from_points(points, CONFIG, names=("a", "b"), seed=3)
    momentum = MomentumConfig(**settings)  # type: ignore[arg-type]
    return SharedDecoder(model, momentum, OptimConfig(), extent=1.0, n_slots=n_slots, ranks=ranks)


def gradient(decoder: SharedDecoder, block: int, step: int) -> Tensor:
    """What a block finds in a step: noise of its own around a common direction."""
    generator = torch.Generator().manual_seed(100 * step + block)
    for parameter in decoder.learnt.values():
        parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=generator)
    return decoder.take_gradient(1.0 + 0.1 * block)


def trained(decoder: SharedDecoder, owner: Owner, n_steps: int = 200) -> SharedDecoder:
    rank = 0 if decoder.ranks is None else decoder.ranks.rank
    for step in range(1, n_steps + 1):
        # one of them has fewer steps
        active = [b for b in range(N_BLOCKS) if b < 2 or step % 3]
        owners = {b: owner(b) for b in active}
        found = {b: gradient(decoder, b, step) for b in active if owners[b] == rank}
        decoder.step(decoder.gather(found, owners), step)
    decoder.check_replicas()
    return decoder


def test_decoders_are_equal_on_all_ranks_and_for_every_number_of_ranks() -> None:
    want = trained(made(), lambda block: 0).digest()
    for size in (1, 2, 3):
        found = simulate(size, lambda ranks, n=size: trained(made(ranks), lambda b: b % n).digest())
        assert found == [want] * size


def test_other_decoders_on_a_rank_are_noticed() -> None:
    def spoilt(ranks: Ranks) -> None:
        decoder = made(ranks)
        with torch.no_grad():
            decoder.learnt["mlp_color"][0] += 1e-6 * ranks.rank
        decoder.check_replicas()

    with pytest.raises(SplatrimError, match="rank 1 has another decoder than rank 0"):
        simulate(2, spoilt)


def test_the_step_is_adams_by_the_weighted_mean() -> None:
    decoder, alone = made(), made()
    rows = [gradient(decoder, block, 1) for block in range(N_BLOCKS)]
    assert all(parameter.grad is None for parameter in decoder.learnt.values())
    decoder.step(rows, 1)
    mean = torch.stack(rows).double().mean(0).float()
    n = alone.learnt["mlp_opacity"].numel()
    want = alone.learnt["mlp_opacity"].detach().clone()
    optimizer = torch.optim.Adam([want.requires_grad_()], lr=0.002, eps=1e-15)
    want.grad = mean[:n].clone()
    optimizer.step()
    torch.testing.assert_close(decoder.learnt["mlp_opacity"], want, atol=1e-6, rtol=1e-4)


def test_the_teacher_follows_steps_or_waves() -> None:
    by_step, by_wave, none = (made(teacher=kind) for kind in ("iteration", "wave", "none"))
    for decoder in (by_step, by_wave, none):
        first = decoder.teacher.nets["mlp_cov"].clone()
        decoder.step([gradient(decoder, 0, 1)], 1)
        assert torch.equal(decoder.teacher.nets["mlp_cov"], first) == (decoder is not by_step)
        before = decoder.teacher.nets["mlp_cov"].clone()
        decoder.end_wave()
        assert torch.equal(decoder.teacher.nets["mlp_cov"], before) == (decoder is not by_wave)
    want = torch.lerp(made().learnt["mlp_cov"], by_step.learnt["mlp_cov"], 0.1)
    assert torch.equal(by_step.teacher.nets["mlp_cov"], want)


def test_slots_have_averages_of_their_own_where_asked() -> None:
    shared, per_slot = made(n_slots=2), made(n_slots=2, decoder_adam="per_slot")
    for decoder in (shared, per_slot):
        for step in range(1, 5):
            decoder.step([gradient(decoder, step % 2, step)], step, slot=step % 2)
    assert len(shared.optimizers) == 1 and len(per_slot.optimizers) == 2
    assert not torch.equal(shared.learnt["mlp_cov"], per_slot.learnt["mlp_cov"])
    counts = [o.state[per_slot.learnt["mlp_cov"]]["step"].item() for o in per_slot.optimizers]
    assert counts == [2.0, 2.0]


def test_it_resumes_bit_for_bit_and_freezes() -> None:
    whole = trained(made(), lambda block: 0, 20)
    first, again = made(), made()
    for step in range(1, 21):
        if step == 11:
            again.load_state_dict(first.state_dict())
        decoder = first if step < 11 else again
        active = [b for b in range(N_BLOCKS) if b < 2 or step % 3]
        decoder.step([gradient(decoder, b, step) for b in active], step)
    assert again.digest() == whole.digest()
    with pytest.raises(SplatrimError, match="other settings"):
        made(n_slots=2, decoder_adam="per_slot").load_state_dict(whole.state_dict())
    whole.freeze(True)
    assert not any(p.requires_grad for p in decoder_of(whole.model).values())
    whole.freeze(False)
    assert all(p.requires_grad for p in decoder_of(whole.model).values())
    assert not whole.parameters["grid"].requires_grad
