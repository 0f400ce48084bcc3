"""Line charts and histograms as inline SVG, without script or font from outside.

Colours come from the page's CSS variables. A chart is 380 units wide, so that its text stays
readable on a phone. The page's script reads the points from a chart's `data-chart` and shows values
under the pointer (gs.report.page).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 12, 36
MAX_POINTS = 300  # of a line; more are averaged in groups


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    """Values that are not finite are left out."""
    color: int = 1
    """1 to 8: the page's series colours."""
    style: Literal["line", "faint", "points"] = "line"
    """faint: thin and pale, behind a smoothed line; points: a line with a dot at each value."""


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_format: Callable[[float], str] = lambda y: f"{y:.4g}",
    from_zero: bool = False,
    log_y: bool = False,
    x_from_zero: bool = False,
) -> str:
    """Draw series over a common x axis.

    Args:
        series: What to draw, the backmost first. Lines that are not "faint" get a legend if there
            are several.
        x_label: Below the x axis.
        y_label: Above the y axis.
        y_format: Text of a value, on the axis and under the pointer.
        from_zero: Begin the y axis at 0.
        log_y: Space the y axis by the logarithm; values that are not above 0 are left out.
        x_from_zero: Begin the x axis at 0.

    Returns:
        HTML, or "" where there is nothing to draw.
    """
    lowest = 0.0 if log_y else -math.inf
    lines = [(s, _thin([p for p in _finite(s.x, s.y) if p[1] > lowest])) for s in series]
    lines = [(s, points) for s, points in lines if points]
    if not lines:
        return ""
    xs = [x for _, points in lines for x, _ in points] + ([0.0] if x_from_zero else [])
    ys = [y for _, points in lines for _, y in points]
    x_ticks = nice_ticks(min(xs), max(xs), 5)
    if log_y:
        y_ticks = log_ticks(min(ys), max(ys))
    else:
        y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys), 5, cover=True)
    scale = math.log if log_y else float
    x_range = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    y_range = (scale(y_ticks[0]), scale(y_ticks[-1]))

    def px(x: float) -> float:
        share = (x - x_range[0]) / (x_range[1] - x_range[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        share = (scale(y) - y_range[0]) / (y_range[1] - y_range[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(x_ticks, y_ticks, px, py, y_format, x_label)]
    for s, points in lines:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="{s.style} s{s.color}" points="{path}"/>')
        if s.style == "points":
            radius = 4 if len(points) <= 12 else 3
            parts += [
                f'<circle class="dot s{s.color}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="{radius}"/>'
                for x, y in points
            ]
    shown = [(s, points) for s, points in lines if s.style != "faint"]
    data = {
        "x": x_label,
        "series": [
            {
                "name": s.name,
                "color": s.color,
                "points": [[round(px(x), 1), round(py(y), 1), x, y_format(y)] for x, y in points],
            }
            for s, points in shown
        ],
    }
    legend = ""
    if len(shown) > 1:
        keys = (f'<span class="key s{s.color}">{escape(s.name)}</span>' for s, _ in shown)
        legend = f'<div class="legend">{"".join(keys)}</div>'
    return _chart(parts, data, x_label, y_label, legend)


def histogram_chart(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    color: int = 1,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draw counts between edges as bars.

    Args:
        edges: One more than counts, ascending.
        counts: Heights of the bars.
        x_label: Below the x axis.
        y_label: Above the y axis.
        color: 1, 2 or 3: the page's series colours.
        log_x: Space the x axis by the logarithm of the edges, which are above 0 then.
        log_y: Draw log(1 + count), to show the few beside the many.

    Returns:
        HTML, or "" where there is nothing to draw.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"histogram_chart: {len(edges)} edges do not enclose {len(counts)} bars")
    if not any(counts):
        return ""
    at = [math.log10(x) for x in edges] if log_x else list(edges)
    low, high = at[0], at[-1] if at[-1] > at[0] else at[0] + 1
    if log_y:
        y_ticks = [0.0, *(10.0**k for k in range(math.ceil(math.log10(max(counts))) + 1))]
    else:
        y_ticks = nice_ticks(0.0, max(counts), 5, cover=True)

    def place(x: float) -> float:
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def px(x: float) -> float:
        return place(math.log10(x) if log_x else x)

    def py(y: float) -> float:
        share = math.log1p(y) / math.log1p(y_ticks[-1]) if log_y else y / y_ticks[-1]
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    x_ticks = _decades(edges[0], edges[-1]) if log_x else nice_ticks(low, high, 5)
    parts = [_axes(x_ticks, y_ticks, px, py, compact, x_label)]
    points = []
    for left, right, a, b, count in zip(at, at[1:], edges, edges[1:], counts, strict=False):
        x0, x1, top = place(left), place(right), py(count)
        points.append([round((x0 + x1) / 2, 1), round(top, 1), f"{a:.3g} to {b:.3g}", f"{count:,}"])
        if count:
            box = f'x="{x0:.2f}" y="{top:.1f}" width="{x1 - x0:.2f}"'
            parts.append(f'<rect class="bar s{color}" {box} height="{HEIGHT - BOTTOM - top:.1f}"/>')
    data = {"x": x_label, "series": [{"name": "Gaussians", "color": color, "points": points}]}
    return _chart(parts, data, x_label, y_label)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, fewer at both ends, without those that are not finite."""
    half = window // 2
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        means.append(math.fsum(near) / len(near) if near else math.nan)
    return means


def smoothed(values: Sequence[float]) -> list[float]:
    """The moving average over a fortieth of the values."""
    return moving_average(values, max(1, len(values) // 40))


def nice_ticks(low: float, high: float, count: int, *, cover: bool = False) -> list[float]:
    """Round values (1, 2, 5 times a power of ten) from low to high; with `cover` they enclose both.

    Always at least two.
    """
    if not high > low:
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.floor(low / step + 1e-9) if cover else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if cover else math.floor(high / step + 1e-9)
    # from whole multiples: adding steps up would give 0.30000000000000004
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten that enclose low and high, both above 0; at least two.

    Where these are more than eight, powers of ten alone.
    """
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
    start = max(i for i, tick in enumerate(every) if tick <= low * (1 + 1e-9))
    ends = [i for i, tick in enumerate(every) if tick >= high * (1 - 1e-9)]
    ticks = every[start : max(ends[0], start + 1) + 1]
    if len(ticks) > 8:
        ticks = [10.0**k for k in range(first, last + 1, 1 + (last - first) // 8)]
        ticks += [10.0**last] if ticks[-1] < high else []
    return [float(f"{tick:.6g}") for tick in ticks]


def compact(value: float) -> str:
    """950, 12.3k, 4.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def _axes(
    x_ticks: list[float],
    y_ticks: list[float],
    px: Callable[[float], float],
    py: Callable[[float], float],
    y_format: Callable[[float], str],
    x_label: str,
) -> str:
    parts = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for y in y_ticks:
        kind = "axis" if y == y_ticks[0] else "grid"
        at = f"{py(y):.1f}"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text x="{LEFT - 7}" y="{at}" dy="4" text-anchor="end">{escape(y_format(y))}</text>'
        )
    for x in x_ticks:
        if px(x) <= right + 0.5:
            anchor = "end" if px(x) > right - 12 else "middle"
            place = f'x="{px(x):.1f}" y="{bottom + 16}" text-anchor="{anchor}"'
            parts.append(f"<text {place}>{compact(x)}</text>")
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return "".join(parts)


def _chart(
    parts: Sequence[str], data: dict[str, Any], x_label: str, y_label: str, legend: str = ""
) -> str:
    """The frame around drawn parts, with what the page's script shows under the pointer."""
    label = f"{y_label} over {x_label}"
    return (
        f'<div class="chart" data-chart="{escape(json.dumps(data))}">'
        f'<div class="chart-head"><h3>{escape(y_label)}</h3>{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{"".join(parts)}<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg></div>'
    )


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, at most seven; the ends where there are fewer than two."""
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    if last <= first:
        return [low, high]
    return [10.0**k for k in range(first, last + 1, 1 + (last - first) // 7)]


def _finite(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    pairs = zip(x, y, strict=False)
    return [(a, b) for a, b in pairs if b is not None and math.isfinite(a) and math.isfinite(b)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS, each the mean of a run of neighbours; the last point stays."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(g[-1][0], math.fsum(y for _, y in g) / len(g)) for g in groups[:-1]]
    return [*means, points[-1]]
