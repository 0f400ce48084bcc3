"""Lenses on a GPU: how long projection takes through each, and what native training gains.

    python -m bench.lenses projection [--workload garden-3x3]
    python -m bench.lenses training FOLDER [--lens opencv_fisheye] [--iterations 7000]

`projection` times forward and backward, as bench.bench_projection does, for the pinhole and for
each kind of lens with the same focal length. `training` writes the built-in scene through a lens
into FOLDER, trains on the photographs as they are and without their distortion, and measures both
models on the same test photographs: as they are, and of these the pixels that undistorted images
have, too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.bench_projection import backward_of, microseconds
from bench.scenes import load
from gs import Camera, Gaussians, load_ply, load_scene, render
from gs.data.demo import write_demo_scene
from gs.data.loader import ImageLoader
from gs.errors import SplatrimError, run_cli
from kernels import Distortion, RasterInputs, RenderSettings, lenses, lenses_of, project

REPO = Path(__file__).resolve().parents[1]
LENSES = {
    "pinhole": None,
    "SIMPLE_RADIAL": Distortion("distorted", (-0.12,)),
    "OPENCV": Distortion("distorted", (-0.15, 0.04), (), (0.002, -0.0015)),
    "FULL_OPENCV": Distortion(
        "distorted", (-0.15, 0.04, 0.01), (0.05, -0.02, 0.004), (0.002, -0.0015)
    ),
    "FISHEYE": Distortion("fisheye"),
    "OPENCV_FISHEYE": Distortion("fisheye", (0.03, -0.008, 0.002, -0.0004)),
    "THIN_PRISM_FISHEYE": Distortion(
        "fisheye", (0.03, -0.008, 0.002, -0.0004), (), (0.001, -0.0008), (0.0012, 0, -0.0007, 0)
    ),
    "EQUIRECTANGULAR": Distortion("equirectangular"),
}


def time_projection(name: str) -> None:
    """A row per lens: as the trainer calls it, with raw parameters and SH in two tensors."""
    w = load(name)
    print(f"{torch.cuda.get_device_name()}, {name}: {len(w.means)} Gaussians, {w.width}x{w.height}")
    print(f"{'lens':20} {'seen':>5}  {'fwd us':>8} {'bwd us':>8}")
    means, quats, scales, opacities, sh = w.parameters()
    leaves = [means, quats, scales.detach().log(), torch.logit(opacities.detach(), eps=1e-6)]
    leaves += [sh.detach()[:, :1].clone(), sh.detach()[:, 1:].clone()]
    leaves = [x.detach().requires_grad_() for x in leaves]
    for title, lens in LENSES.items():
        made = None if lens is None else lenses_of([lens], w.Ks, w.width, w.height)
        settings = RenderSettings(w.width, w.height, 0.2, sh_degree=3, raw=True)
        Ks = w.Ks
        if lens is not None and lens.family == "equirectangular":
            Ks = Ks.clone()
            Ks[:, 0, 0], Ks[:, 0, 2] = w.width / (2 * torch.pi), w.width / 2
            Ks[:, 1, 1], Ks[:, 1, 2] = w.height / torch.pi, w.height / 2
        means, quats, scales, opacities, sh0, shN = leaves
        inputs = RasterInputs(means, quats, scales, opacities, sh0, w.viewmats, Ks, shN)
        if made is not None:
            settings = settings._replace(lens=made.kind)
            inputs = inputs._replace(lenses=made.words)

        def forward(x: RasterInputs = inputs, s: RenderSettings = settings):  # noqa: ANN202
            return project(x, s)

        out = forward()
        seen = (out.radii > 0).all(-1).float().mean().item()
        times = microseconds(forward)[0], microseconds(backward_of(out, leaves))[0]
        print(f"{title:20} {seen:5.2f}  {times[0]:8.1f} {times[1]:8.1f}", flush=True)


def covered(native: Camera, flat: Camera) -> Tensor:  # [H, W] bool
    """Which pixels of a photograph its undistorted form shows."""
    assert native.distortion is not None
    y, x = torch.meshgrid(torch.arange(native.height), torch.arange(native.width), indexing="ij")
    pixels = torch.stack([x, y], -1).double() + 0.5
    lens, words = native.distortion, native.lens_words
    largest = lenses.monotone_radius(lens)
    rays, shown = lenses.unproject(lens.family, native.K, words, pixels, largest)
    at = rays @ flat.K.double().T
    at = at[..., :2] / at[..., 2:]
    inside = ((at >= 0) & (at <= torch.tensor([flat.width, flat.height]))).all(-1)
    return shown & (rays[..., 2] > 0) & inside


@torch.no_grad()
def scores(model: Gaussians, source: Path) -> tuple[float, float, float]:
    """PSNR on test photographs as they are: of all pixels, of those that undistorted images have,
    and these as a share."""
    native, flat = (
        load_scene(source, eval=True, distortion=how, resolution=1).test
        for how in ("native", "undistort")
    )
    whole, common, shares = [], [], []
    with ImageLoader(native, device=model.device) as images:
        for k, (camera, other) in enumerate(zip(native, flat, strict=True)):
            seen = covered(camera, other).to(model.device)
            error = (render(model, camera).colors.clamp(0, 1) - images[k] / 255).square().mean(-1)
            whole.append(-10 * error.mean().log10())
            common.append(-10 * error[seen].mean().log10())
            shares.append(seen.float().mean())
    mean = [torch.stack(x).mean().item() for x in (whole, common, shares)]
    return mean[0], mean[1], mean[2]


def compare_training(folder: Path, lens: str, iterations: int, size: tuple[int, int]) -> None:
    """Train both ways and print a table."""
    source = folder / f"scene_{lens}"
    if not source.is_dir():
        write_demo_scene(source, views=80, width=size[0], height=size[1], lens=lens)
    print(f"{lens}, {size[0]}x{size[1]}, {iterations} iterations")
    print(
        f"{'photographs':12} {'Gaussians':>9} {'PSNR, all':>10} {'PSNR, common':>13} {'share':>6}"
    )
    for how in ("native", "undistort"):
        out = folder / f"{lens}_{how}"
        command = [sys.executable, "train.py", "-s", str(source), "-m", str(out), "--eval", "-r"]
        command += ["1", "--iterations", str(iterations), "--distortion", how, "--quiet"]
        subprocess.run([*command, "--overwrite"], cwd=REPO, check=True)
        path = out / "point_cloud" / f"iteration_{iterations}" / "point_cloud.ply"
        model = Gaussians.from_tensors(load_ply(path))
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        whole, common, share = scores(model, source)
        print(f"{how:12} {len(model):9} {whole:10.2f} {common:13.2f} {share:6.1%}", flush=True)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lenses", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("projection")
    timing.add_argument("--workload", default="garden-3x3")
    training = commands.add_parser("training")
    training.add_argument("folder", type=Path)
    training.add_argument("--lens", default="opencv_fisheye")
    training.add_argument("--iterations", type=int, default=7000)
    training.add_argument("--width", type=int, default=480)
    training.add_argument("--height", type=int, default=360)
    given = parser.parse_args(args)
    if given.command == "projection":
        if not torch.cuda.is_available():
            raise SplatrimError("timing projection needs a CUDA GPU")
        time_projection(given.workload)
    else:
        size = given.width, given.height
        compare_training(given.folder.resolve(), given.lens, given.iterations, size)


if __name__ == "__main__":
    run_cli(main)
