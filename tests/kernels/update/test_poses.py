"""A step of camera poses: the gradient, the exponential, Adam by image, the kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import step_poses
from kernels.reference.poses import motion_gradient, rigid_exponential, small_motions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("triton", "reference")
ROWS = (2, 0, 2, -1, 5)  # the third image again, and two cameras without a row
N = 4


def viewmats(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:  # [5, 4, 4]
    g = torch.Generator().manual_seed(seed)
    V = torch.eye(4, dtype=torch.float64).repeat(len(ROWS), 1, 1)
    V[:, :3] = rigid_exponential(0.3 * torch.randn(len(ROWS), 6, generator=g).double())
    return V.to(dtype)


def state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    tensors = {
        "deltas": rigid_exponential(0.1 * torch.randn(N + 1, 6, generator=g).double()),
        "exp_avg": 0.1 * torch.randn(N, 6, generator=g),
        "exp_avg_sq": torch.rand(N, 6, generator=g),
        "steps": torch.tensor([0.0, 3.0, 7.0, 1.0]),
    }
    tensors["exp_avg"][0] = tensors["exp_avg_sq"][0] = 0.0
    return {name: x.to(DEVICE, dtype).contiguous() for name, x in tensors.items()}


def take(s: dict[str, Tensor], *, rate: float = 0.01, unit: float = 3.0, **more: Any) -> None:
    dtype = s["deltas"].dtype
    g = torch.Generator().manual_seed(2)
    v = torch.randn(len(ROWS), 4, 4, generator=g).to(DEVICE, dtype)
    rows = torch.tensor(ROWS, dtype=torch.int32, device=DEVICE)
    rates = torch.tensor([rate], dtype=dtype, device=DEVICE)
    V = viewmats(3, dtype).to(DEVICE)
    step_poses(**s, rows=rows, viewmats=V, v_viewmats=v, rate=rates, unit=unit, **more)


def test_exponential_is_that_of_a_known_motion() -> None:
    xi = torch.tensor([0.1, -0.2, 0.3, 0.05, 0.02, -0.04], dtype=torch.float64)
    rotation = [
        [0.9990003749437545, 0.040469819277399566, 0.01898537831839294],
        [-0.039470194221154095, 0.9979507686346968, -0.05036235845909423],
        [-0.02098462843088389, 0.04956265841409785, 0.9985505436684441],
    ]
    translation = [0.09883374577307025, -0.2093831301982667, 0.29385061711720445]
    R, t = (torch.tensor(x, dtype=torch.float64) for x in (rotation, translation))
    want = torch.cat([R, t[:, None]], 1)
    # the series ends at |w|^8, which is 4e-10 here, over 9!
    torch.testing.assert_close(rigid_exponential(xi), want, rtol=0, atol=1e-14)


def test_exponential_is_that_of_matrices() -> None:
    xi = 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    generators = torch.zeros(6, 4, 4, dtype=torch.float64)
    generators[:, :3, 3] = xi[:, :3]
    x, y, z = xi[:, 3:].unbind(-1)
    generators[:, 2, 1], generators[:, 1, 2] = x, -x
    generators[:, 0, 2], generators[:, 2, 0] = y, -y
    generators[:, 1, 0], generators[:, 0, 1] = z, -z
    want = torch.linalg.matrix_exp(generators)[:, :3]
    # the series ends at |w|^8, which is up to 0.03 here, over 9!
    torch.testing.assert_close(rigid_exponential(xi), want, rtol=0, atol=1e-7)


def test_gradient_is_that_of_finite_differences() -> None:
    g = torch.Generator().manual_seed(4)
    V, v = viewmats(5, torch.float64), torch.randn(len(ROWS), 4, 4, generator=g).double()

    def value(xi: Tensor) -> Tensor:  # [5, 6]
        moved = torch.eye(4, dtype=torch.float64).repeat(len(ROWS), 1, 1)
        moved[:, :3] = rigid_exponential(xi)
        return ((moved @ V)[:, :3] * v[:, :3]).sum((1, 2))

    got = motion_gradient(V, v)
    for k in range(6):
        shift = torch.zeros(len(ROWS), 6, dtype=torch.float64)
        shift[:, k] = 1e-6
        slope = (value(shift) - value(-shift)) / 2e-6
        torch.testing.assert_close(got[:, k], slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_step_is_as_long_as_the_rate(backend: str) -> None:
    s = state()
    before = s["deltas"].clone()
    take(s, rate=1e-3, unit=3.0, backend=backend)
    E = torch.eye(4, device=DEVICE)
    E[:3] = s["deltas"][0]
    D = torch.eye(4, device=DEVICE)
    D[:3] = before[0]
    moved = E @ torch.linalg.inv(D)
    # Adam's first step is the rate in every number
    torch.testing.assert_close(
        moved[:3, 3].abs().cpu(), torch.full((3,), 3e-3), rtol=2e-3, atol=1e-6
    )
    angle = (0.5 * (moved[:3, :3] - moved[:3, :3].mT)).norm() / 2**0.5
    assert angle.item() == pytest.approx(3**0.5 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_all_share_is_taken_out(backend: str) -> None:
    """All four images have the same small motion; each loses it, and its own is kept."""
    shared = torch.tensor([0.02, -0.01, 0.03, 0.001, 0.002, -0.003])
    own = 1e-3 * torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]).expand(-1, 6)
    s = {name: torch.zeros_like(x) for name, x in state().items()}
    s["deltas"] = rigid_exponential(torch.cat([shared + own, torch.zeros(1, 6)])).to(DEVICE)
    for row in range(4):
        before = small_motions(s["deltas"][:-1]).mean(0)
        V = torch.eye(4, device=DEVICE)[None]
        more = {"rows": torch.tensor([row], dtype=torch.int32, device=DEVICE), "unit": 3.0}
        more["rate"] = torch.tensor([1e-3], device=DEVICE)
        was = small_motions(s["deltas"])[row]
        zero = torch.zeros_like(V)
        step_poses(**s, viewmats=V, v_viewmats=zero, centred=True, backend=backend, **more)
        now = small_motions(s["deltas"])[row]
        # of motions one after the other the second orders are left
        torch.testing.assert_close(was - now, before, rtol=0, atol=2e-4)
    left = small_motions(s["deltas"][:-1]).mean(0).cpu().abs()
    assert (left < 0.4 * shared.abs()).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_that_were_not_rendered_stay(backend: str) -> None:
    s = state()
    before = {name: x.clone() for name, x in s.items()}
    take(s, backend=backend)
    for name, x in s.items():
        still = [1, 3] + ([4] if name == "deltas" else [])
        assert torch.equal(x[still], before[name][still]), name
        assert not torch.equal(x[2], before[name][2]), name
    assert s["steps"].tolist() == [1.0, 3.0, 8.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipped_step_changes_nothing(backend: str) -> None:
    s = state()
    before = {name: x.clone() for name, x in s.items()}
    take(s, backend=backend, skip=torch.ones(1, dtype=torch.int32, device=DEVICE))
    assert all(torch.equal(x, before[name]) for name, x in s.items())
    take(s, backend=backend, skip=torch.zeros(1, dtype=torch.int32, device=DEVICE))
    assert s["steps"][0] == 1.0


def test_kernel_is_the_reference() -> None:
    got, want, exact = state(), state(), state(torch.float64)
    for _ in range(5):
        take(got, backend="triton", centred=True)
        take(want, backend="reference", centred=True)
        take(exact, backend="reference", centred=True)
    for name, x in got.items():
        # float32 rounding of five steps
        torch.testing.assert_close(x, want[name], rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(x, exact[name].float(), rtol=1e-5, atol=2e-6)


def test_rotations_stay_rotations() -> None:
    s = state()
    for _ in range(200):
        take(s, backend="reference")
    R = s["deltas"][2, :, :3]
    assert (R @ R.mT - torch.eye(3, device=DEVICE)).abs().max() < 1e-6
    assert torch.linalg.det(R) > 0.0


def test_arguments_are_checked() -> None:
    s = state()
    with pytest.raises(ValueError, match="deltas: expected"):
        take({**s, "deltas": s["deltas"][1:]})
    with pytest.raises(ValueError, match="steps"):
        take({**s, "steps": s["steps"][:2]})
    with pytest.raises(ValueError, match="expected contiguous"):
        take({**s, "exp_avg": s["exp_avg"].double()})
