"""The large built-in scene: a survey of a procedural district, written as a COLMAP scene.

`python -m gs.data.demo --city FOLDER`. Strips of views straight down at two heights, in which the
camera turns round at each strip's end as a drone does, and oblique views from four sides. Images
are exact: ray-cast, antialiased, in sunlight with shadows. Points lie on what is seen, slightly
off, as a reconstruction's do. Size follows the flags; a GPU does the casting where there is one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..files import write_json
from ..ranges import AT_LEAST_ONE, NOT_NEGATIVE, check_ranges
from .city import CELL, LOTS, TOP, make_district, shade
from .city_rays import SKY, District
from .lens import Lens
from .new_scene import check_new, new_scene, write_model

FIELD_OF_VIEW = 62.0  # degrees, horizontally
SAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))  # of a pixel, and of the sun
RAYS = 1 << 17  # cast at once on a CPU; ten times as many on a GPU
POINT_NOISE = 0.01
MARGIN = 0.5  # of a block, around the district in which points are kept
LOW, HIGH, OBLIQUE = 0.45, 0.2, 0.35  # shares of the views
OVERLAP_HEIGHT = 2.4  # height of the low strips over the distance between their views
EXPOSURES = "exposures.json"


@dataclass(frozen=True)
class CityConfig:
    """Size of the scene."""

    views: Annotated[int, AT_LEAST_ONE] = 240
    width: Annotated[int, AT_LEAST_ONE] = 640
    height: Annotated[int, AT_LEAST_ONE] = 480
    blocks_x: Annotated[int, AT_LEAST_ONE] = 4
    blocks_y: Annotated[int, AT_LEAST_ONE] = 4
    points: Annotated[int, AT_LEAST_ONE] = 60_000
    exposure: Annotated[float, NOT_NEGATIVE] = 0.0
    seed: int = 0

    HELP: ClassVar[dict[str, str]] = {
        "views": "number of images",
        "width": "their width in pixels",
        "height": "their height in pixels",
        "blocks_x": "blocks of buildings along x",
        "blocks_y": "blocks of buildings along y",
        "points": "points to start from",
        "exposure": "standard deviation of the images' exposures in stops; exposures.json has them",
    }

    def __post_init__(self) -> None:
        check_ranges(self)


def write_city_scene(folder: Path, config: CityConfig, device: str | None = None) -> None:
    """Ray-cast the survey into `folder`: images/*.png, sparse/0 and exposures.json.

    Args:
        folder: Must be absent or empty; appears once everything is written.
        config: Size of the scene.
        device: Where rays are cast; default: a GPU if there is one.

    Raises:
        SplatrimError: The folder holds something, or cannot be written.
    """
    folder = Path(folder)
    check_new(folder)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rng = np.random.default_rng(config.seed)
    district = _on(make_district(config.blocks_x, config.blocks_y, config.seed), where)
    poses = survey(config.views, district.size, rng)
    stops = rng.standard_normal(config.views) * config.exposure
    focal = config.width / (2 * math.tan(math.radians(FIELD_OF_VIEW) / 2))
    names = [f"view_{index:04d}.png" for index in range(config.views)]
    # more than asked for, as some fall outside
    per_view = rng.multinomial(2 * config.points, [1 / config.views] * config.views)
    xyz, rgb = [], []
    with new_scene(folder) as part:
        shots = zip(names, poses, stops, per_view, strict=True)
        for name, pose, stop, count in tqdm(shots, total=len(names), unit="view", disable=None):
            color, surface = shoot(district, pose, focal, config.width, config.height)
            image = _encoded(color * 2.0**stop)
            picture = Image.fromarray(image.reshape(config.height, config.width, 3))
            picture.save(part / "images" / name, compress_level=4)
            rows = rng.integers(0, len(surface), count)
            rows = rows[_inside(surface[rows], district.size)]
            xyz.append(surface[rows] + POINT_NOISE * rng.standard_normal((len(rows), 3)))
            rgb.append(_encoded(color)[rows])
        points, colors = np.concatenate(xyz), np.concatenate(rgb)
        chosen = np.sort(rng.permutation(len(points))[: config.points])
        half = config.width / 2, config.height / 2
        lens = Lens("PINHOLE", config.width, config.height, (focal, focal, *half))
        write_model(part, lens, names, poses, points[chosen], colors[chosen])
        write_json(part / EXPOSURES, dict(zip(names, stops.tolist(), strict=True)))


def survey(
    n_views: int, size: tuple[float, float], rng: np.random.Generator
) -> list[NDArray[np.float64]]:  # [3, 4] each, world to camera
    """Poses over a district: low strips, high strips, oblique views from four sides."""
    n_high, n_oblique = int(HIGH * n_views), int(OBLIQUE * n_views)
    n_low = n_views - n_high - n_oblique
    distance = math.sqrt(size[0] * size[1] / n_low)
    low = max(TOP + 3.0, OVERLAP_HEIGHT * distance)
    poses = []
    for count, height in ((n_low, low), (n_high, 1.6 * low)):
        for x, y, strip in _strips(count, size):
            tilt = 0.06 * height * rng.standard_normal(2)
            centre = np.array([x, y, height * (1 + 0.02 * rng.standard_normal())])
            heading = np.array([0.0, 1.0 - 2.0 * (strip % 2), 0.0])
            poses.append(_pose(centre, np.array([x + tilt[0], y + tilt[1], 0.0]), heading))
    for index, (x, y, _) in enumerate(_strips(n_oblique, size)):
        angle = math.pi / 2 * (index % 4) + 0.15 * rng.standard_normal()
        back = low * np.array([math.cos(angle), math.sin(angle)])
        centre = np.array([x - back[0], y - back[1], low * (1 + 0.05 * rng.standard_normal())])
        poses.append(_pose(centre, np.array([x, y, 0.0]), np.array([0.0, 0.0, 1.0])))
    return poses


def shoot(
    district: District,
    pose: NDArray[np.float64],  # [3, 4]
    focal: float,
    width: int,
    height: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:  # [H * W, 3] linear, [H * W, 3]
    """One view without exposure, and the points that its rays meet; NaN where they meet the sky."""
    device = district.kinds.device
    rotation = torch.tensor(pose[:, :3], device=device)
    centre = torch.tensor(-pose[:, :3].T @ pose[:, 3], device=device)
    at_once = RAYS * (10 if device.type == "cuda" else 1)
    pixels = torch.arange(width * height, device=device).split(at_once)
    colors, surfaces = [], []
    for pixel in pixels:
        total = torch.zeros(len(pixel), 3, device=device)
        for number, (dx, dy) in enumerate(SAMPLES):
            x = (pixel % width + 0.5 + dx - width / 2) / focal
            y = (pixel // width + 0.5 + dy - height / 2) / focal
            local = torch.stack([x, y, torch.ones_like(x)], dim=1).double()
            directions = (local @ rotation).float()
            origins = centre.float().expand_as(directions)
            color, hits = shade(district, origins, directions, (4 * dx, 4 * dy))
            total += color.clamp(0, 1)
            if number == 0:
                t = hits.t.where(hits.which != SKY, torch.nan)[:, None]
                surfaces.append((centre + t.double() * directions.double()).cpu())
        colors.append((total / len(SAMPLES)).cpu())
    return torch.cat(colors).numpy(), torch.cat(surfaces).numpy()


def _strips(count: int, size: tuple[float, float]) -> list[tuple[float, float, int]]:
    """Places in strips along y, back and forth, evenly over a district: x, y, strip."""
    if count == 0:
        return []
    n_strips = max(round(math.sqrt(count * size[0] / size[1])), 1)
    cuts = [round(strip * count / n_strips) for strip in range(n_strips + 1)]
    places = []
    for strip in range(n_strips):
        n = cuts[strip + 1] - cuts[strip]
        along = [(k + 0.5) / n * size[1] for k in range(n)]
        x = (strip + 0.5) / n_strips * size[0]
        places += [(x, y, strip) for y in (along if strip % 2 == 0 else along[::-1])]
    return places


def _pose(
    centre: NDArray[np.float64], target: NDArray[np.float64], up: NDArray[np.float64]
) -> NDArray[np.float64]:  # [3, 4]
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward]).astype(np.float64)
    return np.concatenate([rotation, -(rotation @ centre)[:, None]], axis=1)


def _inside(points: NDArray[np.float64], size: tuple[float, float]) -> NDArray[np.bool_]:
    """Points over the district and a little around it; not those in the sky."""
    margin = MARGIN * (LOTS + 1) * CELL
    x, y = points[:, 0], points[:, 1]
    return (x > -margin) & (x < size[0] + margin) & (y > -margin) & (y < size[1] + margin)


def _encoded(linear: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(255 * linear.clip(0, 1) ** (1 / 2.2)).astype(np.uint8)


def _on(district: District, device: torch.device) -> District:
    tensors: list[Tensor] = [
        x.to(device)
        for x in (district.kinds, district.centres, district.halves, district.materials)
    ]
    kinds, centres, halves, materials = tensors
    return District(kinds, centres, halves, materials, district.cell, district.top)
