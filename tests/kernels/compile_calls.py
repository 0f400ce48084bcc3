"""Calls for test_compile.py: anchors decoded, masks drawn, lenses that bend lines."""

from typing import Any


def draw_masks() -> None:
    import torch

    from kernels import sampled_in_any

    ids = torch.zeros(128, dtype=torch.int32)
    sampled_in_any(torch.zeros(128, 2), [1, 2], ids, backend="triton")


def decode_anchors() -> None:
    import torch

    from kernels import decode, n_weights, seen_anchors

    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    anchors, scales = torch.zeros(128, 3), leaf(128, 6)
    rows, center = torch.zeros(128, dtype=torch.int32), torch.zeros(3)
    learnt = leaf(128, 32), leaf(128, 10, 3), scales, leaf(sum(n_weights(32, 10)))
    off = torch.zeros(128, 10, dtype=torch.bool)
    choices: list[dict[str, Any]] = [
        {},
        {"off": off},
        {"view_input": "color"},
        {"precision": "exact"},
    ]
    for options in choices:
        out = decode(anchors, *learnt, rows, center, backend="triton", **options)
        torch.cat([x.flatten() for x in out]).sum().backward()
    seen_anchors(
        anchors,
        scales,
        torch.zeros(4, 4),
        torch.zeros(3, 3),
        80,
        56,
        0.2,
        room=64,
        backend="triton",
    )


def project_lenses() -> None:
    """Every family with all terms, trained as the trainer does; the common fisheye."""
    import torch

    from kernels import LensKind, RasterInputs, RenderSettings, project
    from kernels.lenses import LENS_WORDS

    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    settings = RenderSettings(80, 56, sh_degree=3, raw=True)

    def train(kind: LensKind, viewmats: torch.Tensor, *, antialiased: bool = False) -> None:
        x = RasterInputs(
            leaf(128, 3), leaf(128, 4), leaf(128, 3), leaf(128), leaf(128, 1, 3), viewmats,
            torch.zeros(1, 3, 3), leaf(128, 15, 3), mask_logits=leaf(128, 2),
            lenses=torch.zeros(1, LENS_WORDS),
        )  # fmt: skip
        out = project(x, settings._replace(lens=kind, antialiased=antialiased))
        (out.means2d.sum() + out.values.sum()).backward()

    for kind in (
        LensKind("distorted", 4, True, True, True),
        LensKind("fisheye", 4, True, True, True),
        LensKind("fisheye", 4),
        LensKind("equirectangular"),
    ):
        train(kind, torch.zeros(1, 4, 4))
    train(LensKind("fisheye", 4), leaf(1, 4, 4), antialiased=True)
