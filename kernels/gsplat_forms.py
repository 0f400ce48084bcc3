"""gsplat's other forms of a call: leading batch dimensions, harmonics by camera, clips, packing.

Each becomes calls of the plain form, [N] Gaussians into [C] cameras, whose results are joined: over
B elements of the batch, and over cameras where each has a call of its own. A loss may read the
joined `info["means2d"]`. Images do not pass through it: while the calls' backward runs, its .grad
and .absgrad are filled with what their means2d get, so that densification reads them as ever.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .arguments import RasterInputs, RenderSettings, without_column
from .lazy_info import Info
from .reference.spherical_harmonics import spherical_harmonics
from .reference.tile_keys import TileKeys

Result = tuple[Tensor, Tensor, dict[str, Any]]
Infos = Sequence[Sequence[Mapping[str, Any]]]  # by element of the batch, by call

BY_PAIR = ("radii", "depths", "conics", "opacities", "tiles_per_gauss")  # [C, N, ...]
SUMS = ("contrib_sum", "contrib_count", "contrib_top")  # [N], over all cameras
LOGIT_OF_NONE = -100.0  # -inf would count as a broken parameter


class Render(Protocol):
    """The plain form."""

    def __call__(self, inputs: RasterInputs, settings: RenderSettings) -> Result: ...


class Form(NamedTuple):
    """What is asked for beside the plain form."""

    batch: tuple[int, ...]
    """Leading dimensions of all tensors."""
    radius_clip: float
    """Pixels: pairs whose half extents are both at most this are culled."""
    packed: bool
    """`info` has a row for each visible pair."""


def rasterize_form(
    render: Render, inputs: RasterInputs, settings: RenderSettings, form: Form
) -> Result:
    """Render any form; `kernels.rasterization` documents arguments and results.

    Raises:
        ValueError: batch dimensions disagree or have no element, or harmonics by camera have a
            wrong shape.
    """
    elements = _elements(inputs, form.batch) if form.batch else [inputs]
    if not elements:
        shape = list(inputs.means.shape)
        raise ValueError(f"means: expected at least one element of the batch, got {shape}")
    results = [_calls(render, x, settings, form.radius_clip) for x in elements]
    if len(results) == len(results[0]) == 1 and not form.batch and not form.packed:
        return results[0][0]

    images = _joined([[image for image, _, _ in row] for row in results])
    alphas = _joined([[alpha for _, alpha, _ in row] for row in results])
    info = _join_infos([[info for _, _, info in row] for row in results], form)
    return _shaped(images, form.batch), _shaped(alphas, form.batch), info


def _elements(x: RasterInputs, batch: tuple[int, ...]) -> list[RasterInputs]:
    """The plain inputs of each element of the batch; names in the draw may be shared."""
    flat: dict[str, Tensor] = {}
    for name, tensor in x._asdict().items():
        if not isinstance(tensor, Tensor) or name == "mask_words":
            continue
        if name == "mask_ids" and tensor.ndim == 1:
            continue
        if tuple(tensor.shape[: len(batch)]) != batch:
            raise ValueError(
                f"{name}: expected {list(batch)} as leading dimensions, which means has, got"
                f" {list(tensor.shape)}"
            )
        flat[name] = tensor.flatten(0, len(batch) - 1)
    elements = [
        x._replace(**{name: tensor[k] for name, tensor in flat.items()})
        for k in range(len(flat["means"]))
    ]
    return [
        x._replace(masks=without_column(x.masks), mask_logits=without_column(x.mask_logits))
        for x in elements
    ]


def _calls(
    render: Render, x: RasterInputs, settings: RenderSettings, radius_clip: float
) -> list[Result]:
    """Render without batch dimensions: one call, or one per camera where Gaussians are clipped."""
    if settings.sh_degree is not None and getattr(x.colors, "ndim", 3) == 4:
        x, settings = _colors_of_cameras(x, settings)
    if radius_clip <= 0.0:
        return [render(x, settings)]
    parts: list[Result] = []
    for c in range(x.viewmats.shape[0]):
        here = slice(c, c + 1)
        lenses = None if x.lenses is None else x.lenses[here]
        one = x._replace(viewmats=x.viewmats[here], Ks=x.Ks[here], lenses=lenses)
        if settings.sh_degree is None and x.colors.ndim == 3:
            one = one._replace(colors=x.colors[here])
        if x.backgrounds is not None:
            one = one._replace(backgrounds=x.backgrounds[here])
        with torch.no_grad():
            radii = render(one, settings._replace(contributions=False))[2]["radii"][0]
        small = (radii <= radius_clip).all(-1)
        opacities = torch.where(small, LOGIT_OF_NONE if settings.raw else 0.0, one.opacities)
        parts.append(render(one._replace(opacities=opacities), settings))
    return parts


def _colors_of_cameras(
    x: RasterInputs, settings: RenderSettings
) -> tuple[RasterInputs, RenderSettings]:
    """Colours [C, N, 3] of harmonics [C, N, K, 3], each camera's its own."""
    C, N, degree = x.viewmats.shape[0], x.means.shape[0], settings.sh_degree
    assert degree is not None
    shape, least = list(x.colors.shape), (degree + 1) ** 2
    if shape[:2] != [C, N] or shape[3] != 3:
        raise ValueError(f"colors: expected [C N K 3] with C={C}, N={N}, got {shape}")
    if shape[2] < least:
        raise ValueError(f"colors: sh_degree={degree} needs {least} coefficients, got {shape[2]}")
    if x.colors_rest is not None:
        raise ValueError("colors_rest: expected none beside harmonics by camera")
    centers = -(x.viewmats[:, :3, :3].mT @ x.viewmats[:, :3, 3:]).squeeze(-1)
    colors = [
        spherical_harmonics(degree, x.means - center, coefficients)
        for center, coefficients in zip(centers, x.colors, strict=True)
    ]
    return x._replace(colors=torch.stack(colors)), settings._replace(sh_degree=None)


