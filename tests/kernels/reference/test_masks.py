import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import rasterization
from kernels.reference.masks import philox, sample_masks, uniform

# triton.language.rand(seed, ids), as hexadecimal floats.
IDS = (0, 1, 2, 1000, -1, -(2**31))
TABLE = {
    0: "0x1.989fa2p-1 0x1.c6ccd4p-5 0x1.3ea8c8p-5 0x1.55bb6ep-4 0x1.d26faap-2 0x1.018eb4p-1",
    -7: "0x1.b5e58ap-3 0x1.dfdc38p-1 0x1.f37496p-1 0x1.ec3bf2p-1 0x1.3e013ap-1 0x1.f9a590p-1",
    2**40
    + 17: "0x1.2a450cp-1 0x1.9bd766p-4 0x1.a679d0p-5 0x1.09659ep-5 0x1.4fc432p-4 0x1.1e33bap-1",
}

AGAINST_TRITON = """
import torch, triton, triton.language as tl
from kernels.reference.masks import uniform

@triton.jit
def draw(ids_ptr, out_ptr, seed, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + i, mask=i < n, other=0)
    tl.store(out_ptr + i, tl.rand(seed, ids), mask=i < n)

ids = torch.cat([torch.arange(500), torch.tensor([-1, -2**31, 2**31 - 1])]).to(torch.int32)
for seed in (0, 1, 12345, -7, 2**31 + 5, 2**40 + 17, 2**63 - 1):
    out = torch.empty(ids.shape[0])
    draw[(1,)](ids, out, seed, ids.shape[0], BLOCK=512)
    assert torch.equal(out, uniform(seed, ids)), seed
print("equal")
"""


def test_philox_known_answer() -> None:
    # The first of Random123's known answers for Philox4x32-10.
    assert philox(0, torch.tensor([0])).item() == 0x6627E8D5


@pytest.mark.parametrize("seed", TABLE)
def test_uniform_table(seed: int) -> None:
    want = [float.fromhex(x) for x in TABLE[seed].split()]
    assert uniform(seed, torch.tensor(IDS, dtype=torch.int32)).tolist() == want


def test_uniform_is_triton_rand(repo: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = tmp_path / "against_triton.py"  # triton reads the kernel's source from a file
    script.write_text(AGAINST_TRITON)
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(repo)}
    run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "equal", run.stderr


@pytest.mark.parametrize("logit", [-5.0, -1.0, 0.0, 2.0, 9.0])
def test_frequency(logit: float) -> None:
    n = 200_000
    masks = sample_masks(torch.full((n,), logit), seed=11)
    p = 1 / (1 + math.exp(-logit))
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert abs(masks.mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_gradient_is_straight_through() -> None:
    pair = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair.requires_grad_()
    upstream = torch.arange(50.0, dtype=torch.float64)
    masks = sample_masks(pair, seed=5)
    (v_pair,) = torch.autograd.grad((masks * upstream).sum(), pair)
    u = uniform(5, torch.arange(50)).double()
    s = torch.sigmoid((pair[:, 0] - pair[:, 1]).detach() + u.log() - (-u).log1p())
    want = s * (1 - s) * upstream
    assert torch.allclose(v_pair, torch.stack([want, -want], 1), rtol=1e-12)
    assert torch.equal(masks.detach(), (s > 0.5).double())


def test_one_logit_is_the_difference_of_two() -> None:
    pair = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_masks(pair, 3), sample_masks(pair[:, 0] - pair[:, 1], 3))
    assert not torch.equal(sample_masks(pair, 3), sample_masks(pair, 4))


def test_draws_follow_ids_not_rows() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(1000, 1100, dtype=torch.int32)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))[:60]
    whole = sample_masks(logits, 9, ids)
    assert torch.equal(whole[order], sample_masks(logits[order], 9, ids[order]))


def test_in_rasterization() -> None:
    n = 40
    g = torch.Generator().manual_seed(0)
    means = torch.rand(n, 3, generator=g) - 0.5 + torch.tensor([0, 0, 3.0])
    means[0, 2] = -1.0  # culled, and still part of the draw
    scene = (
        means,
        torch.randn(n, 4, generator=g),
        torch.full((n, 3), 0.1),
        torch.full((n,), 0.5),
        torch.rand(n, 3, generator=g),
        torch.eye(4)[None],
        torch.tensor([[[20.0, 0, 10], [0, 20, 8], [0, 0, 1]]]),
        20,
        16,
    )
    logits = torch.randn(n, 2, generator=g).requires_grad_()
    ids = torch.arange(n, dtype=torch.int32).flip(0)
    image, _, info = rasterization(
        *scene, mask_logits=logits, mask_seed=7, mask_ids=ids, backend="reference"
    )
    drawn = sample_masks(logits, 7, ids)
    assert torch.equal(info["masks"], drawn)
    given = drawn.detach().requires_grad_()
    assert torch.equal(image, rasterization(*scene, masks=given, backend="reference")[0])

    # The loss on the mean reaches every logit, the culled one too.
    (v_logits,) = torch.autograd.grad(image.sum() + info["masks"].mean(), logits)
    v_masks = torch.autograd.grad(rasterization(*scene, masks=given)[0].sum(), given)[0] + 1 / n
    (want,) = torch.autograd.grad(drawn, logits, v_masks)
    assert torch.allclose(v_logits, want)
    assert v_logits[0].abs().min() > 0
