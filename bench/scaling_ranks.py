"""How a step scales with the number of GPUs that a model is spread over.

    python -m bench.scaling_ranks [--millions 5.5 10] [--sizes 1080p 4k] [--ranks 2 4 8] [--out DIR]
    torchrun --standalone --nproc_per_node 8 -m bench.scaling_ranks --millions 10 --sizes 4k

Without torchrun, W ranks are simulated on one device (gs.distributed.simulated): each computes its
part of the same steps alone, phase by phase, and what it would send is counted. The model is

    t(W) = sum over phases of the slowest rank + (n latency + bytes / bandwidth) (1 - overlap)

with n = 4 collectives per step (images, records, report, gradients), bytes those that the rank
sends most of, and the stated figures of the links. Phases are timed by events behind a kernel that
sleeps while the host queues them: at scale the host runs ahead, as the GPU has milliseconds of
work and steps are graphs. What lies between phases is not timed: there the simulation copies what
links would carry. 64 GPUs are extrapolated from the most ranks that were simulated, at as many
images per rank, with --node_bandwidth: all phases stay but the update, which is of fewer Gaussians.

Gaussians are the garden points of bench.scenes on a grid, cut to the number asked for; cameras
stand in a circle about its middle. Masks are drawn, and their gradients found, in every step.
Under torchrun the steps are those of real ranks, and beside the model stands the wall time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.ranks import (
    PHASES,
    SIZES,
    STEPS,
    WARM_UP,
    Case,
    Pictures,
    Watch,
    account,
    build_stepper,
    kernels_of,
    make_case,
    take,
    time_one,
)
from bench.train_step import about_machine
from bench.training import synchronize
from gs.config import resolve_device
from gs.distributed.processes import find_ranks
from gs.distributed.ranks import Ranks, Solo
from gs.distributed.simulated import simulate
from gs.errors import run_cli
from gs.files import write_json
from gs.training.sharded_step import ShardedStepper

COLLECTIVES = 4
# what the model must reach: speed-up of 8 ranks by millions and size, and for each of them
SPEED_UP = {(10.0, "1080p"): 6.0, (10.0, "4k"): 6.5}
MOST_UNEVEN, MOST_GB, MOST_DIFFERENCE = 1.10, 2.5, 1e-6


class Found(NamedTuple):
    """What one rank has seen."""

    sent: int  # bytes
    rows: int
    tasks: int
    graphs: bool  # whether the last step was one
    held: dict[str, int]


def measure(case: Case, size: int, folder: Path) -> dict[str, Any]:
    """What simulated ranks take and send, and whether their images are one rank's."""
    watch, pictures = Watch(size, case.device), Pictures(case)
    batch = len(case.cameras)

    def act(ranks: Ranks) -> Found:
        stepper = build_stepper(case, ranks, folder)
        assert isinstance(stepper, ShardedStepper)
        with stepper.running():
            for k in range(WARM_UP):
                take(stepper, batch * (k + 1))
            stepper.settle()
            ranks.tell(None)
            before, watch.is_on = ranks.sent_bytes, True
            for k in range(STEPS):
                take(stepper, batch * (WARM_UP + 1 + k))
            graphs = stepper.is_replaying
            stepper.settle()
            sent = (ranks.sent_bytes - before) // STEPS
            held = account(stepper)
            ranks.tell(None)
            watch.is_on, stepper.by_id = False, True
            stepper.phases.on_picture = pictures.keep
            context = stepper.forward_backward(batch, list(range(batch)))
            masks = context.out.info["masks"].detach().cpu()
            pictures.masks[stepper.gaussians.rows["ids"].cpu().long()] = masks
            last = stepper.planner.plan(list(range(batch)))
        return Found(sent, sum(last.capacities), len(last.tasks), graphs, held)

    results = simulate(size, act, device=case.device, watch=watch)
    if case.device.type == "cuda":
        torch.cuda.empty_cache()
    worst, same_masks = pictures.differences(case, folder, batch)
    phases = watch.per_step(STEPS)
    totals = [sum(found.values()) for found in phases]
    most = max(range(size), key=watch.peak)
    return {
        "ranks": size,
        "phases_ms": [{p: round(1e3 * s, 4) for p, s in found.items()} for found in phases],
        "slowest_ms": {p: round(1e3 * max(f[p] for f in phases), 4) for p in PHASES},
        "slowest_over_mean": round(max(totals) / statistics.mean(totals), 4),
        "sent_mb": round(max(found.sent for found in results) / 1e6, 3),
        "records_room": results[0].rows,
        "tasks": results[0].tasks,
        "graphs": all(found.graphs for found in results),
        "memory_gb": round(watch.peak(most) / 1e9, 3),
        "memory_gb_by_phase": {p: round(x / 1e9, 3) for p, x in watch.peaks[most].items() if p},
        "account_gb": {name: round(x / 1e9, 3) for name, x in results[most].held.items()},
        "image_difference": worst,
        "masks_equal": same_masks,
    }


