"""Anchors decoded into Gaussians, forward and backward, by share of the anchors that is seen.

    pytest bench/bench_decoder.py
    python -m bench.bench_decoder

The second prints the GPU time of every launch, by how launches are cut, and the whole beside
torch's. At 3M candidates of which 0.3M are seen, forward and backward of the kernels shall take
0.35 ms at most; gradients of all candidates, which are zeroed first, are 850 MB and are timed alone
too (`zero`). `render` is a view with its decoder, `splats` the same Gaussians without.
"""

import statistics
import time
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
from kernels.decoder import kernel

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
        "off": torch.rand(n, K, device="cuda", generator=g) < 0.1,
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


# launches of forward, of shapes and of look: anchors, warps, registers; then programs of each pass
CUTS: tuple[kernel.Tiling, ...] = (
    kernel.FAST,
    kernel.Tiling((64, 4, None), (64, 4, None), (64, 4, None), 264, 132),
    kernel.Tiling((32, 4, None), (32, 4, None), (32, 4, None), 528, 264),
    kernel.Tiling((32, 4, 168), (32, 4, 168), (32, 4, 168), 792, 396),
    kernel.Tiling((64, 4, 168), (64, 4, 168), (64, 4, 168), 396, 396),
    kernel.Tiling((128, 8, None), (128, 8, None), (128, 8, None), 132, 132),
    kernel.Tiling((64, 8, None), (64, 8, None), (64, 8, None), 132, 132),
    kernel.Tiling((64, 8, 128), (64, 8, 128), (64, 8, 128), 528, 264),
    kernel.Tiling((64, 4, None), (64, 8, None), (64, 4, None), 1056, 528),
    kernel.Tiling((16, 4, None), (16, 4, None), (16, 4, None), 1056, 528),
)
RUNS = 12


def microseconds(f: Callable[[], Any]) -> list[tuple[str, float]]:
    """Medians of the launches of f(), by kernel, and of all between its ends; on the GPU."""
    events: list[tuple[str, torch.cuda.Event]] = []

    def mark(name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        events.append((name, event))

    def wrapped(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            mark("")
            result = original(first, *args, **kwargs)
            mark(name or first.fn.__name__)
            return result

        return call

    launch, zeros = kernel.launch, kernel.zeros
    kernel.launch, kernel.zeros = wrapped(launch, ""), wrapped(zeros, "zeros")
    found: dict[str, list[float]] = {}
    try:
        for run in range(RUNS + 3):
            events.clear()
            torch.cuda.synchronize()
            torch.cuda._sleep(20_000_000)  # so that all is queued before any of it runs
            mark("")
            f()
            mark("")
            torch.cuda.synchronize()
            if run < 3:
                continue
            times: dict[str, float] = {"all": 1e3 * events[0][1].elapsed_time(events[-1][1])}
            for (_, start), (name, end) in zip(events, events[1:], strict=False):
                if name:
                    times[name] = times.get(name, 0.0) + 1e3 * start.elapsed_time(end)
            for name, value in times.items():
                found.setdefault(name, []).append(value)
    finally:
        kernel.launch, kernel.zeros = launch, zeros
    return [(name, statistics.median(values)) for name, values in found.items()]


def wall(f: Callable[[], Any]) -> float:
    """Median microseconds from a call to the end of its work."""
    values: list[float] = []
    for _ in range(RUNS + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        values.append(1e6 * (time.perf_counter() - start))
    return statistics.median(values[3:])


def show(title: str, f: Callable[[], Any]) -> None:
    times = ", ".join(f"{name} {value:.0f}" for name, value in microseconds(f))
    print(f"{title:44} wall {wall(f):.0f}, {times}", flush=True)


def compare(n: int, n_seen: int) -> None:
    t = inputs(n, n_seen)
    leaves = [x for x in t.values() if x.requires_grad]
    v_out = [torch.randn_like(x) for x in decode(**t)]

    def both(backend: str = "triton") -> list[Tensor]:
        return list(torch.autograd.grad(list(decode(**t, backend=backend)), leaves, v_out))

    want = both("reference")
    show("torch", lambda: both("reference"))
    before = kernel.FAST
    for cut in CUTS:
        kernel.FAST = cut
        try:
            found, again = both(), both()
            pairs = [*zip(found, want, again, strict=True)]
            errors = " ".join(f"{float((a - b).norm() / b.norm()):.1e}" for a, b, _ in pairs)
            same = all(torch.equal(a, c) for a, _, c in pairs)
            title = " ".join("x".join(str(x or "-") for x in y) for y in cut[:3])
            show(f"{title} {cut[3]} {cut[4]}", both)
            print(f"{'':8}errors {errors}, repeats {same}", flush=True)
            del found, again, pairs
        except Exception as error:  # noqa: BLE001
            print(f"{cut}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    kernel.FAST = before


def main() -> None:
    """Microseconds of forward and backward, of their launches, and RMS of what differs."""
    print(torch.cuda.get_device_name(), torch.__version__)
    for n, n_seen in SIZES:
        print(f"{n_seen} of {n} anchors, microseconds:", flush=True)
        compare(n, n_seen)


if __name__ == "__main__":
    main()
