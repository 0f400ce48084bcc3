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
ITERATIONS = 60
SIZES = ((80, 53), (54, 97), (63, 51))  # of training images; 4, 2 and 1 divide the widths
TEST_SIZES = ((81, 54), (58, 97))
MANY_VIEWS = "--multi_view_updates 0.5:5,0.75:20"
KINDS = (
    "",
    "--recipe fast --sh_degree 2",
    "--recipe faster",
    "--method 3dgs --densifier mcmc --budget 2x --sh_degree 0 --regularise seen --adam_rows seen",
    f"--method 3dgs --densifier error --budget 2x {MANY_VIEWS}",
    "--method 3dgs --recipe fast --densifier error --budget 900 --resolution_schedule 0:2,0.15:1",
    "--method 3dgs --densifier taming --budget 2x --random_background --viewer",
    "--method natural-selection --recipe fast --densifier error --budget 900 --survivors 300",
    "--method merging --antialiased --deterministic",
    "--method polarized --exposure affine",
    "--method lp-3dgs --mask_from_iter 20 --mask_until_iter 50 --score_interval 10",
    "--method light-gaussian --sh_degree 1",
    "--method radsplat",
    "--method mini-splatting",
    "--method opacity --no_cuda_graphs",
    "--batch 4 --exposure ppisp",
    "--method 3dgs --pose_refinement --depth_loss --sh_degree 1",
    "--representation neural",
)


def scene_of(folder: Path) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    from gs.data.camera import Camera, camera_extent
    from gs.data.scene import Scene
    from gs.data.tracks import Tracks

    cameras = list[Camera]()
    # a step of several images may have some of each size
    for k, (width, height) in enumerate([*SIZES * 3, *TEST_SIZES]):
        path = folder / f"{k}.png"
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        K = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]])
        viewmat = torch.eye(4)
        viewmat[0, 3], viewmat[2, 3] = 0.1 * k, 2.0
        cameras.append(Camera(path.name, path, width, height, viewmat, K, width, height))
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
    from kernels.runtime import launch
    from kernels.runtime.variants import _Driver

    def named(src: Any, options: dict[str, Any] | None = None, **_: Any) -> Any:
        name = f"{src.name} {src.hash()} {sorted((options or {}).items())}"
        return SimpleNamespace(name=name, run=None, function=None, packed_metadata=None)

    run = JITFunction.run

    def run_without_gpu(self: Any, *args: Any, **keywords: Any) -> Any:
        compiled: Any = run(self, *args, **{**keywords, "warmup": True})
        found(compiled.name)
        return compiled

    JITFunction.run = run_without_gpu
    triton.compiler.compile = named
    triton.runtime.driver.set_active(_Driver(Target(90, 132)))  # pyright: ignore
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


def main() -> None:
    """Print by flags: steps, how many variants were launched, and those not rehearsed."""
    import torch

    import kernels.device.grid_barrier as grid_barrier
    from gs.cli import parse
    from gs.rehearsal import rehearse_training
    from kernels import Target, backend, caches
    from kernels.rehearsal import _FILLED, _Ones
    from kernels.runtime.names import settle_name
    from pruning import METHODS

    names = set[str]()
    let_triton_name(names.add)
    torch.set_num_threads(1)
    grid_barrier._multiprocessors = lambda _: 132  # pyright: ignore
    _FILLED[torch.empty_strided] = lambda shape, _, **named: torch.ones(shape, **named)
    report = dict[str, Any]()
    for words in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            own = ["-s", str(folder), "-m", str(folder / "out"), "--device", "cpu", "--quiet"]
            own += ["--iterations", str(ITERATIONS), "--test_iterations", str(ITERATIONS // 2)]
            config = parse([*own, *words.split()], METHODS, "")
            launches = rehearse_training(config, METHODS, Target(90, 132)).launches
            names.clear()
            for launch in launches.values():
                launch.kernel.device_caches.clear()
                settle_name(launch.kernel)
                named = launch.constants | launch.options
                launch.kernel.run(*launch.args, grid=(1,), warmup=True, **named)
            planned = {*names}
            caches.clear()
            names.clear()
            for launch in launches.values():
                launch.kernel.device_caches.clear()
            backend.on_gpu, on_gpu = lambda _: True, backend.on_gpu
            with _Ones():
                viewless = dataclasses.replace(config.train, viewer=False)
                steps = train(dataclasses.replace(config, train=viewless), scene_of(folder))
            backend.on_gpu = on_gpu
            caches.clear()
            report[words] = steps, len(names), sorted(names - planned)
    print(json.dumps(report))


def test_trainings_look_for_nothing_that_was_not_rehearsed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPO), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    for words in KINDS:
        steps, n_launched, missing = report[words]
        assert steps > ITERATIONS / 3 and n_launched > 25, words
        assert not missing, (words, missing)


if __name__ == "__main__":
    main()
