"""The records of CUDA rasterizers, to the bounds that their README gives."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import rasterization

ON_GPU = torch.cuda.is_available()
# Interpreted kernels are slow: the other records run on a GPU alone.
INTERPRETED = {("faint", "dgr"), ("solid", "dgr_sampled_only"), ("near", "gsplat")}
CASES = {"f32": torch.float32, "f64": torch.float64, "triton": torch.float32}
PARAMETERS = ("means", "quats", "scales", "opacities", "sh")


class Bound(NamedTuple):
    image: float  # largest difference, but for at most three flipped pixels
    gradient: float  # relative L2
    mean: float | None = None  # mean difference of the image, where the largest is loose


TIGHT = Bound(2e-5, 1e-4)
SUPPORT = Bound(1.5e-2, 1.5e-2, 1e-4)  # dgr cuts the support to a 3-sigma rectangle
BULK = Bound(1e-4, 1e-3)
RECORDS = {
    ("faint", "dgr"): TIGHT,
    ("faint", "mask_all"): TIGHT,
    ("faint", "mask_some"): TIGHT,
    ("faint", "mask_none"): TIGHT,
    ("faint", "gsplat"): TIGHT,
    ("faint", "gsplat_aa"): TIGHT,
    ("solid", "dgr"): TIGHT,
    ("solid", "mask_some"): TIGHT,
    ("solid", "dgr_sampled_only"): TIGHT,
    ("near", "dgr"): TIGHT,
    ("near", "mask_some"): TIGHT,
    ("near", "dgr_sampled_only"): TIGHT,
    ("near", "gsplat"): TIGHT,
    ("opaque", "gsplat"): BULK,
    ("opaque", "gsplat_aa"): BULK,
    ("opaque", "dgr"): SUPPORT,
    ("opaque", "mask_all"): SUPPORT,
    ("opaque", "mask_some"): SUPPORT,
    ("opaque", "mask_none"): SUPPORT,
    ("edge", "gsplat"): BULK,
    ("edge", "gsplat_aa"): Bound(3e-3, 1e-2),
    ("edge", "dgr"): SUPPORT,
    ("dense", "gsplat"): BULK,
    ("dense", "dgr"): SUPPORT,
    ("dense", "mask_some"): SUPPORT,
}


def load(root: Path, scene: str, case: str) -> dict[str, Tensor]:
    device = "cuda" if case == "triton" and ON_GPU else "cpu"
    with np.load(root / "golden" / f"golden_{scene}.npz") as file:
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in file.items()}
    return {
        k: v.to(device, CASES[case] if v.is_floating_point() else v.dtype)
        for k, v in tensors.items()
    }


def backend(case: str) -> dict[str, str]:
    if case == "triton":
        return {"backend": "triton", "precision": "exact"}
    return {"backend": "reference"}


def hold(name: str, got: Tensor, want: Tensor, bound: float) -> None:
    error = (got.double() - want.double()).norm().item()
    assert torch.isfinite(got).all(), name
    assert error <= bound * want.double().norm().item(), f"{name}: {error / want.norm():.2e}"


def hold_image(name: str, got: Tensor, want: Tensor, bound: Bound) -> None:
    """Both [H, W, D]."""
    error = (got.double() - want.double()).abs()
    flipped = int((error.amax(-1) > bound.image).sum())
    assert flipped <= 3, f"{name}: {flipped} pixels beyond {bound.image}, up to {error.max():.2e}"
    if bound.mean is not None:
        assert error.mean() <= bound.mean, f"{name}: mean {error.mean():.2e}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("scene", "tag"), RECORDS, ids=[f"{s}-{t}" for s, t in RECORDS])
def test_record(scene: str, tag: str, case: str, data_root: Path) -> None:
    if case == "triton" and not ON_GPU and (scene, tag) not in INTERPRETED:
        pytest.skip("too slow interpreted; runs on a GPU")
    z, bound = load(data_root, scene, case), RECORDS[scene, tag]
    masks = None
    if tag == "dgr_sampled_only":
        # The same Gaussians with masks: exact gradients are those of the sampled ones alone.
        masks = z["in_mask"]
    elif tag.startswith("mask_"):
        masks = {
            "mask_all": torch.ones_like(z["in_mask"]),
            "mask_some": z["in_mask"],
            "mask_none": torch.zeros_like(z["in_mask"]),
        }[tag]
    leaves = [z["in_" + k].clone().requires_grad_() for k in PARAMETERS]
    if masks is not None:
        masks = masks.clone().requires_grad_()
    inria = not tag.startswith("gsplat")
    image, alphas, _ = rasterization(
        *leaves,
        viewmats=z["in_viewmat"][None],
        Ks=z["in_K"][None],
        width=int(z["in_width"]),
        height=int(z["in_height"]),
        near_plane=0.2 if inria or scene in ("solid", "near") else 0.01,
        sh_degree=3,
        backgrounds=z["in_bg"][None],
        masks=masks,
        rasterize_mode="antialiased" if tag == "gsplat_aa" else "classic",
        render_mode="RGB" if inria else "RGB+ED",
        **backend(case),
    )
    colors, depths = image[0, ..., :3], image[0, ..., 3:]
    hold_image("image", colors.detach(), z[f"{tag}.image"].permute(1, 2, 0), bound)
    if not inria:
        hold_image("alpha", alphas[0].detach(), z[f"{tag}.alpha"][..., None], bound)
        far = float(depths.detach().max())
        expected = z[f"{tag}.expected_depth"][..., None]
        hold_image("depth", depths.detach() / far, expected / far, bound)
    if scene == "dense" and case == "f64":
        return
    (colors.permute(2, 0, 1) * z["in_loss_weights"]).sum().backward()
    check_gradients(scene, tag, z, dict(zip(PARAMETERS, leaves, strict=True)), masks, bound)


def check_gradients(
    scene: str,
    tag: str,
    z: dict[str, Tensor],
    leaves: dict[str, Tensor],
    masks: Tensor | None,
    bound: Bound,
) -> None:
    for name, leaf in leaves.items():
        # The published masked backward is right for colours, and for the rest only if all or
        # none are sampled.
        if f"{tag}.grad_{name}" not in z or (tag == "mask_some" and name != "sh"):
            continue
        got, want, limit = leaf.grad, z[f"{tag}.grad_{name}"], bound.gradient
        assert got is not None
        if tag == "dgr_sampled_only":
            assert (got[z["in_mask"] == 0] == 0).all(), name
            got = got[z["in_mask"] == 1]
        if name == "quats" and not tag.startswith("gsplat"):
            # Ours normalises, so compare in the tangent space.
            q = leaf.detach()[z["in_mask"] == 1] if tag == "dgr_sampled_only" else leaf.detach()
            want = want - (want * q).sum(-1, keepdim=True) * q
        if scene == "near" and name == "means" and tag.startswith("dgr"):
            limit = 1.5e-2  # Inria's gradient of the field-of-view clamp is inexact
        hold(f"v_{name}", got, want, limit)
    if tag in ("mask_all", "mask_none"):
        assert masks is not None and masks.grad is not None
        hold("v_masks", masks.grad, z[f"{tag}.grad_mask_published"][:, 0], bound.gradient)


@pytest.mark.parametrize("case", CASES)
def test_two_cameras(case: str, data_root: Path) -> None:
    z = load(data_root, "multi", case)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")
    leaves = {k: z["in_" + k].clone().requires_grad_() for k in names}
    backgrounds = leaves["backgrounds"]
    colors, alphas, info = rasterization(
        *(leaves[k] for k in names[:-1]),
        Ks=z["in_Ks"],
        width=int(z["in_width"]),
        height=int(z["in_height"]),
        backgrounds=backgrounds,
        absgrad=True,
        **backend(case),
    )
    hold_image("colors", colors[0].detach(), z["gsplat.colors"][0], TIGHT)
    hold_image("colors", colors[1].detach(), z["gsplat.colors"][1], TIGHT)
    hold_image("alphas", alphas.detach().flatten(0, 1), z["gsplat.alphas"].flatten(0, 1), TIGHT)
    loss = (colors * z["in_loss_weights"]).sum() + (alphas * z["in_alpha_weights"]).sum()
    loss.backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        hold(f"v_{name}", leaf.grad, z[f"gsplat.grad_{name}"], 1e-4)
    hold("v_means2d", info["means2d"].grad, z["gsplat.grad_means2d"], 1e-4)
    hold("absgrad", info["means2d"].absgrad, z["gsplat.absgrad_means2d"], 1e-4)
