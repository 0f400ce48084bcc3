"""What packing.py writes, decoded by its own description."""

import zlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gs.viewer.packing import PackedModel, pack

N = 500


def model(n: int = N, coefficients: int = 15) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "means": 3 * torch.randn(n, 3, generator=g) + torch.tensor([10.0, -20.0, 5.0]),
        "quats": 4 * torch.randn(n, 4, generator=g),
        "scales": torch.randn(n, 3, generator=g) * 2 - 4,
        "opacities": torch.rand(n, generator=g) * 9 - 4,
        "sh0": torch.randn(n, 1, 3, generator=g),
        "shN": 0.1 * torch.randn(n, coefficients, 3, generator=g) ** 3,
    }


def unpack(packed: PackedModel) -> dict[str, NDArray[np.float64]]:
    """The model as the page sees it: scales are logs, opacities in 0..1."""
    n, k = packed.n_gaussians, len(packed.sh_range)
    planes = np.frombuffer(zlib.decompress(packed.data), np.uint8).reshape(26 + 3 * k, n)
    wide = planes.astype(np.uint32)

    def in_16_bits(first: int, ends: tuple[float, float]) -> NDArray[np.float64]:
        values = [wide[first + 2 * c] + 256 * wide[first + 2 * c + 1] for c in range(3)]
        return ends[0] + np.stack(values, axis=1) * ((ends[1] - ends[0]) / 65535)

    bits = [wide[3 * c] << 8 | wide[3 * c + 1] << 16 | wide[3 * c + 2] << 24 for c in range(3)]
    quat = wide[15] | wide[16] << 8 | wide[17] << 16 | wide[18] << 24
    quats = np.zeros((n, 4))
    for i, word in enumerate(quat.tolist()):
        largest = word >> 30
        others = [((word >> 10 * j & 1023) - 511) / (511 * 2**0.5) for j in range(3)]
        quats[i] = np.insert(others, largest, (1 - np.square(others).sum()) ** 0.5)
    signed = planes[26:].view(np.int8).astype(np.float64).reshape(k, 3, n)
    shares = signed * np.abs(signed) / 127**2
    return {
        "means": np.stack(bits, axis=1).view(np.float32) + packed.origin,
        "scales": in_16_bits(9, packed.scale_range),
        "quats": quats,
        "opacities": planes[19] / 255,
        "sh0": in_16_bits(20, packed.color_range),
        "shN": (shares * np.array(packed.sh_range).reshape(k, 1, 1)).transpose(2, 0, 1),
    }


def kept(tensors: dict[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    rows = tensors["opacities"].sigmoid() >= 1 / 255
    return {name: x[rows].double().numpy() for name, x in tensors.items()}


@pytest.mark.parametrize("coefficients", [0, 3, 8, 15])
def test_round_trip(coefficients: int) -> None:
    tensors = model(coefficients=coefficients)
    packed = pack(tensors)
    got, want = unpack(packed), kept(tensors)
    assert packed.degree == {0: 0, 3: 1, 8: 2, 15: 3}[coefficients]
    # half of the last bit that is kept: 16 of a float's mantissa
    from_origin = want["means"] - packed.origin
    assert (np.abs(got["means"] - want["means"]) <= 2.0**-16 * np.abs(from_origin) + 1e-6).all()
    for name, ends in (("scales", packed.scale_range), ("sh0", packed.color_range)):
        error = np.abs(got[name] - want[name].reshape(-1, 3)).max()
        assert error <= 0.51 * (ends[1] - ends[0]) / 65535
    unit = want["quats"] / np.linalg.norm(want["quats"], axis=1, keepdims=True)
    # three components off by half a step of sqrt(2) / 1022, and the fourth that follows from them
    assert (1 - np.abs((unit * got["quats"]).sum(axis=1))).max() < 3 * (2**0.5 / 1022 / 2) ** 2
    opacities = 1 / (1 + np.exp(-want["opacities"]))
    assert np.abs(got["opacities"] - opacities).max() <= 0.501 / 255
    # the square root is off by half of 1/127, so the value by its root's double times that
    tops = np.array(packed.sh_range).reshape(-1, 1)
    roots = np.sqrt(np.abs(want["shN"]) / tops)
    bound = tops * (roots / 127 + (0.5 / 127) ** 2) + 1e-6
    assert got["shN"].shape == want["shN"].shape
    assert (np.abs(got["shN"] - want["shN"]) <= bound).all()


def test_gaussians_that_are_never_drawn_are_left_out() -> None:
    tensors = model()
    tensors["opacities"][::2] = -6.0
    packed = pack(tensors)
    assert packed.n_gaussians == len(kept(tensors)["means"]) <= N // 2
    assert np.allclose(unpack(packed)["means"], kept(tensors)["means"], atol=1e-3)


def test_sh_degree_can_be_reduced() -> None:
    tensors = model()
    packed = pack(tensors, sh_degree=1)
    assert packed.degree == 1
    error = np.abs(unpack(packed)["shN"] - kept(tensors)["shN"][:, :3]).max()
    assert error <= max(packed.sh_range) / 100
    assert len(packed.data) < 0.6 * len(pack(tensors).data)
    assert pack(model(coefficients=3), sh_degree=3).degree == 1


def test_a_scene_far_from_zero_keeps_its_digits() -> None:
    tensors = model()
    tensors["means"] = tensors["means"].round() / 2 + 1e5  # what float32 holds there
    error = np.abs(unpack(pack(tensors))["means"] - kept(tensors)["means"]).max()
    assert error < 1e-3


def test_equal_values_and_single_gaussians() -> None:
    tensors = {name: x[:1] for name, x in model().items()} | {"shN": torch.zeros(1, 15, 3)}
    tensors |= {"scales": torch.full((1, 3), -2.0), "opacities": torch.ones(1)}
    got = unpack(pack(tensors))
    assert np.allclose(got["scales"], -2.0)
    assert np.allclose(got["means"], tensors["means"].numpy())
    assert not got["shN"].any()


def test_bad_models_are_refused() -> None:
    tensors = model()
    with pytest.raises(ValueError, match="pack: quats, sh0 missing"):
        pack({name: x for name, x in tensors.items() if name not in ("quats", "sh0")})
    with pytest.raises(ValueError, match=r"scales: expected \[500, 3\], got \[499, 3\]"):
        pack(tensors | {"scales": tensors["scales"][1:]})
    with pytest.raises(ValueError, match="4 coefficients are not those of an SH degree"):
        pack(tensors | {"shN": tensors["shN"][:, :4]})
    with pytest.raises(ValueError, match="none of 500 Gaussians has an opacity of 1/255"):
        pack(tensors | {"opacities": torch.full((N,), -7.0)})
