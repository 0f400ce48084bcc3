"""Parts of a buffer lie apart, in their shapes, aligned."""

import torch

from kernels.runtime.packed import Layout


def test_parts() -> None:
    shapes = [(3, 5), (0,), None, (2, 2, 2), (1,)]
    layout = Layout(*shapes)
    buffer = torch.zeros(layout.words, dtype=torch.int32)
    for k, shape in enumerate(shapes):
        if shape is not None:
            part = layout.part(buffer, k)
            assert part.shape == shape and part.is_contiguous()
            assert part.numel() == 0 or (part.data_ptr() - buffer.data_ptr()) % 16 == 0
            assert not part.any()
            part += k + 1
    assert torch.bincount(buffer).tolist() == [layout.words - 24, 15, 0, 0, 8, 1]


def test_made_where_asked() -> None:
    layout = Layout((7,), (4, 2))
    buffer = layout.make(torch.device("cpu"))
    assert buffer.shape == (16,) and buffer.dtype == torch.int32