def predict(found: dict[str, Any], links: argparse.Namespace) -> float:
    """Seconds of a step of the ranks that were simulated."""
    compute = sum(found["slowest_ms"].values()) / 1e3
    transfer = COLLECTIVES * links.latency * 1e-6 + found["sent_mb"] / 1e3 / links.bandwidth
    return compute + transfer * (1.0 - links.overlap)


def predict_far(found: dict[str, Any], size: int, links: argparse.Namespace) -> float:
    """Seconds of a step of more ranks on several nodes, with as many images per rank."""
    more = size / found["ranks"]
    slowest = dict(found["slowest_ms"])
    slowest["update"] /= more
    share = (1.0 - 1.0 / size) / (1.0 - 1.0 / found["ranks"])
    transfer = COLLECTIVES * links.latency * 1e-6
    transfer += share * found["sent_mb"] / 1e3 / links.node_bandwidth
    return sum(slowest.values()) / 1e3 + transfer * (1.0 - links.overlap)


def verdicts(millions: float, size: str, found: dict[str, Any]) -> list[tuple[str, bool]]:
    """What must hold, and whether it does."""
    rows = [
        (
            f"images equal to one rank's: {found['image_difference']:.1e} <= {MOST_DIFFERENCE:.0e}",
            found["image_difference"] <= MOST_DIFFERENCE,
        ),
        ("masks equal to one rank's, bit for bit", found["masks_equal"]),
        (
            f"slowest over mean rank: {found['slowest_over_mean']:.3f} <= {MOST_UNEVEN}",
            found["slowest_over_mean"] <= MOST_UNEVEN,
        ),
    ]
    wanted = SPEED_UP.get((millions, size)) if found["ranks"] == 8 else None
    if wanted is not None:
        text = f"predicted speed-up of 8: {found['speed_up']:.2f} >= {wanted}"
        rows.append((text, found["speed_up"] >= wanted))
        text = f"memory per rank: {found['memory_gb']:.2f} <= {MOST_GB} GB"
        rows.append((text, found["memory_gb"] <= MOST_GB))
    return rows


