"""Anchors as a model: each is decoded into k Gaussians by where it is seen from.

    params  anchors [N,3]  features [N,F]  offsets [N,k,3]  scales [N,6] (log), and what strategies
            add; anchors stay where they are, and have no gradient
    rows    off [N,k] bool: offsets that are drawn no more
    shared  mlp_opacity, mlp_cov, mlp_color, appearance (gs.neural.decoder)
            grid [1]: the voxel size, scene units

Lu et al., "Scaffold-GS: Structured 3D Gaussians for View-Adaptive Rendering" (CVPR 2024). Of the
anchors, those are decoded whose own Gaussian a camera sees, with all their offsets: one whose
opacity is not positive draws nothing. The rotation and opacity of an anchor's own Gaussian never
change, and only its file has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from kernels import Decoded, decode, seen_anchors

from ..data.camera import Camera
from ..data.visibility import check_points, check_sight
from ..errors import SplatrimError
from ..model.gaussians import MIN_SQUARED_DISTANCE, SH_C0
from ..model.light import NAME as LIGHT
from ..model.light import light_of, save_light
from ..model.model import Model, Splats
from ..model.neighbours import mean_squared_neighbor_distances
from ..model.specs import ParameterSpec, Rate
from ..model.view import NO_EXPOSURE
from .config import NeuralConfig, falling
from .decoder import NETS, fresh_decoder, kernel_weights
from .files import save_anchors

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..data.scene import Scene
    from ..model.view import View

OFF = "off"  # rows
SHARED = (*NETS, "appearance", "grid")
OWN = ("anchors", "features", "offsets", "scales")
ROOM = 1.4  # places over the largest share of anchors seen
SEEN_DECAY = 0.9995  # of that share, per view
MIN_OPACITY = 1e-6  # of what is written as a logit


class Anchors(Model):
    """N anchors and their decoder.

    Args:
        tensors: The parameters, as above. [N, ...]
        config: Shape and learning rates.
        decoder: What is shared, by name; "grid" too.
        names: Of the training images, by their row of `appearance`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: NeuralConfig,
        decoder: Mapping[str, Tensor],
        names: Sequence[str] = (),
    ) -> None:
        anchors = tensors["anchors"]
        super().__init__(len(anchors), anchors.device)
        self.config, self.names = config, tuple(names)
        self.parts = config.offsets
        self._places = {name: k for k, name in enumerate(self.names)}
        self._seen = 0.0  # largest share of anchors that a view saw
        for spec in _specs(config):
            self.add_parameter(spec, tensors[spec.name])
        self.rows[OFF] = torch.zeros(
            len(anchors), config.offsets, dtype=torch.bool, device=anchors.device
        )
        rates = _shared_rates(config)
        for name, value in decoder.items():
            parameter = nn.Parameter(value.detach().float().clone(), requires_grad=name != "grid")
            lr = rates.get(name, 0.0)
            self.add_shared(name, parameter, lr=lr, order=60, scheduled=callable(lr))

    @classmethod
    def from_points(
        cls,
        points: Tensor,  # [M, 3]
        config: NeuralConfig,
        *,
        names: Sequence[str] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Anchors:
        """One anchor in each cell of the grid that has a point, with features and offsets of 0.

        Scales are the root of the mean squared distance to the 3 nearest anchors.

        Raises:
            ValueError: there are no points, or some are not finite.
        """
        if points.dim() != 2 or points.shape[1] != 3 or len(points) == 0:
            raise ValueError(f"points: expected [M 3] with M > 0, got {list(points.shape)}")
        if not bool(points.isfinite().all()):
            raise ValueError("points: some coordinates are not finite")
        points = points.to(device).float()
        size = config.voxel_size or _median_distance(points)
        anchors = torch.unique(torch.round(points / size), dim=0) * size
        squared = mean_squared_neighbor_distances(anchors).clamp_min(MIN_SQUARED_DISTANCE)
        n = len(anchors)
        tensors = {
            "anchors": anchors,
            "features": anchors.new_zeros(n, config.feature_dim),
            "offsets": anchors.new_zeros(n, config.offsets, 3),
            "scales": (0.5 * squared.log())[:, None].repeat(1, 6),
        }
        decoder = {**fresh_decoder(config, len(names), seed), "grid": torch.tensor([size])}
        return cls(tensors, config, decoder, names)

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        config: NeuralConfig,
        *,
        names: Sequence[str] = (),
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model of a checkpoint (gs.training.checkpoint), with its row buffers.

        What its strategies have added waits for them to add it again.

        Raises:
            ValueError: a parameter is missing, or has not the shape that `config` says.
        """
        params, shared = dict(state["params"]), dict(state.get("shared") or {})
        missing = [name for name in OWN if name not in params]
        missing += [name for name in (*NETS, "grid") if name not in shared]
        if missing:
            raise ValueError(f"parameters of anchors: {', '.join(missing)} missing")
        own = {name: params.pop(name).to(device, copy=True) for name in OWN}
        decoder = {name: shared.pop(name) for name in SHARED if name in shared}
        model = cls(own, config, decoder, names)
        return model.restore(params, state["rows"], shared, int(state["next_id"]))

    @property
    def grid(self) -> float:
        """The voxel size, scene units; reading it waits for the device."""
        return float(self._shared("grid"))

    def splats(self, view: View) -> Splats:
        """The Gaussians of all anchors that the view sees; it waits to know how many these are."""
        rows, count = self._seen_by(view, None)
        self._seen = max(self._seen * SEEN_DECAY, int(count) / max(len(self), 1))
        return self._splats(view, rows)

    def splats_within(self, view: View) -> Splats:
        """As many places as earlier views lead to expect; `missing` are the anchors without one."""
        room = min(len(self), int(self._seen * ROOM * len(self)) + 1)
        room = max(-(-room // 64) * 64, 64)
        rows, count = self._seen_by(view, room)
        return self._splats(view, rows)._replace(missing=(count - room).clamp_min(0))

    def _seen_by(self, view: View, room: int | None) -> tuple[Tensor, Tensor]:
        assert view.lenses is None  # `check_lenses`
        p = self.params
        return seen_anchors(
            p["anchors"],
            p["scales"],
            view.viewmats[0].detach(),
            view.Ks[0],
            view.width,
            view.height,
            view.near,
            room=room,
        )

    def _splats(self, view: View, rows: Tensor) -> Splats:
        out = self.decoded(rows, center_of(view), view.exposure)
        drawn = out.means, out.quats, out.scales, out.opacities, out.colors
        return Splats(*drawn, rows=rows, antialiased=self.antialiased)

    def decoded(
        self,
        rows: Tensor,  # [V] int32
        center: Tensor,  # [3]
        exposure: Tensor,  # [1] int32
        anchors: Tensor | None = None,  # [N, 3]
        nets: Mapping[str, Tensor] | None = None,
    ) -> Decoded:
        """The Gaussians of some anchors as seen from `center`, with the appearance of an image.

        Args:
            rows: Which; -1 for empty places.
            center: Of the camera, in the world.
            exposure: Row of the image in the table of appearances.
            anchors: Positions in place of the model's. [N, 3]
            nets: Weights by net in place of the model's.
        """
        found = tuple(self._shared(name) if nets is None else nets[name] for name in NETS)
        weights = cast("tuple[Tensor, Tensor, Tensor]", found)
        appearance = self._shared("appearance") if self.config.appearance_dim else None
        p, off = self.params, self.rows[OFF]
        return decode(
            p["anchors"] if anchors is None else anchors,
            p["features"],
            p["offsets"],
            p["scales"],
            kernel_weights(self.config, weights, appearance, exposure),
            rows,
            center,
            off=off,
            view_input=self.config.view_input,
        )

    def _shared(self, name: str) -> Tensor:
        return self.shared.get_parameter(name)

    def exposure(self, image_name: str) -> int:
        return self._places.get(image_name, NO_EXPOSURE)

    def switch_off(self, keep: Tensor) -> Tensor:  # [N k] bool -> [N] bool
        self.rows[OFF] = self.rows[OFF] | ~keep.view(-1, self.parts)
        return ~self.rows[OFF].all(1)

    @torch.no_grad()
    def exported(self, keep: Tensor | None = None) -> Anchors:  # [N k] bool
        """The model to test and save; an anchor whose offsets are all gone is left out."""
        off = self.rows[OFF] if keep is None else self.rows[OFF] | ~keep.view(-1, self.parts)
        left = ~off.all(1)
        tensors = {name: self.params[name].detach()[left] for name in OWN}
        decoder = {
            name: self._shared(name).detach() for name in SHARED if name in self.shared_specs
        }
        model = Anchors(tensors, self.config, decoder, self.names)
        model.rows[OFF], model.antialiased = off[left], self.antialiased
        if (light := light_of(self)) is not None:
            model.shared.add_module(LIGHT, light)
        return model

    @torch.no_grad()
    def to_ply(self) -> dict[str, Tensor]:
        """All offsets that are drawn when nobody looks: decoded without a direction of view.

        gs.neural.baking makes a better one, over the views of a scene.
        """
        p, n = self.params, len(self)
        rows = torch.arange(n, dtype=torch.int32, device=self.device)
        origin = torch.zeros(3, device=self.device)
        # at the camera itself there is no direction
        out = self.decoded(
            rows, origin, rows.new_full((1,), NO_EXPOSURE), torch.zeros_like(p["anchors"])
        )
        means = out.means + p["anchors"].repeat_interleave(self.parts, 0)
        opacities = out.opacities.clamp(MIN_OPACITY, 1.0 - MIN_OPACITY)
        return {
            "means": means,
            "quats": out.quats,
            "scales": out.scales.log(),
            "opacities": opacities.logit(),
            "sh0": ((out.colors - 0.5) / SH_C0)[:, None],
            "shN": out.colors.new_zeros(len(out.means), 0, 3),
        }

    def save(self, path: Path, world_offset: tuple[float, float, float]) -> None:
        """Write a .ply of Scaffold-GS's layout, and the decoder beside it (gs.neural.files)."""
        shared = self.shared.state_dict()
        tensors = self.to_tensors()
        own = self.rows[OFF], shared, self.config, self.names, world_offset
        save_anchors(path, tensors, *own, antialiased=self.antialiased)
        save_light(self, path.parent)


def center_of(view: View) -> Tensor:  # [3]
    """The camera's centre in the world, for a view of one."""
    # what is decoded hardly depends on its last digits
    viewmat = view.viewmats[0].detach()
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    return -(rotation.T @ translation)


def first_anchors(
    config: NeuralConfig,
    scene: Scene,
    start: Mapping[str, Any] | None,
    *,
    seed: int,
    device: torch.device,
) -> Anchors:
    """The model of a run: of a checkpoint's state, or at the scene's points.

    Raises:
        SplatrimError: there are too few points, no camera sees any, or the state does not fit.
    """
    check_lenses([*scene.train, *scene.test])
    names = [camera.image_name for camera in scene.train]
    if start is not None:
        check_sight(scene.train, start["params"]["anchors"], "anchors")
        try:
            return Anchors.from_state(start, config, names=names, device=device)
        except ValueError as error:
            raise SplatrimError(
                f"the checkpoint does not fit this run ({error}): go on with the settings that it"
                " was made with"
            ) from error
    check_points(scene.points)
    check_sight(scene.train, scene.points, "starting points")
    return Anchors.from_points(scene.points, config, names=names, seed=seed, device=device)


def check_lenses(cameras: Sequence[Camera]) -> None:
    """Raise SplatrimError where a camera's lens bends lines: who sees an anchor is known of
    pinholes."""
    for camera in cameras:
        if camera.distortion is not None:
            raise SplatrimError(
                f"image {camera.image_name} has a lens with distortion, and anchors are"
                " drawn through pinholes alone: train with --distortion undistort"
            )


def _specs(config: NeuralConfig) -> tuple[ParameterSpec, ...]:
    c = config
    offset_lr = falling(c.offset_lr_init, c.offset_lr_final, by_extent=True)
    return (
        ParameterSpec("anchors", (3,), 0.0, order=0, exported=True),
        ParameterSpec(
            "offsets", (c.offsets, 3), offset_lr, order=10, exported=True, scheduled=True
        ),
        ParameterSpec("features", (c.feature_dim,), c.anchor_feature_lr, order=20, exported=True),
        ParameterSpec("scales", (6,), c.anchor_scaling_lr, order=40, exported=True),
    )


def _shared_rates(config: NeuralConfig) -> dict[str, float | Rate]:
    c = config
    return {
        "mlp_opacity": falling(c.mlp_opacity_lr_init, c.mlp_opacity_lr_final),
        "mlp_cov": c.mlp_cov_lr,
        "mlp_color": falling(c.mlp_color_lr_init, c.mlp_color_lr_final),
        "appearance": falling(c.appearance_lr_init, c.appearance_lr_final),
    }


def _median_distance(points: Tensor) -> float:
    """Of a point to its 3 nearest neighbours."""
    return float(mean_squared_neighbor_distances(points).median().sqrt().clamp_min(1e-6))
