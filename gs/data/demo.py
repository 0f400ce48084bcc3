"""The built-in scene: a still life of textured solids, ray-cast and written as a COLMAP scene.

`python -m gs.data.demo FOLDER`; with --lens through a lens of COLMAP (gs.data.demo_lens), with
--city a large one instead (gs.data.city_scene). Nothing in them is made of Gaussians, so that
training on them proves something. The same seed gives the same bytes. With --varied_light and
--moving_object its photographs have faults (gs.data.faults).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from ..errors import SplatrimError, run_cli
from ..files import write_json
from .city_scene import CityConfig, write_city_scene
from .demo_lens import Rays, demo_lens, rays_of
from .faults import light_gains, paint_figure, walks_through
from .new_scene import check_new, new_scene, write_model
from .raycast import Solid, Stage, Texture, trace

FIELD_OF_VIEW = 62.0  # degrees, horizontally
LOOK_AT = (0.0, 0.0, 0.62)
SUPERSAMPLES = 3  # per pixel and axis
LIGHT_SAMPLES = 4  # per ray
N_POINTS = 6000
MASKS, GAINS = "masks", "gains.json"
POINT_NOISE = 0.01


def write_demo_scene(
    folder: Path,
    *,
    seed: int = 0,
    views: int = 40,
    width: int = 200,
    height: int = 150,
    lens: str = "PINHOLE",
    varied_light: bool = False,
    moving_object: bool = False,
) -> None:
    """Ray-cast the built-in scene into `folder`: images/*.png and sparse/0 with points.

    Args:
        folder: Must be absent or empty; appears once everything is written.
        seed: Seed of textures, light samples and points.
        views: Number of cameras on the orbit.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        lens: COLMAP's name of the model through which images are taken.
        varied_light: Random exposure and white balance for each image; gains.json has the factors
            on linear light.
        moving_object: A figure that walks through every second image, and masks/ that hide it.

    Raises:
        SplatrimError: The folder holds something, or cannot be written, or there is no such lens.
    """
    if min(views, width, height) < 1:
        raise ValueError(
            f"views, width, height: expected at least 1, got {views}, {width}, {height}"
        )
    folder = Path(folder)
    focal = width / (2 * np.tan(np.deg2rad(FIELD_OF_VIEW) / 2))
    taken = demo_lens(lens, width, height, focal)
    check_new(folder)
    rng = np.random.default_rng(seed)
    stage = make_stage(rng)
    lights = _light_samples(rng)
    poses = [_pose(index / views) for index in range(views)]
    rays = rays_of(taken)
    gains = light_gains(views, seed) if varied_light else np.ones((views, 3), np.float32)

    def shoot(pose: ndarray, gain: ndarray) -> tuple[ndarray, ndarray]:
        return _shoot(stage, pose, rays, width, height, lights, gain)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shots = list(pool.map(shoot, poses, gains))

    # Points as a reconstruction would have them: on what the cameras see, slightly off.
    per_view = rng.multinomial(N_POINTS, [1 / views] * views)
    xyz, rgb = [], []
    for (image, surface), count in zip(shots, per_view, strict=True):
        rows = rng.integers(0, width * height, count)
        rows = rows[np.isfinite(surface[rows, 0])]
        xyz.append(surface[rows] + POINT_NOISE * rng.standard_normal((len(rows), 3)))
        rgb.append(image.reshape(-1, 3)[rows])

    with new_scene(folder) as part:
        names = [f"view_{index:03d}.png" for index in range(views)]
        if varied_light:
            known = dict(zip(names, np.round(gains.astype(float), 6).tolist(), strict=True))
            write_json(part / GAINS, known)
        if moving_object:
            (part / MASKS).mkdir()
        for k, (name, (image, _)) in enumerate(zip(names, shots, strict=True)):
            if moving_object and walks_through(k):
                image, mask = paint_figure(image, k, seed)
                Image.fromarray(mask).save(part / MASKS / f"{name}.png")
            Image.fromarray(image).save(part / "images" / name)
        write_model(part, taken, names, poses, np.concatenate(xyz), np.concatenate(rgb))


def make_stage(rng: np.random.Generator) -> Stage:
    """The still life: a plinth with seven solids in a room of 9 x 9 x 5 units, z up."""
    noise = _noise(rng)

    def mottled(color: str, other: str, scale: float) -> Texture:
        return lambda p: _mix(color, other, noise(p * np.float32(scale)))

    def checker(color: str, other: str, size: float) -> Texture:
        def texture(p: ndarray) -> ndarray:
            # A point on a face is mid-cell across it: sin would vanish on the lattice planes.
            waves = np.sin((p / np.float32(size) + np.float32(0.25)) * np.float32(np.pi))
            return _mix(color, other, _step(waves.prod(axis=-1) * 6))

        return texture

    def spiral(color: str, other: str, turns: float, pitch: float) -> Texture:
        def texture(p: ndarray) -> ndarray:
            angle = np.arctan2(p[:, 1], p[:, 0]) * np.float32(turns)
            return _mix(color, other, _step(np.sin(angle + p[:, 2] * np.float32(pitch)) * 2.5))

        return texture

    def rings(color: str, other: str, pitch: float) -> Texture:
        def texture(p: ndarray) -> ndarray:
            radius = np.sqrt(p[:, 0] ** 2 + p[:, 1] ** 2) + np.float32(0.05) * noise(p * 3)
            return _mix(color, other, _step(np.sin(radius * np.float32(pitch)) * 2))

        return texture

    def marble(color: str, other: str, pitch: float) -> Texture:
        def texture(p: ndarray) -> ndarray:
            wave = p[:, 0] + p[:, 2] + np.float32(1.1) * noise(p * np.float32(2.6))
            return _mix(color, other, 0.5 + 0.5 * np.sin(wave * np.float32(pitch)))

        return texture

    def bands(color: str, other: str, pitch: float) -> Texture:
        return lambda p: _mix(color, other, _step(np.sin(p[:, 2] * np.float32(pitch)) * 3))

    def room(p: ndarray) -> ndarray:
        z = p[:, 2]  # -2.5 at the floor
        boards = _step(np.sin(p[:, 0] * 3.2) * 3) * 0.55 + 0.45 * noise(p * np.float32(1.3))
        floor = _mix("b98a5e", "8f6540", boards)
        paper = _mix("d9cfb8", "c2b493", _step(np.sin((p[:, 0] + p[:, 1]) * 4.2) * 1.5))
        clouds = noise(p * np.float32(0.9) + 5)
        paper = paper * (0.86 + 0.28 * clouds[:, None])
        dado = _mix("3f6b6e", "2d4f58", noise(p * np.float32(1.7) + 9))
        wall = np.where((z < -1.55)[:, None], dado, paper)
        wall = np.where((np.abs(z + 1.55) < 0.07)[:, None], _linear("efe7d6"), wall)
        return np.where((z < -2.499)[:, None], floor, wall).astype(np.float32)

    paint = {
        "plinth": rings("cfc7ba", "9fa7a8", 14),
        "globe": marble("f2e8da", "3b5f8a", 6.5),
        "cube": checker("d8452e", "f1dfc0", 0.28),
        "ball": bands("f0b432", "5a3b7a", 18),
        "column": spiral("2f8f7b", "f3ead2", 2, 9),
        "brick": mottled("c46f9c", "6f2f6b", 4.5),
        "fruit": mottled("7fb33d", "e7df6b", 4),
        "die": checker("f4efe2", "2c4a73", 0.15),
    }
    solids = [
        Solid("cylinder", (0, 0, 0.09), (1.75, 1.75, 0.09), paint["plinth"]),
        Solid("sphere", (0.62, 0.62, 0.74), (0.56, 0.56, 0.56), paint["globe"], gloss=0.1),
        Solid("box", (-0.72, 0.55, 0.6), (0.42, 0.42, 0.42), paint["cube"], turn=24),
        Solid("sphere", (-0.72, 0.55, 1.29), (0.27, 0.27, 0.27), paint["ball"], gloss=0.1),
        Solid("cylinder", (0.25, -0.88, 0.73), (0.3, 0.3, 0.55), paint["column"]),
        Solid("box", (1.15, -0.3, 0.41), (0.22, 0.3, 0.23), paint["brick"], turn=-18),
        Solid("sphere", (-0.62, -0.62, 0.5), (0.4, 0.4, 0.32), paint["fruit"], turn=40),
        Solid("box", (-1.3, -0.1, 0.33), (0.15, 0.15, 0.15), paint["die"], turn=50),
    ]
    chamber = Solid("box", (0, 0, 2.5), (4.5, 4.5, 2.5), room)
    return Stage(solids, chamber, light=(1.6, -1.3, 4.4), light_radius=0.65)


def _pose(turn: float) -> ndarray:  # [3, 4] float64, world to camera
    """Camera on the orbit after a fraction of it, looking at the still life."""
    angle = 2 * np.pi * turn
    height = 1.75 + 0.75 * np.sin(3 * angle)
    radius = 3.35 - 0.3 * np.cos(2 * angle)
    centre = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
    forward = np.array(LOOK_AT) - centre
    forward /= np.sqrt((forward * forward).sum())
    right = np.cross(forward, [0, 0, 1])
    right /= np.sqrt((right * right).sum())
    rotation = np.stack([right, np.cross(forward, right), forward])
    translation = -(rotation * centre).sum(axis=1)
    return np.concatenate([rotation, translation[:, None]], axis=1)


def _shoot(
    stage: Stage,
    pose: ndarray,  # [3, 4]
    rays: Rays,
    width: int,
    height: int,
    lights: ndarray,  # [SUPERSAMPLES^2, LIGHT_SAMPLES, 2]
    gain: ndarray,  # [3] float32
) -> tuple[ndarray, ndarray]:  # [H, W, 3] uint8, [H * W, 3] points seen at the pixel centres
    """Render one view; its pixels' middle rays also tell what surface it sees."""
    rotation, translation = pose[:, :3], pose[:, 3]
    centre = -(rotation * translation[:, None]).sum(axis=0)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    total = np.zeros((height * width, 3), dtype=np.float32)
    surface = np.empty_like(total)
    for index, light in enumerate(lights):
        down, across = divmod(index, SUPERSAMPLES)
        x = columns.ravel() + (across + 0.5) / SUPERSAMPLES
        y = rows.ravel() + (down + 0.5) / SUPERSAMPLES
        a, b, c = rays(x, y).T[..., None]
        directions = (a * rotation[0] + b * rotation[1] + c * rotation[2]).astype(np.float32)
        shown = np.isfinite(directions[:, 0])
        directions = directions[shown]
        origins = np.broadcast_to(centre.astype(np.float32), directions.shape)
        color, t = trace(stage, origins, directions, light)
        total[shown] += np.minimum(color, 1)
        if index == len(lights) // 2:
            surface[shown] = origins + t[:, None] * directions
            surface[~shown] = np.nan
    linear = total / len(lights) * gain
    image = np.rint(255 * linear ** (1 / 2.2)).astype(np.uint8)
    return image.reshape(height, width, 3), surface


def _light_samples(rng: np.random.Generator) -> ndarray:  # [SUPERSAMPLES^2, LIGHT_SAMPLES, 2]
    """Stratified points of the unit disc, dealt to the rays of a pixel; equal for all pixels."""
    n = SUPERSAMPLES**2 * LIGHT_SAMPLES
    radius = np.sqrt((np.arange(n) + rng.random(n)) / n)
    angle = np.arange(n) * 2.399963  # the golden angle fills a disc evenly
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return points.reshape(LIGHT_SAMPLES, SUPERSAMPLES**2, 2).swapaxes(0, 1).astype(np.float32)


def _noise(rng: np.random.Generator) -> Callable[[ndarray], ndarray]:
    """Smooth value noise with a period of 16: points [R, 3] -> 0..1 [R]."""
    table = rng.random((16, 16, 16)).astype(np.float32)

    def noise(points: ndarray) -> ndarray:
        cell = np.floor(points)
        f = points - cell
        f = f * f * (3 - 2 * f)
        i = cell.astype(np.int32) & 15
        j = (i + 1) & 15
        x0, y0, z0, x1, y1, z1 = *i.T, *j.T
        fx, fy, fz = f.T
        low = _lerp(
            _lerp(table[x0, y0, z0], table[x1, y0, z0], fx),
            _lerp(table[x0, y1, z0], table[x1, y1, z0], fx),
            fy,
        )
        high = _lerp(
            _lerp(table[x0, y0, z1], table[x1, y0, z1], fx),
            _lerp(table[x0, y1, z1], table[x1, y1, z1], fx),
            fy,
        )
        return _lerp(low, high, fz)

    return noise


def _lerp(a: ndarray, b: ndarray, weight: ndarray) -> ndarray:
    return a + (b - a) * weight


def _step(wave: ndarray) -> ndarray:
    """0 below -1, 1 above 1, smooth between."""
    t = np.clip(0.5 + 0.5 * wave, 0, 1)
    return t * t * (3 - 2 * t)


def _linear(color: str) -> ndarray:  # [3] float32
    """Linear RGB of an sRGB colour like "ff8800"."""
    return (np.frombuffer(bytes.fromhex(color), np.uint8) / 255).astype(np.float32) ** 2.2


def _mix(color: str, other: str, weight: ndarray) -> ndarray:  # [R] -> [R, 3]
    """Between two sRGB colours."""
    return _lerp(_linear(color), _linear(other), weight[:, None].astype(np.float32))


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.data.demo`."""
    parser = argparse.ArgumentParser(prog="python -m gs.data.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lens", default="pinhole", help="COLMAP's name, such as opencv_fisheye")
    parser.add_argument("--varied_light", action="store_true", help="images of varied exposure")
    parser.add_argument(
        "--moving_object", action="store_true", help="a figure in every second image, and masks"
    )
    parser.add_argument("--city", action="store_true", help="a district seen from above")
    defaults = CityConfig()
    city = parser.add_argument_group("with --city")
    for name, what in CityConfig.HELP.items():
        kind = type(getattr(defaults, name))
        city.add_argument(f"--{name}", type=kind, help=f"{what} ({getattr(defaults, name)})")
    given = parser.parse_args(args)
    if given.seed < 0:
        raise SplatrimError(f"--seed must be at least 0, not {given.seed}")
    sizes = {k: x for k in CityConfig.HELP if (x := getattr(given, k)) is not None}
    if sizes and not given.city:
        raise SplatrimError(f"--{next(iter(sizes))} belongs to --city")
    faults = {name: getattr(given, name) for name in ("varied_light", "moving_object")}
    if given.city and any(faults.values()):
        raise SplatrimError("--city has its own --exposure, and no --moving_object")
    if given.city:
        write_city_scene(given.folder, CityConfig(seed=given.seed, **sizes))
    else:
        write_demo_scene(given.folder, seed=given.seed, lens=given.lens, **faults)
    print(f"wrote {given.folder}")


if __name__ == "__main__":
    run_cli(main)
