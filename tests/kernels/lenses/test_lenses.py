"""Lenses in float64: vectors of every model, Jacobians, inverses, where they end."""

import pytest
import torch
from torch import Tensor

from kernels.lenses import (
    PINHOLE,
    Distortion,
    LensKind,
    kind_of,
    lenses_from,
    monotone_radius,
    pack_lens,
    project_points,
    unproject,
)
from kernels.lenses.kinds import EDGE, R0, SLOPE0
from kernels.lenses.mapping import radial_factor

F64 = torch.float64
POINTS = {
    "A": (0.3, -0.2, 1.5),
    "B": (-1.1, 0.7, 1.3),
    "C": (0.0, 0.0, 2.0),
    "D": (2.0, 1.5, 0.4),
    "E": (1.0, 0.5, -0.3),
    "F": (0.7, 0.9, 1.0),
}
RAYS = {
    "A": (0.194461117066, -0.129640744710, 0.972305585328),
    "B": (-0.597437991253, 0.380187812615, 0.706063080572),
    "C": (0.0, 0.0, 1.0),
    "D": (0.789952505533, 0.592464379150, 0.157990501107),
    "E": (0.863868425581, 0.431934212791, -0.259160527674),
    "F": (0.461566331377, 0.593442426056, 0.659380473396),
}
SIMPLE_RADIAL = Distortion("distorted", (-0.12,))
OPENCV = Distortion("distorted", (-0.15, 0.04), (), (0.002, -0.0015))
FULL_OPENCV = Distortion("distorted", (-0.15, 0.04, 0.01), (0.05, -0.02, 0.004), (0.002, -0.0015))
OPENCV_FISHEYE = Distortion("fisheye", (0.03, -0.008, 0.002, -0.0004))
THIN_PRISM = Distortion(
    "fisheye", (0.03, -0.008, 0.002, -0.0004), (), (0.001, -0.0008), (0.0012, 0.0, -0.0007, 0.0)
)
WIDE, NORMAL = (610.0, 590.0, 505.0, 395.0), (400.0, 395.0, 505.0, 395.0)
# lens, intrinsics, size, pixels by point; computed in float64 by an independent program, and where
# COLMAP has the model equal to pycolmap's to 1e-12
VECTORS: dict[str, tuple[Distortion, tuple[float, ...], tuple[int, int], dict[str, tuple]]] = {
    "SIMPLE_RADIAL": (SIMPLE_RADIAL, (600.0, 600.0, 500.0, 400.0), (1000, 800), {
        "A": (619.168, 320.55466666666666), "B": (53.591260810195706, 684.0782885753299),
        "C": (500, 400), "F": (854.48, 855.76)}),
    "RADIAL": (Distortion("distorted", (-0.12, 0.03)), (600.0, 600.0, 500.0, 400.0), (1000, 800), {
        "A": (619.1800177777777, 320.5466548148148), "B": (38.179712518146005, 693.8856374884525),
        "F": (875.774, 883.138)}),
    "OPENCV": (OPENCV, WIDE, (1010, 790), {
        "A": (625.7678240987655, 317.1619400164609), "B": (42.49377871384587, 680.2927025556635),
        "C": (505, 395), "F": (877.0512, 860.6811)}),
    "FULL_OPENCV": (FULL_OPENCV, WIDE, (1010, 790), {
        "A": (625.4275654918072, 317.38134174116624), "B": (52.56747352897111, 674.092350903433),
        "F": (871.7450360850318, 854.0825682930958)}),
    "OPENCV_FISHEYE": (OPENCV_FISHEYE, NORMAL, (1010, 790), {
        "A": (583.6397086489583, 343.2288584727691), "B": (235.22968522620675, 564.5261182612587),
        "C": (505, 395), "D": (973.8515831345009, 742.2432037589897),
        "E": (1183.9721296706657, 730.2424890248911)}),
    "SIMPLE_RADIAL_FISHEYE": (Distortion("fisheye", (-0.02,)), (400.0, 400.0, 500.0, 400.0),
        (1000, 800), {
        "A": (578.4231852853123, 347.71787647645846), "B": (237.74649721468705, 566.8885926815627),
        "D": (933.8626744190619, 725.3970058142966), "E": (1111.7116206209964, 705.8558103104982)}),
    "THIN_PRISM_FISHEYE": (THIN_PRISM, NORMAL, (1010, 790), {
        "A": (583.6034100777015, 343.26521055017463), "B": (234.8223446948695, 564.91772096681),
        "C": (505, 395), "D": (974.1195958712268, 742.4417006921274),
        "E": (1183.86461917498, 730.3221139857583)}),
    "EQUIRECTANGULAR": (Distortion("equirectangular"),
        (1000 / torch.pi, 1000 / torch.pi, 1000.0, 500.0), (2000, 1000), {
        "A": (1062.8329581890011, 458.6175954007579), "B": (776.4646760595899, 624.1406482571086),
        "C": (1000, 500), "D": (1437.1670418109989, 701.8449096784283),
        "E": (1592.7735790777424, 642.1687383792296)}),
}  # fmt: skip
JACOBIANS = {
    "OPENCV": ((375.28963891051006, 27.382254715278766, 302.8084803852815),
               (26.484475872154867, 389.52253099304335, -187.3329601813537)),
    "FULL_OPENCV": ((375.0133495377987, 21.730317894121825, 305.6180476659179),
                    (21.01784845497029, 384.14364867741585, -189.06224674901816)),
    "OPENCV_FISHEYE": ((184.58257693182202, 38.60383149103496, 135.3985789086767),
                       (38.121283597397024, 217.92117029176632, -85.08569788238434)),
    "THIN_PRISM_FISHEYE": ((184.978966811278, 38.487204631891395, 135.79678480775527),
                           (38.04996243331911, 218.52004745292015, -85.46851887722542)),
    "EQUIRECTANGULAR": ((142.69063863411307, 0, 120.73823269040335),
                        (42.45630116627737, 159.9003550418239, -50.175628651055085)),
}  # fmt: skip


