"""A camera as one vector."""

from pathlib import Path

import pytest
import torch

from gs.data.camera import Camera
from gs.model.view import NO_EXPOSURE, VIEW_WORDS, pack_view, unpack_view, view_of


def camera(distance: float = 4.0) -> Camera:
    generator = torch.Generator().manual_seed(0)
    viewmat, K = torch.randn(4, 4, generator=generator), torch.randn(3, 3, generator=generator)
    viewmat[2, 3] = distance
    return Camera("a.png", Path("a.png"), 33, 21, viewmat, K, 33, 21)


@pytest.mark.parametrize("exposure", [NO_EXPOSURE, 0, 2**24 + 1])
def test_what_is_packed_is_unpacked(exposure: int) -> None:
    words = torch.from_numpy(pack_view(camera(), exposure))
    assert words.shape == (VIEW_WORDS,)
    view = unpack_view(words, 33, 21, 0.1)
    assert torch.equal(view.viewmats, camera().viewmat[None])
    assert torch.equal(view.Ks, camera().K[None])
    assert view.exposure.tolist() == [exposure] and view.exposure.dtype == torch.int32
    assert (view.width, view.height, view.near) == (33, 21, 0.1)
    tensors = (view.viewmats, view.Ks, view.exposure)
    assert all((x.data_ptr() - words.data_ptr()) % 16 == 0 for x in tensors)
    words.copy_(torch.from_numpy(pack_view(camera(9.0), exposure)))
    assert view.viewmats[0, 2, 3] == 9.0  # in place, as captured steps need it


def test_a_camera_is_moved_once() -> None:
    device, first, second = torch.device("cpu"), camera(), camera(9.0)
    held = view_of(first, device, 3)
    assert view_of(first, device, 3) is held
    assert view_of(second, device, 3).viewmats[0, 2, 3] == 9.0
    assert view_of(first, device, 4).exposure.tolist() == [4]
