"""A model as an HTML page that anybody can open: `python -m gs.viewer -m OUT`.

One file holds viewer.js, the packed model (`packing.py`) and the cameras. It opens from a disk
without a network, and its content security policy forbids one. `fragment` gives the same for inside
another page, whose policy must allow `blob:` workers and inline scripts.
"""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.camera import Camera
from ..files import write_text
from .packing import PackedModel, pack

FOLDER = Path(__file__).parent
SAMPLED = 20_000  # Gaussians that say how far away a camera's subject is

_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)

STYLE = """
.splats { position: relative; overflow: hidden; width: 100%; height: 100%; background: #111;
  color: #fff; font: 14px/1.4 system-ui, sans-serif; outline: none; }
.splats canvas { display: block; width: 100%; height: 100%; touch-action: none; cursor: grab; }
.splats canvas:active { cursor: grabbing; }
.splats .panel { position: absolute; top: 10px; left: 10px; max-width: calc(100% - 20px);
  box-sizing: border-box; padding: 6px 8px; border-radius: 8px; background: rgba(0, 0, 0, .55);
  display: flex; flex-wrap: wrap; gap: 6px 8px; align-items: center; }
.splats .panel[hidden] { display: none; }
.splats select { max-width: 52vw; }
.splats select, .splats input { font: inherit; height: 28px; border-radius: 6px; border: 0; }
.splats input { width: 34px; padding: 2px; }
.splats summary { cursor: pointer; color: inherit; font: inherit; padding: 0; }
.splats details { margin: 0; }
.splats details[open] { flex-basis: 100%; }
.splats .message { position: absolute; inset: auto 0 50% 0; margin: 0 16px; text-align: center; }
.splats[data-state=shown] .message, .splats[data-state=moving] .message { display: none; }
"""

HELP = (
    "Drag or one finger: turn. Right button, Shift or two fingers: move. Wheel or pinch: nearer. "
    "W A S D Q E: fly. Arrows: turn. N, P: next and previous camera. R: back to the camera. "
    "H: hide this panel."
)


def write_page(
    path: str | Path,
    tensors: dict[str, Tensor],
    cameras: Sequence[Camera],
    *,
    title: str = "Gaussian splats",
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    sh_degree: int | None = None,
    antialiased: bool = False,
) -> int:
    """Write a page that shows a model, atomically.

    Args:
        path: The HTML file; missing folders are made.
        tensors: The model as `load_ply` gives it: means, quats, scales, opacities, sh0, shN.
        cameras: Views to choose from; the page opens at the first.
        title: Title of the page.
        background: Colour behind the Gaussians, in 0..1.
        sh_degree: Highest SH degree to keep; None keeps all.
        antialiased: Whether it is to be drawn so.

    Returns:
        Size of the file in bytes.

    Raises:
        ValueError: no camera, or a model that cannot be packed.
        SplatrimError: the file cannot be written.
    """
    options = {"sh_degree": sh_degree, "antialiased": antialiased}
    body = fragment(tensors, cameras, background=background, **options)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        "<style>html, body { margin: 0; height: 100%; background: #111; }</style></head>\n"
        f"<body>{body}<script>document.querySelector('.splats').focus()</script></body></html>\n"
    )
    write_text(path, text)
    return len(text.encode())


def fragment(
    tensors: dict[str, Tensor],
    cameras: Sequence[Camera],
    *,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    sh_degree: int | None = None,
    antialiased: bool = False,
) -> str:
    """The view as HTML for another page; it fills the element around it. As `write_page`."""
    if not cameras:
        raise ValueError("a page needs at least one camera")
    packed = pack(tensors, sh_degree)
    # "<" could end a script element early
    described = describe_scene(packed, tensors, cameras) | {"antialiased": antialiased}
    scene = json.dumps(described).replace("<", "\\u003c")
    model = base64.b64encode(packed.data).decode("ascii")
    color = "".join(f"{round(255 * min(max(c, 0.0), 1.0)):02x}" for c in background)
    return (
        f'<style>{STYLE}</style><div class="splats" tabindex="0"><canvas></canvas>'
        '<p class="message">Loading the 3D view …</p><div class="panel">'
        '<select aria-label="camera" title="camera"></select>'
        f'<input type="color" value="#{color}" aria-label="background" title="background">'
        f"<details><summary>Help</summary>{escape(HELP)}</details></div>"
        f'<script type="application/json" class="scene">{scene}</script>'
        f'<script type="text/plain" class="vertex">{_source("splats.vert")}</script>'
        f'<script type="text/plain" class="model">{model}</script></div>'
        f"<script>{_source('viewer.js')}</script>"
    )


def describe_scene(
    packed: PackedModel, tensors: dict[str, Tensor], cameras: Sequence[Camera]
) -> dict[str, Any]:
    """What viewer.js must know beside the model's bytes; positions are relative to its origin."""
    step = max(len(tensors["means"]) // SAMPLED, 1)
    sample = tensors["means"][::step].detach().double().cpu().numpy()
    views = describe_cameras(cameras, packed.origin, sample)
    return {
        "count": packed.n_gaussians,
        "degree": packed.degree,
        "scale_range": packed.scale_range,
        "color_range": packed.color_range,
        "sh_range": packed.sh_range,
        "origin": packed.origin.tolist(),
        "near": min(camera.near for camera in cameras),
        "up": upward(np.array([view["axes"] for view in views])).tolist(),
        "cameras": views,
    }


def describe_cameras(
    cameras: Sequence[Camera],
    origin: NDArray[np.float64],  # [3]
    sample: NDArray[np.float64],  # [M, 3]
) -> list[dict[str, Any]]:
    """Cameras as viewers place them, relative to `origin`; `sample` says how far things are."""
    return [_describe_camera(camera, origin, sample) for camera in cameras]


def _describe_camera(
    camera: Camera,
    origin: NDArray[np.float64],  # [3]
    sample: NDArray[np.float64],  # [M, 3]
) -> dict[str, Any]:
    """Axes in the world (right, down, forward), and how far in front the view turns about."""
    viewmat, K = camera.viewmat.double().numpy(), camera.K.double().numpy()
    axes, size = viewmat[:3, :3], np.array([camera.width, camera.height])
    points = sample @ axes.T + viewmat[:3, 3]
    points = points[points[:, 2] > camera.near]
    places = points[:, :2] / points[:, 2:] * K.diagonal()[:2] + K[:2, 2]
    central = (np.abs(places - size / 2) < size / 4).all(axis=1)
    depths = points[central if central.any() else slice(None), 2]
    return {
        "name": camera.image_name,
        "width": camera.width,
        "height": camera.height,
        "lens": [*K.diagonal()[:2].tolist(), *K[:2, 2].tolist()],
        "axes": axes.tolist(),
        "position": (-axes.T @ viewmat[:3, 3] - origin).tolist(),
        "distance": float(np.median(depths)) if len(depths) else 1.0,
    }


def upward(axes: NDArray[np.float64]) -> NDArray[np.float64]:  # [C, 3, 3] -> [3]
    """What points up in the world: at right angles to the cameras' horizons, near their mean up.

    Cameras that look down from one side have a mean up that leans; their horizons do not. The
    second term decides where horizons alone cannot.
    """
    rights, mean = axes[:, 0], -axes[:, 1].mean(axis=0)
    _, vectors = np.linalg.eigh(rights.T @ rights / len(axes) - 0.02 * np.outer(mean, mean))
    return vectors[:, 0] * (1 if vectors[:, 0] @ mean >= 0 else -1)


def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