def matrix(intrinsics: tuple[float, ...]) -> Tensor:
    fx, fy, cx, cy = intrinsics
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=F64)


def tensor(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize("model", VECTORS)
def test_pixels_and_rays(model: str) -> None:
    lens, intrinsics, _, pixels = VECTORS[model]
    words = pack_lens(lens, intrinsics, 2400, 1800)  # the farthest of the points is in the image
    K, want = matrix(intrinsics), tensor(*pixels.values())
    got = project_points(lens.family, K, words, tensor(*(POINTS[name] for name in pixels)))
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-10)
    rays, found = unproject(lens.family, K, words, want, monotone_radius(lens))
    assert found.all()
    assert torch.allclose(rays, tensor(*(RAYS[name] for name in pixels)), rtol=0, atol=2e-12)


@pytest.mark.parametrize("model", JACOBIANS)
def test_jacobians(model: str) -> None:
    lens, intrinsics, _, _ = VECTORS[model]
    words, K = pack_lens(lens, intrinsics, 2400, 1800), matrix(intrinsics)
    J = torch.autograd.functional.jacobian(
        lambda t: project_points(lens.family, K, words, t), tensor(POINTS["B"])[0]
    )
    assert torch.allclose(J, tensor(*JACOBIANS[model]), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(
    ("lens", "radius"),
    [
        (SIMPLE_RADIAL, 5 / 3),
        (Distortion("distorted", (-0.12, 0.03)), float("inf")),
        (OPENCV, float("inf")),
        (Distortion("distorted", (-0.25, 0.05, -0.005)), 1.8047133415364212),
        (OPENCV_FISHEYE, 2.2253164025673455),
        (Distortion("fisheye", (-0.05, -0.01, 0.002, -0.0005)), 1.7865805087381073),
        (Distortion("fisheye"), float("inf")),
        # the denominator is 0 at q = 4 before the slope is
        (Distortion("distorted", (0.1,), (-0.25,)), 2.0),
    ],
)
def test_lenses_are_one_to_one_up_to_a_radius(lens: Distortion, radius: float) -> None:
    assert monotone_radius(lens) == pytest.approx(radius, rel=1e-12)


def test_continuation() -> None:
    words = pack_lens(SIMPLE_RADIAL, (600.0, 600.0, 500.0, 400.0), 1000, 800).clone()
    assert words[R0] == pytest.approx(0.95 * 5 / 3)
    words[R0], words[R0 + 1] = 1.5, torch.atan(torch.tensor(1.5, dtype=F64))
    g, dg = radial_factor(words, words[R0] ** 2)
    words[SLOPE0] = g + 2 * words[R0] ** 2 * dg
    got = project_points(
        "distorted", matrix((600, 600, 500, 400)), words, tensor((2.4, 1, 1), (1, 0.5, -0.3))
    )
    want = tensor((1181.9849777089755, 684.1604073787398), (1369.3676902418647, 834.6838451209323))
    assert torch.allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("model", VECTORS)
def test_gradients_and_axes(model: str) -> None:
    """In the image, beyond the lens's end, on the axis and beside and behind the camera."""
    lens, intrinsics, size, _ = VECTORS[model]
    words, K = pack_lens(lens, intrinsics, *size), matrix(intrinsics)
    t = tensor(*POINTS.values(), (4.0, 1.0, 0.9), (-3.0, 2.0, -0.2), (1.0, 0.3, -2.0), (2, 1, 0))
    t[2, :2] = 1e-3

    def pixels(t: Tensor) -> Tensor:
        return project_points(lens.family, K, words, t)

    assert torch.isfinite(pixels(t)).all()
    assert torch.autograd.gradcheck(pixels, t.requires_grad_(), eps=1e-7, atol=1e-3, rtol=1e-6)
    on_axis = tensor((0.0, 0.0, 2.0)).requires_grad_()
    for row in range(2):
        (J,) = torch.autograd.grad(pixels(on_axis)[0, row], on_axis)
        want = torch.zeros(1, 3, dtype=F64)
        want[0, row] = K[row, row] / 2
        assert torch.allclose(J, want)


def test_the_image_circle_ends_where_the_lens_does() -> None:
    lens = Distortion("fisheye", (0.03, -0.008, 0.002, -0.0004))
    intrinsics = (300.0, 300.0, 500.0, 500.0)
    words = pack_lens(lens, intrinsics, 1000, 1000)
    monotone = monotone_radius(lens)
    assert words[R0] == pytest.approx(0.95 * monotone)
    inside, outside = 500 + 300 * 2.1245, 500 + 300 * 2.1246  # r_d = 2.124531643748117
    pixels = tensor((inside, 500), (outside, 500), (0, 0))
    _, found = unproject("fisheye", matrix(intrinsics), words, pixels, monotone)
    assert found.tolist() == [True, False, False]


def test_edge_is_the_farthest_direction_of_the_image() -> None:
    words = pack_lens(Distortion("fisheye"), (100.0, 100.0, 60.0, 40.0), 120, 80)
    assert words[EDGE] == pytest.approx((60**2 + 40**2) ** 0.5 / 100 + 0.04)
    assert words[R0] == pytest.approx(1.3 * (60**2 + 40**2) ** 0.5 / 100)
    words = pack_lens(Distortion("distorted"), (100.0, 100.0, 60.0, 40.0), 120, 80)
    corner = (60**2 + 40**2) ** 0.5 / 100
    assert words[EDGE] == pytest.approx(torch.atan(torch.tensor(corner, dtype=F64)).item() + 0.04)


def test_kinds() -> None:
    assert PINHOLE.code == 0
    assert kind_of([SIMPLE_RADIAL, OPENCV]) == LensKind("distorted", 2, False, True, False)
    assert len({kind_of([lens]).code for lens, *_ in VECTORS.values()}) == len(VECTORS)
    with pytest.raises(ValueError, match="expected one family, got"):
        kind_of([SIMPLE_RADIAL, OPENCV_FISHEYE])


def test_gsplats_coefficients() -> None:
    Ks = matrix(WIDE).repeat(2, 1, 1)
    radial = tensor((-0.15, 0.04, 0.01, 0.05, -0.02, 0.004), (-0.12, 0, 0, 0, 0, 0))
    tangential = tensor((0.002, -0.0015), (0, 0))
    lenses = lenses_from("pinhole", Ks, 1010, 790, radial, tangential)
    assert lenses.kind == LensKind("distorted", 3, True, True, False)
    full, simple = (pack_lens(lens, WIDE, 1010, 790) for lens in (FULL_OPENCV, SIMPLE_RADIAL))
    assert torch.equal(lenses.words[0], full)
    assert torch.equal(lenses.words[1], simple)
    fisheye = lenses_from(
        "fisheye", Ks[None], 1010, 790, tensor((0.03, 0, 0, 0), (0, 0, 0, 0))[None]
    )
    assert fisheye.kind == LensKind("fisheye", 1)
    assert fisheye.words.shape == (1, 2, 20)
    with pytest.raises(
        ValueError, match=r"radial_coeffs: expected \[2, 6\] with camera_model='pin"
    ):
        lenses_from("pinhole", Ks, 10, 10, radial[:1])
    with pytest.raises(ValueError, match="radial_coeffs: expected none with camera_model='equi"):
        lenses_from("equirectangular", Ks, 10, 10, radial)
