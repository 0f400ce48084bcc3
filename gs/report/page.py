"""The page around a report: style, script, tables, tiles and images, all inline.

The page asks the network for nothing; its content security policy forbids it to.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parent
MAX_IMAGE_WIDTH = 1080  # shown half the page wide; twice that for sharp screens
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
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)


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
        f"<style>{_source('report.css')}</style></head>\n<body><main><header><h1>{escape(title)}</h1>"
        f"<p>{escape(subtitle)}</p></header>\n{body}<footer>{escape(footer)}</footer></main>"
        f"<script>{_source('report.js')}</script></body></html>\n"
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


def run_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As number_table, of cells that are HTML; as wide as the page."""
    kinds = ["", *[' class="number"'] * (len(columns) - 1)]
    head = "".join(f"<th{k}>{escape(c)}</th>" for k, c in zip(kinds, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return (
        '<div class="box runs"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, html: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def figure(pixels: NDArray[np.uint8], caption: str) -> str:
    """An image [H,W,3]."""
    return (
        f"<figure>{_image(pixels, caption)}"
        f"<figcaption><span>{escape(caption)}</span></figcaption></figure>"
    )


def slider(
    left: NDArray[np.uint8],  # [H, W, 3]
    left_caption: str,
    right: NDArray[np.uint8],  # [H, W, 3]
    right_caption: str,
) -> str:
    """Two images of one size, one over the other, with a line between them to drag."""
    return (
        f"<figure>{_slide(_image(left, left_caption), _image(right, right_caption))}"
        f"<figcaption><span>{escape(left_caption)}</span>"
        f"<span>{escape(right_caption)}</span></figcaption></figure>"
    )


def picker(images: Sequence[tuple[str, NDArray[np.uint8]]]) -> str:
    """A slider between any two of several images of one size, given with their captions."""
    captions = [caption for caption, _ in images]
    sides = []
    for side, chosen in (("left", 0), ("right", 1)):
        options = "".join(
            f'<option value="{i}"{" selected" if i == chosen else ""}>{escape(caption)}</option>'
            for i, caption in enumerate(captions)
        )
        sides.append(f'<select class="{side}" aria-label="image on the {side}">{options}</select>')
    kept = "".join(f'<img src="{data_uri(pixels)}" alt="">' for _, pixels in images[2:])
    two = [_image(pixels, caption) for caption, pixels in images[:2]]
    return (
        f'<figure class="picker">{_slide(*two)}<figcaption>{"".join(sides)}</figcaption>'
        f"<div hidden>{kept}</div></figure>"
    )


def _slide(left: str, right: str) -> str:
    return (
        f'<div class="slide">{left}{right}<input type="range" min="0" max="100" step="0.5" '
        'value="50" aria-label="place of the line between the two images"><i></i></div>'
    )


def side_by_side(figures: Sequence[str], *, width: int, height: int) -> str:
    """Figures of one size in a row, below each other on a phone; tall ones are limited."""
    limit = MAX_SHOWN_HEIGHT * width / height
    return f'<div class="duo" style="--width: {limit:.0f}px">{"".join(figures)}</div>'


def _image(pixels: NDArray[np.uint8], caption: str) -> str:
    height, width = pixels.shape[:2]
    return (
        f'<img src="{data_uri(pixels)}" width="{width}" height="{height}" '
        f'alt="{escape(caption)}" draggable="false">'
    )


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


def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
