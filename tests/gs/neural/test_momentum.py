"""The teacher of the decoder, and the loss between both."""

import pytest
import torch

from gs.data.scene import Scene
from gs.model.renderer import render
from gs.neural.anchors import Anchors
from gs.neural.config import NeuralConfig
from gs.neural.decoder import NETS
from gs.neural.momentum import Teacher, consistency, decoder_of, difference
from kernels import Decoded
from tests.gs.neural.test_anchors import model_of

CONFIG = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.05, appearance_dim=2)

pytestmark = pytest.mark.usefixtures("one_thread")


def named_model(scene: Scene) -> Anchors:
    return model_of(scene, CONFIG, tuple(camera.image_name for camera in scene.train))


def test_the_teacher_is_the_exponential_average() -> None:
    start = {name: torch.zeros(5) for name in NETS}
    teacher = Teacher(start, 0.9)
    decoder = {name: torch.ones(5) for name in NETS}
    for _ in range(22):
        teacher.follow(decoder)
    for name, weights in teacher.nets.items():
        assert weights.tolist() == pytest.approx([1.0 - 0.9**22] * 5, abs=1e-6)
        assert weights.data_ptr() != start[name].data_ptr()
    teacher.follow(decoder, skip=torch.ones(1, dtype=torch.int32))
    assert teacher.nets["mlp_cov"].tolist() == pytest.approx([0.90152] * 5, abs=1e-5)
    teacher.follow(decoder, skip=torch.zeros(1, dtype=torch.int32))
    assert teacher.nets["mlp_cov"].tolist() == pytest.approx([1.0 - 0.9**23] * 5, abs=1e-6)


def test_without_momentum_it_is_the_decoder_and_an_equal_one_stays_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = ({n: torch.randn(99, generator=generator) for n in NETS} for _ in range(2))
    copied, still = Teacher(first, 0.0), Teacher(second, 0.9)
    copied.follow(second)
    still.follow(second)
    for teacher in (copied, still):
        for name, weights in teacher.nets.items():
            assert torch.equal(weights, second[name])
            assert weights.data_ptr() != second[name].data_ptr()


def test_teachers_of_equal_decoders_are_equal_after_1000_steps_and_resumed() -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = {name: torch.randn(50, generator=generator) for name in NETS}
    teachers = [Teacher(decoder, 0.9) for _ in range(3)]
    for step in range(1000):
        for weights in decoder.values():
            weights.add_(torch.randn(50, generator=generator), alpha=0.01)
        if step == 400:
            teachers[2] = Teacher(decoder, 0.9)
            teachers[2].load_state_dict(teachers[0].state_dict())
        for teacher in teachers:
            teacher.follow(decoder)
    for name, weights in teachers[0].nets.items():
        assert all(torch.equal(other.nets[name], weights) for other in teachers[1:])


def made(opacities: list[float], colors: list[float], scale: float, w: float) -> Decoded:
    n = len(opacities)
    return Decoded(
        torch.zeros(n, 3),
        torch.tensor([w, (1 - w * w) ** 0.5, 0.0, 0.0]).repeat(n, 1),
        torch.full((n, 3), scale),
        torch.tensor(opacities),
        torch.tensor(colors)[:, None].repeat(1, 3),
    )


def test_the_loss_is_the_sum_of_four_means() -> None:
    """Two anchors of two offsets, of which one is not drawn, and an empty place."""
    student = made([0.5, -0.25, 1.0, 0.25, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.9, 0.9], 1.0, 1.0)
    teacher = made([0.25, 0.25, 1.0, 0.0, 0.0, 0.0], [0.2, 0.9, 0.3, 0.7, 0.0, 0.0], 1.5, 0.6)
    seen = torch.tensor([True] * 4 + [False] * 2)
    opacity = (0.25**2 + 0.5**2 + 0.25**2) / 4
    color = (0.1**2 + 0.0 + 0.3**2) / 3
    quat = ((1 - 0.6) ** 2 + 0.8**2) / 4
    want = opacity + color + quat + 0.5**2
    assert float(difference(student, teacher, seen)) == pytest.approx(want, rel=1e-5)
    nobody = torch.zeros(6, dtype=torch.bool)
    assert float(difference(student, teacher, nobody)) == 0.0


def test_gradients_reach_decoder_and_anchors_and_not_the_teacher(scene: Scene) -> None:
    model = named_model(scene)
    teacher = Teacher(decoder_of(model), 0.9)

    def found() -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        out = render(model, scene.train[0])
        assert out.splats is not None and out.view is not None
        loss = consistency(model, out.splats, out.view, teacher)
        loss.backward()
        tensors = {**model.params, **dict(model.shared.named_parameters())}
        return float(loss.detach()), {n: x.grad for n, x in tensors.items() if x.grad is not None}

    loss, gradients = found()
    assert loss == 0.0
    assert all(float(x.abs().max()) == 0.0 for x in gradients.values())
    for weights in teacher.nets.values():
        weights.mul_(0.5)
    loss, gradients = found()
    assert loss > 0.0
    for name in (*NETS, "features", "scales", "appearance"):
        assert float(gradients[name].abs().max()) > 0.0, name
    assert not any(weights.requires_grad for weights in teacher.nets.values())
    # features move the teacher's Gaussians too
    out = render(model, scene.train[0])
    assert out.splats is not None and out.view is not None
    with torch.no_grad():
        blind = out.splats._replace(
            colors=out.splats.colors.detach(),
            quats=out.splats.quats.detach(),
            scales=out.splats.scales.detach(),
            opacities=out.splats.opacities.detach(),
        )
    model.zero_grad()
    consistency(model, blind, out.view, teacher).backward()
    grad = model.params["features"].grad
    assert grad is not None and float(grad.abs().max()) > 0.0
