"""Image files: their size without decoding, and their pixels at the training resolution."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import SplatrimError

# What Pillow raises on a file that is damaged, foreign or absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def image_size(path: Path, name: str) -> tuple[int, int]:
    """Width and height from the header of an image; `name` is how errors call it."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise SplatrimError(f"image {name} is missing: no file {path}") from None
    except UNREADABLE as error:
        raise SplatrimError(f"image {name} cannot be read ({path}): {error}") from None


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
) -> np.ndarray:  # [H, W, 3] uint8
    """Decode an image, composite its alpha over white or black, resize it (bicubic).

    Args:
        path: The file.
        name: How errors call it.
        expected: Width and height that the file must have.
        size: Width and height to return.
        white_background: White behind transparent pixels, else black.
    """
    try:
        with Image.open(path) as image:
            check_size(name, image.size, expected)
            if image.mode[0] in "IF":
                raise SplatrimError(
                    f"image {name} has pixels of type {image.mode}: convert it to 8-bit channels"
                )
            if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
                # Composited before resizing, so that hidden colours do not bleed into the edges.
                rgba = np.asarray(image.convert("RGBA"), dtype=np.float32)
                alpha = rgba[..., 3:] / 255
                rgb = rgba[..., :3] * alpha + (255.0 if white_background else 0.0) * (1 - alpha)
                flat = Image.fromarray(np.rint(rgb).astype(np.uint8))
            else:
                flat = image.convert("RGB")
            return np.array(flat if flat.size == size else flat.resize(size))
    except FileNotFoundError:
        raise SplatrimError(f"image {name} is missing: no file {path}") from None
    except UNREADABLE as error:
        raise SplatrimError(f"image {name} cannot be read ({path}): {error}") from None
