"""Calls of the decoder's kernels, for test_compile.py."""


def decode_anchors() -> None:
    import torch

    from kernels import decode, n_weights, seen_anchors

    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    anchors, scales = torch.zeros(128, 3), leaf(128, 6)
    rows, center = torch.zeros(128, dtype=torch.int32), torch.zeros(3)
    learnt = leaf(128, 32), leaf(128, 10, 3), scales, leaf(sum(n_weights(32, 10)))
    off = torch.zeros(128, 10, dtype=torch.bool)
    for options in ({}, {"off": off}, {"view_input": "color"}, {"precision": "exact"}):
        out = decode(anchors, *learnt, rows, center, backend="triton", **options)
        sum(x.sum() for x in out).backward()
    seen_anchors(anchors, scales, torch.zeros(4, 4), torch.zeros(3, 3), 80, 56, 0.2, room=64,
                 backend="triton")  # fmt: skip
