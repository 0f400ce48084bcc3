"""The record's columns: kernels and host find the same numbers under the same names."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.device.transpose import join16
from kernels.projection import record
from kernels.projection.record import (
    DEPTH_FEATURE,
    HALVES,
    RECORD_SIZE,
    load_gradient,
    split_gradient,
    spread,
    spread_pairs,
    store_record,
)
from kernels.runtime.launch import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N = 8


@triton.jit
def _store_kernel(values_ptr, records_ptr, N: tl.constexpr):
    """Row i from row N - 1 - i of values [N, 11], but for row 0."""
    i = tl.arange(0, N)
    v = values_ptr + (N - 1 - i) * 11
    store_record(
        records_ptr,
        i,
        tl.load(v),
        tl.load(v + 1),
        tl.load(v + 2),
        tl.load(v + 3),
        tl.load(v + 4),
        tl.load(v + 5),
        tl.load(v + 6),
        tl.load(v + 7),
        tl.load(v + 8),
        tl.load(v + 9),
        tl.load(v + 10),
        i > 0,
    )


@triton.jit
def _split_kernel(v_records_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    v = split_gradient(load_gradient(v_records_ptr, i, i > 0))
    color, conic = v.color, v.conic
    zero = tl.zeros([N], tl.float32)
    columns = (
        zero,
        zero,
        conic.xx,
        conic.xy,
        conic.yy,
        v.log2_opacity,
        v.mask,
        v.depth,
        color.x,
        color.y,
        color.z,
        v.depth_feature,
        zero,
        zero,
        zero,
        zero,
    )
    tl.store(out_ptr + i[:, None] * 16 + tl.arange(0, 16)[None, :], join16(columns))


def test_what_is_stored_is_found_by_name() -> None:
    values = torch.randn(N, 11, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    records = torch.full((N, RECORD_SIZE.value), torch.nan, device=DEVICE)
    launch(_store_kernel, (1,), values, records, N=N)
    assert records[0].isnan().all()
    got, want = records[1:], values.flip(0)[1:]
    assert torch.equal(record.record_means(got), want[:, :2])
    assert torch.equal(record.record_conics(got), want[:, 2:5])
    assert torch.equal(record.record_log2_opacities(got), want[:, 5])
    assert torch.equal(record.record_masks(got), want[:, 6])
    assert torch.equal(record.record_depths(got), want[:, 7])
    assert torch.equal(record.record_colors(got), want[:, 8:])
    assert torch.equal(record.record_features(got, DEPTH_FEATURE, 1)[:, 0], want[:, 7])
    halves = got[:, HALVES.value :].contiguous().view(torch.float16)
    assert (halves[:, 0] == 1).all() and torch.equal(halves[:, 1], want[:, 5].half())
    sums = halves[:, 2::2].float() + halves[:, 3::2].float()
    torch.testing.assert_close(sums, want[:, 8:], rtol=1e-6, atol=1e-7)


def test_gradients_have_the_columns_of_records() -> None:
    v_records = torch.randn(N, RECORD_SIZE.value, generator=torch.Generator().manual_seed(0))
    v_records, out = v_records.to(DEVICE), torch.empty(N, RECORD_SIZE.value, device=DEVICE)
    launch(_split_kernel, (1,), v_records, out, N=N)
    read = slice(record.CONIC.value, HALVES.value)
    assert torch.equal(out[1:, read], v_records[1:, read])
    assert not out[0].any()


@pytest.mark.parametrize("n", [1, 700])
def test_spread(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    v_records = torch.randn(n, RECORD_SIZE.value, generator=g).to(DEVICE)
    rows = torch.randint(-1, n, (2, n), generator=g, dtype=torch.int32).to(DEVICE)
    want = torch.zeros(2, n, RECORD_SIZE.value, device=DEVICE)
    want[rows >= 0] = v_records[rows[rows >= 0].long()]
    assert torch.equal(spread(v_records, rows), want)
    assert torch.equal(spread_pairs(rows, v_records, record.MEAN), record.record_means(want))
    assert torch.equal(spread_pairs(rows, v_records, record.ABSGRAD), record.record_absgrads(want))
