"""The large built-in scene: exact rays, a district that keeps to its cells, a survey that fits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gs.data.city import CELL, SUN, TOP, make_district, shade
from gs.data.city_rays import BOX, ELLIPSOID, GROUND, NOTHING, SKY, District, cast
from gs.data.city_scene import CityConfig, survey, write_city_scene
from gs.data.demo import main
from gs.data.loader import ImageLoader
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError

SIZE = {"views": 9, "width": 32, "height": 24, "blocks_x": 2, "blocks_y": 1, "points": 900}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("city") / "scene"
    flags = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
    main([str(path), "--city", *flags])
    return path


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    return load_scene(folder, eval=True)


@pytest.fixture(scope="module")
def district() -> District:
    return make_district(2, 3, 5)


def test_solids_keep_to_their_cells(district: District) -> None:
    there = district.kinds != NOTHING
    assert there.float().mean() > 0.3 and {BOX, ELLIPSOID} <= set(district.kinds.unique().tolist())
    x, y, _ = there.nonzero().unbind(1)
    low, high = district.centres - district.halves, district.centres + district.halves
    corner = torch.stack([x, y], dim=1) * CELL
    assert (low[there][:, :2] >= corner - 1e-4).all()
    assert (high[there][:, :2] <= corner + CELL + 1e-4).all()
    assert low[there][:, 2].min() > -1e-4 and high[there][:, 2].max() < TOP


def by_hand(district: District, o: Tensor, d: Tensor) -> tuple[float, int]:
    """The nearest of all solids for one ray, in float64 and one solid after the other."""
    best, which = math.inf, SKY
    if d[2] < 0:
        best, which = float(-o[2] / d[2]), GROUND
    kinds = district.kinds.flatten()
    for k in (kinds != NOTHING).nonzero()[:, 0].tolist():
        half = district.halves.reshape(-1, 3)[k].double()
        p, v = (o - district.centres.reshape(-1, 3)[k].double()) / half, d / half
        if kinds[k] == BOX:
            near, far = torch.sort(torch.stack([(-1 - p) / v, (1 - p) / v]), dim=0).values
            t = float(near.max()) if near.max() < far.min() else math.inf
        else:
            a, b, c = float(v @ v), float(p @ v), float(p @ p) - 1
            t = (-b - math.sqrt(b * b - a * c)) / a if b * b > a * c else math.inf
        if 1e-3 < t < best:
            best, which = t, k
    return best, which


def test_rays_meet_the_nearest_solid() -> None:
    district = make_district(1, 1, 3)
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(60, 3, generator=generator).double() * 16 - 3
    origins[:, 2] = 4 + origins[:, 2].abs()
    directions = torch.randn(60, 3, generator=generator).double()
    directions[:50, 2] = -directions[:50, 2].abs() - 0.3
    hits = cast(district, origins.float(), directions.float())
    seen = set()
    for o, d, t, which in zip(origins, directions, hits.t, hits.which, strict=True):
        wanted, solid = by_hand(district, o, d)
        assert int(which) == solid and (t == wanted or abs(t - wanted) < 1e-4 * wanted)
        seen.add(min(solid, 0))
    assert seen == {0, GROUND, SKY}


def test_normals_face_the_ray(district: District) -> None:
    generator = torch.Generator().manual_seed(1)
    origins = torch.rand(500, 3, generator=generator) * torch.tensor([20.0, 30.0, 0.0])
    origins[:, 2] = 9
    directions = torch.randn(500, 3, generator=generator) * 0.5 - torch.tensor([0.0, 0.0, 1.0])
    directions[:, 2] = -directions[:, 2].abs() - 0.1
    hits = cast(district, origins, directions)
    assert (hits.which >= 0).sum() > 100
    assert ((hits.normals * directions).sum(dim=1) < 0).all()
    assert torch.allclose(hits.normals.norm(dim=1), torch.ones(500), atol=1e-5)


def test_there_are_shadows_and_details(district: District) -> None:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(2, 14, 90)] * 2, indexing="ij"), dim=-1)
    origins = torch.cat([grid.view(-1, 2), torch.full((8100, 1), 9.0)], dim=1)
    colors, hits = shade(district, origins, torch.tensor([[0.0, 0.0, -1.0]]).expand(8100, 3))
    ground = hits.which == GROUND
    points = torch.cat([origins[ground, :2], torch.full((int(ground.sum()), 1), 2e-3)], dim=1)
    dark = cast(district, points, torch.tensor([SUN]).expand_as(points)).which >= 0
    assert 0.1 < dark.float().mean() < 0.9
    assert colors[ground][dark].mean() < 0.55 * colors[ground][~dark].mean()
    assert colors.min() >= 0 and len((colors * 255).int().unique(dim=0)) > 800


def test_views_turn_and_look_at_the_district() -> None:
    poses = survey(100, (30.0, 40.0), np.random.default_rng(0))
    rotations = np.stack([pose[:, :3] for pose in poses])
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(rotations), 1)
    down = rotations[:, 2, 2] < -0.95
    assert down.sum() == 65  # the others are oblique
    assert np.linalg.norm(rotations[down, 1].mean(axis=0)) < 0.2
    heights = np.array([-(p[:, :3].T @ p[:, 3])[2] for p in poses])
    assert heights[down].max() > 1.4 * heights[down].min() > 1.4 * TOP
    assert len(poses) == 100 and len(survey(1, (10.0, 10.0), np.random.default_rng(0))) == 1


def test_a_colmap_scene(scene: Scene, folder: Path) -> None:
    assert scene.kind == "colmap" and (len(scene.train), len(scene.test)) == (7, 2)
    assert scene.points.shape == (900, 3) and scene.points.isfinite().all()
    assert set(json.loads((folder / "exposures.json").read_text()).values()) == {0.0}


def test_points_lie_where_the_images_show_them(scene: Scene) -> None:
    cameras = scene.train + scene.test
    errors, mirrored = [], []
    with ImageLoader(cameras) as loader:
        for index, camera in enumerate(cameras):
            local = scene.points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
            pixel = local @ camera.K.T
            at = (pixel[:, :2] / pixel[:, 2:]).floor().long()
            inside = (at >= 0).all(dim=1) & (at[:, 0] < camera.width) & (at[:, 1] < camera.height)
            for image, kept in ((loader[index], errors), (loader[index].flip(1), mirrored)):
                seen = image[at[:, 1] * inside, at[:, 0] * inside].float() / 255
                error = (seen - scene.colors).abs().mean(dim=1)
                kept.append(torch.where(inside, error, torch.inf))
    # a point has the colour of its pixel in the view that it was taken from
    right, wrong = (torch.stack(x).amin(dim=0) < 0.005 for x in (errors, mirrored))
    assert right.float().mean() > 0.9 > 0.5 > wrong.float().mean()


def test_exposures_differ_on_demand(tmp_path: Path, folder: Path) -> None:
    write_city_scene(tmp_path / "varied", CityConfig(**SIZE, exposure=0.5), "cpu")
    stops = json.loads((tmp_path / "varied" / "exposures.json").read_text())
    assert 0.2 < np.std(list(stops.values())) < 1
    plain, varied = (
        {name: np.asarray(Image.open(f / "images" / name)) / 255 for name in stops}
        for f in (folder, tmp_path / "varied")
    )
    for name, stop in stops.items():
        dark = (plain[name] > 0.1) & (varied[name] < 0.99)
        gain = (varied[name][dark] / plain[name][dark]) ** 2.2
        assert abs(np.median(np.log2(gain)) - stop) < 0.05


def test_same_seed_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_city_scene(tmp_path / "again", CityConfig(**SIZE), "cpu")
    for path in folder.rglob("*.png"):
        assert (tmp_path / "again" / "images" / path.name).read_bytes() == path.read_bytes()


def test_wrong_flags_are_sentences(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SplatrimError, match="--views must be at least 1, not 0"):
        main([str(tmp_path / "a"), "--city", "--views", "0"])
    with pytest.raises(SplatrimError, match="--views belongs to --city"):
        main([str(tmp_path / "a"), "--views", "3"])
    with pytest.raises(SplatrimError, match="is there already and not empty"):
        main([str(folder), "--city"])
    assert not (tmp_path / "a").exists()
