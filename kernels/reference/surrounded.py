"""Records of Gaussians among frozen others, in plain PyTorch: what kernels/surrounded.py does."""

import torch
from torch import Tensor

from .projection import Projection, Records, View


def outside_boxes_culled(records: Records, boxes: Tensor) -> Records:  # [C, 4]
    """Records without those that reach no pixel of their camera's box.

    Args:
        records: Of a projection.
        boxes: Left, top, right and bottom, in pixels. [C, 4]
    """
    views = []
    for view, means2d, box in zip(records.views, records.means2d, boxes, strict=True):
        low, high = means2d - view.radii, means2d + view.radii
        meets = ((high > box[:2]) & (low < box[2:])).all(-1)
        rows = meets[view.ids].nonzero()[:, 0]
        views.append(_rows(view, rows)._replace(radii=view.radii * meets[:, None]))
    return records._replace(views=views)


def join(own: Records, frozen: Records) -> Records:
    """Both, front to back; at equal depth the own first. Numbers of the frozen follow."""
    means2d = torch.cat([own.means2d, frozen.means2d], 1)
    n = own.means2d.shape[1]
    views = []
    for mine, theirs in zip(own.views, frozen.views, strict=True):
        radii = torch.cat([mine.radii, theirs.radii])
        projected = Projection(
            *(torch.cat(pair) for pair in zip(mine.projected, theirs.projected, strict=True))
        )
        both = View(
            torch.cat([mine.ids, theirs.ids + n]),
            projected,
            _joined(mine.colors, theirs.colors),
            _joined(_masks(mine), _masks(theirs)),
            radii,
        )
        order = projected.depths.detach().sort(stable=True).indices
        views.append(_rows(both, order))
    nonfinite = torch.cat([own.nonfinite, frozen.nonfinite])
    return Records(views, means2d, None, nonfinite, own.width, own.height)


def _rows(view: View, rows: Tensor) -> View:
    """Some of the visible Gaussians, in the order of `rows`."""
    return View(
        view.ids[rows],
        Projection(*(x.index_select(0, rows) for x in view.projected)),
        None if view.colors is None else view.colors.index_select(0, rows),
        None if view.masks is None else view.masks.index_select(0, rows),
        view.radii,
    )


def _masks(view: View) -> Tensor:
    depths = view.projected.depths
    return torch.ones_like(depths.detach()) if view.masks is None else view.masks


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
