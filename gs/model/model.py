"""What the trainer and the renderer ask of a representation: parameters, and Gaussians to draw.

    params  parameters with one row each, optimised and edited together (gs.model.rows)
    rows    buffers that follow the rows: ids [N] int32, one per row and never used twice, and what
            strategies add
    shared  modules and parameters without rows
    specs, shared_specs     gs.model.specs.ParameterSpec of every parameter by name

`gs.model.gaussians.Gaussians` draws its rows as they are. A model that decodes its rows into
Gaussians has other parameters and other `splats`; what stores, optimises and edits it is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import SplatrimError
from .light import save_light
from .ply import save_ply
from .specs import LAST, ParameterSpec, Rate
from .splats import Splats
from .view import NO_EXPOSURE

if TYPE_CHECKING:
    from typing_extensions import Self

    from .poses import PoseTable
    from .view import View

__all__ = ["Model", "Splats"]

Numbering = Callable[[Tensor, int], tuple[Tensor, int]]
"""Ids of one child of each parent, given the parents' ids and the first that is free; and the next
that is free."""


def fresh_ids(parents: Tensor, first: int) -> tuple[Tensor, int]:  # [M] -> [M], of that type
    """Ids from `first` on, one for a new Gaussian of each parent, ascending with the parents' ids.

    So it does not matter in what order rows lie, or where. Parents that occur twice are taken in
    their order.
    """
    ids = torch.empty_like(parents)
    ids[parents.argsort(stable=True)] = torch.arange(
        first, first + len(parents), dtype=parents.dtype, device=parents.device
    )
    return ids, first + len(parents)


class Model(nn.Module, ABC):
    """Parameters with rows, parameters without, and how they become Gaussians.

    Args:
        n: Number of rows.
        device: Where it lives.
    """

    sh_degree: int = 0
    """Highest degree of spherical harmonics that it may use."""
    active_sh_degree: int = 0
    """Highest degree that it uses now."""
    parts: int = 1
    """Gaussians that a row stands for. What is per Gaussian (masks, scores) has N * parts entries,
    those of a row next to each other."""
    antialiased: bool = False
    """Whether it is trained, and so to be drawn, with the rasterizer's mode "antialiased"."""
    same_in_all_views: bool = False
    """Whether `splats` gives the same Gaussians for every view, so that several views can be
    rendered at once."""

    is_shard: bool = False
    """Whether its rows are some of a larger model's: then it may be without any."""

    def __init__(self, n: int, device: torch.device | str) -> None:
        super().__init__()
        self.numbering: Numbering = fresh_ids
        self.params = nn.ParameterDict()
        ids = torch.arange(n, dtype=torch.int32, device=device)
        self.rows: dict[str, Tensor] = {"ids": ids}
        self.specs: dict[str, ParameterSpec] = {}
        self.shared = nn.Module()
        self.shared_specs: dict[str, ParameterSpec] = {}
        self.next_id = n
        self.poses: PoseTable | None = None  # how training cameras have moved, where they do
        self._waiting: dict[str, Tensor] = {}  # a checkpoint's values for what is yet to be added
        self._waiting_shared: dict[str, Tensor] = {}

    @abstractmethod
    def splats(self, view: View) -> Splats:
        """The Gaussians to draw in a view, differentiable in the parameters.

        A captured step calls it once and replays what it launched: what differs from view to view
        has to come from the view's tensors.
        """

    def splats_within(self, view: View) -> Splats:
        """The same for a captured step, whose shapes may not depend on the view.

        `Splats.missing` says how much has no room; `splats` of the same view makes room for it.
        """
        return self.splats(view)

    @abstractmethod
    def exported(self, keep: Tensor | None = None) -> Model:  # [N * parts] bool
        """The model to test and save, of the Gaussians `keep`; None for all."""

    @abstractmethod
    def to_ply(self) -> dict[str, Tensor]:
        """The parameters of 3DGS that stand for it in a .ply, as `gs.model.ply.save_ply` says."""

    def save(self, path: Path, world_offset: tuple[float, float, float]) -> None:
        """Write the model's file, and what else belongs to it beside it, atomically.

        Raises:
            SplatrimError: something cannot be written.
        """
        save_ply(path, self.to_ply(), world_offset=world_offset, antialiased=self.antialiased)
        save_light(self, path.parent)

    def part_ids(self) -> Tensor:  # [N * parts] int32
        """Names of the Gaussians in random draws."""
        ids = self.rows["ids"]
        if self.parts == 1:
            return ids
        part = torch.arange(self.parts, dtype=ids.dtype, device=ids.device)
        return (ids[:, None] * self.parts + part).flatten()

    def switch_off(self, keep: Tensor) -> Tensor:  # [N * parts] bool -> [N] bool
        """Remember which Gaussians are gone; the rows that have some left.

        `gs.model.rows.keep_parts` calls it and removes the others.
        """
        return keep

    def exposure(self, image_name: str) -> int:
        """The image's row of what is learnt for each, where the model has such a table."""
        return NO_EXPOSURE if self.poses is None else self.poses.row(image_name)

    def posed(self, view: View) -> View:
        """The view from where its images were taken: as given, or as poses have been refined."""
        return view if self.poses is None else self.poses.moved(view)

    def one_up_sh_degree(self) -> None:
        """Activate the next SH degree, up to the maximum."""
        self.active_sh_degree = min(self.active_sh_degree + 1, self.sh_degree)

    def to_tensors(self) -> dict[str, Tensor]:
        """Raw parameters by name, detached, sharing memory with the model."""
        return {name: parameter.detach() for name, parameter in self.params.items()}

    def restore(
        self,
        params: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        next_id: int,
    ) -> Self:
        """Take a checkpoint's row buffers, and its values for the parameters yet to be added.

        Args:
            params: Of the parameters with rows, by name. [N, ...]
            rows: Buffers, by name. [N, ...]
            shared: Of those without.
            next_id: Ids from here on are free.
        """
        device = self.device
        self.rows |= {name: x.to(device, copy=True) for name, x in rows.items()}
        self._waiting = {name: x.to(device, copy=True) for name, x in params.items()}
        self._waiting_shared = dict(shared)
        self.next_id = next_id
        return self

    def add_parameter(self, spec: ParameterSpec, values: Tensor) -> bool:  # [N, *spec.tail]
        """Add a parameter with one row per Gaussian, before the optimizer is built.

        Returns:
            Whether it has `values`: in a model that goes on from a checkpoint it has those of the
            checkpoint, if they are there.

        Raises:
            ValueError: there is one of that name, or the shape is not that of the spec.
            SplatrimError: the checkpoint has it in another shape.
        """
        self._check_name(spec.name)
        shape, got = (len(self), *spec.tail), tuple(values.shape)
        if got != shape:
            raise ValueError(f"{spec.name}: expected {list(shape)}, got {list(got)}")
        restored = self._waiting.pop(spec.name, None)
        if restored is not None:
            _check_restored(spec.name, restored, shape)
            values = restored
        values = values.detach().to(self.device, torch.float32)
        self.params[spec.name] = nn.Parameter(values.contiguous())
        self.specs[spec.name] = spec
        return restored is None

    def add_shared(
        self,
        name: str,
        value: nn.Parameter | nn.Module,
        *,
        lr: float | Rate,
        order: int = LAST,
        anneals: bool = False,
        scheduled: bool = False,
    ) -> None:
        """Add a parameter without rows, or a module of them, before the optimizer is built.

        It is optimised, checkpointed and resumed, and no row edit touches it. `value` itself moves
        to the model's device; its parameters are called `name`, or `name.weight` and so on, and of
        those that need a gradient the learning rate is `lr`. In a model that goes on from a
        checkpoint it takes the checkpoint's values, if they are there.

        Args:
            name: Key in `shared`.
            value: float32, at least one dimension each.
            lr: As in ParameterSpec, and so are order, anneals and scheduled.
            order: Place among the optimizer's groups.
            anneals: Whether the rate falls towards the end with --anneal_to.
            scheduled: Whether the rate depends on the iteration.

        Raises:
            ValueError: the name is taken, or a parameter is not as above.
            SplatrimError: the checkpoint has it in another shape.
        """
        self._check_name(name)
        if isinstance(value, nn.Module):
            self.shared.add_module(name, value.to(self.device))
        else:
            value.data = value.data.to(self.device)
            self.shared.register_parameter(name, value)

        for key, x in _part(self.shared.named_parameters(), name).items():
            if x.dtype != torch.float32 or x.dim() == 0:
                raise ValueError(f"{key}: expected float32 [...], got {list(x.shape)} {x.dtype}")
            self.shared_specs[key] = ParameterSpec(
                key, tuple(x.shape), lr, order=order, anneals=anneals, scheduled=scheduled
            )
        own = _part(self.shared.state_dict().items(), name)
        restored = _part(self._waiting_shared.items(), name)
        if restored and restored.keys() != own.keys():
            differing = ", ".join(sorted(restored.keys() ^ own.keys()))
            raise SplatrimError(
                f"the checkpoint's {name} has other parts than this run's ({differing}):"
                " go on with the settings that it was made with"
            )
        for key, x in restored.items():
            _check_restored(key, x, tuple(own[key].shape))
            own[key].copy_(x)
            del self._waiting_shared[key]

    def check_complete(self) -> None:
        """Raise SplatrimError if a checkpoint has parameters that nobody has added."""
        left = sorted([*self._waiting, *self._waiting_shared])
        if left:
            raise SplatrimError(
                f"the checkpoint has parameters that this run does not know ({', '.join(left)}):"
                " go on with the method that it is of"
            )

    def _check_name(self, name: str) -> None:
        if name in self.specs or hasattr(self.shared, name):
            raise ValueError(f"{name} is taken: parameters have names of their own")
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name of a parameter")

    def __len__(self) -> int:
        return len(self.rows["ids"])

    @property
    def device(self) -> torch.device:
        return self.rows["ids"].device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Makes .to() and .cuda() carry the row buffers too.
        super()._apply(fn, recurse)
        self.rows = {name: fn(rows) for name, rows in self.rows.items()}
        return self


def _part(tensors: Iterable[tuple[str, Tensor]], name: str) -> dict[str, Tensor]:
    """What is called `name` or is a part of it."""
    return {key: x for key, x in tensors if key == name or key.startswith(f"{name}.")}


def _check_restored(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise SplatrimError(
            f"the checkpoint's {name} has shape {list(x.shape)} and this run's {list(shape)}:"
            " go on with the settings that it was made with"
        )
