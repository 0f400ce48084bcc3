"""What tests let each of several ranks do: functions of its ranks and of plain values.

As a program it is the processes that do so: it forks, and each reads jobs from a pipe of its own, a
line each, and writes what they return to a file.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.camera import Camera
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.densification.mcmc import MCMCConfig
from gs.distributed.processes import find_ranks
from gs.distributed.ranks import Ranks
from gs.errors import SplatrimError, run_cli
from gs.model.rates import OptimConfig
from gs.training.checkpoint_shards import load_any
from gs.training.observer import Observer, Run
from gs.training.sharded_step import ShardedStepper
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from pruning import MaskGaussianConfig
from splatrim.commands import run

DENSIFIERS = {
    "default": DensifyConfig(
        densify_from_iter=2,
        densify_until_iter=20,
        densification_interval=4,
        opacity_reset_interval=11,
        densify_grad_threshold=3e-5,
    ),
    "mcmc": MCMCConfig(
        densify_from_iter=2,
        densify_until_iter=20,
        densification_interval=4,
        budget="1.3x",
        min_opacity=0.2,
        initial_opacity=0.3,
    ),
}
MASKS = MaskGaussianConfig(lambda_mask=0.5, mask_lr=0.3, mask_prune_iter=7, final_threshold=0.05)


def load(folder: str) -> Scene:
    """The scene that the fixture has written."""
    kept = torch.load(Path(folder) / "scene.pt")
    cameras = [
        Camera(name, Path(folder) / name, width, height, viewmat, K, width, height)
        for name, width, height, viewmat, K in kept["cameras"]
    ]
    n = kept["n_train"]
    start = kept["points"], kept["colors"]
    return Scene(cameras[:n], cameras[n:], *start, 1.5, Path(folder), "colmap")


def trainer(
    ranks: Ranks | None,
    scene: str,
    out: str,
    densifier: str | None = "default",
    *,
    exact: bool = True,
    start: dict[str, Any] | None = None,
    masks: bool = True,
    **settings: Any,
) -> Trainer:
    """A trainer of MaskGaussian, in float64 if `exact`."""
    config = TrainConfig(
        **{
            "model_path": Path(out),
            "iterations": 16,
            "batch": 2,
            "quiet": True,
            "device": "cpu",
            "sh_degree": 1,
            "sh_degree_interval": 5,
            **settings,
        }
    )
    strategies: list[Strategy] = [] if densifier is None else [DENSIFIERS[densifier].build()]
    if masks:
        strategies.append(MASKS.build(densify_until=12))
    made = Trainer(
        config,
        load(scene),
        strategies=strategies,
        optim=OptimConfig(position_lr_max_steps=config.iterations),
        start=start,
        ranks=ranks,
    )
    if exact:
        made.gaussians.double()
    if start is None:  # spheres have rotations whose gradient is rounding
        phases = made.gaussians.rows["ids"][:, None] * torch.tensor([1.0, 2.0, 3.0])
        scales = made.gaussians.params["scales"].data
        scales += 0.5 * phases.sin().to(scales)
    return made


def shard(made: Trainer) -> dict[str, Tensor]:
    """All that a rank has, by row."""
    model = made.gaussians
    found = {f"params.{name}": x for name, x in model.to_tensors().items()}
    found |= {f"rows.{name}": x for name, x in model.rows.items()}
    for group in made.optimizer.param_groups:
        moments = made.optimizer.state.get(group["params"][0], {})
        found |= {f"{key}.{group['name']}": x for key, x in moments.items() if x.dim()}
    return {name: x.detach().clone() for name, x in found.items()}


def train(ranks: Ranks | None, *args: Any, steps: int = 16, **options: Any) -> dict[str, Any]:
    """Take steps; the rank's rows, and what the log says."""
    made = trainer(ranks, *args, **options)
    with made.stepper.running():
        while made.step < steps:
            made.train_step(made.step + made.config.batch)
        found: dict[str, Any] = shard(made)
        found["next_id"] = made.gaussians.next_id
        found["loss"] = made.tracker.state_dict()["sums"]
        found["n"] = made.stepper.n_gaussians
    return found


