"""Pictures as CUDA graphs over a copy of the model.

A model under training gets other tensors whenever it is densified, and a graph holds addresses. So
what a picture reads is copied into buffers with rows to spare, which takes a GPU less than a tenth
of a millisecond, and the graph serves until a buffer is too small. The host then queues a dozen
copies and a replay for a picture, in place of all launches of a rendering, and training, which
waits meanwhile, is back sooner.

    first picture (eager, learns the counts)  ->  warm-up (over the copy)  ->  capture  ->  replay

Pictures follow training in its stream: they never run beside it, as kernels that wait for all their
programs (kernels.device.grid_barrier) would wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import Capacity

from ..data.camera import Camera
from ..model.splats import Splats
from ..model.view import View, pack_view
from ..training.captured_steps import Body, Graph, Record
from ..training.step_inputs import InputBuffer

MAX_GRAPHS = 4  # sizes and looks at a time
MAX_ROWS = 1 << 21  # half a GB; larger models are drawn eagerly, within the time of a step
EMPTY = -20.0  # opacity of rows to spare, as a logit or not: they are culled
TABLES = ("means", "quats", "scales", "opacities", "colors", "colors_rest")


class Picture(NamedTuple):
    """What was drawn."""

    pixels: Tensor
    """[H, W, 3] uint8, on the model's device."""
    counts: Tensor | None
    """Rows and entries that it needed, on a GPU. [2] int32"""
    steady: bool = True
    """Whether another one costs as much; not where something was made once."""


Paint = Callable[[Splats, View, Mapping[str, Any]], Picture]
"""Draws Gaussians from a view, with keywords for `gs.model.renderer.render`."""


class CopiedPictures:
    """Draws pictures of Gaussians by graphs.

    Args:
        record: Captures (gs.training.captured_steps).
    """

    def __init__(self, record: Record) -> None:
        self._record, self._rows = record, 0
        self._tables: dict[str, Tensor] = {}
        self._inputs: dict[tuple[str, ...], InputBuffer] = {}
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[Graph, list[Picture], Body]] = {}

    def draw(
        self,
        splats: Splats,
        camera: Camera,
        keywords: Mapping[str, Any],
        integers: Mapping[str, int],
        paint: Paint,
        *,
        key: Hashable,
        capacity: Capacity,
    ) -> Picture | None:
        """A picture, whose tensors the next one overwrites; None for what cannot be copied.

        Args:
            splats: What is drawn.
            camera: Where from.
            keywords: For the renderer: entries per Gaussian, or plain values.
            integers: More of them, which differ from picture to picture.
            paint: Draws; captured where it has the same `key`.
            key: Of all that `paint` depends on beside its arguments.
            capacity: Of the rasterizer.
        """
        n, known = len(splats.means), splats.rows is None and splats.frozen is None
        if not known or n > MAX_ROWS:
            return None
        tables = {name: x for name in TABLES if (x := getattr(splats, name)) is not None}
        plain: dict[str, Hashable] = {}
        for name, x in keywords.items():
            if not isinstance(x, Tensor):
                plain[name] = x
            elif x.shape[:1] == (n,):
                tables["keyword " + name] = x
            else:
                return None
        signature = (
            key,
            (camera.width, camera.height, camera.near, camera.lens),
            (splats.sh_degree, splats.raw, splats.antialiased),
            tuple((name, x.shape[1:]) for name, x in tables.items()),
            tuple(plain.items()),
            tuple(integers),
        )
        copies = self._copied(tables, n)
        inputs = self._inputs.get(tuple(integers))
        if inputs is None:
            inputs = InputBuffer(splats.means.device, 0, integers)
            self._inputs[tuple(integers)] = inputs
        inputs.upload(pack_view(camera), (0.0,) * 3, 0, integers, 0.0, torch.empty(0, 2))
        given = inputs.inputs(camera.width, camera.height, camera.near, camera.lens)
        # nothing of the model itself: what the body refers to lives as long as its graph
        shown = splats._replace(**{name: copies[name] for name in TABLES if name in copies})
        more = {name: copies["keyword " + name] for name in keywords if name not in plain}
        more |= {**plain, **given.integers, "capacity": capacity}

        def body() -> None:
            drawn[:] = [paint(shown, given.view, more)]

        drawn: list[Picture] = []
        place = signature, capacity
        if place in self._graphs:
            graph, drawn, _ = self._graphs[place]
            graph.replay()
            return drawn[0]
        if signature not in self._warm:
            self._warm.add(signature)
            body()
        else:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[place] = self._record(body), drawn, body
            self._graphs[place][0].replay()
        return drawn[0]._replace(steady=False)

    def _copied(self, tables: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
        """Tables of n rows in buffers of more, the others of which are not drawn."""
        if n > self._rows:
            self._rows = 1 << n.bit_length()
            self._tables.clear()
            self._graphs.clear()
        copies: dict[str, Tensor] = {}
        for name, x in tables.items():
            place = self._tables.get(name)
            if place is None or place.shape[1:] != x.shape[1:]:
                place = self._tables[name] = x.new_ones(self._rows, *x.shape[1:])
                self._graphs.clear()
            place[:n].copy_(x)
            if name.endswith("opacities"):
                place[n:].fill_(EMPTY)
            copies[name] = place
        return copies
