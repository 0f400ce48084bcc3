"""Camera poses that are nearly right, refined with the model: settings and strategy.

Every training image has a rigid motion of its camera (gs.model.poses), which follows the gradient
of the image's loss by the world-to-camera matrix. The learning rate falls log-linearly to a
hundredth. Poses begin to move once the scene has taken shape.

What all cameras share in their own spaces, as a common pitch, is taken out as they move: the scene
would follow it, and test views be off.

Scene and poses together can drift still: images hold nothing of their common place, turn and size.
So test views, whose poses are not learnt, are moved along, by the similarity between the training
cameras' centres before and after, and by default fitted to their own images with the model frozen
(gs.evaluation.pose_fit). Results say which it was: fitted poses make every method's PSNR higher.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from ..data.camera import Camera
from ..data.scene import Scene
from ..errors import SplatrimError
from ..evaluation.pose_fit import aligned_cameras, fit_poses
from ..evaluation.poses_file import write_poses
from ..evaluation.views import Images
from ..model.model import Model
from ..model.poses import PoseTable, motion
from ..ranges import COUNT, POSITIVE, check_ranges
from .strategy import StepContext, Strategy

RATE = "pose_lr"  # of the numbers on the device
TABLE = "poses"  # of what the model shares
LEFT = 0.01  # share of the learning rate at the end


@dataclass(frozen=True)
class PoseConfig:
    """Whether and how camera poses are refined."""

    pose_refinement: bool = False
    """Refine the poses of the training images together with the model."""
    pose_lr: Annotated[float, POSITIVE] = 5e-4
    """Learning rate of poses: radians, and shares of the scene's extent. Falls to a hundredth."""
    pose_from_iter: Annotated[int, COUNT] = 1000
    """Poses stay as they are up to this iteration."""
    test_poses: Literal["fitted", "aligned", "given"] = "fitted"
    """Poses of test views where poses are refined: fitted to their own images with the model
    frozen, moved along with the training cameras, or as the scene gives them."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def scaled(self, factor: float) -> PoseConfig:
        """The same schedule over `factor` times as many iterations."""
        return replace(self, pose_from_iter=round(self.pose_from_iter * factor))

    def build(self, scene: Scene) -> PoseRefinement | None:
        """The strategy, or None where poses stay."""
        return PoseRefinement(self, scene) if self.pose_refinement else None


def check_poses(start: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint with refined poses in a run that would not have them.

    Raises:
        SplatrimError: it is such a checkpoint.
    """
    if any(name.startswith(f"{TABLE}.") for name in start.get("shared") or {}):
        raise SplatrimError("the checkpoint has refined poses: go on with --pose_refinement")


class PoseRefinement(Strategy[Model]):
    """Moves the camera of every image that is rendered."""

    name = "poses"

    def __init__(self, config: PoseConfig, scene: Scene) -> None:
        self.config, self.scene = config, scene
        self.table = PoseTable([camera.image_name for camera in scene.train])
        self._end, self._rate = 0, 0.0
        self._posed: tuple[int, list[Camera]] | None = None  # iteration, and cameras then

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        gaussians.add_shared(TABLE, self.table, lr=0.0)
        gaussians.poses = self.table
        self._end = iterations

    def device_numbers(self, step: int) -> dict[str, float]:
        return {RATE: self.rate(step)}

    def rate(self, step: int) -> float:
        """Learning rate of iteration `step`, log-linear between the first and the last."""
        first = self.config.pose_from_iter
        t = min(max((step - first) / max(self._end - first, 1), 0.0), 1.0)
        return self.config.pose_lr * math.exp(t * math.log(LEFT))

    def moves(self, step: int) -> bool:
        """Whether poses are learnt in iteration `step`; the last one changes nothing at all."""
        return self.config.pose_from_iter < step < self._end

    def before_render(self, step: int, gaussians: Model) -> dict[str, object]:
        self.table.learns = self.moves(step)
        return {}

    def after_backward(self, step: int, ctx: StepContext[Model]) -> None:
        if not self.moves(step):
            return
        assert ctx.inputs is not None
        for view in ctx.inputs.views:
            self.table.step(
                view,
                rate=ctx.inputs.numbers[RATE],
                unit=ctx.extent,
                centred=True,
                skip=ctx.skip,
            )

    def phase(self, step: int) -> Hashable | None:
        return "poses move" if self.moves(step) else "poses stay"

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        train = self.scene.train
        moved = [
            motion(a.viewmat, b.viewmat)
            for a, b in zip(train, self.table.moved_cameras(train), strict=True)
        ]
        n = len(moved)
        return {
            "poses/mean_degrees": sum(degrees for degrees, _ in moved) / n,
            "poses/mean_distance": sum(distance for _, distance in moved) / n,
        }

    def posed_cameras(
        self, step: int, model: Model, cameras: list[Camera], images: Images, background: Tensor
    ) -> list[Camera]:
        if self._posed is not None and self._posed[0] == step:
            return self._posed[1]
        n = len(self.table)
        given, train = cameras[:n], self.table.moved_cameras(cameras[:n])
        test = cameras[n:]
        if self.config.test_poses != "given":
            test = aligned_cameras(test, given, train)
        if self.config.test_poses == "fitted":
            indices = range(n, len(cameras))
            test = fit_poses(
                model, test, images, background, indices=indices, unit=self.scene.extent
            )
        self._posed = step, [*train, *test]
        return self._posed[1]

    def on_saved(self, step: int, path: Path, cameras: list[Camera]) -> None:
        write_poses(path, self.scene, cameras, self.config.test_poses)
