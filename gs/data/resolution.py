"""The size to train at, by the rules of `-r`."""

from ..errors import SplatrimError


def check_resolution(resolution: int) -> None:
    """Raise SplatrimError unless `-r` can mean something."""
    if resolution != -1 and resolution < 1:
        raise SplatrimError(
            f"-r {resolution} is not a resolution: give 1, 2, 4 or 8 to divide by, "
            "-1 for at most 1600 pixels wide, or a width in pixels"
        )


def training_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height to train at, for a file of width x height.

    1, 2, 4, 8 divide and round; -1 makes files wider than 1600 pixels 1600 wide; any other value
    is the width to train at. The last two truncate a floating-point quotient as 3DGS does, so that
    sizes equal the published ones; the width can come out one less than asked.
    """
    check_resolution(resolution)
    if resolution in (1, 2, 4, 8):
        size = round(width / resolution), round(height / resolution)
    else:
        target = min(width, 1600) if resolution == -1 else resolution
        scale = width / target
        size = int(width / scale), int(height / scale)
    if min(size) < 1:
        raise SplatrimError(
            f"-r {resolution} leaves nothing of an image of {width}x{height} pixels"
        )
    return size
