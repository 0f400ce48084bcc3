"""Tables of the documentation, written from saved figures.

python -m bench.report bench/results/FILE.json [--write README.md docs/results.md]

A file with "about" is of bench_rasterization, any other of bench.sweep. Each table stands between
two comments of its own: speed, methods, and summary, the few methods that README shows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.sweep.table import markdown

# Variants whose cost is given in the GPU's time, which nothing else on a machine disturbs.
OTHERS = {
    "masks": "with masks",
    "sampled": "sampled",
    "exact": "exact",
    "deterministic": "deterministic",
}
SUMMARY_SCENE = "bonsai"
SUMMARY = (
    "3dgs",
    "mask-gaussian:beta",
    "mask-gaussian:gamma",
    "lp-3dgs:radsplat",
    "mask-gaussian+recipe=fast",
    "mask-gaussian+recipe=fast+iterations=30000",
    "post:mask-gaussian",
)


def speed(saved: dict[str, Any]) -> str:
    """Markdown of the rasterizer's times: one row per workload."""
    about = saved["about"]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in saved["rows"]:
        rows.setdefault(row["workload"], {})[row["variant"]] = row
    others = [k for k in OTHERS if all(f"splatrim, {k}" in v for v in rows.values())]
    heads = ["workload", "Gaussians", "gsplat f+b", "splatrim f+b", "ratio"]
    heads += ["in one thread", "ratio", "forward", "ratio", "GPU busy"]
    heads += [*(OTHERS[k] for k in others), "memory, gsplat / splatrim"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, variants in rows.items():
        ours, rival = variants["splatrim"], variants.get("gsplat")
        other = [variants[f"splatrim, {k}"]["busy_ms"] for k in others]
        cells = [
            name,
            f"{ours['n']:,}",
            f"{rival['both_ms']:.2f}" if rival else "-",
            f"**{ours['both_ms']:.2f}**",
            _ratio(ours, rival, "both_ms"),
            f"{ours['single_thread_ms']:.2f}",
            _ratio(ours, rival, "single_thread_ms"),
            f"{ours['forward_ms']:.2f}",
            _ratio(ours, rival, "forward_ms"),
            f"{ours['busy_ms']:.2f}",
            *(f"{ms:.2f}" for ms in other),
            f"{rival['memory_mb']:.0f} / {ours['memory_mb']:.0f} MB" if rival else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"Milliseconds, median of {about['calls']}, one {about['gpu']}, torch {about['torch']}, "
        f"triton {about['triton']}; `{about['command']}` (workloads: bench/scenes.py)."
    )
    return "\n".join([note, "", *lines])


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown of a few methods on one scene."""
    found = {row["method"]: row for row in rows if row["scene"] == SUMMARY_SCENE}
    heads = ("Method", "PSNR", "Gaussians", "fewer", "size", "training")
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in SUMMARY:
        row = found[name]
        deviation = f" ± {row['psnr_std']:.2f}" if row["psnr_std"] is not None else ""
        cells = (
            f"`{name}`",
            f"{row['psnr']:.2f}{deviation}",
            f"{row['n_gaussians']:,.0f}",
            f"{row['ratio']:.0%}" if row["ratio"] else "",
            f"{row['ply_bytes'] / 1e6:.0f} MB",
            f"{row['train_seconds']:.1f} s" if row["times_comparable"] else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(saved: dict[str, Any]) -> dict[str, str]:
    """The tables of a file by name."""
    if "about" in saved:
        return {"speed": speed(saved)}
    methods = markdown(saved["rows"]).replace("## ", "#### ").strip()
    return {"methods": methods, "summary": summary(saved["rows"])}


def write(page: Path, made: dict[str, str]) -> None:
    """Put each table between its comments, where the page has them."""
    text = page.read_text()
    for name, table in made.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    page.write_text(text)


def _ratio(ours: dict[str, Any], rival: dict[str, Any] | None, key: str) -> str:
    return f"{ours[key] / rival[key]:.2f}" if rival else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", type=Path, nargs="+", default=())
    arguments = parser.parse_args()
    made = tables(json.loads(arguments.file.read_text()))
    for page in arguments.write:
        write(page, made)
    if not arguments.write:
        print("\n\n".join(made.values()))


if __name__ == "__main__":
    main()
