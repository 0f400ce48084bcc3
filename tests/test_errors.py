"""Wrong input through the command line: one sentence, a non-zero exit, nothing written or lost."""

import io
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

import gs.evaluation.render
import train
from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply


@pytest.fixture(scope="module")
def good_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "good"
    write_demo_scene(folder, views=9, width=48, height=36)
    return folder


@pytest.fixture
def scene(good_scene: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(good_scene, tmp_path / "scene"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are tiny: more threads would only wait for each other."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuses(folder: Path, line: str, *parts: str) -> None:
    """`train.py` stops with one sentence that has all `parts`, and leaves `folder` as it was."""
    before = contents(folder)
    with pytest.raises(SplatrimError) as caught:
        train.main([*shlex.split(line), "--quiet"])
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, sentence
    assert contents(folder) == before


def edit(scene: Path, change: Callable[[pycolmap.Reconstruction], None]) -> None:
    """Change the COLMAP model of a scene."""
    model = pycolmap.Reconstruction(str(scene / "sparse" / "0"))
    change(model)
    model.write(str(scene / "sparse" / "0"))


def test_no_such_folder(tmp_path: Path) -> None:
    refuses(tmp_path, f"-s {tmp_path}/absent -m {tmp_path}/out", "no such folder", "absent")


def test_no_model_in_the_folder(scene: Path, tmp_path: Path) -> None:
    shutil.rmtree(scene / "sparse")
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out", str(scene), "sparse/0")


def test_truncated_images_bin(scene: Path, tmp_path: Path) -> None:
    path = scene / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:-200])
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out", "images.bin")


def test_missing_image(scene: Path, tmp_path: Path) -> None:
    (scene / "images" / "view_003.png").unlink()
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out", "view_003.png")


def test_image_of_another_size(scene: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 36)).save(scene / "images" / "view_005.png")
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out", "view_005.png", "30", "48")


def test_camera_with_distortion(scene: Path, tmp_path: Path) -> None:
    def distort(model: pycolmap.Reconstruction) -> None:
        for camera in model.cameras.values():
            fx = float(camera.params[0])
            camera.model = pycolmap.CameraModelId.OPENCV
            camera.params = [fx, fx, 24.0, 18.0, 0.1, 0.0, 0.0, 0.0]

    edit(scene, distort)
    line = f"-s {scene} -m {tmp_path}/out --distortion refuse"
    refuses(tmp_path, line, "OPENCV", "image_undistorter")


def test_no_points(scene: Path, tmp_path: Path) -> None:
    edit(scene, lambda model: [model.delete_point3D(i) for i in list(model.points3D)])  # type: ignore[arg-type,return-value]
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out", "point", "--init_points")


def test_device_that_is_not_there(scene: Path, tmp_path: Path) -> None:
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out --device cuda:99", "cuda:99")
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/out --device toaster", "toaster")


