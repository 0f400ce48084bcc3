"""The report's 3D view: the model in the page, or in view.html beside it where it is large.

It is the page of `python -m gs.viewer`, which works from a disk without a network and opens at the
first test view.
"""

from __future__ import annotations

from html import escape

from ..errors import SplatrimError
from ..evaluation.metrics import read_image
from ..viewer.page import fragment, write_page
from ..viewer.run_model import load_shown
from .page import data_uri
from .run import Run

EMBEDDED = 6_000_000  # characters of HTML; more goes into a file of its own
FILE = "view.html"

_HOW = (
    "Drag, or swipe sideways, to turn; pinch to come nearer; N and P go through the cameras; "
    "Help has the rest."
)


def model_view(run: Run) -> tuple[str, str] | None:
    """The model to turn about; where it or its cameras are not to be had, the reason."""
    if run.iteration is None or run.ply_bytes is None:
        return None
    try:
        shown = load_shown(run.path, run.iteration)
        first = shown.cameras[0]
        options = {"background": shown.background, "antialiased": shown.antialiased}
        html = fragment(shown.tensors, shown.cameras, **options)
        if len(html) > EMBEDDED:
            size = write_page(
                run.path / FILE,
                shown.tensors,
                shown.cameras,
                title=shown.title,
                **options,
            )
            return "3D view", _link(run, size)
    except (SplatrimError, ValueError) as error:
        return "3D view", f'<p class="note">There is no 3D view: {escape(str(error))}.</p>'
    shape = f"--shape: {first.width / first.height:.4f}"
    return "3D view", (
        f'<div class="model" style="{shape}">{html}'
        '<button type="button" class="whole" aria-label="fill the window">&#x2922;</button></div>'
        f'<p class="note below">{_HOW}</p>'
    )


def _link(run: Run, size: int) -> str:
    """The way to view.html, over a picture of the first test view."""
    picture = ""
    if run.views:
        picture = f'<img src="{data_uri(read_image(run.views[0].rendering).numpy())}" alt="">'
    return (
        f'<a class="open" href="{FILE}">{picture}<span>Open the 3D view</span></a>'
        f'<p class="note below">{FILE}, {size / 1e6:.0f} MB, lies beside this page: send both. '
        f"{_HOW}</p>"
    )