def simulated(
    millions: float, size: str, args: argparse.Namespace, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure one rank and simulated ones; all that was found."""
    device = resolve_device(args.device)
    case = make_case(millions, size, args.batch, device, graphs=not args.no_graphs)
    folder = Path(args.out or ".")
    n_images = len(case.cameras)
    say(f"\n{len(case.workload.means):,} Gaussians, {size}, batch {n_images}")
    one, one_gb = time_one(case, folder)
    say(
        f"   1 rank   {1e3 * one:8.2f} ms per step, {1e3 * one / n_images:.2f} per image,"
        f" {one_gb:.2f} GB"
    )
    rows, last = [], None
    for n in args.ranks:
        found = measure(case, n, folder)
        seconds = predict(found, args)
        found |= {"step_ms": round(1e3 * seconds, 4), "speed_up": round(one / seconds, 3)}
        parts = ", ".join(f"{p} {ms:.2f}" for p, ms in found["slowest_ms"].items())
        say(
            f"{n:4d} ranks  {1e3 * seconds:8.2f} ms, speed-up {found['speed_up']:.2f}   ({parts};"
            f" {found['sent_mb']:.1f} MB sent, {found['tasks']} tasks,"
            f" {found['memory_gb']:.2f} GB, {'graphs' if found['graphs'] else 'no graphs'})"
        )
        for title, held in (("held", "account_gb"), ("at most", "memory_gb_by_phase")):
            shown = ", ".join(f"{name} {gb:.2f}" for name, gb in found[held].items())
            say(f"            GB {title}: {shown}")
        for text, holds in verdicts(millions, size, found):
            say(f"            {'holds' if holds else 'DOES NOT HOLD'}: {text}")
        rows.append(found)
        last = found
        if args.kernels:
            for ms, launches, name in kernels_of(case, n, folder)[: args.kernels]:
                say(f"            {ms:8.4f} ms {launches:6.1f} x  {name[:100]}")
    if last is not None and last["ranks"] > 1:
        far = predict_far(last, args.far, args)
        speed_up = args.far / last["ranks"] * one / far
        say(
            f"{args.far:4d} ranks  {1e3 * far:8.2f} ms, speed-up {speed_up:.1f}   (extrapolated;"
            f" {args.far // last['ranks'] * n_images} images)"
        )
    return {
        "millions": millions,
        "size": size,
        "one_ms": round(1e3 * one, 4),
        "one_gb": round(one_gb, 3),
        "simulated": rows,
    }


def real(millions: float, size: str, args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Wall time of a step of real ranks, beside one rank's."""
    case = make_case(millions, size, args.batch, ranks.device, graphs=not args.no_graphs)
    folder = Path(args.out or ".")
    one = ranks.agree(ranks.first_only(lambda: time_one(case, folder)[0]))
    stepper, batch = build_stepper(case, ranks, folder), args.batch
    assert one is not None
    with stepper.running():
        for k in range(WARM_UP):
            take(stepper, batch * (k + 1))
        spans = []
        for _ in range(3):
            synchronize(ranks.device)
            ranks.tell(None)
            began = time.perf_counter()
            for k in range(4 * STEPS):
                take(stepper, batch * (WARM_UP + 1 + k))
            stepper.settle()
            synchronize(ranks.device)
            spans.append((time.perf_counter() - began) / (4 * STEPS))
    seconds = max(ranks.tell(statistics.median(spans)))
    clocks = ranks.tell(ranks.clock.seconds())
    return {
        "millions": millions,
        "size": size,
        "ranks": ranks.size,
        "one_ms": round(1e3 * one, 4),
        "step_ms": round(1e3 * seconds, 4),
        "speed_up": round(one / seconds, 3),
        "seconds_by_rank": clocks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[5.5, 10.0])
    parser.add_argument("--sizes", nargs="+", default=["1080p", "4k"], choices=[*SIZES])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--far", type=int, default=64, help="ranks to extrapolate to")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bandwidth", type=float, default=300.0, help="GB/s of a rank, one way")
    parser.add_argument("--node_bandwidth", type=float, default=45.0, help="between nodes")
    parser.add_argument("--latency", type=float, default=30.0, help="microseconds per collective")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of transfers hidden")
    parser.add_argument("--kernels", type=int, default=0, help="print so many, with their times")
    parser.add_argument("--no_graphs", action="store_true", help="launch every kernel by itself")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rank_backend", default="auto", choices=["auto", "gloo"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ranks = find_ranks(args.device, backend=args.rank_backend)
    found: list[dict[str, Any]] = []
    for millions in args.millions:
        for size in args.sizes:
            if isinstance(ranks, Solo):
                found.append(simulated(millions, size, args, lambda text: print(text, flush=True)))
            else:
                found.append(real(millions, size, args, ranks))
                if ranks.rank == 0:
                    print(found[-1], flush=True)
    if args.out is not None and ranks.rank == 0:
        links = {name: getattr(args, name) for name in ("bandwidth", "node_bandwidth", "latency")}
        about = about_machine(resolve_device(args.device), "python -m bench.scaling_ranks")
        write_json(args.out / "scaling_ranks.json", {"machine": about, **links, "cases": found})
    ranks.close()


if __name__ == "__main__":
    run_cli(main)
