"""partition.png: a scene's blocks seen from above.

The first picture has all cells, points and cameras, each in the colour of its block; then one
picture per block has its own points and the cameras that it is trained on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.scene import Scene
from ..files import atomic_write
from ..model.gaussians import Gaussians
from ..run_record import PLAN
from ..viewer.block_colors import block_colors, from_above, tinted
from ..viewer.page import write_page
from .partition import Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "partition.png"
MOST_POINTS = 20_000  # that are drawn
MOST_IN_3D = 100_000
MOST_BLOCKS = 24  # that get a picture of their own
RASTER = 400  # samples of the cells along each axis
SOLID = 5.0  # logit of opacity
POINT_SIZE = 0.4  # of the distance to the next points
MARGIN = 0.06  # of the wider side


def save_plan(folder: Path, scene: Scene, partition: Partition) -> Path:
    """Draw the plan into a folder's partition.png, atomically.

    Raises:
        SplatrimError: it cannot be written.
    """
    # a second that no other command needs
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = scene.points[:: len(scene.points) // MOST_POINTS + 1].cpu()
    points = points[points.isfinite().all(dim=1)]
    centres = torch.stack([camera.position for camera in scene.train])
    ground = partition.frame.to_ground(points).numpy()
    stands = partition.frame.to_ground(centres).numpy()
    low, high = _range(ground, stands)
    owners, homes = partition.owner(points).numpy(), partition.owner(centres).numpy()
    cells = _raster(partition, ground, low, high)

    n = partition.n_blocks
    shown = range(n) if 1 < n <= MOST_BLOCKS else range(0)
    columns = min(max(len(shown), 1), 4)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(10, 7.5 + 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    layout = figure.add_gridspec(1 + rows, columns, height_ratios=[2.8, *[1] * rows])
    whole = figure.add_subplot(layout[0, :])
    _draw_cells(whole, cells, low, high)
    whole.scatter(ground[:, 0], ground[:, 1], s=1.5, c=_colors(owners), linewidths=0)
    whole.scatter(
        stands[:, 0], stands[:, 1], s=26, marker="^", c=_colors(homes), edgecolors="black", lw=0.6
    )
    for block in range(n):
        own = ground[owners == block]
        if len(own):
            x, y = np.median(own[:, :2], axis=0)
            whole.text(x, y, str(block), weight="bold", size=13, ha="center", va="center")
    total = sum(map(len, partition.cameras))
    whole.set_title(
        f"{n} block{'s' * (n > 1)} of {sum(partition.n_points):,} points and {len(centres)} cameras"
        f" ({total / len(centres):.2f} blocks per camera); up: {partition.frame.found_by}"
    )
    for block in shown:
        axes = figure.add_subplot(layout[1 + block // columns, block % columns])
        _draw_block(axes, block, partition, ground[owners == block], stands)
        _frame(axes, low, high)
    _frame(whole, low, high)
    path = folder / NAME
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return path


def save_plan_page(folder: Path, scene: Scene, partition: Partition) -> Path:
    """Write partition.html, atomically: the points in 3D, in the colours of their blocks.

    Raises:
        SplatrimError: it cannot be written.
    """
    step = len(scene.points) // MOST_IN_3D + 1
    points, colors = scene.points[::step].cpu(), scene.colors[::step].cpu()
    finite = points.isfinite().all(dim=1)
    points, colors = points[finite], colors[finite]
    model = Gaussians.from_points(points, colors, sh_degree=0).to_tensors()
    model["opacities"] = torch.full_like(model["opacities"], SOLID)
    model["scales"] = model["scales"] + math.log(POINT_SIZE)
    path, title = folder / PLAN, f"{scene.source.name} in {partition.n_blocks} blocks"
    cameras = [from_above(points, scene.train), *scene.train]
    write_page(path, tinted(model, partition.owner(points)), cameras, title=title)
    return path


def _draw_block(
    axes: Axes,
    block: int,
    partition: Partition,
    own: NDArray[np.float64],  # [M, 3]
    stands: NDArray[np.float64],  # [C, 3]
) -> None:
    cameras = list(partition.cameras[block])
    axes.scatter(own[:, 0], own[:, 1], s=1.5, c=_colors(np.full(len(own), block)), linewidths=0)
    axes.scatter(stands[:, 0], stands[:, 1], s=10, marker="^", c="#d0cfc8", linewidths=0)
    axes.scatter(stands[cameras, 0], stands[cameras, 1], s=12, marker="^", c="black", linewidths=0)
    count = partition.n_points[block]
    axes.set_title(f"block {block}: {count:,} points, {len(cameras)} cameras", size=9)


def _draw_cells(
    axes: Axes, cells: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> None:
    """Tint the cells paler than their points, and draw borders between blocks."""
    tints = _colors(cells.ravel()).reshape(*cells.shape, 3) * 0.22 + 0.78
    axes.imshow(tints, extent=(low[0], high[0], low[1], high[1]), origin="lower", aspect="equal")
    steps = np.zeros(cells.shape)
    steps[:, 1:] += cells[:, 1:] != cells[:, :-1]
    steps[1:] += cells[1:] != cells[:-1]
    mask = np.where(steps[..., None] > 0, [0.2, 0.2, 0.2, 1.0], 0.0)
    axes.imshow(mask, extent=(low[0], high[0], low[1], high[1]), origin="lower", aspect="equal")


def _raster(
    partition: Partition,
    ground: NDArray[np.float64],  # [M, 3]
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.int64]:  # [RASTER, RASTER]
    """Owners at the points' median height, row by row from below."""
    height = float(np.median(ground[:, 2])) if len(ground) else 0.0
    steps = (np.arange(RASTER) + 0.5) / RASTER
    x, y = np.meshgrid(*(low + (high - low) * steps[:, None]).T)
    places = np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], axis=1)
    world = partition.frame.to_world(torch.from_numpy(places))
    return partition.owner(world).numpy().reshape(RASTER, RASTER)


def _range(
    ground: NDArray[np.float64], stands: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # [2], [2]
    """What is shown: cameras and all points but for far outliers."""
    corners = [stands[:, :2].min(axis=0), stands[:, :2].max(axis=0)]
    if len(ground):
        corners += list(np.percentile(ground[:, :2], (1, 99), axis=0))
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    margin = MARGIN * max(float((high - low).max()), 1e-6)
    return low - margin, high + margin


def _frame(axes: Axes, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])


def _colors(blocks: NDArray[np.int64]) -> NDArray[np.float64]:  # [M] -> [M, 3]
    return block_colors(torch.from_numpy(blocks)).double().numpy()
