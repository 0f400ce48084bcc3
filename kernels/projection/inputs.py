"""What the kernels of projection take, and which of it can have gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import RasterInputs, RenderSettings
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


_NO_SEED = Scalar(0), Scalar(0)


def gather_inputs(x: RasterInputs, settings: RenderSettings) -> ProjectionInputs:
    """Inputs as kernels take them."""
    quats, scales, covars, masks, logits = x.quats, x.scales, x.covars, x.masks, x.mask_logits
    if covars is not None:
        quats, scales, covars = None, None, covars.contiguous()
    else:
        assert quats is not None and scales is not None
        quats, scales = quats.contiguous(), scales.contiguous()
    sh0, shN = (None, None) if settings.sh_degree is None else (x.colors, x.colors_rest)
    low, high = _NO_SEED
    if logits is not None and x.mask_words is None:
        low, high = map(Scalar, split_seed(x.mask_seed))
    floats = FloatInputs(
        x.means.contiguous(),
        quats,
        scales,
        covars,
        x.opacities.contiguous(),
        _packed_rows(sh0),
        _packed_rows(shN),
        x.viewmats.contiguous(),
        masks if masks is None else masks.contiguous(),
        logits if logits is None else logits.contiguous(),
    )
    ids = x.mask_ids if x.mask_ids is None else x.mask_ids.to(torch.int32).contiguous()
    lenses = None if x.lenses is None else x.lenses.contiguous()
    return ProjectionInputs(floats, x.Ks.contiguous(), lenses, ids, x.mask_words, low, high)


def row_stride(sh: Tensor | None) -> int:
    return 0 if sh is None else sh.stride(0)


def _packed_rows(sh: Tensor | None) -> Tensor | None:
    """Coefficients [N, K, 3] whose rows are contiguous; the rows may be spaced."""
    if sh is None or sh.shape[1] == 0:
        return None
    return sh if sh.stride(2) == 1 and sh.stride(1) == 3 else sh.contiguous()
