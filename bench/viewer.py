"""What the live viewer costs: training with and without somebody who looks on and does not move.

    python -m bench.viewer SCENE [--iterations 7000] [--pairs 3] [--size 1280 720] [--json FILE]

Trains MaskGaussian on SCENE in turns without and with a guest, all in one process, whose kernels a
first training has compiled. The guest is everything but a network: pictures are drawn, copied,
encoded as JPEG. A line per pair gives the seconds of both and by how much the second is longer; a
second one where the time of pictures went, in milliseconds of each and in percent of the training:

    host      the training thread draws; it launches nothing else meanwhile
    device    the GPU renders and copies, between two events in the training's stream
    thread    processor time of the sending thread, an upper bound on the interpreter lock it holds
    wait      that thread waits for the GPU; show: it waits for the encoder's process
    made      pictures for which something was compiled, learnt or captured, and their host time

The last line has medians, pictures per second and the share of a side that pictures had.
"""

import argparse
import json
import statistics
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gs.config import PUBLISHED_ITERATIONS, TrainConfig
from gs.data.camera import Camera
from gs.data.scene import Scene, load_scene
from gs.densification.adaptive import DensifyConfig
from gs.errors import run_cli
from gs.model.rates import OptimConfig
from gs.training.observer import Observer
from gs.training.trainer import Trainer
from gs.viewer.jpeg import Encoder
from gs.viewer.live import LiveViewer
from gs.viewer.picture import Look, fitted
from gs.viewer.studio import Costs
from pruning import MaskGaussianConfig

SHARED = ("device", "thread", "wait", "show")


class Guest:
    """Somebody who looks from a camera of the scene."""

    moving = False

    def __init__(self, camera: Camera, size: tuple[int, int]) -> None:
        self._camera, self._size = camera, size
        self.waits, self.drawn_at = True, 0.0
        self.scales: list[float] = []
        self.encoder = Encoder()

    def size(self, scale: float) -> tuple[int, int]:
        """Width and height of a picture, multiples of 8."""
        width, height = (round(x * scale / 8) * 8 for x in self._size)
        return width, height

    def camera(self, width: int, height: int, near: float) -> Camera:
        """The camera at that size."""
        return fitted(self._camera, width, height)

    def show(self, pixels: NDArray[np.uint8]) -> None:
        """Encode a picture, as a server would."""
        self.encoder.encode(pixels)
        self.scales.append(self.drawn_at)


class Panel:
    """A window without a server."""

    def __init__(self, guest: Guest) -> None:
        self.guest, self.changed = guest, threading.Event()
        self.look, self.rate, self.paused, self.chosen = Look(), 10.0, False, None

    def visitors(self) -> tuple[Guest]:
        """The guest."""
        return (self.guest,)

    def offer(self, cameras: Sequence[Camera], points: NDArray[np.float64]) -> None:
        """Nobody chooses."""

    def tell(self, text: str) -> None:
        """Nobody reads."""

    def close(self) -> None:
        """There is no server."""
        self.guest.encoder.close()


def train(scene: Scene, iterations: int, observers: Sequence[Observer] = ()) -> float:
    """Seconds of one training."""
    factor = min(iterations / PUBLISHED_ITERATIONS, 1.0)
    densify = DensifyConfig().scaled(factor)
    pruning = MaskGaussianConfig().scaled(factor)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            TrainConfig(Path(folder) / "out", iterations=iterations, quiet=True),
            scene,
            strategies=[
                densify.build(),
                pruning.build(densify_until=densify.densify_until_iter),
            ],
            optim=OptimConfig().scaled(factor),
            observers=observers,
        )
        trainer.fit()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return trainer.tracker.seconds


def look_on(scene: Scene, iterations: int, size: tuple[int, int]) -> tuple[float, Guest, Costs]:
    """Seconds of a training that a guest looks at, the guest, and where the time went."""
    guest = Guest((scene.test or scene.train)[0], size)
    panel: Any = Panel(guest)
    viewer = LiveViewer(panel)
    seconds = train(scene, iterations, (viewer,))
    viewer.close()
    return seconds, guest, viewer.costs


def explained(costs: Costs, seconds: float) -> str:
    """A line that says what pictures cost."""
    steady = max(costs.pictures - costs.made, 1)
    parts = {
        "host": (costs.host - costs.host_made, steady),
        "made": (costs.host_made, max(costs.made, 1)),
        **{name: (getattr(costs, name), costs.pictures) for name in SHARED},
    }
    cells = [
        f"{name} {1000 * x / max(n, 1):.2f} ms ({100 * x / seconds:.2f} %)"
        for name, (x, n) in parts.items()
    ]
    return f"  {costs.pictures} pictures, {costs.made} made: " + ", ".join(cells)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--iterations", type=int, default=7000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 720))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scene = load_scene(options.scene, eval=True)
    size = options.size[0], options.size[1]
    print("compiling ...", flush=True)
    seconds, _, _ = look_on(scene, options.iterations, size)
    print(f"{seconds:.2f} s with what is compiled", flush=True)
    alone, looked_at, rates, scales = [], [], [], []
    for _ in range(options.pairs):
        alone.append(train(scene, options.iterations))
        seconds, guest, costs = look_on(scene, options.iterations, size)
        looked_at.append(seconds)
        rates.append(len(guest.scales) / seconds)
        scales += guest.scales
        more = 100 * (seconds / alone[-1] - 1)
        print(f"{alone[-1]:.2f} s alone, {seconds:.2f} s with a guest: {more:+.1f} %")
        print(explained(costs, seconds), flush=True)
    result = {
        "scene": options.scene.name,
        "iterations": options.iterations,
        "alone_seconds": statistics.median(alone),
        "guest_seconds": statistics.median(looked_at),
        "more_percent": 100 * (statistics.median(looked_at) / statistics.median(alone) - 1),
        "pictures_per_second": statistics.median(rates),
        "scale": statistics.median(scales) if scales else 0.0,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }
    print(json.dumps(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    run_cli(main)
