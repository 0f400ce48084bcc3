"""The scene of a run, found again by the run's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.camera import NEAR_PLANE
from ..data.scene import Scene, load_scene
from ..data.undistort import FOLDER as UNDISTORTED
from ..errors import SplatrimError
from .poses_file import with_refined_poses


def load_run_scene(
    settings: dict[str, Any],
    model_path: Path,
    world_offset: tuple[float, float, float],
    *,
    source_path: str | Path | None = None,
    images: str | None = None,
    resolution: int | None = None,
    model: Path | None = None,
) -> Scene:
    """The scene of a run, as it was trained on.

    Args:
        settings: The run's, as `read_settings` gives them.
        model_path: The run's folder, which keeps undistorted images.
        world_offset: That of the model's file: what was subtracted from the world's coordinates.
        source_path: The scene, if it has moved; None: where the settings say.
        images: Sub-folder with the images; None: the run's.
        resolution: As in training; None: the run's.
        model: File of the model whose poses the cameras are to have, where the run has refined
            them; None: those of the scene.

    Raises:
        SplatrimError: there is no scene, or it is broken.
    """
    source = source_path or settings.get("source_path")
    if not source:
        raise SplatrimError("the run does not say where its scene is: give it with -s")
    scene = load_scene(
        Path(source),
        images=images or settings.get("images"),
        resolution=settings.get("resolution", -1) if resolution is None else resolution,
        eval=bool(settings.get("eval", False)),
        white_background=bool(settings.get("white_background", False)),
        init_points=1,  # the points play no part here
        distortion=str(settings.get("distortion", "undistort")),
        cache=model_path / UNDISTORTED,
        world_offset=world_offset,
        near=near_plane(settings),
        masks=str(settings.get("masks", "none")),
    )
    return scene if model is None else with_refined_poses(scene, model)


def near_plane(settings: dict[str, Any]) -> float:
    """That of a run's training, in world units; the published one where a run does not say.

    Raises:
        SplatrimError: it is no number of at least zero.
    """
    near = settings.get("near_plane", NEAR_PLANE)
    if not isinstance(near, (int, float)) or not 0 <= near < float("inf"):
        raise SplatrimError(f"the run's near_plane is damaged: {near!r:.80}")
    return float(near)
