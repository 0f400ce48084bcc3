"""Image files by the names that a scene's description gives them.

Descriptions outlive their files' names: images are converted (.jpg to .png), copied from a system
that ignores case or writes backslashes, or moved to another folder. A name that is no file is
looked up by ever less of itself: without case, without extension, without leading folders.
"""

import logging
import os
import re
from collections import defaultdict
from pathlib import Path

from ..errors import SplatrimError

SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pnm",
    ".tga",
    ".gif",
    ".jp2",
    ".avif",
    ".heic",
    ".dng",
}
ENDS = (".png", ".jpg", ".jpeg")  # that a name may leave out
SHOWN = 5  # names in an error

logger = logging.getLogger("splatrim")


def find_images(folder: Path, names: list[str]) -> list[Path]:
    """The files of `names` in `folder`.

    Raises:
        SplatrimError: lists names that are missing, or that fit several files.
    """
    plain = [_plain(name) for name in names]
    paths = [_file(folder, name) for name in plain]
    if all(paths):
        return [path for path in paths if path is not None]
    index = _Index(folder)
    taken = {path for path in paths if path is not None}
    renamed: list[str] = []
    missing: list[str] = []  # as they are looked for
    for i, name in enumerate(plain):
        if paths[i] is not None:
            continue
        found = index.look_up(name, names[i])
        if found is None or found in taken:
            missing.append(name)
        else:
            paths[i] = found
            taken.add(found)
            renamed.append(f"{names[i]} is {found.relative_to(folder).as_posix()}")
    if missing:
        raise SplatrimError(_missing(folder, missing, len(names)))
    logger.info(
        f"{len(renamed)} of {len(names)} images have other names in {folder}: {renamed[0]}"
        + (f" (and {len(renamed) - 1} more)" if len(renamed) > 1 else "")
    )
    return [path for path in paths if path is not None]


def _file(folder: Path, name: str) -> Path | None:
    """The file of that name, which may leave out its extension."""
    for suffix in ("", *ENDS):
        path = folder / f"{name}{suffix}"
        if os.path.isfile(path):
            return path
    return None


def _missing(folder: Path, missing: list[str], total: int) -> str:
    if len(missing) == 1:
        return f"image {missing[0]} is missing: no file {folder / missing[0]}"
    shown = ", ".join(missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return f"{len(missing)} of {total} images are missing in {folder}: {shown}{more}"


def _plain(name: str) -> str:
    """With slashes, without "./" and without a drive."""
    name = re.sub(r"^[A-Za-z]:(?=[/\\])", "", name).replace("\\", "/").replace("\0", "")
    while name.startswith("./"):
        name = name[2:]
    return name


class _Index:
    """The image files below a folder, by their lower-case paths and by the ends of those."""

    def __init__(self, folder: Path) -> None:
        self._by_end: dict[str, list[Path]] = defaultdict(list)
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                if suffix.lower() not in SUFFIXES:
                    continue
                path = Path(place, file)
                *parents, _ = path.relative_to(folder).parts
                for last in (file, stem):
                    words = [*parents, last]
                    for start in range(len(words)):
                        end = "/".join(words[start:]).lower()
                        # "/" marks a whole path
                        self._by_end[end if start else "/" + end].append(path)
                        if not start:
                            self._by_end[end].append(path)

    def look_up(self, name: str, shown: str) -> Path | None:
        """The one file that fits `name` best; None where there is none."""
        words = name.lower().strip("/").split("/")
        stem, suffix = os.path.splitext(words[-1])
        lasts = [words[-1], stem] if suffix in SUFFIXES else [words[-1]]
        for start in range(len(words)):
            for last in lasts:
                end = "/".join([*words[start:-1], last])
                whole = self._by_end.get("/" + end) if start == 0 else None
                found = whole or self._by_end.get(end)
                if not found:
                    continue
                if len(found) > 1:
                    files = " and ".join(str(path) for path in found[:2])
                    raise SplatrimError(f"image {shown} is no file, and several fit it: {files}")
                return found[0]
        return None
