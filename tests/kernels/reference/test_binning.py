import pytest
import torch

from kernels.constants import ALPHA_MIN
from kernels.reference.binning import gaussian_spans, span_fragments, split_rows, tiles_per_gauss
from kernels.reference.projection import projection

W, H = 47, 29


def ellipses(n: int, seed: int, dtype: torch.dtype):
    """Round, flat, tiny and huge ones, many across the border of the image."""
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(n, 3, generator=g) * torch.tensor([3.0, 2.0, 3.0]) - torch.tensor(
        [1.5, 1, -1]
    )
    scales = torch.exp(torch.randn(n, 3, generator=g) * 1.5 - 3)
    opacities = torch.rand(n, generator=g) ** 3
    K = torch.tensor([[40.0, 0, 22], [0, 40.0, 16], [0, 0, 1]])
    inputs = (means, torch.randn(n, 4, generator=g), scales, opacities, torch.eye(4), K)
    settings = {"near_plane": 0.01, "far_plane": 1e10, "eps2d": 0.3}
    return projection(*(t.to(dtype) for t in inputs), width=W, height=H, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_spans_hold_every_visible_pixel_and_little_else(dtype: torch.dtype) -> None:
    p = ellipses(300, 0, dtype)
    seen = (p.radii > 0).all(-1)
    mean, cov, conic, opacity = p.means2d[seen], p.covars2d[seen], p.conics[seen], p.opacities[seen]
    spans = gaussian_spans(mean, cov, conic, opacity, W, H)
    gaussians, pixels = span_fragments(spans, W)
    covered = torch.zeros(len(mean), H * W, dtype=torch.bool)
    covered[gaussians, pixels] = True
    assert covered.sum() == len(pixels)  # none twice

    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    dx = x.flatten().to(dtype) + 0.5 - mean[:, :1]
    dy = y.flatten().to(dtype) + 0.5 - mean[:, 1:]
    A, B, C = conic.T[:, :, None]
    alpha = opacity[:, None] * torch.exp(-0.5 * (A * dx * dx + C * dy * dy) - B * dx * dy)
    visible = alpha >= ALPHA_MIN
    assert not (visible & ~covered).any()
    assert visible.sum() > 10_000
    assert (covered & ~visible).sum() < 0.01 * visible.sum()
    # What is culled reaches no pixel.
    culled = ~seen & (p.depths > 0.01)
    assert culled.any()
    dx = x.flatten().to(dtype) + 0.5 - p.means2d[culled][:, :1]
    dy = y.flatten().to(dtype) + 0.5 - p.means2d[culled][:, 1:]
    A, B, C = p.conics[culled].T[:, :, None]
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    assert (p.opacities[culled][:, None] * torch.exp(-sigma) < ALPHA_MIN).all()


def test_split_rows_partitions() -> None:
    p = ellipses(200, 1, torch.float32)
    seen = (p.radii > 0).all(-1)
    spans = gaussian_spans(
        p.means2d[seen], p.covars2d[seen], p.conics[seen], p.opacities[seen], W, H
    )
    whole = torch.stack(span_fragments(spans, W)).T
    bands = split_rows(spans, H, max_fragments=3000)
    assert len(bands) > 3
    parts = [torch.stack(span_fragments(band, W)).T for band in bands]
    assert all(
        len(part) <= 3000 or len(band.rows.unique()) == 1
        for part, band in zip(parts, bands, strict=True)
    )
    joined = torch.cat(parts)
    assert sorted(map(tuple, joined.tolist())) == sorted(map(tuple, whole.tolist()))


def test_tiles_per_gauss() -> None:
    means2d = torch.tensor([[8.0, 8.0], [16.0, 8.0], [100.0, 8.0], [24.0, 24.0], [8.0, 8.0]])
    radii = torch.tensor([[3, 3], [3, 3], [60, 3], [500, 500], [0, 0]], dtype=torch.int32)
    tiles = tiles_per_gauss(means2d, radii, 47, 29, 16)
    assert tiles.tolist() == [1, 2, 1, 6, 0]
