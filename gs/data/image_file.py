"""Image files: their size without decoding, and their pixels at the training resolution."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import SplatrimError
from .undistort import Undistortion

# What Pillow raises on a file that is damaged, foreign or absurdly large.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    AssertionError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112  # EXIF's tag
ROWS_AT_ONCE = 256  # composited together: bounds the memory of large images


def image_size(path: Path, name: str, *, upright: bool = False) -> tuple[int, int]:
    """Width and height from the header of an image; `name` is how errors call it.

    Args:
        upright: After turning it as EXIF says.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = upright and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            return (height, width) if turned else (width, height)
    except FileNotFoundError:
        raise SplatrimError(f"image {name} is missing: no file {path}") from None
    except UNREADABLE as error:
        raise unreadable(path, f"image {name}", error) from None


def orientation(path: Path, name: str) -> int:
    """EXIF's orientation of an image, 1 (as it lies in the file) to 8."""
    try:
        with Image.open(path) as image:
            value = image.getexif().get(ORIENTATION, 1)
    except UNREADABLE as error:
        raise unreadable(path, f"image {name}", error) from None
    return value if value in range(1, 9) else 1


def is_transparent(path: Path) -> bool:
    """Whether an image file has an alpha channel. False where it cannot be read."""
    try:
        with Image.open(path) as image:
            return _is_transparent(image)
    except UNREADABLE:
        return False


def transparency(path: Path, name: str, *, upright: bool) -> np.ndarray:  # [H, W] uint8
    """Alpha of an image, 255 where it has none; `name` is how errors call it.

    Args:
        upright: After turning it as EXIF says.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file) if upright else file
            if not _is_transparent(image):
                return np.full(image.size[::-1], 255, np.uint8)
            return np.array(image.convert("RGBA").getchannel("A"))
    except FileNotFoundError:
        raise SplatrimError(f"image {name} is missing: no file {path}") from None
    except UNREADABLE as error:
        raise unreadable(path, f"image {name}", error) from None


def check_size(name: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raise SplatrimError unless both sizes (width, height) are equal."""
    if size != expected:
        raise SplatrimError(
            f"image {name} has the wrong size: {size[0]}x{size[1]} pixels, "
            f"but its camera says {expected[0]}x{expected[1]}"
        )


def decode(
    path: Path,
    name: str,
    expected: tuple[int, int],
    size: tuple[int, int],
    white_background: bool,
    *,
    opaque: bool = False,
    upright: bool = False,
    undistortion: Undistortion | None = None,
) -> np.ndarray:  # [H, W, 3] uint8
    """Decode an image, composite its alpha over white or black, resize it (bicubic).

    16-bit grey becomes 8-bit.

    Args:
        path: The file.
        name: How errors call it.
        expected: Width and height that the file must have, upright where that is asked for.
        size: Width and height to return.
        white_background: White behind transparent pixels, else black.
        opaque: Take transparent pixels as if they were not.
        upright: Turn it as EXIF says.
        undistortion: Applied before resizing.
    """
    try:
        behind = "nothing" if opaque else "white" if white_background else "black"
        kept = undistortion and undistortion.kept_at(path, behind)
        if kept and kept.is_file():
            with Image.open(kept) as image:
                return _resized(image.convert("RGB"), size)
        with Image.open(path) as image:
            if upright:
                image = ImageOps.exif_transpose(image)
            check_size(name, image.size, expected)
            flat = _eight_bits(image, name)
            flat = flat.convert("RGB") if opaque else _composite(flat, white_background)
        if undistortion is not None:
            pixels = undistortion.apply(np.asarray(flat))
            if kept:
                undistortion.keep(pixels, kept)
            flat = Image.fromarray(pixels)
        return _resized(flat, size)
    except FileNotFoundError:
        raise SplatrimError(f"image {name} is missing: no file {path}") from None
    except UNREADABLE as error:
        raise unreadable(path, f"image {name}", error) from None


def _resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.array(image if image.size == size else image.resize(size))


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise SplatrimError(
            f"image {name} has pixels of type {image.mode}: convert it to 8-bit channels"
        )
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _composite(image: Image.Image, white_background: bool) -> Image.Image:
    if not _is_transparent(image):
        return image.convert("RGB")
    # before resizing, so that hidden colours do not bleed into the edges
    rgba = np.asarray(image.convert("RGBA"))
    flat = np.empty((*rgba.shape[:2], 3), np.uint8)
    for start in range(0, len(rgba), ROWS_AT_ONCE):
        rows = rgba[start : start + ROWS_AT_ONCE].astype(np.float32)
        alpha = rows[..., 3:] / 255
        rgb = rows[..., :3] * alpha + (255.0 if white_background else 0.0) * (1 - alpha)
        flat[start : start + ROWS_AT_ONCE] = np.rint(rgb)
    return Image.fromarray(flat)


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def unreadable(path: Path, what: str, error: BaseException) -> SplatrimError:
    """What to raise where a file cannot be read; `what` is how the sentence calls it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return SplatrimError(f"{what} cannot be read ({path}): {reason[:200]}")
