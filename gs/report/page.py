"""The page around a report: style, script, tables, tiles and images, all inline.

The page asks the network for nothing; its content security policy forbids it to.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_IMAGE_WIDTH = 720  # shown a third of the page wide; twice that for sharp screens
MAX_SHOWN_HEIGHT = 440  # CSS pixels
LOSSLESS_PIXELS = 120_000  # up to this size PNG; larger images become JPEG

# nine stops of matplotlib's "magma" (CC0)
ERROR_COLORS = (
    "#000004",
    "#1c1044",
    "#4f127b",
    "#812581",
    "#b5367a",
    "#e55964",
    "#fb8761",
    "#fec287",
    "#fcfdbf",
)

_CSP = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

STYLE = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #14140f; --ink2: #55544f; --muted: #85837c;
  --grid: #e6e5df; --axis: #bfbeb5; --line: rgba(20, 20, 15, .12); --soft: #f1f1ed;
  --s1: #2a78d6; --s2: #d9571f; --s3: #14936a; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f0f0e; --card: #1a1a19; --ink: #f4f4ef; --ink2: #c0bfb5; --muted: #8f8d85;
  --grid: #2d2d2a; --axis: #4a4a45; --line: rgba(255, 255, 255, .13); --soft: #232321;
  --s1: #4a94ea; --s2: #e8743f; --s3: #2bb184; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 48px; }
header { margin-bottom: 20px; }
h1 { font-size: 1.7rem; font-weight: 650; letter-spacing: -.015em; margin: 0; }
h2 { font-size: 1.15rem; font-weight: 650; margin: 40px 0 12px; }
h3 { font-size: .88rem; font-weight: 600; margin: 0; }
header p, .note { color: var(--ink2); margin: 4px 0 0; font-size: .92rem; }
.note { margin: 0 0 12px; max-width: 75ch; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--soft); padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
.charts + .note { margin-top: 24px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; }
.tile, .chart, .view, .box { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tile { flex: 1 1 136px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.55rem; font-weight: 620; letter-spacing: -.02em;
  white-space: nowrap; }
.tile b small { font-size: .85rem; font-weight: 500; color: var(--ink2); letter-spacing: 0; }
.tile span { display: block; color: var(--ink2); font-size: .82rem; }
.tile em { display: block; font-style: normal; color: var(--muted); font-size: .78rem;
  margin-top: 2px; }
.charts { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.chart { position: relative; padding: 12px 12px 8px; }
.chart-head { display: flex; flex-wrap: wrap; gap: 2px 16px; justify-content: space-between;
  padding: 0 4px 6px; }
.legend { display: flex; gap: 14px; font-size: .8rem; color: var(--ink2); }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; background: var(--c); }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted);
  font-variant-numeric: tabular-nums; }
polyline { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round; }
.bar { fill: var(--c); stroke: var(--card); stroke-width: .5; }
polyline.faint { stroke-width: 1; opacity: .35; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 2; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); }
.cursor { stroke: var(--muted); visibility: hidden; }
.tip { position: absolute; pointer-events: none; visibility: hidden; background: var(--ink);
  color: var(--page); padding: 6px 9px; border-radius: 6px; font-size: .78rem; white-space: nowrap;
  z-index: 2; }
.tip .key { display: block; }
.view { padding: 12px; margin-bottom: 12px; }
.view-head { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline;
  margin-bottom: 8px; }
.view-head span { color: var(--ink2); font-size: .85rem; font-variant-numeric: tabular-nums; }
.triple { display: grid; grid-template-columns: repeat(3, minmax(0, var(--width))); gap: 8px; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 5px; background: #000; }
figcaption { color: var(--muted); font-size: .78rem; margin-top: 4px; }
.flip { cursor: pointer; }
.scale { display: flex; align-items: center; gap: 8px; font-size: .8rem; color: var(--ink2);
  margin-bottom: 12px; flex-wrap: wrap; font-variant-numeric: tabular-nums; }
.scale i { width: 180px; height: 10px; border-radius: 5px; }
.box { overflow-x: auto; max-width: 760px; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { padding: 6px 14px; text-align: left; border-bottom: 1px solid var(--grid);
  vertical-align: top; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--ink2); font-size: .8rem; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.pairs td:first-child { color: var(--ink2); width: 1%; white-space: nowrap; }
.columns { display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--ink2); font-size: .9rem; padding: 4px 0; }
details > .box, details > .columns { margin-top: 8px; }
caption { text-align: left; font-weight: 600; font-size: .88rem; padding: 10px 14px 6px; }
footer { margin-top: 40px; color: var(--muted); font-size: .8rem; }
@media (max-width: 620px) {
  main { padding: 20px 12px 32px; }
  h1 { font-size: 1.35rem; }
  .tile b { font-size: 1.3rem; }
  .triple.wide { grid-template-columns: 1fr 1fr; }
  .triple.wide figure:last-child { grid-column: 1 / -1; }
  th, td { padding: 6px 10px; }
}
@media print { .view, .chart, .tile { break-inside: avoid; } }
"""

