"""The report's sections on photographs: which were corrected and by how much, and their masks."""

from __future__ import annotations

import math
from html import escape

import numpy as np
from PIL import Image

from ..data.image_file import UNREADABLE
from ..errors import SplatrimError
from ..evaluation.rendered import COUNTED
from ..model.light import Light, read_light
from ..run_record import saved_models
from ..training.run_files import MASKED_VIEW
from .page import details, figure, number_table, side_by_side
from .run import Run

MOST_SHOWN = 10  # images in the open table
DIMMED = 0.25  # of what a mask hides


def corrections(run: Run) -> tuple[str, str] | None:
    """What training found to have happened to the light of each image, the most changed first."""
    ply = None if run.iteration is None else saved_models(run.path).get(run.iteration)
    light = None if ply is None else read_light(ply.parent)
    if light is None:
        return None
    gains = light.gains()
    stops = {name: _stops(gain) for name, gain in gains.items()}
    mean = math.fsum(stops.values()) / max(len(stops), 1)
    order = sorted(gains, key=lambda name: -abs(stops[name] - mean))
    rows = []
    for name in order:
        red, green, blue = (max(x, 1e-6) for x in gains[name])
        cells = f"{stops[name] - mean:+.2f}", f"{red / green:.3f}", f"{blue / green:.3f}"
        rows.append([name, *cells])
    spread = max((abs(x - mean) for x in stops.values()), default=0.0)
    what = {
        "affine": "a 3x4 matrix of its colours",
        "ppisp": "exposure and colour, and for each lens its vignetting",
    }[light.kind]
    note = (
        f"For each of {len(gains)} training images training has learnt {what}"
        f" (<code>--exposure {light.kind}</code>). The table says what a mid grey became: its"
        f" brightness beside the mean of all images (at most {spread:.2f} stops off), and red and"
        " blue beside green. Test views are shown in the mean light of the training images, which"
        " no test image had a part in; <em>PSNR_cc</em> is that of views whose colours have been"
        " fitted to the truth. Viewers and .ply show the scene without any."
    )
    columns = ["Image", "Exposure, stops", "Red / green", "Blue / green"]
    html = f'<p class="note">{note}</p>{number_table(columns, rows[:MOST_SHOWN])}'
    if len(rows) > MOST_SHOWN:
        rest = number_table(columns, rows[MOST_SHOWN:])
        html += details(f"{len(rows) - MOST_SHOWN} images that were corrected less", rest)
    if light.kind == "ppisp":
        shares = [[name, f"{share:.3f}"] for name, share in _corners(light).items()]
        html += number_table(["Lens", "Light in the corners"], shares)
    return "Light", html


def masks(run: Run) -> tuple[str, str] | None:
    """An image beside its mask, and what of it counts."""
    path = run.path / MASKED_VIEW
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGBA"))
    except UNREADABLE as error:
        raise SplatrimError(f"cannot read the image {path}: {error}") from error
    colors, counted = pixels[..., :3], pixels[..., 3] > 127
    dimmed = np.where(counted[..., None], colors, (DIMMED * colors).astype(np.uint8))
    mask = np.repeat(np.where(counted, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    figures = [figure(colors, "Image"), figure(mask, "Mask"), figure(dimmed, "What counts")]
    n = run.settings.get("masked_images")
    many = f"{n} images have masks. " if isinstance(n, int) else ""
    note = (
        f"{many}Black pixels teach nothing, and metrics leave them out: of this image"
        f" {counted.mean():.1%} count."
    )
    if COUNTED in run.results:
        note += f" Of the test views {run.results[COUNTED]:.1%} count."
    html = side_by_side(figures, width=colors.shape[1], height=colors.shape[0])
    return "Masks", f'<p class="note">{escape(note)}</p>{html}'


def _stops(gain: tuple[float, float, float]) -> float:
    return math.log2(max(math.fsum(gain) / 3.0, 1e-6))


def _corners(light: Light) -> dict[str, float]:
    """What each lens lets through in the corners of an image of 3:2, green."""
    q = (3.0**2 + 2.0**2) / (4.0 * 3.0**2)
    found = {}
    for name, row in zip(light.lens_names, light.lenses.detach().tolist(), strict=True):
        a1, a2, a3 = row[7:10]
        found[name] = min(max(1.0 + q * (a1 + q * (a2 + q * a3)), 0.0), 1.0)
    return found
