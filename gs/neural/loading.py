"""Models from their files: Gaussians, or anchors and their decoder (gs.neural.files)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.ply_table import read_header, read_table
from ..errors import SplatrimError
from ..model.gaussians import Gaussians
from ..model.model import Model
from ..model.ply import load_ply, read_antialiased
from .anchors import OFF, Anchors
from .config import NeuralConfig
from .decoder import net_sizes
from .files import (
    APPEARANCE,
    DETAILS,
    FILES,
    OFF_BITS,
    find_appearances,
    property_names,
    read_appearances,
    read_details,
    read_net,
)


def is_neural(path: Path) -> bool:
    """Whether a .ply holds anchors. Raises SplatrimError where it is not one."""
    vertex = read_header(path).element("vertex")
    return vertex is not None and "f_anchor_feat_0" in vertex.properties


def load_model(path: Path, device: torch.device | str = "cpu") -> Model:
    """The model of a .ply, of Gaussians or of anchors.

    Raises:
        SplatrimError: the file, or the decoder beside it, is missing or damaged.
    """
    if is_neural(path):
        return load_anchors(path, device)
    tensors = {name: x.to(device) for name, x in load_ply(path).items()}
    return Gaussians.from_tensors(tensors, antialiased=read_antialiased(path))


def load_anchors(path: Path, device: torch.device | str = "cpu") -> Anchors:
    """Read a model that this project or Scaffold-GS has written.

    Raises:
        SplatrimError: a file is missing or damaged, or does not fit the others.
    """
    table = read_table(path)
    names: tuple[str, ...] = table.dtype.names or ()
    n_features = sum(name.startswith("f_anchor_feat_") for name in names)
    n_offsets = sum(name.startswith("f_offset_") for name in names) // 3
    wanted = property_names(n_features, n_offsets)
    missing = [name for name in wanted if name not in names]
    if missing or not n_features or not n_offsets:
        what = missing[0] if missing else "f_offset_0"
        raise SplatrimError(f"{path} is not a file of anchors: property {what} is missing")
    values = torch.from_numpy(np.stack([table[name].astype(np.float32) for name in wanted], 1))
    if not bool(values.isfinite().all()):
        raise SplatrimError(f"{path} is damaged: it has values that are not finite")
    parts = values.split([3, 3, 3 * n_offsets, n_features, 1, 6, 4], 1)
    anchors, _, offsets, features, _, scales, _ = parts
    details = read_details(path.with_name(DETAILS))
    appearance = read_appearances(path.with_name(APPEARANCE)) if details["appearance"] else None
    if appearance is None and not path.with_name(DETAILS).is_file():
        appearance = find_appearances(path.with_name(APPEARANCE))
    config = NeuralConfig(
        feature_dim=n_features,
        offsets=n_offsets,
        voxel_size=details["voxel_size"],
        view_input=details["view_input"],
        appearance_dim=0 if appearance is None else appearance.shape[1],
    )
    decoder = {
        name: read_net(path.with_name(file), net_sizes(config, name))
        for name, file in FILES.items()
    }
    decoder["grid"] = torch.tensor([float(details["voxel_size"])])
    if appearance is not None:
        decoder["appearance"] = appearance
    tensors = {
        "anchors": anchors,
        "features": features,
        "offsets": offsets.reshape(-1, 3, n_offsets).transpose(1, 2),
        "scales": scales,
    }
    on_device = {name: x.contiguous().to(device) for name, x in tensors.items()}
    model = Anchors(on_device, config, decoder, details["appearance"])
    model.antialiased = read_antialiased(path)
    if OFF_BITS in names:
        bits = torch.from_numpy(table[OFF_BITS].astype(np.int64))
        off = (bits[:, None] >> torch.arange(n_offsets)) & 1
        model.rows[OFF] = off.bool().to(device)
    return model