SCRIPT = """
for (const chart of document.querySelectorAll('.chart')) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector('svg');
  const cursor = svg.querySelector('.cursor'), tip = document.createElement('div');
  tip.className = 'tip';
  chart.append(tip);
  const hide = () => { cursor.style.visibility = tip.style.visibility = 'hidden'; };
  const show = event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const near = data.series.map(s => s.points.reduce(
      (best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
    const at = near.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best);
    cursor.setAttribute('x1', at[0]); cursor.setAttribute('x2', at[0]);
    tip.textContent = data.x + ' ' + at[2].toLocaleString('en');
    near.forEach((p, i) => {
      if (Math.abs(p[0] - at[0]) > 6) return;
      const row = document.createElement('span');
      row.className = 'key s' + data.series[i].color;
      row.textContent = data.series[i].name + ' ' + p[3];
      tip.append(row);
    });
    const left = at[0] / scale + 12, room = chart.clientWidth;
    const place = left + 12 + tip.offsetWidth < room ? left + 12 : left - tip.offsetWidth - 12;
    tip.style.left = Math.max(4, place) + 'px';
    tip.style.top = chart.clientHeight * .3 + 'px';
    cursor.style.visibility = tip.style.visibility = 'visible';
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', hide);
}
for (const image of document.querySelectorAll('.flip')) {
  const truth = image.closest('.triple').querySelector('img'), own = image.src;
  image.addEventListener('pointerdown', () => { image.src = truth.src; });
  for (const end of ['pointerup', 'pointerleave', 'pointercancel'])
    image.addEventListener(end, () => { image.src = own; });
}
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """A whole document. Sections are (heading, HTML); an empty heading leaves it out."""
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{html}</section>\n"
        for heading, html in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body><main><header><h1>{escape(title)}</h1>"
        f"<p>{escape(subtitle)}</p></header>\n{body}<footer>{escape(footer)}</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def tile(label: str, value: str, unit: str = "", detail: str = "") -> str:
    """A headline number."""
    small = f" <small>{escape(unit)}</small>" if unit else ""
    more = f"<em>{escape(detail)}</em>" if detail else ""
    return (
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}{small}</b>{more}</div>'
    )


def pairs_table(rows: Sequence[tuple[str, str]], caption: str = "") -> str:
    """Names and values."""
    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<div class="box"><table class="pairs">{head}{body}</table></div>'


def number_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A first column of names, and numbers aligned to the right."""
    kinds = ["", *[' class="number"'] * (len(columns) - 1)]
    head = "".join(f"<th{k}>{escape(c)}</th>" for k, c in zip(kinds, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{escape(c)}</td>' for k, c in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def details(summary: str, html: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def figure(pixels: NDArray[np.uint8], caption: str, *, flip: bool = False) -> str:
    """An image [H,W,3]; with `flip` it shows the first image of its row while pressed."""
    kind = ' class="flip" draggable="false"' if flip else ""
    height, width = pixels.shape[:2]
    return (
        f'<figure><img{kind} src="{data_uri(pixels)}" width="{width}" height="{height}" '
        f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def triple(figures: Sequence[str], *, width: int, height: int) -> str:
    """Three figures of one size side by side; tall ones keep below MAX_SHOWN_HEIGHT."""
    kind = "triple wide" if width > height else "triple"
    limit = MAX_SHOWN_HEIGHT * width / height
    return f'<div class="{kind}" style="--width: {limit:.0f}px">{"".join(figures)}</div>'


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image [H,W,3] as a data: address, reduced to MAX_IMAGE_WIDTH."""
    image = Image.fromarray(pixels)
    if image.width > MAX_IMAGE_WIDTH:
        height = max(1, round(image.height * MAX_IMAGE_WIDTH / image.width))
        image = image.resize((MAX_IMAGE_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if image.width * image.height <= LOSSLESS_PIXELS:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=88, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def error_map(error: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """Colours [H,W,3] of errors [H,W]: 0 is black, `top` and more is the lightest."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ERROR_COLORS], np.float32)
    at = np.clip(error / top, 0.0, 1.0) * (len(stops) - 1)
    low = np.minimum(at.astype(np.int64), len(stops) - 2)
    share = (at - low)[..., None]
    return (stops[low] * (1 - share) + stops[low + 1] * share + 0.5).astype(np.uint8)


def error_legend(top: float) -> str:
    """The scale of error maps."""
    colors = ", ".join(ERROR_COLORS)
    return (
        f'<div class="scale"><span>Error, mean over channels of |rendering &minus; truth|:</span>'
        f'<span>0</span><i style="background: linear-gradient(90deg, {colors})"></i>'
        f"<span>{top:g} or more (of 1)</span></div>"
    )
