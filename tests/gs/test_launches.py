"""What trainings launch was rehearsed, by Triton's own names; no GPU and no interpreter is needed.

Run as a script, this file trains with flags of KINDS on a scene of images of several sizes. Its
launches go to Triton's `kernel[grid]`, up to where it would compile: there the name of what it
looks for is noted. Outputs are ones, so trainings learn nothing, and a pruner may find that nothing
is left. tests/gs/test_rehearsal.py has fewer kinds whose kernels run.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPO = Path(__file__).resolve().parents[2]
ITERATIONS = 36
SIZES = ((80, 53), (54, 97), (63, 51))  # of training images; 4, 2 and 1 divide the widths
TEST_SIZES = ((81, 54), (58, 97))
KINDS = (
    "",
    "--recipe fast --sh_degree 2 --exposure affine",
    "--method 3dgs --densifier mcmc --budget 2x --sh_degree 0 --regularise seen --adam_rows seen"
    " --random_background",
    "--method 3dgs --densifier error --budget 2x --multi_view_updates 0.5:5,0.75:20",
    "--method natural-selection --recipe faster --densifier error --budget 900 --survivors 300",
    "--method polarized --recipe fast --densifier error --resolution_schedule 0:2,0.15:1",
    "--method merging --antialiased --deterministic",
    "--method lp-3dgs --mask_from_iter 12 --mask_until_iter 32 --score_interval 6",
    "--method light-gaussian --pose_refinement --depth_loss --sh_degree 1",
    "--method radsplat --sh_degree 1",
    "--method mini-splatting --sh_degree 0",
    "--method opacity --no_cuda_graphs",
    "--batch 4 --exposure ppisp",
    "--representation neural",
    "--distortion native --sh_degree 0",
)
LENS = "1 OPENCV_FISHEYE 80 53 50 50 40 26 0.01 0 0 0\n"


OWN = {
    "--exposure": ("_light_kernel", "_light_bwd_kernel", "_light_gradients_kernel"),
    "--depth_loss": ("_depth_loss_kernel",),
    "--pose_refinement": ("_step_poses_kernel",),
}
"""Kernels that only these flags launch."""


def write_model(folder: Path) -> None:
    """What a rehearsal reads of a scene: the lens of its images."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(LENS)
    (model / "images.txt").write_text("")
    (model / "points3D.txt").write_text("")


def scene_of(folder: Path, distortion: str) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    from gs.data.camera import Camera, camera_extent
    from gs.data.lens import Lens
    from gs.data.scene import Scene
    from gs.data.tracks import Tracks

    lens = Lens("OPENCV_FISHEYE", 80, 53, (50.0, 50.0, 40.0, 26.0, 0.01, 0.0, 0.0, 0.0))
    bent = lens.distortion if distortion == "native" else None
    cameras = list[Camera]()
    # a step of several images may have some of each size
    for k, (width, height) in enumerate([*SIZES * 3, *TEST_SIZES]):
        path = folder / f"{k}.png"
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        K = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]])
        viewmat = torch.eye(4)
        viewmat[0, 3], viewmat[2, 3] = 0.1 * k, 2.0
        camera = Camera(path.name, path, width, height, viewmat, K, width, height)
        cameras.append(dataclasses.replace(camera, distortion=bent))
    train, test = cameras[: -len(TEST_SIZES)], cameras[-len(TEST_SIZES) :]
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    seen = {camera.image_name: torch.arange(len(points)) for camera in train}
    tracks = Tracks(points.double(), seen)
    colors, extent = torch.full_like(points, 0.5), camera_extent(cameras)
    return Scene(train, test, points, colors, extent, folder, "colmap", tracks=tracks)


