"""The first lines of a report: what pruning did, in a sentence beside a baseline, and in numbers.

A baseline is another run of the same scene, as a rule 3DGS without pruning. `train.py --demo`
trains one into OUT/baseline, where it is found; another may be named.
"""

from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path

from ..evaluation.readable import duration, frame_rate
from ..evaluation.rendered import COUNTED
from ..run_record import BASELINE, saved_models
from .page import tile
from .run import Run, load_run

EQUAL = 0.1  # dB; less is no difference that anybody sees
_SAME = ("iterations", "source_path", "images", "resolution", "eval")


def with_baseline(run: Run, path: Path | None = None) -> Run:
    """The run with its baseline: that of `path` or, where there is one, that in its folder.

    Raises:
        SplatrimError: the folder is no run's output, or one of its files is broken.
    """
    if path is None:
        path = run.path / BASELINE
        if not (path.is_dir() and saved_models(path)):  # none, or not finished
            return run
    return replace(run, baseline=load_run(path))


def headline(run: Run) -> tuple[str, str] | None:
    """What pruning did in a sentence, and the run in a row of numbers."""
    sentence, notes = _sentence(run), _differences(run)
    lead = f'<p class="lead">{sentence}</p>' if sentence else ""
    lead += f'<p class="note">{notes}</p>' if notes else ""
    tiles = "".join(_tiles(run))
    return ("", f'{lead}<div class="tiles">{tiles}</div>') if lead or tiles else None


def _sentence(run: Run) -> str:
    """Numbers are bold; nothing in it comes from a file as text but the method's name."""
    n, base = run.n_gaussians, run.baseline
    if base is None or not base.n_gaussians or n is None:
        peak = int(max(run.column("n_gaussians"), default=0))
        if n is None or n >= peak or run.settings.get("method", "3dgs") == "3dgs":
            return ""
        return f"<b>{n:,}</b> of up to <b>{peak:,}</b> Gaussians were kept."
    name, m = escape(base.method_name), base.n_gaussians
    change = 100 * abs(1 - n / m)
    how = "fewer" if n < m else "more"
    counts = f"<b>{_percent(change)} % {how} Gaussians</b> than {name} ({n:,} instead of {m:,})"
    if n == m:
        counts = f"As many Gaussians as {name} ({n:,})"
    if run.psnr is None or base.psnr is None:
        return f"{counts}."
    difference = run.psnr - base.psnr
    if abs(difference) < EQUAL:
        quality = "at <b>equal quality</b>"
    else:
        side = "better" if difference > 0 else "worse"
        quality = f"at a PSNR that is <b>{abs(difference):.2f} dB {side}</b>"
    return f"{counts} {quality}: {run.psnr:.2f} dB, {name} {base.psnr:.2f} dB."


def _differences(run: Run) -> str:
    """In what the baseline was trained otherwise; how to get one where there is none."""
    base, method = run.baseline, run.settings.get("method")
    if base is None:
        if method in (None, "3dgs") or run.psnr is None:
            return ""
        return (
            "To see what pruning cost, train and measure the same with <code>--method 3dgs</code> "
            "into a folder BASE, then run "
            f"<code>splatrim report {escape(str(run.path))} --baseline BASE</code>."
        )
    both = [k for k in _SAME if k in run.settings and k in base.settings]
    others = [
        f"{k.replace('_', ' ')} {base.settings[k]} instead of {run.settings[k]}"
        for k in both
        if base.settings[k] != run.settings[k]
    ]
    return escape(f"The baseline was trained otherwise: {', '.join(others)}.") if others else ""


def _tiles(run: Run) -> list[str]:
    tiles, base = [], run.baseline
    if run.psnr is not None:
        detail = "test views" if "PSNR" in run.results else "test views, by the trainer"
        if COUNTED in run.results:
            detail = f"{_percent(100 * run.results[COUNTED])} % of pixels, by the masks"
        if base is not None and base.psnr is not None:
            detail = f"{base.method_name}: {base.psnr:.2f} dB"
        elif "PSNR_cc" in run.results:
            detail = f"with colours fitted to the photographs: {run.results['PSNR_cc']:.2f} dB"
        tiles.append(tile("PSNR", f"{run.psnr:.2f}", "dB", detail))
    details = {"SSIM": "1 = identical", "LPIPS": "VGG, 0 = identical", "FLIP": "0 = identical"}
    for name, detail in details.items():
        if name in run.results:
            if base is not None and name in base.results:
                detail = f"{base.method_name}: {base.results[name]:.3f}"
            tiles.append(tile(name, f"{run.results[name]:.3f}", "", detail))
    n, peak = run.n_gaussians, int(max(run.column("n_gaussians"), default=0))
    if n is not None:
        detail = f"{_percent(100 * (1 - n / peak))} % below the peak" if peak > n else ""
        if base is not None and base.n_gaussians is not None:
            detail = f"{base.method_name}: {base.n_gaussians:,}"
        noun = "Anchors" if run.settings.get("representation") == "neural" else "Gaussians"
        tiles.append(tile(noun, f"{n:,}", "", detail))
    if run.ply_bytes is not None:
        detail = "as .ply"
        if base is not None and base.ply_bytes is not None:
            detail = f"{base.method_name}: {base.ply_bytes / 1e6:.3g} MB"
        tiles.append(tile("Model", f"{run.ply_bytes / 1e6:.3g}", "MB", detail))
    timing = run.history.get("timing", {})
    if "train_seconds" in timing:
        rate = timing.get("iterations_per_second")
        detail = f"{rate:.3g} iterations/s" if rate else ""
        tiles.append(tile("Training", *duration(timing["train_seconds"]), detail))
    if "fps" in run.stats:
        size = f"at {run.stats.get('width')}×{run.stats.get('height')}"
        tiles.append(tile("Rendering", *frame_rate(run.stats["fps"]), size))
    return tiles


def _percent(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1}f}"
