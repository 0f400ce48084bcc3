"""What training makes of photographs with faults, and what each remedy costs per step.

    python -m bench.photographs OUT [--iterations 7000] [--seeds 3] [--workload NAME]
        [--only quality|time]

Quality is that of the built-in scene's test views, means over seeds (PSNR; of exposures after the
gain and offset of each channel were fitted to the truth, as the light of a test view is unknown):

    varied light    without, and with --exposure affine and ppisp     at least 3 dB gained
    plain           the same                                          at most 0.05 dB lost
    moving object   its masks used, beside the scene without it       at most 0.1 dB lost
    covered         the scene without it, under the same masks        what they take from training

Time is that of steps on a workload, as bench.train_step takes it (wall, captured), with each remedy
and without: at most 5 % more. The workload is one of bench.training, or 300,000 small Gaussians at
800x533 that need no data. OUT gets the runs and photographs.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch

from bench.scenes import Workload
from bench.training import (
    build_trainer,
    forget_peak,
    random_workload,
    run_steps,
    seconds_per_step,
    workload,
)
from gs.config import resolve_device
from gs.data.demo import MASKS, write_demo_scene
from gs.errors import run_cli
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.program import train
from pruning import METHODS

CORRECTED, PLAIN = "PSNR_cc", "PSNR"
SCENES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "varied": {"varied_light": True},
    "moving": {"moving_object": True},
}
COVERED = "covered"  # plain, under the masks of moving
REMEDIES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "masks": {"masked": True},
    "affine": {"exposure": "affine"},
    "ppisp": {"exposure": "ppisp"},
    "antialiased": {"antialiased": True},
    "random background": {"random_background": True},
}
WARM_UP, STEPS, SPANS = 30, 20, 7
MOST_TIME = 1.05
SMALL = "small Gaussians"


class Trial(NamedTuple):
    """A kind of run."""

    scene: str
    exposure: str = "none"
    masks: str = "auto"

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.scene}_{self.exposure}" + ("" if self.masks == "auto" else "_unmasked")


class Claim(NamedTuple):
    """What one kind of run must reach beside another."""

    trial: Trial
    beside: Trial
    metric: str
    least: float
    """Difference in dB."""


CLAIMS = (
    Claim(Trial("varied", "affine"), Trial("varied"), CORRECTED, 3.0),
    Claim(Trial("varied", "ppisp"), Trial("varied"), CORRECTED, 3.0),
    Claim(Trial("plain", "affine"), Trial("plain"), CORRECTED, -0.05),
    Claim(Trial("plain", "ppisp"), Trial("plain"), CORRECTED, -0.05),
    Claim(Trial("plain", "affine"), Trial("plain"), PLAIN, -0.05),
    Claim(Trial("plain", "ppisp"), Trial("plain"), PLAIN, -0.05),
    Claim(Trial("moving"), Trial("plain"), PLAIN, -0.1),
    Claim(Trial("moving"), Trial(COVERED), PLAIN, -0.1),
    # what masks hide is not learnt, whatever is under them
    Claim(Trial(COVERED), Trial("plain"), PLAIN, float("-inf")),
    # what the masks are worth: nothing is claimed
    Claim(Trial("moving"), Trial("moving", masks="none"), PLAIN, float("-inf")),
)


def measured(
    trial: Trial, seed: int, out: Path, scenes: Path, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Metrics of one run's test views."""
    folder = out / f"{trial.name}_{seed}"
    train(
        scenes / trial.scene,
        folder,
        methods=METHODS,
        method="3dgs",
        eval=True,
        exposure=trial.exposure,
        masks=trial.masks,
        seed=seed,
        quiet=True,
        overwrite=True,
        test_iterations=[],
        save_iterations=[],
        **settings,
    )
    device = settings.get("device", "auto")
    render_views(folder, skip_train=True, quiet=True, device=device)
    (figures,) = compute_metrics([folder], device=device, color_correct=True)[str(folder)].values()
    return figures


def quality(
    out: Path, seeds: int, settings: Mapping[str, Any], size: Mapping[str, int]
) -> dict[str, list[dict[str, float]]]:
    """Metrics of every kind of run, by seed."""
    scenes = out / "scenes"
    for name, faults in SCENES.items():
        if not (scenes / name).exists():
            write_demo_scene(scenes / name, **size, **faults)
    if not (scenes / COVERED).exists():
        shutil.copytree(scenes / "plain", scenes / COVERED)
        shutil.copytree(scenes / "moving" / MASKS, scenes / COVERED / MASKS)
    trials = dict.fromkeys(trial for claim in CLAIMS for trial in (claim.trial, claim.beside))
    found: dict[str, list[dict[str, float]]] = {}
    for trial in trials:
        found[trial.name] = [measured(trial, k, out, scenes, settings) for k in range(seeds)]
        shown = "  ".join(
            f"{metric} {fmean(x[metric] for x in found[trial.name]):.3f}"
            for metric in (PLAIN, CORRECTED)
        )
        print(f"{trial.name:18} {shown}", flush=True)
    return found


def claims(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[dict[str, Any]]:
    """What was reached, and whether it is enough."""
    for claim in CLAIMS:
        pairs = zip(found[claim.trial.name], found[claim.beside.name], strict=True)
        gains = [one[claim.metric] - other[claim.metric] for one, other in pairs]
        yield {
            "what": f"{claim.trial.name} beside {claim.beside.name}, {claim.metric}",
            "gain": fmean(gains),
            "spread": stdev(gains) if len(gains) > 1 else 0.0,
            "least": claim.least,
            "reached": fmean(gains) >= claim.least,
        }


def small_gaussians() -> Workload:
    """As many as a trained scene of that resolution has, and as large."""
    w = random_workload(300_000, 800, 533)
    return w._replace(scales=0.15 * w.scales)


def times(name: str, device: torch.device, method: str) -> dict[str, float]:
    """Milliseconds of a step with each remedy."""
    w, found = small_gaussians() if name == SMALL else workload(name), {}
    for remedy, settings in REMEDIES.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(w, Path(folder), device, method=method, **settings)
            run_steps(trainer, WARM_UP)
            found[remedy] = 1e3 * seconds_per_step(trainer, spans=SPANS, steps=STEPS)
            trainer.images.close()
            del trainer
            forget_peak(device)
        share = found[remedy] / found["nothing"]
        verdict = "" if share <= MOST_TIME or remedy == "nothing" else "  TOO SLOW"
        print(f"{name:14} {remedy:18} {found[remedy]:8.3f} ms  {share:6.3f}{verdict}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.photographs", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--iterations", type=int, default=7000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=-1)
    parser.add_argument("--views", type=int, default=40)
    parser.add_argument("--workload", default=SMALL)
    parser.add_argument("--method", default="3dgs", help="of the timed steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=("quality", "time"))
    given = parser.parse_args()
    device, result = resolve_device(given.device), {}
    given.out.mkdir(parents=True, exist_ok=True)
    if given.only != "quality":
        result["ms"] = times(given.workload, device, given.method)
    if given.only != "time":
        names = ("iterations", "resolution", "device")
        settings = {name: getattr(given, name) for name in names}
        found = quality(given.out, given.seeds, settings, {"views": given.views})
        result |= {"figures": found, "claims": [*claims(found)]}
        for claim in result["claims"]:
            verdict = "reached" if claim["reached"] else "MISSED"
            print(
                f"{claim['what']:55} {claim['gain']:+7.3f} +- {claim['spread']:.3f} dB"
                f"  ({claim['least']:+.2f})  {verdict}"
            )
    (given.out / "photographs.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