def gradients(ranks: Ranks | None, *args: Any, **options: Any) -> dict[str, Any]:
    """Gradients of one step, masks, and the gradients of image positions."""
    made = trainer(ranks, *args, **options)
    model = made.gaussians
    rows = model.rows["ids"][:, None] * torch.tensor([3.0, 5.0])
    model.params["mask_logits"].data.copy_(2.0 * rows.sin())
    with made.stepper.running():
        context = made.stepper.forward_backward(7, [0, 3, 5][: made.config.batch])
    found: dict[str, Any] = {f"v_{n}": p.grad for n, p in model.params.items()}
    found["rows.ids"] = model.rows["ids"]
    means2d = context.out.info["means2d"].grad
    found |= {"masks": context.out.info["masks"].detach(), "v_means2d": means2d.transpose(0, 1)}
    return {**found, "loss": made.tracker.state_dict()["sums"], "n": 0, "next_id": 0}


def resume(ranks: Ranks, scene: str, out: str, path: str | None, steps: int) -> dict[str, Any]:
    """Go on from a checkpoint, in float32, and save one; the rank's rows."""
    start = None if path is None else load_any(Path(path), ranks)
    options = {"batch": 1, "iterations": 40, "start": start, "exact": False}
    made = trainer(ranks, scene, out, "default", **options)
    with made.stepper.running():
        while made.step < steps:
            made.train_step(made.step + 1)
        found: dict[str, Any] = shard(made)
        found |= {"next_id": made.gaussians.next_id, "n": made.stepper.n_gaussians}
        found["loss"] = made.tracker.state_dict()["sums"]
        assert isinstance(made.stepper, ShardedStepper)
        found["costs"] = made.stepper.planner.costs.state_dict()
        found["path"] = str(made.checkpoint(steps))
    return found


class Impatient(Observer):
    """Asks the run to stop."""

    def on_step(self, run: Run, step: int) -> None:
        if step == 6:
            run.stepper.wants_stop = True  # type: ignore[attr-defined]


def stop(ranks: Ranks, scene: str, out: str) -> dict[str, Any]:
    """Train until one rank is asked to stop; where the run stands then."""
    made = trainer(ranks, scene, out, exact=False)
    if ranks.rank == 1:
        made.observers = (*made.observers, Impatient())
    path = made.fit()
    return {"step": made.step, "path": str(path)}


def overflow(ranks: Ranks, scene: str, out: str) -> dict[str, Any]:
    """A step whose buffers are too small at first."""
    made = trainer(ranks, scene, out, iterations=99)
    stepper = made.stepper
    assert isinstance(stepper, ShardedStepper)
    with stepper.running():
        stepper.planner.least = 1
        stepper.planner._needs = dict.fromkeys(range(8), 2.0)
        takes = 0
        take = stepper._take

        def counted(step: int, indices: Sequence[int]) -> Any:
            nonlocal takes
            takes += 1
            return take(step, indices)

        stepper._take = counted
        made.train_step(2)
    found: dict[str, Any] = shard(made)
    steps = {float(s["step"]) for s in made.optimizer.state.values()}
    found |= {"takes": takes, "steps": steps, "loss": made.tracker.state_dict()["sums"]}
    return found | {"next_id": made.gaussians.next_id, "n": stepper.n_gaussians}