def _joined(rows: Sequence[Sequence[Tensor]]) -> Tensor:  # of [C, ...] -> [B, C, ...]
    return torch.stack([torch.cat([*row]) for row in rows])


def _shaped(x: Tensor, batch: tuple[int, ...]) -> Tensor:  # [B, ...] -> [*batch, ...]
    return x.unflatten(0, batch) if batch else x.squeeze(0)


def _join_infos(infos: Infos, form: Form) -> dict[str, Any]:
    """One `info` of all calls'."""
    first, B = infos[0][0], len(infos)
    info = {name: first[name] for name in ("width", "height", "tile_size")}
    info |= {name: first[name] for name in ("tile_width", "tile_height")}
    info |= {"n_batches": B, "n_cameras": sum(i["n_cameras"] for i in infos[0])}
    info["n_isects"] = sum(i["n_isects"] for row in infos for i in row)
    info["n_nonfinite"] = sum(row[0]["n_nonfinite"] for row in infos)
    masks = [row[0]["masks"] for row in infos]
    info["masks"] = masks[0] if masks[0] is None else _shaped(torch.stack(masks), form.batch)
    for name in (*SUMS, "contrib_max"):
        if name in first:
            stacked = torch.stack([torch.stack([i[name] for i in row]) for row in infos])
            over_cameras = stacked.amax(1) if name == "contrib_max" else stacked.sum(1)
            info[name] = _shaped(over_cameras, form.batch)

    dense = {name: _joined([[i[name] for i in row] for row in infos]) for name in BY_PAIR}
    seen = (dense["radii"] > 0).all(-1)
    pairs = seen.nonzero(as_tuple=True) if form.packed else None

    def select(x: Tensor) -> Tensor:
        return _shaped(x, form.batch) if pairs is None else x[pairs]

    info |= {name: select(x) for name, x in dense.items()}
    info |= dict(
        zip(("batch_ids", "camera_ids", "gaussian_ids"), pairs or (None,) * 3, strict=True)
    )
    info["means2d"] = _join_means2d([[i["means2d"] for i in row] for row in infos], select)
    n_pairs = seen.shape[2]

    def keys(infos: Infos) -> TileKeys:
        parts: list[TileKeys] = []
        images = entries = 0
        for i in (i for row in infos for i in row):
            part = TileKeys(i["isect_ids"], i["flatten_ids"], i["isect_offsets"])
            parts.append(part.after(images, images * n_pairs, entries))
            images += part.isect_offsets.shape[0]
            entries += part.isect_ids.shape[0]
        ids, flat, offsets = (torch.cat(columns) for columns in zip(*parts, strict=True))
        if pairs is not None:
            flat = (seen.flatten().cumsum(0) - 1)[flat.long()].to(flat)
        return TileKeys(ids, flat, _shaped(offsets.unflatten(0, (B, -1)), form.batch))

    return Info(
        info,
        infos,
        {
            "isect_ids": lambda infos: keys(infos).isect_ids,
            "flatten_ids": lambda infos: keys(infos).flatten_ids,
            "isect_offsets": lambda infos: keys(infos).isect_offsets,
        },
    )


def _join_means2d(rows: Sequence[Sequence[Tensor]], select: Callable[[Tensor], Tensor]) -> Tensor:
    """`select` of the joined means2d, whose .grad and .absgrad the backward of the calls fills."""
    whole = _joined(rows)  # [B, C, N, 2]
    means2d = select(whole)
    if not means2d.requires_grad:
        return means2d
    means2d.retain_grad()
    # They hold absgrad, and their reader may keep nothing else of `info`.
    means2d.pieces = rows  # pyright: ignore[reportAttributeAccessIssue]
    grads, absgrads = torch.zeros_like(whole), torch.zeros_like(whole)
    joined = weakref.ref(means2d)  # hooks keep neither it nor what they hang on

    def watch(piece: Tensor, b: int, cameras: slice) -> None:
        source = weakref.ref(piece)

        def on_gradient(v_piece: Tensor) -> None:
            target = joined()
            if target is None:
                return
            # The whole gradient of the piece: of images, and of losses that read `target`.
            grads[b, cameras] += v_piece
            target.grad = select(grads)
            absgrad = getattr(source(), "absgrad", None)
            if absgrad is not None:
                absgrads[b, cameras] = absgrad
                target.absgrad = select(absgrads)  # pyright: ignore[reportAttributeAccessIssue]

        piece.register_hook(on_gradient)

    for b, row in enumerate(rows):
        start = 0
        for piece in row:
            watch(piece, b, slice(start, start + len(piece)))
            start += len(piece)
    return means2d