def test_output_in_the_way(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/file", "cannot write", "file")
    refuses(tmp_path, f"-s {scene} -m {tmp_path}/file/out", "cannot write", "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_without_rights(scene: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refuses(tmp_path, f"-s {scene} -m {locked}/out", "cannot write", "locked")


def make_checkpoint(scene: Path, out: Path, *flags: str) -> Path:
    base = ["-s", str(scene), "-m", str(out), "--iterations", "4", "--quiet"]
    train.main([*base, "--checkpoint_iterations", "2", *flags])
    return out / "chkpnt2.pth"


def test_checkpoint_of_another_method(scene: Path, tmp_path: Path) -> None:
    path = make_checkpoint(scene, tmp_path / "masks")
    line = f"-s {scene} -m {tmp_path}/out --start_checkpoint {path} --method 3dgs"
    refuses(tmp_path, line, "chkpnt2.pth", "mask-gaussian", "3dgs")


def test_broken_checkpoints(scene: Path, tmp_path: Path) -> None:
    good = make_checkpoint(scene, tmp_path / "masks")
    bad = tmp_path / "bad.pth"
    line = f"-s {scene} -m {tmp_path}/out --start_checkpoint {bad}"
    refuses(tmp_path, line, "no such checkpoint", "bad.pth")
    for content in (b"", b"not a checkpoint", good.read_bytes()[: good.stat().st_size // 2]):
        bad.write_bytes(content)
        refuses(tmp_path, line, "bad.pth")
    torch.save({"format": "splatrim", "version": 99}, bad)
    refuses(tmp_path, line, "bad.pth", "99")


def test_checkpoint_that_is_at_the_end(scene: Path, tmp_path: Path) -> None:
    path = make_checkpoint(scene, tmp_path / "masks")
    line = f"-s {scene} -m {tmp_path}/out --start_checkpoint {path} --iterations 2"
    refuses(tmp_path, line, "iteration 2", "--iterations")


def test_a_folder_that_holds_another_run(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(scene, out)
    refuses(tmp_path, f"-s {scene} -m {out} --iterations 2", "holds another run", "--overwrite")
    shutil.move(scene, out / "scene")
    line = f"-s {out}/scene -m {out} --iterations 2 --overwrite"
    refuses(tmp_path, line, "would be set aside", "give another -m")


def test_models_that_cannot_be_post_trained(scene: Path, tmp_path: Path) -> None:
    ply = tmp_path / "model.ply"
    line = f"-s {scene} -m {tmp_path}/out --start_ply {ply}"
    refuses(tmp_path, line, "no such file", "model.ply")
    ply.write_bytes(b"no header")
    refuses(tmp_path, line, "model.ply", "not a complete .ply")
    points = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4")])
    PlyData([PlyElement.describe(points, "vertex")]).write(str(ply))
    refuses(tmp_path, line, "model.ply", "not a file of Gaussians", "f_dc_0")
    model = Gaussians.from_points(torch.rand(5, 3), torch.rand(5, 3), sh_degree=0).to_tensors()
    save_ply(ply, model)
    refuses(tmp_path, f"{line} --start_checkpoint {ply}", "--start_ply", "--start_checkpoint")
    refuses(tmp_path, f"{line} --preset magic", "no preset 'magic'")
    save_ply(ply, {name: x[:0] for name, x in model.items()})
    refuses(tmp_path, line, "model.ply", "no Gaussians")


def test_nan_in_a_saved_model(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    make_checkpoint(scene, out, "--eval")
    path = out / "point_cloud" / "iteration_4" / "point_cloud.ply"
    ply = PlyData.read(io.BytesIO(path.read_bytes()))  # a mapped file could not be written to
    ply["vertex"].data["opacity"][[0, 7]] = np.nan
    ply.write(str(path))
    gs.evaluation.render.main(["-m", str(out), "--quiet"])
    assert "2 of " in caplog.text and "(property opacity: 2) and are left out" in caplog.text
    ply["vertex"].data["opacity"] = np.nan
    ply.write(str(path))
    before = contents(tmp_path)
    with pytest.raises(SplatrimError, match=r"opacity.*none is left"):
        gs.evaluation.render.main(["-m", str(out), "--quiet"])
    assert contents(tmp_path) == before


def run(repo: Path, line: str, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    command = [sys.executable, str(repo / "train.py"), *shlex.split(line), "--quiet"]
    return subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=200, check=False
    )


def test_what_a_user_sees(scene: Path, tmp_path: Path, repo: Path) -> None:
    done = run(repo, f"-s {tmp_path}/absent -m {tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr == f"error: no such folder: {tmp_path}/absent\n"
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_disk_full_keeps_what_was_there(scene: Path, tmp_path: Path, repo: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(scene, out)
    ply = out / "point_cloud" / "iteration_4" / "point_cloud.ply"
    before = {path: path.read_bytes() for path in (ply, out / "chkpnt2.pth")}
    # files may not grow past the point where the model no longer fits
    line = f"-s {scene} -m {out} --iterations 4 --start_checkpoint {out}/chkpnt2.pth"
    done = run(repo, line, file_limit=len(before[ply]) // 2)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ") and len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]
