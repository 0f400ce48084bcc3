"""What the default densifier is made of: its schedule, rotations, and which rows to take."""

import torch

from gs.densification.adaptive import DensifyConfig, rotate, rows_where


def test_schedule_is_the_published_one() -> None:
    config = DensifyConfig()
    steps = range(1, 30_001)
    assert [s for s in steps if config.densifies_at(s)] == list(range(600, 15_000, 100))
    black = [s for s in steps if config.resets_opacity_at(s, white_background=False)]
    assert black == [3000, 6000, 9000, 12_000]
    white = [s for s in steps if config.resets_opacity_at(s, white_background=True)]
    assert white == [500, *black]


def test_scaled_schedule() -> None:
    short = DensifyConfig().scaled(0.1)
    assert (short.densify_from_iter, short.densify_until_iter) == (50, 1500)
    assert short.densification_interval == 50
    assert not any(short.resets_opacity_at(s, white_background=False) for s in range(1, 3001))
    assert DensifyConfig().scaled(0.2).opacity_reset_interval == 600
    assert DensifyConfig().scaled(2.0).densification_interval == 200
    assert DensifyConfig().scaled(1.0) == DensifyConfig()


def test_rotate_equals_the_rotation_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    quats = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    first = (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y))
    second = (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x))
    third = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    matrices = torch.stack([*first, *second, *third], -1).reshape(6, 3, 3)
    want = torch.einsum("nij,cnj->cni", matrices, vectors)
    torch.testing.assert_close(rotate(quats, vectors), want)


def test_rows_where() -> None:
    for mask in ([], [False], [True], [True, False, True, True, False]):
        x = torch.tensor(mask, dtype=torch.bool)
        assert torch.equal(rows_where(x, int(x.sum())), x.nonzero()[:, 0])
