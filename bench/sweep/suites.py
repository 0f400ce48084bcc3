"""The scenes of the usual benchmarks: images and sizes that papers train on, and who has the data.

    mipnerf360       Barron et al., Mip-NeRF 360 (CVPR 2022): images_4 outdoors, images_2 indoors
    tandt, db        two scenes each of Tanks and Temples (Knapitsch et al. 2017) and Deep Blending
                     (Hedman et al. 2018), undistorted, as 3DGS (Kerbl et al. 2023) publishes them
    nerf_synthetic   Mildenhall et al., NeRF (ECCV 2020): the eight of Blender, over white

Images come downscaled by those who publish the scene; nothing is scaled here. Every 8th image by
name is for testing, or the test set that the scene has. Sizes are those of 3DGS's tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gs.errors import SplatrimError

Size = tuple[int, int]

OUTDOORS, INDOORS = "images_4", "images_2"
INPUT = "https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input/tandt_db.zip"


class SuiteScene(NamedTuple):
    """A scene as papers train on it."""

    name: str
    size: Size
    """Width and height of most of its images."""
    images: str = "images"
    """Folder of its images."""


@dataclass(frozen=True)
class Suite:
    """Scenes of one benchmark."""

    scenes: tuple[SuiteScene, ...]
    source: str
    """Where the data comes from."""
    folders: tuple[str, ...]
    """What the folder is usually called that holds the scenes."""
    is_blender: bool = False
    flags: tuple[str, ...] = ()
    """Of train.py."""

    def words(self, scene: SuiteScene) -> tuple[str, ...]:
        """Flags of train.py for a scene."""
        return self.flags if self.is_blender else ("-i", scene.images, *self.flags)


SUITES: dict[str, Suite] = {
    "mipnerf360": Suite(
        (
            SuiteScene("bicycle", (1237, 822), OUTDOORS),
            SuiteScene("flowers", (1256, 828), OUTDOORS),
            SuiteScene("garden", (1297, 840), OUTDOORS),
            SuiteScene("stump", (1245, 825), OUTDOORS),
            SuiteScene("treehill", (1267, 832), OUTDOORS),
            SuiteScene("room", (1557, 1038), INDOORS),
            SuiteScene("counter", (1558, 1038), INDOORS),
            SuiteScene("kitchen", (1558, 1039), INDOORS),
            SuiteScene("bonsai", (1559, 1039), INDOORS),
        ),
        "360_v2.zip and 360_extra_scenes.zip (flowers, treehill) of https://jonbarron.info/mipnerf360",
        ("mipnerf360", "360_v2", "360"),
    ),
    "tandt": Suite(
        (SuiteScene("truck", (979, 546)), SuiteScene("train", (980, 545))),
        INPUT,
        ("tandt", "tandt_db/tandt"),
    ),
    "db": Suite(
        (SuiteScene("drjohnson", (1332, 876)), SuiteScene("playroom", (1264, 832))),
        INPUT,
        ("db", "tandt_db/db"),
    ),
    "nerf_synthetic": Suite(
        tuple(
            SuiteScene(name, (800, 800))
            for name in "chair drums ficus hotdog lego materials mic ship".split()
        ),
        "nerf_synthetic.zip of https://www.matthewtancik.com/nerf",
        ("nerf_synthetic",),
        is_blender=True,
        flags=("-w",),
    ),
}


class Found(NamedTuple):
    """A scene that is there."""

    folder: Path
    words: tuple[str, ...]
    """Flags of train.py."""


def find_suite(name: str, data: Path, *, any_size: bool = False) -> tuple[list[Found], list[str]]:
    """The scenes of a suite that a folder has, and a line for each of the others.

    Args:
        name: Of SUITES.
        data: Holds the scenes, or the suite's folder with them.
        any_size: Take a scene's `images` where it has no downscaled ones.

    Raises:
        SplatrimError: None of them is there.
    """
    suite = SUITES[name]
    found: list[Found] = []
    missing: list[str] = []
    for scene in suite.scenes:
        one = _find(suite, scene, data, any_size)
        if isinstance(one, Found):
            found.append(one)
        else:
            missing.append(f"{scene.name}: {one}; it is in {suite.source}")
    if not found:
        raise SplatrimError(
            f"{data} has no scene of {name} ({', '.join(s.name for s in suite.scenes)}):"
            f" get {suite.source}"
        )
    return found, missing


def odd_sizes(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """A line for each scene that was trained at another size than in papers."""
    expected = {scene.name: scene.size for scene in SUITES[name].scenes}
    lines: dict[str, None] = {}
    for run in runs:
        size = run.get("width"), run.get("height")
        if None not in size and expected.get(run["scene"], size) != size:
            width, height = expected[run["scene"]]
            lines[f"{run['scene']}: {size[0]}x{size[1]}, in papers {width}x{height}"] = None
    return [*lines]


def _find(suite: Suite, scene: SuiteScene, data: Path, any_size: bool) -> Found | str:
    """The scene, or what is missing."""
    folder = next((folder for folder in _places(suite, scene, data) if folder.is_dir()), None)
    if folder is None:
        return f"not in {data}"
    if suite.is_blender or (folder / scene.images).is_dir():
        return Found(folder, suite.words(scene))
    if any_size and (folder / "images").is_dir():
        return Found(folder, suite.words(scene._replace(images="images")))
    return f"{folder} has no {scene.images}"


def _places(suite: Suite, scene: SuiteScene, data: Path) -> Iterator[Path]:
    for folder in (*suite.folders, "."):
        yield data / folder / scene.name
