"""Calls for test_compile.py: exchanges, sorts, anchors, masks, light, poses, depths, lenses."""

from typing import Any


def inputs(**extra: Any) -> dict[str, Any]:
    """A scene of nothing: kernels are not run, so only shapes matter."""
    import torch

    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    return {
        "means": leaf(128, 3), "quats": leaf(128, 4), "scales": leaf(128, 3),
        "opacities": leaf(128), "colors": leaf(128, 16, 3), "viewmats": torch.zeros(1, 4, 4),
        "Ks": torch.zeros(1, 3, 3), "width": 80, "height": 56, "sh_degree": 3,
    } | extra  # fmt: skip


def exchange_records() -> None:
    import torch

    from kernels import RasterInputs, RenderSettings, exchange

    x = inputs(colors_rest=None)
    settings = RenderSettings(x.pop("width"), x.pop("height"), sh_degree=x.pop("sh_degree"))
    made = exchange.project_records(RasterInputs(**x), settings, backend="triton")
    buffer, table = torch.zeros(2, 65, 12), torch.zeros(1, 5, dtype=torch.int32)
    _, sent = exchange.pack_records(made, table.new_zeros(128), table, buffer[0], backend="triton")
    values, _ = exchange.unpack_records(buffer, backend="triton")
    exchange.pack_gradients(values, buffer, backend="triton")
    exchange.unpack_gradients(buffer[0], sent, made)


def project_others() -> None:
    """Behind a projection, in the rows that it has left."""
    import torch

    from kernels import Capacity, RasterInputs, RenderSettings
    from kernels.projection import project, project_behind

    leaf = lambda *shape: torch.zeros(*shape, requires_grad=True)  # noqa: E731
    x = inputs(colors=leaf(128, 1, 3), colors_rest=leaf(128, 15, 3), mask_logits=leaf(128, 2))
    settings = RenderSettings(x.pop("width"), x.pop("height"), sh_degree=x.pop("sh_degree"))
    settings = settings._replace(raw=True)
    first = project(RasterInputs(**x), settings, Capacity(200, 0), n_ids=256)
    boxes = torch.zeros(1, 4, dtype=torch.int32)
    for logits in (x["mask_logits"], None):
        others = RasterInputs(**{**x, "mask_logits": logits})
        project_behind(first, others, settings, boxes)


def sort_everywhere() -> None:
    import torch

    from kernels.binning.sorting import plan_sort

    keys, count = torch.zeros(5000, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    for exchange in ("global", "shared"):
        plan_sort(keys, None, 16, count, exchange=exchange).run()
    plan_sort(keys, keys, 16).run()
    keys = torch.zeros(200_000, dtype=torch.int32)
    plan_sort(keys, None, 16).run()
    plan_sort(keys, keys, 11, count).run()


def draw_masks() -> None:
    import torch

    from kernels import sampled_in_any

    ids = torch.zeros(128, dtype=torch.int32)
    sampled_in_any(torch.zeros(128, 2), [1, 2], ids, backend="triton")


def compare_masked_images() -> None:
    """Widths by what divides them; values alone."""
    import torch

    from kernels.photometric.kernel import photometric

    for width in (52, 50, 51):
        target = torch.zeros(40, width, 4, dtype=torch.uint8)
        photometric(torch.zeros(40, width, 3), target, 0.2, True)
    photometric(torch.zeros(40, 52, 3), target.new_zeros(40, 52, 4), 0.2, False)


def light_colors() -> None:
    import torch

    from kernels import LENS_NUMBERS, corrected, neutral_rows

    leaf, index = torch.zeros(40, 52, 3, requires_grad=True), torch.zeros(1, dtype=torch.int32)
    lenses = torch.zeros(2, LENS_NUMBERS, requires_grad=True)
    for regularised in (False, True):
        rows = neutral_rows(3, "affine").requires_grad_()
        corrected(leaf, rows, index, regularised=regularised, backend="triton").sum().backward()
        rows = neutral_rows(3, "ppisp").requires_grad_()
        corrected(
            leaf,
            rows,
            index,
            lenses=lenses,
            lens_of=index.new_zeros(3),
            regularised=regularised,
            backend="triton",
        ).sum().backward()


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
            leaf(128, 3),
            leaf(128, 4),
            leaf(128, 3),
            leaf(128),
            leaf(128, 1, 3),
            viewmats,
            torch.zeros(1, 3, 3),
            leaf(128, 15, 3),
            mask_logits=leaf(128, 2),
            lenses=torch.zeros(1, LENS_WORDS),
        )
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


def move_poses() -> None:
    """Of one image, and of several."""
    import torch

    from kernels import step_poses

    deltas, moments, steps = torch.zeros(9, 3, 4), torch.zeros(8, 6), torch.zeros(8)
    for skip, n in ((None, 1), (torch.zeros(1, dtype=torch.int32), 4)):
        rows = torch.zeros(n, 32, dtype=torch.int32)[:, 28]  # a column of the views' words
        views = torch.zeros(n, 4, 4)
        step_poses(
            deltas, moments, moments.clone(), steps, rows, views, views.clone(),
            rate=torch.zeros(1), unit=1.0, centred=n > 1, skip=skip, backend="triton",
        )  # fmt: skip


def compare_depths() -> None:
    """Of one image, and of several that are columns of a table."""
    import torch

    from kernels import SparseDepths, depth_loss

    offsets, pixels = torch.zeros(9, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    known = SparseDepths(offsets, pixels, torch.zeros(64), 40)
    for rows in (torch.zeros(1, dtype=torch.int32), torch.zeros(4, 32, dtype=torch.int32)[:, 28]):
        depths, alphas = (torch.zeros(len(rows), 40, 56, requires_grad=True) for _ in range(2))
        depth_loss(depths, alphas, rows, known, torch.zeros(1), backend="triton").backward()


MORE_CALLS = (
    exchange_records,
    project_others,
    compare_masked_images,
    light_colors,
    draw_masks,
    decode_anchors,
    move_poses,
    compare_depths,
    project_lenses,
)
