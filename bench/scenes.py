"""Workloads of the benchmarks: Gaussians and a camera on one device.

`garden-x1 garden-3x3 garden-5x5 garden-7x7`: coloured points of Mip-NeRF 360 garden within
|xyz| <= 2 (data/garden_points.npz), repeated on a ground grid of pitch 4, scales U(0, 1) * 0.02,
random unit quaternions, opacities U(0, 1), degree-0 colours from the points and the other
coefficients N(0, 0.05). `bonsai bonsai-2x`: a trained model (models/bonsai_trained_geometry.npz)
from the first test camera of data/bonsai at one and two times 800x533.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SH_C0 = 0.28209479177387814
GARDEN = {
    "garden-x1": (1, 1296, 840, 2.0),
    "garden-3x3": (3, 1296, 840, 2.0),
    "garden-5x5": (5, 1296, 840, 2.0),
    "garden-7x7": (7, 1944, 1260, 3.0),
}
BONSAI = {"bonsai": 1, "bonsai-2x": 2}
NAMES = (*GARDEN, *BONSAI)


class Workload(NamedTuple):
    name: str
    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    sh: Tensor  # [N, 16, 3]
    viewmats: Tensor  # [1, 4, 4]
    Ks: Tensor  # [1, 3, 3]
    width: int
    height: int

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means, quats, scales, opacities and SH as leaves that require gradients."""

        def leaf(x: Tensor) -> Tensor:
            return x.clone().requires_grad_()

        geometry = leaf(self.means), leaf(self.quats), leaf(self.scales)
        return *geometry, leaf(self.opacities), leaf(self.sh)


def data_root() -> Path:
    """Folder with data/ and models/: $SPLATRIM_DATA, else ../shared."""
    return Path(os.environ.get("SPLATRIM_DATA", Path(__file__).resolve().parents[2] / "shared"))


def load(name: str, device: str = "cuda") -> Workload:
    """A workload by name; FileNotFoundError where its data is absent."""
    made = garden(name, *GARDEN[name]) if name in GARDEN else _bonsai(name)
    fields = made._asdict().items()
    return made._replace(**{k: x.to(device) for k, x in fields if isinstance(x, Tensor)})


def garden(
    name: str,
    repeats: int,
    width: int,
    height: int,
    factor: float,
    device: torch.device | str = "cpu",
) -> Workload:
    """The points on a grid of `repeats` x `repeats`; `factor` multiplies the focal lengths.

    Numbers are drawn on `device`, each of which has its own.
    """
    data = np.load(data_root() / "data" / "garden_points.npz")
    points = torch.from_numpy(data["means3d"]).to(device)
    colors = torch.from_numpy(data["colors"]).to(device).float() / 255.0
    near = (points.abs() <= 2.0).all(1)
    points, colors = points[near], colors[near]
    reach = torch.arange(repeats, device=device) - repeats // 2
    grid = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), -1).reshape(-1, 2) * 4.0
    shifts = torch.cat([grid, grid.new_zeros(len(grid), 1)], 1)
    means = (points[None] + shifts[:, None]).reshape(-1, 3)
    colors = colors.repeat(len(grid), 1)
    N = len(means)
    torch.manual_seed(0)
    scales = torch.rand(N, 3, device=device) * 0.02
    quats = torch.nn.functional.normalize(torch.randn(N, 4, device=device), dim=-1)
    opacities = torch.rand(N, device=device)
    sh = torch.randn(N, 16, 3, device=device) * 0.05
    sh[:, 0] = (colors - 0.5) / SH_C0
    K = torch.from_numpy(data["Ks"][0]).clone()
    K[0, 0] *= factor
    K[1, 1] *= factor
    K[0, 2], K[1, 2] = width / 2, height / 2
    view = torch.from_numpy(data["viewmats"][0])
    return Workload(name, means, quats, scales, opacities, sh, view[None], K[None], width, height)


def _bonsai(name: str) -> Workload:
    import pycolmap

    factor = BONSAI[name]
    data = np.load(data_root() / "models" / "bonsai_trained_geometry.npz")
    scene = pycolmap.Reconstruction(str(data_root() / "data" / "bonsai" / "sparse" / "0"))
    image = min(scene.images.values(), key=lambda image: image.name)
    camera = scene.cameras[image.camera_id]
    K = torch.from_numpy(camera.calibration_matrix()).float() * factor
    K[2, 2] = 1.0
    view = torch.eye(4)
    view[:3] = torch.from_numpy(image.cam_from_world().matrix()).float()
    sh = torch.zeros(len(data["means"]), 16, 3)
    sh[:, :1] = torch.from_numpy(data["sh0"].astype(np.float32))
    means, quats, scales, opacities = (
        torch.from_numpy(data[k]) for k in ("means", "quats", "scales", "opacities")
    )
    width, height = camera.width * factor, camera.height * factor
    return Workload(name, means, quats, scales, opacities, sh, view[None], K[None], width, height)
