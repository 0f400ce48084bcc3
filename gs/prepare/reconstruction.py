"""COLMAP's steps through pycolmap: features, matches, the model, images without distortion.

Each runs in a thread of its own, so that the main thread can show its progress and stop it: what
COLMAP has done so far is read from its database.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import SplatrimError
from .pictures import Tell

if TYPE_CHECKING:
    import pycolmap

POLL = 0.5  # seconds between looks at the progress
Matching = Literal["exhaustive", "sequential", "vocabulary"]


class NotPlaced(SplatrimError):
    """Pictures that do not fit together; trying again in the same way changes nothing."""


def extract_features(
    database: Path,
    photos: Path,
    n_photos: int,
    *,
    camera_model: str,
    is_one_camera: bool,
    n_features: int,
    tell: Tell,
) -> None:
    """Find SIFT features in all photographs; those of an interrupted run stay.

    Raises:
        SplatrimError: COLMAP failed.
    """
    import pycolmap

    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = camera_model
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    options.sift.max_num_features = n_features
    mode = pycolmap.CameraMode.SINGLE if is_one_camera else pycolmap.CameraMode.AUTO

    def work(token: pycolmap.CancellationToken) -> None:
        pycolmap.extract_features(
            database,
            photos,
            camera_mode=mode,
            reader_options=reader,
            extraction_options=options,
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _run(work, lambda: tell(_count(database, "descriptors"), n_photos))
    tell(_count(database, "descriptors"), n_photos)


def match(
    database: Path,
    n_photos: int,
    how: Matching,
    *,
    vocab_tree: Path | None,
    tell: Tell,
) -> None:
    """Match the features of pairs: of all, of neighbours by name, or of those that look alike.

    Raises:
        SplatrimError: COLMAP failed.
    """
    import pycolmap

    options = pycolmap.FeatureMatchingOptions()
    options.use_gpu = False
    n_pairs = n_photos * (n_photos - 1) // 2 if how == "exhaustive" else 0

    def work(token: pycolmap.CancellationToken) -> None:
        common: dict[str, Any] = {
            "matching_options": options,
            "device": pycolmap.Device.cpu,
            "cancellation_token": token,
        }
        if how == "exhaustive":
            pycolmap.match_exhaustive(database, **common)
        elif how == "sequential":
            pycolmap.match_sequential(database, **common)
        else:
            pairing = pycolmap.VocabTreePairingOptions()
            pairing.vocab_tree_path = str(vocab_tree)
            pycolmap.match_vocabtree(database, pairing_options=pairing, **common)

    _run(work, lambda: tell(_count(database, "two_view_geometries"), n_pairs))
    tell(_count(database, "two_view_geometries"), n_pairs)


class Placed(NamedTuple):
    """What a model has."""

    names: set[str]
    """Its photographs."""
    n_points: int
    error: float
    """Mean distance of points from their features, in pixels."""


def reconstruct(
    database: Path,
    photos: Path,
    models: Path,
    chosen: Path,
    n_photos: int,
    *,
    seed: int,
    tell: Tell,
) -> Placed:
    """Find cameras and points; of several models that do not hang together, the largest.

    Args:
        database: Features and matches.
        photos: The photographs.
        models: Folder for all models that are found.
        chosen: Folder for the largest.
        n_photos: How many photographs there are.
        seed: Of random samples.
        tell: Gets the progress.

    Raises:
        NotPlaced: no two photographs fit together.
        SplatrimError: COLMAP failed.
    """
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = seed
    # photographs that see one object are few at times
    options.min_model_size = min(options.min_model_size, max(n_photos // 2, 2))
    found: dict[int, pycolmap.Reconstruction] = {}
    placed = 0

    def count() -> None:
        nonlocal placed
        placed += 1

    def work(token: pycolmap.CancellationToken) -> None:
        found.update(
            pycolmap.incremental_mapping(
                database,
                photos,
                models,
                options=options,
                initial_image_pair_callback=count,
                next_image_callback=count,
                cancellation_token=token,
            )
        )

    shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True)
    _run(work, lambda: tell(min(placed + 1, n_photos), n_photos))
    if not found:
        raise NotPlaced(
            "no two photographs could be placed: they need to overlap by more than half, in focus,"
            " of something that does not move"
        )
    best = max(found.values(), key=lambda model: model.num_reg_images())
    tell(best.num_reg_images(), n_photos)
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir(parents=True)
    best.write(chosen)
    names = {best.images[i].name for i in best.reg_image_ids()}
    return Placed(names, best.num_points3D(), best.compute_mean_reprojection_error())


def undistort(chosen: Path, photos: Path, scene: Path, tell: Tell) -> None:
    """Write images without distortion and their pinhole cameras: images/ and sparse/0/.

    Args:
        chosen: Folder of the model.
        photos: The photographs that it is of.
        scene: Folder to write, anew.
        tell: Gets the progress.

    Raises:
        SplatrimError: COLMAP failed.
    """
    import pycolmap

    shutil.rmtree(scene, ignore_errors=True)
    scene.mkdir(parents=True)
    total = pycolmap.Reconstruction(chosen).num_reg_images()

    def run(token: pycolmap.CancellationToken) -> None:
        pycolmap.undistort_images(scene, chosen, photos, jpeg_quality=95, cancellation_token=token)

    def count() -> None:
        tell(sum(path.is_file() for path in (scene / "images").rglob("*")), total)

    _run(run, count)
    count()
    sparse = scene / "sparse" / "0"
    sparse.mkdir()
    for path in [path for path in sparse.parent.iterdir() if path.is_file()]:
        path.rename(sparse / path.name)
    # for COLMAP's dense reconstruction, which is not made
    shutil.rmtree(scene / "stereo", ignore_errors=True)
    for script in scene.glob("run-colmap-*.sh"):
        script.unlink()


def _run(work: Callable[[Any], None], look: Callable[[], None]) -> None:
    """Run a step of COLMAP beside a loop that looks at it; Ctrl-C ends both."""
    import pycolmap

    pycolmap.logging.minloglevel = 2  # errors: the rest is told by the progress
    token = pycolmap.CancellationToken()
    failed: list[Exception] = []

    def target() -> None:
        try:
            work(token)
        except Exception as error:  # of C++, whatever it is: told by the main thread
            failed.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL)
            look()
    except BaseException:
        token.cancel()
        thread.join()
        raise
    if failed:
        raise SplatrimError(f"COLMAP failed: {failed[0]}") from failed[0]


def _count(database: Path, table: str) -> int:
    """Rows of a table of COLMAP's database; 0 while it is not there."""
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=POLL)
        with contextlib.closing(connection):
            return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    return 0
