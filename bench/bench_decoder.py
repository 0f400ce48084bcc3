"""Anchors decoded into Gaussians, forward and backward, by share of the anchors that is seen.

pytest bench/bench_decoder.py

At 3M candidates of which 0.3M are seen, forward and backward of the kernels shall take 0.35 ms at
most; gradients of all candidates, which are zeroed first, are 850 MB and are timed alone too
(`zero`). `render` is a view with its decoder, `splats` the same Gaussians without.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.data.camera import Camera
from gs.model.renderer import render
from gs.model.view import view_of
from gs.neural.anchors import Anchors
from gs.neural.config import NeuralConfig
from kernels import Decoded, decode, n_weights, seen_anchors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = ((3_000_000, 300_000), (400_000, 150_000))  # candidates, of which seen
K, FEATURES = 10, 32
MOST = {"triton": 0.35e-3}  # seconds, at the first size


def inputs(n: int, n_seen: int) -> dict[str, Any]:
    g = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, device="cuda", generator=g)).requires_grad_()

    rows = torch.randperm(n, device="cuda", generator=g)[:n_seen].sort().values.int()
    return {
        "anchors": normal(n, 3).detach(),
        "features": normal(n, FEATURES),
        "offsets": normal(n, K, 3),
        "scales": normal(n, 6, scale=0.1),
        "weights": normal(sum(n_weights(FEATURES, K)), scale=0.2),
        "rows": rows,
        "center": torch.tensor([0.0, 0.0, 5.0], device="cuda"),
    }


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(("n", "n_seen"), SIZES)
def test_forward(timed: Callable[..., Any], n: int, n_seen: int, backend: str) -> None:
    t = inputs(n, n_seen)
    timed(lambda: decode(**t, backend=backend), n=n, n_seen=n_seen)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(("n", "n_seen"), SIZES)
def test_forward_and_backward(timed: Callable[..., Any], n: int, n_seen: int, backend: str) -> None:
    t = inputs(n, n_seen)
    leaves = [x for x in t.values() if x.requires_grad]
    out: Decoded = decode(**t, backend=backend)
    v_out = [torch.randn_like(x) for x in out]

    def both() -> None:
        torch.autograd.grad(list(decode(**t, backend=backend)), leaves, v_out)

    timed(both, n=n, n_seen=n_seen, target_seconds=MOST.get(backend))


@pytest.mark.parametrize(("n", "n_seen"), SIZES)
def test_zero(timed: Callable[..., Any], n: int, n_seen: int) -> None:
    t = inputs(n, n_seen)
    leaves = [x for x in t.values() if x.requires_grad]
    timed(lambda: [torch.zeros_like(x) for x in leaves], n=n, n_seen=n_seen)


def camera() -> Camera:
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    K = torch.tensor([[600.0, 0, 400], [0, 600, 266.5], [0, 0, 1]])
    return Camera("view", Path("view"), 800, 533, viewmat, K, 800, 533)


@pytest.mark.parametrize("n", [n for n, _ in SIZES])
def test_seen(timed: Callable[..., Any], n: int) -> None:
    t, view = inputs(n, 1), view_of(camera(), torch.device("cuda"))
    scales = t["scales"].detach() - 6.0

    def find() -> None:
        seen_anchors(t["anchors"], scales, view.viewmats[0], view.Ks[0], 800, 533, 0.2, room=n // 2)

    timed(find, n=n)


@pytest.mark.parametrize("what", ["render", "splats"])
def test_a_view_and_its_gradients(timed: Callable[..., Any], what: str) -> None:
    g = torch.Generator(device="cuda").manual_seed(0)
    n = 150_000
    points = torch.randn(n, 3, device="cuda", generator=g)
    config = NeuralConfig(voxel_size=1e-4)
    model = Anchors.from_points(points, config, device="cuda")
    with torch.no_grad():
        model.params["features"].normal_(generator=g)
        model.params["offsets"].normal_(generator=g)
    view = view_of(camera(), torch.device("cuda"))
    made = model.splats(view)
    still = made._replace(**{k: x.detach().requires_grad_() for k, x in _floats(made).items()})

    def both() -> None:
        out = render(model if what == "render" else still, view)
        out.colors.sum().backward()

    timed(both, n=n)


def _floats(splats: Any) -> dict[str, Tensor]:
    names = ("means", "quats", "scales", "opacities", "colors")
    return {name: getattr(splats, name) for name in names}