def sent(ranks: Ranks, scene: str, out: str) -> dict[str, int]:
    """Bytes that a step sends, and what they should be."""
    made = trainer(ranks, scene, out, None, iterations=99, exact=False)
    stepper = made.stepper
    assert isinstance(stepper, ShardedStepper)
    with stepper.running():
        made.train_step(2)
        before, indices = ranks.sent_bytes, [0, 3]
        plan = stepper.planner.plan(indices)
        stepper.forward_backward(4, indices)
    rows = sum(plan.sent()) - plan.sent()[ranks.rank]
    back = plan.received(ranks.rank)[0] * (ranks.size - 1)
    images = 0
    for k, task in enumerate(plan.tasks):
        if plan.camera(k) % ranks.size == ranks.rank != task.rank:
            top, bottom = task.window(plan.height(k))
            images += (bottom - top) * 48 * 3
    return {"sent": ranks.sent_bytes - before, "want": 48 * (rows + back) + images}


def differing(ranks: Ranks, scene: str, out: str) -> str:
    """What a run says whose ranks have other settings."""
    made = trainer(ranks, scene, out, exact=False)
    made.settings = {"pruning": {"lambda_mask": 0.001 if ranks.rank == 1 else 0.0005}}
    try:
        made.fit()
    except SplatrimError as error:
        return str(error)
    except SystemExit as error:
        return f"exit {error.code}"
    return "nothing"


def collectives(ranks: Ranks) -> dict[str, Any]:
    """What each collective gives."""
    x = torch.arange(3.0) + 10 * ranks.rank
    sent = [(ranks.rank + k) % 3 for k in range(ranks.size)]
    received = [(k + ranks.rank) % 3 for k in range(ranks.size)]
    rows = torch.cat([x[:n] + 100 * k for k, n in enumerate(sent)])

    def fail() -> None:
        if ranks.rank > 0:
            raise SplatrimError(f"rank {ranks.rank} cannot")

    try:
        ranks.together(fail)
        failure = "none"
    except SplatrimError as error:
        failure = str(error)
    except SystemExit as error:
        failure = f"exit {error.code}"
    return {
        "exchange": ranks.exchange(rows, sent, received),
        "stack": ranks.stack(x),
        "gather": ranks.gather(x[: ranks.rank]),
        "tell": ranks.tell(("rank", ranks.rank)),
        "agree": ranks.agree(ranks.rank),
        "first": ranks.first_only(lambda: ranks.rank + 7),
        "failure": failure,
        "sent_bytes": ranks.sent_bytes,
    }


def command(words: list[str]) -> tuple[object, str]:
    """Status of train.py as torchrun's process would have it, and what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_cli(lambda: run("train", words, report=False))
        except SystemExit as end:
            return end.code, told.getvalue()


JOBS: dict[str, Callable[..., Any]] = {
    "collectives": collectives,
    "differing": differing,
    "gradients": gradients,
    "overflow": overflow,
    "resume": resume,
    "sent": sent,
    "stop": stop,
    "train": train,
}


def serve(jobs: TextIO, answers: TextIO) -> None:
    """Do what is asked for until nothing is."""
    torch.set_num_threads(1)
    for line in jobs:
        job = json.loads(line)
        os.environ |= {name: str(value) for name, value in job["environment"].items()}
        if job["name"] == "command":  # finds its ranks by itself
            result = command(*job["args"])
        else:
            ranks = find_ranks("cpu", timeout=60.0)
            result = JOBS[job["name"]](ranks, *job["args"], **job["options"])
            ranks.close()
        torch.save(result, job["result"])
        print("done", file=answers, flush=True)


def main() -> None:
    pipes: list[tuple[int, int]] = json.loads(sys.argv[1])
    mine, children = 0, []
    for k in range(1, len(pipes)):
        child = os.fork()
        if child == 0:
            mine = k
            break
        children.append(child)
    for k, ends in enumerate(pipes):
        if k != mine:  # else nobody would see that a process has ended
            os.close(ends[0])
            os.close(ends[1])
    with open(pipes[mine][0]) as jobs, open(pipes[mine][1], "w") as answers:
        serve(jobs, answers)
    if mine > 0:  # there is nothing to put away
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
