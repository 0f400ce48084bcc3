"""What a run in blocks leaves behind: evaluations and models of the whole, history.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..evaluation.views import evaluate_views, mean_scores
from ..model.gaussians import Gaussians
from ..model.model import Model
from ..model.ply import save_ply
from ..run_record import model_file
from ..training.finite import check_model
from ..training.memory import peak_memory
from ..training.run_folder import RunFolder
from .partition import Partition
from .plans import BlockPlan, RunSettings
from .progress import BlocksProgress
from .seams import save_owners
from .store import BlockStore
from .whole import merged_model, merged_params


class Outputs:
    """Writes for a run; what is of all ranks is for the first to call.

    Args:
        run: All settings.
        scene: Its cameras.
        partition: Its blocks.
        store: The blocks as they stand.
        plans: Of each block.
        images: Of all cameras, training cameras first.
        progress: The run's log and history.
        folder: The output folder.
        device: Where the whole is evaluated.
    """

    def __init__(
        self,
        run: RunSettings,
        scene: Scene,
        partition: Partition,
        store: BlockStore,
        plans: list[BlockPlan],
        images: ImageLoader,
        progress: BlocksProgress,
        folder: RunFolder,
        device: torch.device,
    ) -> None:
        self.run, self.scene, self.store, self.plans = run, scene, store, plans
        self.images, self.progress, self.folder = images, progress, folder
        self.device = device
        alone = run.blocks.surroundings == "none"
        self._cut = partition if alone else None  # rows outside their cell go in the end

    @property
    def n_gaussians(self) -> int:
        """Of all blocks."""
        return sum(map(self.store.n_gaussians, range(len(self.store))))

    def whole(self) -> Model:
        """The model as it is saved and tested, on the device."""
        return merged_model(self.store.seen, self._cut, self.device)

    @torch.no_grad()
    def evaluate(self, iteration: int) -> dict[str, float]:
        """PSNR of the test views of the whole, by split."""
        if not self.scene.test:
            return {}
        background = torch.full((3,), float(self.run.white_background), device=self.device)
        cameras = self.images.cameras
        indices = range(len(self.scene.train), len(cameras))
        views = cameras, self.images, background
        scores = mean_scores(evaluate_views(self.whole(), *views, indices=indices))
        self.progress.tracker.test(iteration, "test", scores["psnr"], scores["l1"])
        return {"test": scores["psnr"]}

    def save(self, iteration: int) -> Path:
        """Write the merged model as point_cloud/iteration_N/point_cloud.ply."""
        path = model_file(self.run.train.model_path, iteration)
        params, ids, blocks = merged_params(self.store.seen, self._cut)
        check_model(Gaussians(params), self.n_gaussians, iteration, None)
        save_ply(path, params, world_offset=self.scene.world_offset)
        save_owners(path, blocks)
        self.folder.add_model(iteration)
        self.progress.say(
            f"iteration {iteration}: saved {len(ids)} of {self.n_gaussians} Gaussians"
        )
        return path

    def write_history(self, blocks: dict[int, Any], *, last: bool) -> None:
        """Write history.json as it stands, with what `about` says of each block."""
        progress = self.progress
        seconds = progress.tracker.seconds
        done = sum(entry["steps"] for entry in blocks.values())
        timing = {
            "train_seconds": round(seconds, 3),
            "iterations_per_second": round(done / max(seconds, 1e-9), 3),
            "swap_seconds": round(progress.swap_seconds, 3),
            "surroundings_seconds": round(progress.surroundings_seconds, 3),
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **peak_memory(self.device),
        }
        progress.tracker.write_history(
            self.run.train.model_path / "history.json",
            last=last,
            settings=self.run.described,
            timing=timing,
            blocks=[blocks[b] for b in sorted(blocks)],
        )

    def about(self, block: int, rank: int) -> dict[str, Any]:
        """What history.json says of a block whose state is here."""
        plain = self.store.states[block].plain
        known = (plain.get("tracker") or {}).get("history") or {}
        return {
            "block": block,
            "rank": rank,
            "steps": plain["step"],
            "cameras": len(self.plans[block].cameras),
            "n_gaussians": self.store.n_gaussians(block),
            "history": {name: values for name, values in known.items() if name != "test"},
        }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