def let_triton_name(found: Callable[[str], None]) -> None:
    """From now on Triton names what it would compile, and compiles nothing."""
    import torch
    import triton
    import triton.compiler
    from triton.runtime.jit import JITFunction

    from kernels.rehearsal import Target
    from kernels.runtime import launch, variants

    def named(src: Any, options: dict[str, Any] | None = None, **_: Any) -> Any:
        name = f"{src.name} {src.hash()} {sorted((options or {}).items())}"
        return SimpleNamespace(name=name, run=None, function=None, packed_metadata=None)

    run = JITFunction.run

    def run_without_gpu(self: Any, *args: Any, **keywords: Any) -> Any:
        self.device_caches.clear()
        compiled: Any = run(self, *args, **{**keywords, "warmup": True})
        found(compiled.name)
        return compiled

    JITFunction.run = run_without_gpu
    triton.compiler.compile = named
    variants._libcuda_folders = lambda: ["/nowhere"]  # nor a launcher
    triton.runtime.driver.set_active(variants._Driver(Target(90, 132)))  # pyright: ignore
    start = launch.Start(lambda *_: None, (), ())
    launch._starter = lambda *_: start  # pyright: ignore
    torch._C._cuda_getDevice = lambda: 0  # pyright: ignore
    torch._C._cuda_getCurrentRawStream = lambda _: 0  # pyright: ignore


def train(config: Any, scene: Any) -> int:
    """Train with the settings; the steps that were taken."""
    import torch

    from gs.errors import SplatrimError
    from gs.neural.anchors import first_anchors
    from gs.neural.config import NeuralConfig
    from gs.program import strategies_in, strategies_of
    from gs.rehearsal import Captured
    from gs.training.captured_steps import StepGraphs
    from gs.training.trainer import Trainer

    model = None
    if isinstance(config.neural, NeuralConfig):
        model = first_anchors(config.neural, scene, None, seed=0, device=torch.device("cpu"))
    strategies = [*strategies_of(config), *strategies_in(scene, config)]
    method, settings = config.choice.method, config.train
    trainer = Trainer(
        settings, scene, strategies=strategies, optim=config.optim, method=method, model=model
    )
    if settings.cuda_graphs:
        trainer.stepper.graphs = StepGraphs(Captured)
    try:
        trainer.fit()
    except SplatrimError as error:
        if "leave none" not in str(error):
            raise
    return trainer.step


def main(rehearses: bool) -> None:
    """Print by flags the names of what is launched, or rehearsed, and the steps that were taken."""
    import torch

    import kernels.device.grid_barrier as grid_barrier
    from gs.cli import parse
    from gs.rehearsal import rehearse_training
    from kernels import Target, backend, caches
    from kernels.rehearsal import _FILLED, _Ones
    from kernels.runtime.variants import compile_variant
    from pruning import METHODS

    names = set[str]()
    let_triton_name(names.add)
    torch.set_num_threads(1)
    grid_barrier._multiprocessors = lambda _: 132  # pyright: ignore
    _FILLED[torch.empty_strided] = lambda shape, _, **named: torch.ones(shape, **named)
    report = dict[str, tuple[int, list[str]]]()
    for words in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder, steps = Path(temporary), 0
            own = ["-s", str(folder), "-m", str(folder / "out"), "--device", "cpu", "--quiet"]
            own += ["--iterations", str(ITERATIONS), "--test_iterations", str(ITERATIONS // 2)]
            config = parse([*own, *words.split()], METHODS, "")
            write_model(folder)
            names.clear()
            caches.clear()  # so that each kind names what it launches
            if rehearses:
                launches = rehearse_training(config, METHODS, Target(90, 132)).launches
                for launch in reversed(launches.values()):  # in another order than a training
                    compile_variant(launch)
            else:
                backend.on_gpu, on_gpu = lambda _: True, backend.on_gpu
                with _Ones():
                    steps = train(config, scene_of(folder, config.scene.distortion))
                backend.on_gpu = on_gpu
            report[words] = steps, sorted(names)
    print(json.dumps(report))


def report_of(what: str, cache: Path) -> dict[str, tuple[int, list[str]]]:
    paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, __file__, what], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_trainings_look_for_nothing_that_was_not_rehearsed(tmp_path: Path) -> None:
    # in processes of their own: what one has named could name the other's
    launched, rehearsed = report_of("train", tmp_path), report_of("rehearse", tmp_path)
    for words in KINDS:
        steps, names = launched[words]
        assert steps > ITERATIONS / 3 and len(names) > 25, words
        started = {name.split()[0] for name in names}
        for flag, own in OWN.items():
            assert [kernel in started for kernel in own] == [flag in words] * len(own), words
        missing = {*names} - {*rehearsed[words][1]}
        assert not missing, (words, missing)


if __name__ == "__main__":
    main(rehearses=sys.argv[1] == "rehearse")
