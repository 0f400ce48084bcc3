"""Partition: total for any number of blocks, and the ground found in all kinds of scenes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gs.blocks.cells import Cut, Tree, full_grid, split
from gs.blocks.frame import Frame, find_frame
from gs.blocks.partition import PartitionConfig, make_partition
from gs.blocks.partition_file import (
    NAME,
    check_partition,
    partition_of,
    read_partition,
    save_partition,
)
from gs.blocks.plan_view import save_plan
from gs.data.camera import Camera
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError

FLAT = Frame(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0), "given")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLOUDS = {
    "plane": random(500, 3) * torch.tensor([9.0, 3.0, 0.1]),
    "duplicates": random(5, 3).repeat(40, 1),
    "mostly one": torch.cat([torch.zeros(200, 3).double(), random(30, 3)]),
    "one point": random(1, 3),
    "line": torch.linspace(-1, 1, 100).double()[:, None] * torch.tensor([1.0, 2.0, 0.0]),
    "far": torch.cat([random(300, 3), 1e12 * random(3, 3)]),
    "none": torch.zeros(0, 3).double(),
}
PROBES = torch.cat([random(200, 3, seed=1) * 5, 1e12 * random(50, 3), torch.zeros(1, 3).double()])


def look_at(eye: list[float], target: list[float], up: list[float], n: int = 0) -> Camera:
    """A camera of 100x80 pixels at `eye`, whose upper edge is towards `up`."""
    centre, above = torch.tensor(eye).double(), torch.tensor(up).double()
    forward = torch.nn.functional.normalize(torch.tensor(target).double() - centre, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, above), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat = torch.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
    K = torch.tensor([[90.0, 0, 50], [0, 90.0, 40], [0, 0, 1]])
    return Camera(f"{n:03d}.png", None, 100, 80, viewmat, K, 100, 80)


def survey(headings: list[tuple[float, float]]) -> list[Camera]:
    """Nadir views in four strips of eight; strips turn through the headings."""
    return [
        look_at(
            [x * 2.0, y * 2.0, 5.0],
            [x * 2.0, y * 2.0, 0.0],
            [*headings[y % len(headings)], 0.0],
            8 * y + x,
        )
        for y in range(4)
        for x in range(8)
    ]


def ground(n: int = 2000) -> Tensor:
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(3))
    return points * torch.tensor([16.0, 8.0, 0.2]) - torch.tensor([1.0, 1.0, 0.1])


@pytest.fixture
def nadir() -> Scene:
    points = ground()
    cameras = survey([(0.0, 1.0), (0.0, -1.0)])
    return Scene(cameras, [], points, torch.zeros_like(points), 9.0, Path("."), "colmap")


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("n_blocks", range(1, 18))
def test_every_point_has_one_owner(cloud: str, n_blocks: int) -> None:
    points = CLOUDS[cloud]
    tree = split(FLAT, points, torch.ones(len(points)), n_blocks)
    assert tree.n_blocks == n_blocks
    everything = torch.cat([points, PROBES])
    owners = tree.owner(everything)
    assert owners.min() >= 0 and owners.max() < n_blocks
    # by another way: the half-open box of the owner holds the point, and no other does
    inside = torch.stack(
        [
            ((everything[:, :2] >= low) & (everything[:, :2] < high)).all(dim=1)
            for low, high in (torch.from_numpy(box) for box in tree.boxes())
        ]
    )
    assert (inside.sum(dim=0) == 1).all() and inside[owners, torch.arange(len(everything))].all()


@pytest.mark.parametrize("n_blocks", [2, 3, 5, 7, 8, 16, 17])
def test_blocks_weigh_the_same(n_blocks: int) -> None:
    points = random(4000, 3)
    weights = 1 + 10 * (points[:, 0] > 0)
    owners = split(FLAT, points, weights, n_blocks).owner(points)
    mass = torch.zeros(n_blocks).double().index_add_(0, owners, weights.double())
    assert mass.min() > 0.93 * mass.mean() and mass.max() < 1.07 * mass.mean()


def test_a_value_on_a_cut_belongs_to_the_upper_side() -> None:
    tree = Tree(FLAT, Cut(0, 1.0, 0, 1))
    below = math.nextafter(1.0, 0.0)
    points = torch.tensor([[1.0, 0, 0], [below, 0, 0]], dtype=torch.float64)
    assert tree.owner(points).tolist() == [1, 0]
    assert tree.owner(torch.tensor([[float("nan")] * 3])).tolist() == [0]


def test_neighbours_meet() -> None:
    tree = split(FLAT, random(4000, 3), torch.ones(4000), 4)
    assert all(len(others) >= 2 for others in tree.touching())
    line = split(FLAT, CLOUDS["plane"] * torch.tensor([1.0, 0.0, 0.0]), torch.ones(500), 4)
    assert line.touching() == [{1}, {0, 2}, {1, 3}, {2}]
    grid = full_grid((0, 0, 0, 1, 1, 1), (3, 1, 2))
    assert grid.touching()[0] == {1, 3, 4}


@pytest.mark.parametrize("dims", [(2, 1, 4), (1, 1, 1), (2, 4, 1), (3, 3, 2)])
def test_the_grid_is_total(dims: tuple[int, int, int]) -> None:
    grid = full_grid((-1.0, -2.0, -3.0, 4.0, 2.0, 1.0), dims)
    points = torch.cat([random(2000, 3) * 5, 1e12 * random(50, 3), 1e20 * random(50, 3)])
    owners = grid.owner(torch.cat([points, torch.full((1, 3), float("nan")).double()]))
    assert owners.min() >= 0 and owners.max() < math.prod(dims)
    c = grid.contracted(points)
    b = owners[: len(points)]
    cell = torch.stack([b % dims[0], b // dims[0] % dims[1], b // (dims[0] * dims[1])], dim=1)
    low, high = cell / torch.tensor(dims), (cell + 1) / torch.tensor(dims)
    assert ((c >= low - 1e-12) & (c <= high + 1e-12)).all()


def test_the_box_is_the_inner_half() -> None:
    grid = full_grid((-1.0, -2.0, -3.0, 4.0, 2.0, 1.0), (2, 1, 4))
    corners = grid.contracted(torch.tensor([[-1.0, -2, -3], [4, 2, 1], [1.5, 0, -1]]).double())
    assert torch.allclose(corners, torch.tensor([[0.25] * 3, [0.75] * 3, [0.5] * 3]).double())
    # of four cells along z the outer two lie outside of it
    inside = random(1000, 3).clamp(-0.99, 0.99) * torch.tensor([2.5, 2.0, 2.0])
    owners = grid.owner(inside + torch.tensor([1.5, 0.0, -1.0]))
    assert set((owners // 2).tolist()) == {1, 2}


def test_merging_gives_a_cell_to_its_sibling() -> None:
    points = random(1000, 3)
    tree = split(FLAT, points, torch.ones(1000), 3)
    less = tree.without(0)  # its sibling is cut in two
    before, after = tree.owner(points), less.owner(points)
    assert less.n_blocks == 2 and set(after[before == 0].tolist()) == {0, 1}
    assert (after[before > 0] == before[before > 0] - 1).all()
    grid = full_grid((0, 0, 0, 1, 1, 1), (2, 2, 1)).without(3)
    assert grid.n_blocks == 3 and grid.blocks == (0, 1, 2, 0)


def up_of(frame: Frame) -> Tensor:
    return torch.tensor(frame.axes[2])


def test_ground_of_a_survey(nadir: Scene) -> None:
    frame = find_frame(nadir.train, nadir.points)
    assert frame.found_by == "viewing direction"
    assert torch.allclose(up_of(frame), torch.tensor([0.0, 0, 1]), atol=1e-6)
    assert abs(frame.axes[0][0]) > 0.999  # the long side of the ground
    rotation = torch.tensor(frame.axes).double()
    assert torch.allclose(rotation @ rotation.T, torch.eye(3).double(), atol=1e-12)
    assert torch.linalg.det(rotation) > 0.999
    there = frame.to_world(frame.to_ground(nadir.points))
    assert torch.allclose(there, nadir.points.double(), atol=1e-6)


def test_ground_of_a_survey_that_never_turns() -> None:
    frame = find_frame(survey([(0.0, 1.0)]), ground())
    assert frame.found_by == "viewing direction"
    assert torch.allclose(up_of(frame), torch.tensor([0.0, 0, 1]), atol=1e-6)


def test_ground_of_oblique_views_all_round() -> None:
    cameras = [
        look_at([math.cos(a) * 12 + 7, math.sin(a) * 12 + 3, 8.0], [7.0, 3.0, 0.0], [0.0, 0.0, 1.0])
        for a in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    ]
    frame = find_frame(cameras, ground())
    assert frame.found_by == "camera up" and up_of(frame)[2] > 0.99


def test_ground_of_a_street() -> None:
    cameras = [look_at([x, 0.0, 1.5], [x + 1.0, 0.1, 1.5], [0.0, 0.0, 1.0]) for x in range(30)]
    points = random(500, 3).float() * torch.tensor([15.0, 4.0, 2.5])
    frame = find_frame(cameras, points)
    assert frame.found_by == "camera up"
    assert torch.allclose(up_of(frame), torch.tensor([0.0, 0, 1]), atol=1e-6)
    assert abs(frame.axes[0][0]) > 0.9


def test_ground_of_an_object_seen_from_all_sides() -> None:
    directions = torch.nn.functional.normalize(random(60, 3), dim=1)
    cameras = [
        look_at((4 * d).tolist(), [0.0, 0.0, 0.0], up.tolist())
        for d, up in zip(directions, random(60, 3, seed=5), strict=True)
    ]
    points = random(500, 3).float() * torch.tensor([1.0, 0.1, 0.7])
    frame = find_frame(cameras, points)
    assert frame.found_by == "plane of the points"
    assert abs(up_of(frame)[1]) > 0.99


def test_outliers_do_not_turn_the_ground(nadir: Scene) -> None:
    far = torch.tensor([[1e12, -1e12, 1e12], [float("nan")] * 3, [float("inf"), 0, 0]])
    frame = find_frame(nadir.train, torch.cat([nadir.points, far]))
    assert up_of(frame)[2] > 0.999 and max(map(abs, frame.origin)) < 20


def test_up_can_be_given(nadir: Scene) -> None:
    frame = find_frame(nadir.train, nadir.points, (0.0, 3.0, 0.0))
    assert frame.found_by == "given" and up_of(frame).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(SplatrimError, match="--up 0 0 0 is not a direction"):
        find_frame(nadir.train, nadir.points, (0.0, 0.0, 0.0))


def test_cameras_of_blocks(nadir: Scene) -> None:
    partition = make_partition(nadir, PartitionConfig(blocks=4))
    assert partition.n_blocks == 4 and sum(partition.n_points) == len(nadir.points)
    assert set().union(*partition.cameras) == set(range(32))
    assert min(map(len, partition.cameras)) >= 8
    # counted by hand for one camera
    camera = nadir.train[9]
    local = nadir.points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
    u, v = (90 * local[:, :2] / local[:, 2:] + torch.tensor([50.0, 40.0])).unbind(1)
    seen = (local[:, 2] > 0.2) & (u >= 0) & (u <= 100) & (v >= 0) & (v <= 80)
    counts = partition.owner(nadir.points[seen]).bincount(minlength=4) / int(seen.sum())
    assert [9 in rows for rows in partition.cameras] == (counts > 0.05).tolist()


def test_a_camera_that_sees_nothing_has_a_block(nadir: Scene) -> None:
    away = look_at([3.0, 3.0, 5.0], [3.0, 3.0, 9.0], [0.0, 1.0, 0.0], 99)
    scene = replace(nadir, train=[*nadir.train, away])
    partition = make_partition(scene, PartitionConfig(blocks=2))
    home = int(partition.owner(away.position[None])[0])
    assert [32 in rows for rows in partition.cameras] == [home == 0, home == 1]


def test_small_blocks_are_merged(nadir: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene = replace(nadir, train=nadir.train[:16])  # two of four strips
    unseen = nadir.points.repeat(20, 1) + torch.tensor([400.0, 0, 0])
    points = torch.cat([nadir.points, unseen])
    scene = replace(scene, points=points)
    partition = make_partition(scene, PartitionConfig(blocks=2))
    assert partition.n_blocks == 1 and partition.cameras == (tuple(range(16)),)
    assert "had fewer than 8 cameras (0) and went to their siblings: 1 blocks are left" in (
        caplog.text
    )


def test_too_many_blocks_are_refused(nadir: Scene) -> None:
    scene = replace(nadir, train=nadir.train[:14])
    with pytest.raises(SplatrimError) as error:
        make_partition(scene, PartitionConfig(blocks=8))
    assert str(error.value) == (
        "--blocks 8: the scene has 14 training cameras; give at most 1 block per 8 cameras (here 1)"
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"blocks": 0}, "--blocks must be at least 1, not 0"),
        ({"partition": "voronoi"}, "--partition voronoi: choose kd or grid"),
        ({"partition": "grid"}, "--partition grid needs --block_dims and --aabb"),
        ({"block_dims": (1, 2, 1)}, "belong to --partition grid"),
        ({"camera_share": 1.5}, "--camera_share must be 0 to 1, not 1.5"),
        (
            {"partition": "grid", "block_dims": (1, 2, 1), "aabb": (0, 0, 0, 1, 0, 1)},
            "--aabb: expected",
        ),
    ],
)
def test_wrong_settings_are_sentences(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SplatrimError, match=sentence):
        PartitionConfig(**settings)  # pyright: ignore[reportArgumentType]


GRID = PartitionConfig(partition="grid", block_dims=(2, 2, 1), aabb=(-1, -1, -1, 15, 7, 6))


@pytest.mark.parametrize("settings", [PartitionConfig(blocks=3), GRID])
def test_the_file_says_all(nadir: Scene, tmp_path: Path, settings: PartitionConfig) -> None:
    partition = make_partition(nadir, settings)
    save_partition(tmp_path, partition)
    assert read_partition(tmp_path) == partition
    assert partition_of(tmp_path, nadir, settings) == partition


def test_another_scene_or_other_settings_are_refused(nadir: Scene, tmp_path: Path) -> None:
    settings = PartitionConfig(blocks=2, camera_share=0.02)
    save_partition(tmp_path, make_partition(nadir, settings))
    path = tmp_path / NAME
    with pytest.raises(SplatrimError) as error:
        partition_of(tmp_path, nadir, replace(settings, camera_share=0.05))
    assert str(error.value) == (
        f"{path} was made for other settings (camera_share 0.02, now 0.05): "
        "give another -m or remove it"
    )
    moved = replace(nadir, points=nadir.points + 1e-3)
    with pytest.raises(SplatrimError, match="was made for another scene: give another -m"):
        check_partition(path, read_partition(tmp_path), moved, settings)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"version": 1', '"version": 2', "has version 2; this program reads version 1"),
        ('"high": 1', '"high": 0', "is broken: cells.tree: expected each block once"),
        ('"axis": 0', '"axis": 7', "is broken: cells.tree.axis: expected"),
        ('"kind": "kd"', '"kind": "grid"', "is broken: cells.aabb is missing"),
        ('"camera_share": 0.02', '"camera_share": 7', "is broken: --camera_share must be"),
        ('"points"', '"spots"', "is broken: blocks.*points is missing"),
    ],
)
def test_a_damaged_file_is_a_sentence(
    nadir: Scene, tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    path = save_partition(tmp_path, make_partition(nadir, PartitionConfig(blocks=2)))
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SplatrimError, match=sentence):
        read_partition(tmp_path)


def test_the_plan_is_a_picture(nadir: Scene, tmp_path: Path) -> None:
    from PIL import Image

    with Image.open(save_plan(tmp_path, nadir, make_partition(nadir, GRID))) as picture:
        assert picture.size[0] == 1000 and len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_a_real_survey(data_root: Path, shares: Callable[[Scene, int], float]) -> None:
    folder = data_root / "data" / "aerial_caliterra"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    scene = load_scene(folder, eval=True)
    frame = find_frame(scene.train, scene.points)
    ups = torch.stack([-camera.viewmat[1, :3] for camera in scene.train]).mean(dim=0)
    assert ups.norm() < 0.2 and frame.found_by == "viewing direction"
    # blocks per camera, measured once: a finer cut makes a small survey mostly border
    assert shares(scene, 2) < 1.6 < shares(scene, 4) < 2.6 < shares(scene, 7) < 3.8


@pytest.fixture
def shares() -> Callable[[Scene, int], float]:
    """Blocks that a camera belongs to on average."""

    def mean(scene: Scene, n_blocks: int) -> float:
        partition = make_partition(scene, PartitionConfig(blocks=n_blocks))
        return sum(map(len, partition.cameras)) / len(scene.train)

    return mean
