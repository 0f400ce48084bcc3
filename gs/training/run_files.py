"""Files that describe a run, as in 3DGS: config.json, cfg_args, cameras.json, input.ply.

And masked_view.png where images have masks: the first of them, transparent where nothing counts.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from plyfile import PlyData, PlyElement
from torch import Tensor

from ..data.camera import cameras_json
from ..data.loader import ImageLoader
from ..data.masks import has_mask
from ..data.scene import Scene
from ..files import atomic_write, write_json, write_text
from ..model.ply import offset_comments

MASKED_VIEW = "masked_view.png"
# What Inria's tools look for in cfg_args, with the values of a run that does not say.
CFG_ARGS = {
    "sh_degree": 3,
    "source_path": "",
    "model_path": "",
    "images": "images",
    "resolution": -1,
    "white_background": False,
    "data_device": "cuda",
    "eval": False,
}


def write_run_files(folder: Path, scene: Scene, settings: dict[str, Any]) -> None:
    """Write what is known before the first iteration.

    Args:
        folder: The run's output folder.
        scene: Its cameras and starting points.
        settings: All settings of the run as JSON can hold them; becomes config.json.
    """
    write_json(folder / "config.json", settings)
    known = {name: settings.get(name, default) for name, default in CFG_ARGS.items()}
    known["images"] = known["images"] or CFG_ARGS["images"]
    write_text(folder / "cfg_args", str(argparse.Namespace(**known)))
    write_json(folder / "cameras.json", cameras_json(scene.train, scene.test))
    offset = scene.world_offset
    write_points(folder / "input.ply", scene.points, scene.colors, world_offset=offset)
    masked = next(filter(has_mask, scene.train), None)
    if masked is not None:
        with ImageLoader([masked]) as images, atomic_write(folder / MASKED_VIEW) as file:
            Image.fromarray(images[0].numpy(), "RGBA").save(file, "PNG")


def write_points(
    path: Path,
    points: Tensor,  # [M, 3]
    colors: Tensor,  # [M, 3] in 0..1
    *,
    world_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write a coloured point cloud with zero normals, as 3DGS's input.ply."""
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.zeros(len(points), dtype=fields)
    xyz = points.detach().cpu().numpy()
    rgb = (colors.detach().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    for axis, name in enumerate("xyz"):
        vertices[name] = xyz[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = rgb[:, channel]
    with atomic_write(path) as file:
        comments = [line.removeprefix("comment ") for line in offset_comments(world_offset)]
        elements = [PlyElement.describe(vertices, "vertex")]
        PlyData(elements, byte_order="<", comments=comments).write(file)
