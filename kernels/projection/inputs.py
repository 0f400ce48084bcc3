"""What the kernels of projection take, and which of it can have gradients."""

import operator
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import IS_THERE, RasterInputs, RenderSettings
from ..device.masks import split_seed
from ..runtime.recording import Scalar


class FloatInputs(NamedTuple):
    """What can have gradients."""

    means: Tensor
    quats: Tensor | None
    scales: Tensor | None
    covars: Tensor | None
    opacities: Tensor
    sh0: Tensor | None
    shN: Tensor | None
    viewmats: Tensor
    masks: Tensor | None
    mask_logits: Tensor | None


class FloatGradients(NamedTuple):
    """Gradients of FloatInputs by the same names, None where there are none."""

    means: Tensor | None
    quats: Tensor | None
    scales: Tensor | None
    covars: Tensor | None
    opacities: Tensor | None
    sh0: Tensor | None
    shN: Tensor | None
    viewmats: Tensor | None
    masks: Tensor | None
    mask_logits: Tensor | None


class ProjectionInputs(NamedTuple):
    """Contiguous tensors, but for spaced rows of sh0 and shN."""

    floats: FloatInputs
    Ks: Tensor
    lenses: Tensor | None
    mask_ids: Tensor | None
    seed: Tensor | None  # in place of
    seed_low: Scalar
    seed_high: Scalar

    @property
    def n_gaussians(self) -> int:
        return self.floats.means.shape[0]

    @property
    def n_cameras(self) -> int:
        return self.floats.viewmats.shape[0]


# all but harmonics are contiguous from the first to the last element
WHOLE = [name for name in FloatInputs._fields if name not in ("sh0", "shN")]
_WHOLE = operator.attrgetter(*WHOLE)
_NO_SEED = Scalar(0), Scalar(0)


def gather_inputs(x: RasterInputs, settings: RenderSettings) -> ProjectionInputs:
    """Inputs as kernels take them."""
    quats, scales = (x.quats, x.scales) if x.covars is None else (None, None)
    sh0, shN = (None, None) if settings.sh_degree is None else _harmonics(x)
    floats = FloatInputs(
        x.means, quats, scales, x.covars, x.opacities, sh0, shN, x.viewmats, x.masks, x.mask_logits
    )
    if not all(map(Tensor.is_contiguous, filter(IS_THERE, _WHOLE(floats)))):
        floats = floats._replace(**dict(zip(WHOLE, map(_contiguous, _WHOLE(floats)), strict=True)))
    low, high = _NO_SEED
    if x.mask_logits is not None and x.mask_words is None:
        low, high = map(Scalar, split_seed(x.mask_seed))
    ids = x.mask_ids if x.mask_ids is None else x.mask_ids.to(torch.int32).contiguous()
    lenses = None if x.lenses is None else x.lenses.contiguous()
    return ProjectionInputs(floats, x.Ks.contiguous(), lenses, ids, x.mask_words, low, high)


def row_stride(sh: Tensor | None) -> int:
    return 0 if sh is None else sh.stride(0)


def _harmonics(x: RasterInputs) -> tuple[Tensor | None, Tensor | None]:
    return _packed_rows(x.colors), _packed_rows(x.colors_rest)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.contiguous()


def _packed_rows(sh: Tensor | None) -> Tensor | None:
    """Coefficients [N, K, 3] whose rows are contiguous; the rows may be spaced."""
    if sh is None or sh.shape[1] == 0:
        return None
    return sh if sh.stride(2) == 1 and sh.stride(1) == 3 else sh.contiguous()
