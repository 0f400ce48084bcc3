"""Tables forget when they are full, and all caches when they are told to."""

import torch

from kernels import caches, rasterization
from kernels.runtime.cache import Caches, Table


def test_a_full_table_begins_anew() -> None:
    table = Table[int, str](2)
    table[1], table[2] = "a", "b"
    table[2] = "c"
    assert table == {1: "a", 2: "c"}
    table[3] = "d"
    assert table == {3: "d"}


def test_clear_reaches_every_cache() -> None:
    own, calls = Caches(), []
    table = own.add(Table[str, int]())

    @own.remembered
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    table["a"] = 1
    assert [double(1), double(1)] == [2, 2] and calls == [1]
    own.clear()
    assert not table and double(1) == 2 and calls == [1, 1]


def test_cleared_caches_change_no_result() -> None:
    g = torch.Generator().manual_seed(0)
    means = torch.rand(20, 3, generator=g) + torch.tensor([-0.5, -0.5, 2.0])
    eye, K = torch.eye(4)[None], torch.tensor([[[9.0, 0, 5], [0, 9, 4], [0, 0, 1]]])
    inputs = means, torch.ones(20, 4), torch.full((20, 3), 0.1), torch.full((20,), 0.7), means
    device = "cuda" if torch.cuda.is_available() else "cpu"
    means, quats, scales, opacities, colors, viewmats, Ks = (
        x.to(device) for x in (*inputs, eye, K)
    )
    images = []
    for call in range(5):
        out = rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, 10, 8, backend="triton"
        )
        images.append(out[0])
        if call == 3:  # recorded and replayed by now
            caches.clear()
    assert images[0].any() and all(torch.equal(image, images[0]) for image in images)
