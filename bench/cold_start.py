"""What a first training loses to compilation: fresh processes, with an empty cache and a full one.

    python -m bench.cold_start [-s SCENE] [-o OUT] [--iterations 600] [-- further flags of train.py]

The same short training, through all degrees of the spherical harmonics, in a process of its own:

    serial      empty cache; every kernel is compiled when it is launched
    cold        empty cache; compiled in parallel while the scene is loaded (gs.compiler)
    warm        the cache that `cold` has left
    changed     that cache and no note of it: as after a change of the project's sources

Of each: seconds from the start of the process to the first picture (the first rendering is on the
GPU, and the GPU is done) and to its end, and the kernels that the process itself compiled, which in
`cold` and `warm` must be none. Without a scene, the built-in one. Needs a CUDA GPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 600
MODES = ("serial", "cold", "warm", "changed")


def child(words: list[str], started: float, report: Path) -> None:
    """Train as `splatrim train` does, and note when the first picture was there."""
    from gs.compiler import start_compiler

    compiler = start_compiler(words)

    import torch
    from triton import knobs

    import gs.training.step as step
    from splatrim import train

    own: list[str] = []
    at: dict[str, float] = {"imported": time.time() - started}
    render = step.render

    def noting(*args: Any, **named: Any) -> Any:
        out = render(*args, **named)
        if "picture" not in at:
            torch.cuda.synchronize()
            at["picture"] = time.time() - started
        return out

    def compiled(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            own.append(f"{src.name} {src.constants}")

    step.render = noting
    knobs.compilation.listener = compiled
    train.main(words, report=False, compiler=compiler)
    torch.cuda.synchronize()
    at["trained"] = time.time() - started
    report.write_text(json.dumps({**at, "own": own}))


def run(mode: str, words: list[str], out: Path, cache: Path) -> dict[str, Any]:
    """One training in a fresh process."""
    if mode == "changed":
        shutil.rmtree(cache / "splatrim", ignore_errors=True)
    elif mode != "warm":
        shutil.rmtree(cache, ignore_errors=True)
    report = out / f"{mode}.json"
    flags = [*words, "-m", str(out / mode), "--overwrite"]
    flags += ["--no_precompile"] if mode == "serial" else []
    started = time.time()
    process = subprocess.run(
        [sys.executable, "-m", "bench.cold_start", "--child", str(started), str(report), *flags],
        env=os.environ | {"TRITON_CACHE_DIR": str(cache)},
        cwd=ROOT,
        check=False,
    )
    if process.returncode:
        sys.exit(f"{mode}: the training ended with status {process.returncode}")
    return {"mode": mode, "ended": time.time() - started, **json.loads(report.read_text())}


def main() -> None:
    """Entry point of `python -m bench.cold_start`."""
    words = sys.argv[1:]
    if words[:1] == ["--child"]:
        child(words[3:], float(words[1]), Path(words[2]))
        return
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-s", "--scene", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    config = parser.parse_args(words[:split])
    with tempfile.TemporaryDirectory() as temporary:
        out = (config.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        scene = config.scene.resolve() if config.scene else out / "scene"
        if config.scene is None and not scene.exists():
            from gs.data.demo import write_demo_scene

            write_demo_scene(scene)
        flags = ["-s", str(scene), "--iterations", str(config.iterations), *words[split + 1 :]]
        rows = [run(mode, flags, out, out / "cache") for mode in config.modes]
        print("\n| cache | imported | first picture | trained | ended | compiled by itself |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            times = [f"{row[name]:.1f} s" for name in ("imported", "picture", "trained", "ended")]
            print(f"| {row['mode']} | {' | '.join(times)} | {len(row['own'])} |")
        for row in rows:
            if row["mode"] != "serial":
                print(*(f"{row['mode']} compiled {name}" for name in row["own"]), sep="\n")
        (out / "cold_start.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
