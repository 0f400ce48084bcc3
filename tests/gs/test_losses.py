import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from gs.losses import l1, photometric_loss, ssim, to_float, total


def naive_ssim(a: Tensor, b: Tensor) -> float:
    """One window at a time, in float64, from the definition of weighted (co)variances."""
    height, width, channels = a.shape
    g = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    window = torch.tensor(g, dtype=torch.float64)[:, None] * torch.tensor(g, dtype=torch.float64)
    window = window / window.sum()
    total = 0.0
    for channel in range(channels):
        x = torch.zeros(height + 10, width + 10, dtype=torch.float64)
        y = x.clone()
        x[5:-5, 5:-5], y[5:-5, 5:-5] = a[..., channel], b[..., channel]
        for i in range(height):
            for j in range(width):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp = (window * (p - mp) ** 2).sum()
                vq = (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                total += float(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return total / (height * width * channels)


def pair(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(height, width, channels, generator=generator, dtype=torch.float64)
    noise = torch.rand(height, width, channels, generator=generator, dtype=torch.float64)
    return a, (0.7 * a + 0.3 * noise)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 20), (11, 11), (13, 17)])
def test_ssim_equals_the_definition(height: int, width: int) -> None:
    a, b = pair(height, width)
    want = naive_ssim(a, b)
    assert ssim(a, b).item() == pytest.approx(want, abs=1e-12)
    assert ssim(a.float(), b.float()).item() == pytest.approx(want, abs=1e-5)
    assert ssim(b, a).item() == pytest.approx(want, abs=1e-12)


def test_ssim_of_flat_images() -> None:
    # Far from the border of constant images only the luminance term is left; near it, windows
    # of zeros and constants p, q have variances in a fixed ratio, so compare the middle's value.
    p, q = 0.3, 0.8
    luminance = (2 * p * q + 1e-4) / (p * p + q * q + 1e-4)
    a = torch.full((211, 211, 1), p, dtype=torch.float64)
    b = torch.full((211, 211, 1), q, dtype=torch.float64)
    whole, border = ssim(a, b).item() * 211**2, ssim(a[:21, :21], b[:21, :21]).item() * 21**2
    # 211 = 21 + 190: the larger image has 4 * 190 * 10 more border pixels; a 21 x 211 strip says
    # how much those are worth.
    strip = ssim(a[:21], b[:21]).item() * 21 * 211
    middle = whole - 2 * strip + border
    assert middle == pytest.approx(190**2 * luminance, rel=1e-9)


def test_ssim_of_equal_images_is_one_and_stationary() -> None:
    a, _ = pair(15, 12)
    x = a.clone().requires_grad_()
    value = ssim(x, a)
    value.backward()
    assert value.item() == pytest.approx(1.0, abs=1e-14)
    assert x.grad is not None and x.grad.abs().max() < 1e-15


def test_ssim_gradients() -> None:
    a, b = pair(9, 14, 2)
    torch.autograd.gradcheck(ssim, (a.requires_grad_(), b.requires_grad_()))
    a1 = a.detach().requires_grad_()
    ssim(a1, b.detach()).backward()  # one side only, as in training
    both = torch.autograd.grad(ssim(a, b), a)[0]
    assert a1.grad is not None
    torch.testing.assert_close(a1.grad, both)


def test_ssim_gradient_in_float32(assert_close) -> None:
    a, b = pair(40, 33)
    exact = a.clone().requires_grad_()
    ssim(exact, b).backward()
    single = a.float().requires_grad_()
    ssim(single, b.float()).backward()
    assert exact.grad is not None and single.grad is not None
    assert_close("v_a", single.grad, exact.grad, 1e-4)


@pytest.mark.gpu
def test_ssim_on_the_gpu_is_not_rounded_to_tf32() -> None:
    a, b = pair(133, 97)
    got = ssim(a.float().cuda(), b.float().cuda()).item()
    assert got == pytest.approx(ssim(a, b).item(), abs=1e-5)


def test_photometric_loss() -> None:
    a, b = pair(16, 11)
    want = 0.8 * (a - b).abs().mean() + 0.2 * (1 - ssim(a, b))
    assert photometric_loss(a, b).item() == pytest.approx(want.item(), abs=1e-14)
    assert photometric_loss(a, b, 0.0).item() == pytest.approx(l1(a, b).item(), abs=1e-14)
    assert photometric_loss(a, b, 1.0).item() == pytest.approx(1 - ssim(a, b).item(), abs=1e-14)


def test_photometric_loss_of_uint8_target() -> None:
    a, _ = pair(12, 15)
    target = torch.randint(0, 256, (12, 15, 3), generator=torch.Generator().manual_seed(3))
    got = photometric_loss(a.float(), target.to(torch.uint8))
    want = photometric_loss(a.float(), (target / 255.0).float())
    assert torch.equal(got, want)
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [0.0, 0.2, 1.0]
    )


def test_total_has_the_gradients_that_it_is_given() -> None:
    colors, v_colors = (x.requires_grad_(i == 0) for i, x in enumerate(pair(5, 4)))
    x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = total(torch.tensor(0.25, dtype=torch.float64), [v_colors], [colors * 2], x**2, 4 * x)
    assert loss.item() == 0.25 + 9 + 12
    loss.backward()
    assert colors.grad is not None and torch.equal(colors.grad, 2 * v_colors)
    assert x.grad is not None and x.grad.item() == 6 + 4


BACKWARD = """
import sys
import torch
from gs.losses import total

colors = torch.ones(2, 2, 3, requires_grad=True)
total(torch.tensor(0.0), [torch.ones(2, 2, 3)], [colors], colors.mean()).backward()
assert colors.grad is not None
assert "sympy" not in sys.modules
"""


def test_the_backward_of_a_total_imports_no_sympy() -> None:
    done = subprocess.run([sys.executable, "-c", BACKWARD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_images_are_named() -> None:
    a, b = pair(12, 12)
    with pytest.raises(ValueError, match=r"\[12, 12, 3\], \[11, 12, 3\]"):
        ssim(a, b[:11])
    with pytest.raises(ValueError, match="uint8"):
        ssim(a, (b * 255).to(torch.uint8))
