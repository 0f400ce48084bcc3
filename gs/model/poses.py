"""How the training cameras have moved from the poses that their scene gives.

Image k is rendered from D_k V0 in place of its world-to-camera matrix V0: a rigid motion in the
camera's own space. `kernels.step_poses` says how D_k is learnt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels import step_poses

from ..data.camera import Camera
from .view import NO_EXPOSURE, View

BETAS = (0.9, 0.99)  # of Adam: an image comes some hundred times


class PoseTable(nn.Module):
    """A rigid motion for each of n images, with the state of its optimizer; buffers all of them.

    Args:
        names: Of the images, in the order of the run's cameras.

    Attributes:
        deltas: D_k, and at the end that of all other cameras, which is none. [n + 1, 3, 4]
        exp_avg: Moments of Adam, translation first. [n, 6]
        exp_avg_sq: The second moments. [n, 6]
        steps: Steps that each image took. [n] float32
        learns: Whether views that it moves ask for a gradient.
    """

    deltas: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        n = len(names)
        self._rows = {name: k for k, name in enumerate(names)}
        self.register_buffer("deltas", torch.eye(3, 4).repeat(n + 1, 1, 1))
        self.register_buffer("exp_avg", torch.zeros(n, 6))
        self.register_buffer("exp_avg_sq", torch.zeros(n, 6))
        self.register_buffer("steps", torch.zeros(n))
        self.learns = False

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, image_name: str) -> int:
        """The image's row; NO_EXPOSURE, which stands for the last one, where it has none."""
        return self._rows.get(image_name, NO_EXPOSURE)

    def moved(self, view: View) -> View:
        """The view from where its cameras are now. Nothing waits, and a CUDA graph can hold it.

        While poses are learnt the matrices are leaves that get a gradient.
        """
        with torch.no_grad():
            V = view.viewmats
            D = self.deltas[view.exposure]  # [C, 3, 4]
            # no matrix product: it would round where TF32 is allowed
            top = (D[..., None] * V[:, None]).sum(2)
            viewmats = torch.cat([top, V[:, 3:]], 1)
        if self.learns and torch.is_grad_enabled():
            viewmats.requires_grad_()
        return view._replace(viewmats=viewmats)

    def step(
        self,
        view: View,
        *,
        rate: Tensor,  # [1]
        unit: float,
        centred: bool = False,
        skip: Tensor | None = None,  # [1] int32
    ) -> bool:
        """Step by the gradient that a moved view has got; whether it has one.

        Args:
            view: As `moved` gave it.
            rate: Of learning, on the device.
            unit: A length of the scene, in which translations are learnt.
            centred: As kernels.step_poses.
            skip: If it is not 0 on the device, nothing is stepped.
        """
        if view.viewmats.grad is None:
            return False
        step_poses(
            self.deltas,
            self.exp_avg,
            self.exp_avg_sq,
            self.steps,
            view.exposure,
            view.viewmats.detach(),
            view.viewmats.grad,
            rate=rate,
            unit=unit,
            centred=centred,
            betas=BETAS,
            skip=skip,
        )
        return True

    def moved_cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """Cameras from where they are now; those without a row stay."""
        deltas = self.deltas.double().cpu()
        return [
            camera
            if (k := self.row(camera.image_name)) == NO_EXPOSURE
            else with_pose(camera, compose(deltas[k], camera.viewmat.double()))
            for camera in cameras
        ]


def compose(delta: Tensor, viewmat: Tensor) -> Tensor:  # [3, 4], [4, 4] -> [4, 4]
    """A world-to-camera matrix, moved in camera space."""
    return torch.cat([delta @ viewmat, viewmat[3:]])


def with_pose(camera: Camera, viewmat: Tensor) -> Camera:  # [4, 4]
    """The camera at another place."""
    return dataclasses.replace(camera, viewmat=viewmat.float())


def motion(before: Tensor, after: Tensor) -> tuple[float, float]:  # [4, 4] twice
    """How far apart two world-to-camera matrices are: degrees, and world units between centres."""
    before, after = before.double(), after.double()
    turned = after[:3, :3] @ before[:3, :3].T
    # of small angles the antisymmetric part has all digits
    sine = torch.stack(
        [turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]]
    ).norm()
    degrees = math.degrees(math.atan2(float(sine), float(turned.trace()) - 1.0))
    centres = [-V[:3, :3].T @ V[:3, 3] for V in (before, after)]
    return degrees, float((centres[1] - centres[0]).norm())
