"""What making Gaussians of anchors has cost: bake.json, which `python -m gs.bake` writes."""

from ..schema import fields, integer, number, read_checked
from .page import pairs_table
from .run import Run

_COUNT, _DB = integer(0), number(-1e3, 1e3)
_BAKED = fields(
    {
        **dict.fromkeys(("n_anchors", "n_gaussians", "neural_bytes", "baked_bytes"), _COUNT),
        **dict.fromkeys(("psnr_neural", "psnr_baked", "psnr_polished"), _DB),
    },
    needs=("n_anchors", "n_gaussians", "neural_bytes", "baked_bytes", "psnr_neural", "psnr_baked"),
)


def baking(run: Run) -> tuple[str, str] | None:
    """What making Gaussians of anchors has cost, where `python -m gs.bake` has run."""
    path = run.path / "bake.json"
    if not path.is_file():
        return None
    found = read_checked(path, _BAKED)
    rows = [
        ("Anchors", f"{found['n_anchors']:,}"),
        ("Gaussians", f"{found['n_gaussians']:,}"),
        ("PSNR, decoded", f"{found['psnr_neural']:.2f} dB"),
        ("PSNR, baked", f"{found['psnr_baked']:.2f} dB"),
    ]
    if "psnr_polished" in found:
        rows.append(("PSNR, baked and polished", f"{found['psnr_polished']:.2f} dB"))
    rows.append(
        ("Size", f"{found['neural_bytes'] / 1e6:.3g} MB, baked {found['baked_bytes'] / 1e6:.3g} MB")
    )
    note = (
        "Baking loses what opacity, scale and rotation have of the view, and of colour what"
        " spherical harmonics of degree 3 cannot follow."
    )
    return "Baked Gaussians", f'{pairs_table(rows)}<p class="note">{note}</p>'
