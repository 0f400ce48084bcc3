"""README's tables from saved figures: speed from bench_rasterization.py, methods from sweep.py.

python -m bench.report bench/results/FILE.json [--write README.md]

A file with "about" is of the first kind. Each table stands between two comments of its own.
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


def table(saved: dict[str, Any]) -> str:
    """Markdown: one row per workload."""
    about = saved["about"]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in saved["rows"]:
        rows.setdefault(row["workload"], {})[row["variant"]] = row
    others = [k for k in OTHERS if all(f"splatrim, {k}" in v for v in rows.values())]
    heads = [
        "workload",
        "Gaussians",
        "gsplat f+b",
        "splatrim f+b",
        "ratio",
        "in one thread",
        "ratio",
        "forward",
        "ratio",
        "GPU busy",
        *(OTHERS[k] for k in others),
        "memory, gsplat / splatrim",
    ]
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


def _ratio(ours: dict[str, Any], rival: dict[str, Any] | None, key: str) -> str:
    return f"{ours[key] / rival[key]:.2f}" if rival else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    saved = json.loads(arguments.file.read_text())
    is_speed = "about" in saved
    text = table(saved) if is_speed else markdown(saved["rows"]).replace("## ", "#### ").strip()
    begin, end = (f"<!-- {slash}{'speed' if is_speed else 'methods'} -->" for slash in ("", "/"))
    if arguments.write is None:
        print(text)
        return
    page = arguments.write.read_text()
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    arguments.write.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


if __name__ == "__main__":
    main()
