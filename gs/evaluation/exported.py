"""exports.json: what a run's models were exported as, and what that costs in quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SplatrimError
from ..files import write_json
from ..schema import fields, integer, mapped, maybe, number, read_checked, text
from .rendered import mark_of, method_name

EXPORTS = "exports.json"

_FILE = fields(
    {
        "file": text,
        "format": text,
        "sh_degree": integer(0, 3),
        "bytes": integer(0),
        "n_gaussians": integer(0),
        "psnr": maybe(number()),
        "ply_bytes": integer(0),
        "ply_psnr": maybe(number()),
        "views": integer(0),
        "split": text,
    },
    needs=("file", "format", "sh_degree", "bytes", "ply_bytes"),
)
_EXPORTS = mapped(fields({"model": text, "files": mapped(_FILE)}, needs=("model", "files")))


def read_exports(folder: Path, iteration: int) -> dict[str, dict[str, Any]]:
    """Exports of a saved model as it is now, by file name; {} for none.

    An entry has: file (relative to the run's folder), format, sh_degree, bytes, n_gaussians, psnr
    (dB, mean over `views` views of `split`, or null where it was not measured), and ply_bytes and
    ply_psnr, the same of the model's .ply.

    Raises:
        SplatrimError: exports.json or the run's record is broken.
    """
    path = folder / EXPORTS
    entry = read_checked(path, _EXPORTS).get(method_name(iteration)) if path.is_file() else None
    if entry is None or entry["model"] != mark_of(folder, iteration):
        return {}
    return {
        name: file for name, file in entry["files"].items() if (folder / file["file"]).is_file()
    }


def note_export(folder: Path, iteration: int, entry: Mapping[str, Any]) -> None:
    """Add an export to exports.json, in place of one of the same file.

    Raises:
        SplatrimError: it cannot be written. A broken exports.json is written anew.
    """
    try:
        known = read_checked(folder / EXPORTS, _EXPORTS) if (folder / EXPORTS).is_file() else {}
        files = read_exports(folder, iteration)
    except SplatrimError:
        known, files = {}, {}
    files = {**files, Path(entry["file"]).name: dict(entry)}
    noted = {"model": mark_of(folder, iteration), "files": files}
    write_json(folder / EXPORTS, {**known, method_name(iteration): noted})
