"""Anchors decoded into Gaussians: reference by its definition, kernels against it in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels import Decoded, decode, n_weights, seen_anchors
from kernels.decoder import ViewInput, kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Close = Callable[[str, Tensor, Tensor, float], None]
LEARNT = ("features", "offsets", "scales", "weights")

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(n: int, k: int = 10, n_features: int = 32, seed: int = 0) -> dict[str, Any]:
    """Anchors as they are in training, float64: every other seen, one place empty."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    rows = torch.arange(0, n, 2, dtype=torch.int32)
    return {
        "anchors": rand(n, 3),
        "features": rand(n, n_features),
        "offsets": rand(n, k, 3),
        "scales": 0.3 * rand(n, 6) - 3.0,
        "weights": 0.3 * rand(sum(n_weights(n_features, k))),
        "rows": torch.cat([rows, torch.tensor([-1], dtype=torch.int32)]),
        "center": torch.tensor([0.3, -0.2, 4.0], dtype=torch.float64),
        "off": torch.rand(n, k, generator=g) < 0.2,
    }


def plain(t: dict[str, Any], row: int, j: int) -> Decoded:
    """One Gaussian, by modules of torch."""
    n, k = t["features"].shape[1], t["offsets"].shape[1]
    d = t["anchors"][row] - t["center"]
    x = torch.cat([t["features"][row], d / d.norm()])
    outs: list[Tensor] = []
    for part, m in zip(t["weights"].split(n_weights(n, k)), (1, 7, 3), strict=True):
        net = nn.Sequential(nn.Linear(n + 3, n), nn.ReLU(), nn.Linear(n, m * k)).double()
        nn.utils.vector_to_parameters(part, net.parameters())
        outs.append(net(x).view(k, m)[j].detach())
    s = t["scales"][row]
    return Decoded(
        t["anchors"][row] + t["offsets"][row, j] * s[:3].exp(),
        outs[1][3:] / outs[1][3:].norm(),
        s[3:].exp() * torch.sigmoid(outs[1][:3]),
        torch.tanh(outs[0][0]) * (~t["off"][row, j]),
        torch.sigmoid(outs[2]),
    )


def test_sizes_are_the_published_ones() -> None:
    assert n_weights(32, 10) == (1482, 3462, 2142)


def test_the_reference_follows_its_definition() -> None:
    t = inputs(9)
    out = decode(**t)
    for place, j in ((0, 0), (2, 7), (4, 9)):
        want = plain(t, 2 * place, j)
        for name, x in want._asdict().items():
            got = getattr(out, name)[place * 10 + j]
            torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12, msg=name)
    assert torch.equal(out.opacities[-10:], torch.zeros(10, dtype=torch.float64))


def test_the_reference_has_the_gradient_of_finite_differences() -> None:
    t = inputs(3, k=2, n_features=4)
    leaves = [t[name].requires_grad_() for name in LEARNT]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(decode(**{**t, **dict(zip(LEARNT, given, strict=True))}))

    assert torch.autograd.gradcheck(run, leaves, atol=1e-6)


def gradients(
    t: dict[str, Any], sizes: Callable[[int], Tensor] | None = None, **options: Any
) -> tuple[Decoded, dict[str, Tensor]]:
    """What is decoded, and gradients of it times noise: of size 1, or sizes(how many)."""
    t = {k: x.detach().requires_grad_(k in LEARNT) for k, x in t.items()}
    out = decode(**t, **options)
    g = torch.Generator().manual_seed(5)
    total = 0
    for x in out:  # also of places that are empty
        noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
        if sizes is not None:
            noise *= sizes(len(x)).view(-1, *[1] * (x.dim() - 1))
        total += (x * noise.to(x)).sum()
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, [t[k] for k in LEARNT])
    return out, dict(zip(LEARNT, found, strict=True))


def to_device(t: dict[str, Any]) -> dict[str, Any]:
    return {k: (x.float() if x.is_floating_point() else x).to(DEVICE) for k, x in t.items()}


@pytest.mark.parametrize("view_input", ["all", "color"])
@pytest.mark.parametrize(
    ("n", "k", "n_features"),
    [(1, 10, 32), (150, 10, 32), (75, 3, 16), (40, 16, 32), (40, 16, 16), (40, 4, 64)],
)
def test_kernels_against_float64(
    n: int, k: int, n_features: int, view_input: ViewInput, assert_close: Close
) -> None:
    t = inputs(n, k, n_features)
    want, v_want = gradients(t, view_input=view_input)
    # three TF32 products are float32 to rounding; float16 has 11 bits
    for precision, limit in (("exact", 1e-5), ("default", 2e-3)):
        options: dict[str, Any] = {"view_input": view_input, "precision": precision}
        got, v_got = gradients(to_device(t), backend="triton", **options)
        for name in Decoded._fields:
            # the last place is empty: of its opacity alone something is said
            assert_close(name, getattr(got, name)[:-k], getattr(want, name)[:-k], limit)
        assert got.opacities[-k:].tolist() == [0.0] * k
        for name in LEARNT:
            assert_close(f"v_{name}", v_got[name], v_want[name], limit)


