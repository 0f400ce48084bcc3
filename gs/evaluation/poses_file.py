"""poses.json: from where a saved model's images were taken, as its run has refined their poses.

It lies beside the model. With it cameras.json is written anew, and OUT/poses, a COLMAP model in
text of the refined cameras and the scene's points, in the coordinates of the scene's files.

    test_poses   "fitted", "aligned" or "given": gs.training.pose_refinement
    extent       radius of the scene, world units
    cameras      image name, split, viewmat [4, 4] in the run's coordinates, and how far it is from
                 the pose that was given: degrees, and distance in world units
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.camera import Camera, cameras_json
from ..data.colmap_text import write_colmap_text
from ..data.scene import Scene
from ..files import write_json
from ..model.poses import motion, with_pose
from ..schema import Mismatch, fields, listed, number, read_checked, text

POSES = "poses.json"
FOLDER = "poses"

SAID = {
    "fitted": "poses of test views were fitted to their own images, with the model frozen",
    "aligned": "poses of test views moved along with the training cameras",
    "given": "poses of test views are as the scene gives them",
}
"""What a result says of its test views."""


def _viewmat(value: Any, where: str) -> None:
    listed(listed(number()))(value, where)
    if len(value) != 4 or any(len(row) != 4 for row in value):
        raise Mismatch(f"{where}: expected four rows of four numbers")


def _protocol(value: Any, where: str) -> None:
    text(value, where)
    if value not in SAID:
        raise Mismatch(f"{where}: expected {', '.join(SAID)}, got {value!r:.40}")


_CAMERA = fields(
    {
        "name": text,
        "split": text,
        "viewmat": _viewmat,
        "degrees": number(0),
        "distance": number(0),
    },
    needs=("name", "split", "viewmat", "degrees", "distance"),
)
_POSES = fields(
    {"test_poses": _protocol, "extent": number(0), "cameras": listed(_CAMERA)},
    needs=("test_poses", "extent", "cameras"),
)


def poses_path(model: Path) -> Path:
    """Where the poses of a model's file are."""
    return model.parent / POSES


def write_poses(model: Path, scene: Scene, cameras: Sequence[Camera], test_poses: str) -> None:
    """Write what the module's docstring says.

    Args:
        model: The model's file, OUT/point_cloud/iteration_N/point_cloud.ply.
        scene: With the cameras as they were given.
        cameras: The same, the training cameras first, from where they are now.
        test_poses: How those of test views were found.

    Raises:
        SplatrimError: something cannot be written.
    """
    entries: list[dict[str, Any]] = []
    for k, (given, now) in enumerate(zip([*scene.train, *scene.test], cameras, strict=True)):
        degrees, distance = motion(given.viewmat, now.viewmat)
        entry = {
            "name": now.image_name,
            "split": "train" if k < len(scene.train) else "test",
            "viewmat": now.viewmat.tolist(),
            "degrees": degrees,
            "distance": distance,
        }
        entries.append(entry)
    found = {"test_poses": test_poses, "extent": scene.extent, "cameras": entries}
    write_json(poses_path(model), found)
    folder, n = model.parents[2], len(scene.train)
    write_json(folder / "cameras.json", cameras_json([*cameras[:n]], [*cameras[n:]]))
    write_colmap_text(
        folder / FOLDER, cameras, scene.points, scene.colors, world_offset=scene.world_offset
    )


def read_poses(model: Path) -> dict[str, Any] | None:
    """poses.json of a model; None where its poses are those of the scene.

    Raises:
        SplatrimError: it is broken.
    """
    path = poses_path(model)
    return read_checked(path, _POSES) if path.is_file() else None


def with_refined_poses(scene: Scene, model: Path) -> Scene:
    """The scene with the cameras of a model; those that the model does not know stay.

    Raises:
        SplatrimError: poses.json is broken.
    """
    found = read_poses(model)
    if found is None:
        return scene
    places = {entry["name"]: torch.tensor(entry["viewmat"]) for entry in found["cameras"]}
    train, test = (
        [
            with_pose(camera, places[camera.image_name]) if camera.image_name in places else camera
            for camera in cameras
        ]
        for cameras in (scene.train, scene.test)
    )
    return dataclasses.replace(scene, train=train, test=test)
