"""Records of many Gaussians, which projection makes and binning and blending take."""

from dataclasses import dataclass

from torch import Tensor

from ..constants import TILE_SIZE


@dataclass(frozen=True)
class Records:
    """Records of N Gaussians in C cameras: what binning and blending need of a projection.

    Rows may come from anywhere, such as another GPU or several projections one after the other.
    Each camera's rows are drawn front to back; rows of equal depth in ascending order of rows.
    """

    values: Tensor
    """[R, 16] float32, columns as in projection/record.py; differentiable."""
    gaussian_ids: Tensor | None
    """[R] int32: camera N + Gaussian; None with one camera, where nothing asks."""
    n_rows: Tensor | None
    """[1] int32: rows from here on are not there; None: all are."""
    n_cameras: int
    n_gaussians: int
    width: int
    """Of the images, in pixels."""
    height: int

    @property
    def tiles_x(self) -> int:
        """Tiles in a row of the image."""
        return -(-self.width // TILE_SIZE)

    @property
    def tiles_y(self) -> int:
        """Rows of tiles."""
        return -(-self.height // TILE_SIZE)


@dataclass(frozen=True)
class Projected(Records):
    """Records as a projection has made them, with what it knows besides."""

    means2d: Tensor
    """[C, N, 2] pixels, 0 where culled; differentiable."""
    masks: Tensor | None
    """[N] as given, or as drawn and then differentiable."""
    radii: Tensor
    """[C, N, 2] int32 half extents in pixels, 0 = culled."""
    rows: Tensor
    """[C, N] int32: row of the record, -1 = culled or beyond the capacity."""
    depth_keys: Tensor
    """[R] int32 bits of z, those of infinity in rows left over."""
    tile_counts: Tensor
    """[3, R] int32: of tiles, of bins, of bins by row of bins."""
    workspace: Tensor
    """int32, for binning."""
    counts: Tensor
    """[4] int32, a copy of the workspace's first once tile lists are made."""
    integers: Tensor
    """int32, in which radii, tile_counts and counts lie: integers_layout."""
