"""Anchors of one block among those of others: drawn with them, trained alone.

The others' features and offsets are copies that stay as they are, decoded by the present decoder,
which all blocks have in common. They get no gradient, and neither does the decoder through them, so
that images are those of the whole and every block trains what is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernels import seen_anchors

from ..data.camera import Camera
from ..model.splats import Frozen, Splats
from ..model.view import view_of
from .anchors import OFF, OWN, SHARED, Anchors

if TYPE_CHECKING:
    from ..model.view import View


class SurroundedAnchors(Anchors):
    """A block's anchors."""

    # in a tuple: a module would take it for a part of itself
    _around: tuple[Anchors, ...] = ()

    @property
    def around(self) -> Anchors | None:
        """Those that its views show beside it."""
        return self._around[0] if self._around else None

    def surround(self, others: Anchors | None) -> None:
        """Draw others beside its own from now on; None for nothing."""
        self._around = () if others is None or len(others) == 0 else (others,)

    def splats(self, view: View) -> Splats:
        """The Gaussians of the block, and those around it as frozen ones."""
        own = super().splats(view)
        if self.around is None:
            return own
        with torch.no_grad():
            return _among(own, self.around.splats(view))

    def splats_within(self, view: View) -> Splats:
        """The same in places that are known beforehand."""
        own = super().splats_within(view)
        if self.around is None:
            return own
        with torch.no_grad():
            others = self.around.splats_within(view)
        assert own.missing is not None and others.missing is not None
        return _among(own, others)._replace(missing=own.missing + others.missing)

    def share(self, decoder: dict[str, nn.Parameter]) -> None:
        """Use these parameters, of other models too, in place of its own without rows."""
        adopt(self, decoder)
        if self.around is not None:
            adopt(self.around, decoder)


def adopt(model: Anchors, decoder: dict[str, nn.Parameter]) -> None:
    """Let a model have the parameters without rows of others: the same objects."""
    for name, parameter in decoder.items():
        setattr(model.shared, name, parameter)


def shared_parameters(model: Anchors) -> dict[str, nn.Parameter]:
    """A model's parameters without rows, by name."""
    return {name: getattr(model.shared, name) for name in SHARED if name in model.shared_specs}


def joined_anchors(like: Anchors, parts: Iterable[dict[str, Tensor]]) -> Anchors | None:
    """One model of anchors of several blocks, with the decoder of another; None without any.

    Args:
        like: Whose settings, decoder and device it has.
        parts: Of each block the parameters of gs.neural.anchors, and "off". [N, ...]
    """
    found = [part for part in parts if len(part["anchors"])]
    if not found:
        return None
    device = like.device
    tensors = {name: torch.cat([part[name].to(device) for part in found]) for name in OWN}
    model = Anchors(tensors, like.config, dict(shared_parameters(like)), like.names)
    model.rows[OFF] = torch.cat([part[OFF].to(device) for part in found])
    adopt(model, shared_parameters(like))
    return model


def parts_of(model: Anchors, keep: Tensor | None = None) -> dict[str, Tensor]:  # [N] bool
    """What others need of a model's anchors, copied."""
    rows = slice(None) if keep is None else keep
    found = {name: model.params[name].detach()[rows].clone() for name in OWN}
    return {**found, OFF: model.rows[OFF][rows].clone()}


@torch.no_grad()
def seen_from(
    cameras: Sequence[Camera],
    part: dict[str, Tensor],
    device: torch.device,
) -> dict[str, Tensor]:
    """Of a block's anchors (`parts_of`) those that some camera sees, on the device."""
    part = {name: x.to(device) for name, x in part.items()}
    n = len(part["anchors"])
    keep = torch.zeros(n + 1, dtype=torch.bool, device=device)
    for camera in cameras if n else ():
        view = view_of(camera, device)
        rows, _ = seen_anchors(
            part["anchors"],
            part["scales"],
            view.viewmats[0],
            view.Ks[0],
            view.width,
            view.height,
            view.near,
            room=n,
        )
        # empty places are marked in a row that is cut off
        keep[torch.where(rows < 0, n, rows).long()] = True
    return {name: x[keep[:n]] for name, x in part.items()}


def _among(own: Splats, others: Splats) -> Splats:
    nameless = torch.zeros(len(others.means), dtype=torch.int32, device=others.means.device)
    return own._replace(frozen=Frozen(others, nameless))
