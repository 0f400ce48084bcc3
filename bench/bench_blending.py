"""Blending alone, forward and backward, by the kind of gradients.

pytest bench/bench_blending.py              through pytest-benchmark, synchronised
python -m bench.bench_blending [NAME ...]   a table of GPU and host times

Colours are those of the records. `ns per 1000 pairs` counts the 64 pixels of every entry of a tile
list as one pair each, those that a ray no longer reaches included.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import triton

from bench.bench_projection import microseconds
from bench.scenes import NAMES, Workload, load
from kernels import RasterInputs, RenderSettings, bin_tiles, project
from kernels.blending import blend_bwd, blend_fwd, blend_settings
from kernels.constants import TILE_SIZE

VARIANTS: dict[str, dict[str, bool]] = {
    "default": {},
    "masks": {"mask_gradient": True},
    "exact": {"exact": True},
    "deterministic": {"deterministic": True},
}


class Stages(NamedTuple):
    """Both passes of one workload, ready to call."""

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    n_entries: int


def prepare(w: Workload, variant: str) -> Stages:
    """Forward and backward of a variant on the lists of a workload."""
    flags: dict[str, Any] = {"mask_gradient": False, "deterministic": False, "exact": False}
    flags |= VARIANTS[variant]
    masks = flags.pop("mask_gradient")
    settings = RenderSettings(w.width, w.height, sh_degree=3, **flags)
    inputs = RasterInputs(w.means, w.quats, w.scales, w.opacities, w.sh, w.viewmats, w.Ks)
    with torch.no_grad():
        p = project(inputs, settings)
        lists = bin_tiles(p, deterministic=settings.deterministic)
    s = blend_settings(settings, 1, len(w.means), None, masks)
    images = blend_fwd(p.values, lists, s, None, None)
    v_colors = torch.rand_like(images[0])
    return Stages(
        lambda: blend_fwd(p.values, lists, s, None, None),
        lambda: blend_bwd(p.values, lists, s, None, p.rows, images, v_colors, None),
        int(lists.offsets[-1]),
    )


@pytest.mark.parametrize("workload", NAMES, indirect=True)
def test_forward(workload: Workload, timed: Callable[..., Any]) -> None:
    s = prepare(workload, "default")
    colors, alphas = timed(s.forward, entries=s.n_entries)
    assert torch.isfinite(colors).all() and (alphas > 0).any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("workload", NAMES, indirect=True)
def test_backward(workload: Workload, timed: Callable[..., Any], variant: str) -> None:
    s = prepare(workload, variant)
    v_records, _ = timed(s.backward, entries=s.n_entries, variant=variant)
    assert torch.isfinite(v_records).all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    for name in arguments.names:
        w = load(name)
        for variant in VARIANTS:
            s = prepare(w, variant)
            pairs = s.n_entries * TILE_SIZE**2 / 1000
            row = [
                f"{what} {gpu:7.1f} us (host {host:5.1f}), {1e3 * gpu / pairs:5.2f} ns"
                for what, (gpu, host) in (
                    ("forward", microseconds(s.forward)),
                    ("backward", microseconds(s.backward)),
                )
            ]
            print(
                f"{name:12} {variant:13} {s.n_entries:9} entries  {'  '.join(row)} per 1000 pairs"
            )


if __name__ == "__main__":
    main()
