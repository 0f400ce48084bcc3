"""README's speed table from what bench_rasterization.py saved.

python -m bench.report bench/results/FILE.json [--write README.md]
"""

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


def table(saved: dict[str, Any]) -> str:
    """Markdown: one row per workload."""
    about = saved["about"]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in saved["rows"]:
        rows.setdefault(row["workload"], {})[row["variant"]] = row
    lines = [
        "| workload | Gaussians | gsplat f+b | splatrim f+b | ratio | GPU busy | exact | "
        "deterministic | with masks | memory, gsplat / splatrim |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, variants in rows.items():
        ours, rival = variants["splatrim"], variants.get("gsplat")
        other = [variants[f"splatrim, {k}"]["both_ms"] for k in ("exact", "deterministic", "masks")]
        cells = [
            name,
            f"{ours['n']:,}",
            f"{rival['both_ms']:.2f}" if rival else "-",
            f"**{ours['both_ms']:.2f}**",
            f"{ours['both_ms'] / rival['both_ms']:.2f}" if rival else "-",
            f"{ours['busy_ms']:.2f}",
            *(f"{ms:.2f}" for ms in other),
            f"{rival['memory_mb']:.0f} / {ours['memory_mb']:.0f} MB" if rival else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"Milliseconds, median of 30, one {about['gpu']}, torch {about['torch']}, triton "
        f"{about['triton']}; `{about['command']}` (workloads: bench/scenes.py)."
    )
    return "\n".join([note, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    text = table(json.loads(arguments.file.read_text()))
    if arguments.write is None:
        print(text)
        return
    page = arguments.write.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    arguments.write.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


if __name__ == "__main__":
    main()