def steep(n: int) -> Tensor:
    """From 1e-9 to 1e6."""
    return torch.logspace(-9, 6, n, dtype=torch.float64)


@pytest.mark.parametrize(
    "sizes",
    [
        lambda n: torch.full((n,), 1e-12),
        lambda n: torch.full((n,), 1e12),
        steep,
        lambda n: steep(n).flip(0),
    ],
    ids=["tiny", "huge", "growing", "falling"],
)
def test_gradients_of_any_size(
    sizes: Callable[[int], Tensor], assert_close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though products are in float16; several blocks per program, and more programs than one."""
    few = kernel.FAST._replace(forward_programs=2, backward_programs=2)
    monkeypatch.setattr(kernel, "FAST", few)
    t = inputs(700)
    want, v_want = gradients(t, sizes)
    got, v_got = gradients(to_device(t), sizes, backend="triton")
    for name in Decoded._fields:
        assert_close(name, getattr(got, name)[:-10], getattr(want, name)[:-10], 2e-3)
    for name in LEARNT:
        assert_close(
            f"v_{name}",
            v_got[name] / v_want[name].abs().max(),
            v_want[name] / v_want[name].abs().max(),
            2e-3,
        )


def test_what_float16_cannot_hold_stays_finite() -> None:
    t = to_device(inputs(9))
    t["features"] *= 1e6
    out, found = gradients(t, backend="triton")
    assert all(bool(x.isfinite().all()) for x in (*out, *found.values()))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_places_that_are_empty_give_nothing(backend: str) -> None:
    t = to_device(inputs(4)) | {"rows": torch.full((3,), -1, dtype=torch.int32, device=DEVICE)}
    out, found = gradients(t, backend=backend)
    assert all(bool(x.isfinite().all()) for x in out)
    assert float(out.opacities.abs().max()) == 0.0
    for name, x in found.items():
        assert float(x.abs().max()) == 0.0, name


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_model_of_no_anchors_decodes(backend: str) -> None:
    t = to_device(inputs(2))
    for name in ("anchors", "features", "offsets", "scales", "off"):
        t[name] = t[name][:0]
    t["rows"] = torch.full((64,), -1, dtype=torch.int32, device=DEVICE)
    out, found = gradients(t, backend=backend)
    assert len(out.means) == 640 and bool(out.means.isfinite().all())
    assert float(found["weights"].abs().max()) == 0.0 and found["features"].shape == (0, 32)


def test_equal_calls_have_equal_gradients() -> None:
    t = to_device(inputs(700))
    first, second = (gradients(t, backend="triton")[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in LEARNT)


def camera() -> tuple[Tensor, Tensor]:
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    K = torch.tensor([[60.0, 0.0, 32.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]])
    return viewmat, K


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_anchors_that_a_camera_sees(backend: str) -> None:
    viewmat, K = (x.to(DEVICE) for x in camera())
    anchors = torch.tensor(
        [[0.0, 0, 0], [0, 0, -3.9], [0, 0, -9], [2.6, 0, 0], [0, 2.6, 0], [2.6, 0, 0]],
        device=DEVICE,
    )
    scales = torch.full((6, 6), -5.0, device=DEVICE)
    scales[5, :3] = 0.0  # as far out as the fourth, and large
    for room, shown in ((None, 64), (4, 4), (2, 2)):
        rows, count = seen_anchors(
            anchors, scales, viewmat, K, 64, 48, 0.2, room=room, backend=backend
        )
        want = [0, 5, *[-1] * 62][:shown]
        assert rows.tolist() == want and count.tolist() == [2]
    rows, count = seen_anchors(anchors[:0], scales[:0], viewmat, K, 64, 48, 0.2, backend=backend)
    assert rows.tolist() == [-1] * 64 and count.tolist() == [0]


def test_kernel_and_reference_see_the_same() -> None:
    g = torch.Generator().manual_seed(3)
    anchors, scales = 4.0 * torch.randn(600, 3, generator=g), torch.randn(600, 6, generator=g) - 3
    viewmat, K = camera()
    a, s, v, m = (x.to(DEVICE) for x in (anchors, scales, viewmat, K))
    rows = [
        seen_anchors(a, s, v, m, 64, 48, 0.2, backend=backend)[0].tolist()
        for backend in ("triton", "reference")
    ]
    assert rows[0] == rows[1] and 50 < sum(row >= 0 for row in rows[0]) < 550


def test_what_does_not_fit_is_refused() -> None:
    t = inputs(4)
    with pytest.raises(ValueError, match=r"weights: expected \[7086\]"):
        decode(**{**t, "weights": t["weights"][:-1]})
    with pytest.raises(ValueError, match="rows: expected int32"):
        decode(**{**t, "rows": t["rows"].long()})
    with pytest.raises(ValueError, match="view_input"):
        decode(**t, view_input="none")  # pyright: ignore[reportArgumentType]
    odd = to_device(inputs(4, n_features=8))
    with pytest.raises(ValueError, match="features and up to 16 offsets"):
        decode(**odd, backend="triton")
