"""The page as a browser shows it, beside the project's own rendering of the same camera."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gs.data.camera import Camera
from gs.errors import SplatrimError
from gs.evaluation.views import psnr, quantize
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply
from gs.model.renderer import render
from gs.viewer.__main__ import main
from gs.viewer.page import fragment, write_page

WIDTH, HEIGHT = 160, 120
BACKGROUND = (0.2, 0.4, 0.6)
VIEWER = "document.querySelector('.splats')"
# dB; about 50 is measured, and rounding to 8 bits alone leaves 59
ENOUGH = 42.0
# dB; what blending in 8 bits leaves
ENOUGH_IN_8_BITS = 30.0


def model(degree: int = 3, n: int = 400) -> dict[str, Tensor]:
    """Large opaque Gaussians of all colours: a wrong order is another picture."""
    g = torch.Generator().manual_seed(5)
    return {
        "means": torch.randn(n, 3, generator=g) * torch.tensor([0.8, 0.5, 0.8]) + 7.0,
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.randn(n, 3, generator=g) * 0.7 - 2.3,
        "opacities": torch.randn(n, generator=g) * 2 + 2,
        "sh0": torch.randn(n, 1, 3, generator=g) * 1.5,
        "shN": torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g) * 0.3,
    }


def camera(turn: float, name: str = "a.png") -> Camera:
    """On a circle about the model, its principal point away from the centre of the image."""
    c, s = math.cos(turn), math.sin(turn)
    viewmat = torch.tensor([[c, 0, -s, 0], [0, 1, 0, 0], [s, 0, c, 3.5], [0, 0, 0, 1]])
    viewmat[:3, 3] -= viewmat[:3, :3] @ torch.full((3,), 7.0)
    K = torch.tensor([[150.0, 0, 71.3], [0, 140.0, 66.9], [0, 0, 1]])
    return Camera(name, None, WIDTH, HEIGHT, viewmat, K, WIDTH, HEIGHT)


def rendering(tensors: dict[str, Tensor], view: Camera) -> Tensor:  # [H, W, 3] uint8
    with torch.no_grad():
        gaussians = Gaussians.from_tensors(tensors)
        return quantize(render(gaussians, view, background=torch.tensor(BACKGROUND)).colors)


def scene_of(page: Path) -> dict[str, Any]:
    return json.loads(page.read_text().split('class="scene">')[1].split("</script>")[0])


def viewed(browser: Any, page: Path) -> Camera:
    """The camera of the frame that the page shows."""
    frame, origin = browser.evaluate(f"{VIEWER}.viewed"), scene_of(page)["origin"]
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.tensor(frame["axes"])
    position = torch.tensor(frame["position"]).double() + torch.tensor(origin).double()
    viewmat[:3, 3] = -(viewmat[:3, :3].double() @ position).float()
    fx, fy, cx, cy = frame["lens"]
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    width, height = frame["size"]
    return Camera("viewed", None, width, height, viewmat, K, width, height)


def shown(browser: Any) -> Tensor:  # [H, W, 3] uint8
    """The picture of the page, once it rests and without its panel."""
    browser.wait_for(f"{VIEWER}.dataset.state === 'shown'")
    browser.evaluate(f"{VIEWER}.querySelector('.panel').style.display = 'none'")
    image: NDArray[np.uint8] = browser.screenshot()
    return torch.from_numpy(image.copy())


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    write_page(path, model(), [camera(0.0), camera(0.8, "b.png")], background=BACKGROUND)
    return path


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_first_picture_is_that_of_the_first_camera(
    browser: Any, tmp_path: Path, degree: int
) -> None:
    tensors, view = model(degree), camera(0.3)
    write_page(tmp_path / "page.html", tensors, [view, camera(2.0)], background=BACKGROUND)
    browser.open(tmp_path / "page.html", WIDTH, HEIGHT)
    assert psnr(shown(browser), rendering(tensors, view)) > ENOUGH
    assert not browser.log


def test_nothing_is_shown_before_it_is_sorted(browser: Any, page: Path) -> None:
    hold = """const post = Worker.prototype.postMessage, held = [];
        Worker.prototype.postMessage = function (...all) { held.push([this, all]); };
        window.release = () => {
            Worker.prototype.postMessage = post;
            for (const [worker, all] of held) worker.postMessage(...all);
        };"""
    added = browser.send("Page.addScriptToEvaluateOnNewDocument", source=hold)
    try:
        browser.open(page, WIDTH, HEIGHT)
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", **added)
    browser.wait_for(f"{VIEWER}.dataset.state === 'moving'")
    for _ in range(3):
        below = browser.screenshot()[HEIGHT - 30 :]  # of the panel
        assert len(np.unique(below)) == 1, "a picture that is not sorted"
    browser.evaluate("release()")
    assert psnr(shown(browser), rendering(model(), camera(0.0))) > ENOUGH


def test_a_drag_turns_the_view_and_sorts_it_anew(browser: Any, page: Path) -> None:
    browser.open(page, WIDTH, HEIGHT)
    before = shown(browser)
    browser.drag([(10 + 14 * i, 60 + i) for i in range(11)])
    browser.drag([(10 + 14 * i, 60 + i) for i in range(11)])
    browser.drag([(10 + 14 * i, 60 + i) for i in range(11)])
    after, view = shown(browser), viewed(browser, page)
    # behind the model, where the order is nearly the reverse of what it was
    assert view.viewmat[2, 2] < -0.7
    assert (view.position - 7.0).norm() == pytest.approx(3.5, rel=0.2)
    assert psnr(after, rendering(model(), view)) > ENOUGH
    assert psnr(after, before) < 20


def test_mouse_and_keys(browser: Any, page: Path) -> None:
    browser.open(page, WIDTH, HEIGHT)
    shown(browser)
    browser.press("KeyN", "n")
    assert psnr(shown(browser), rendering(model(), camera(0.8))) > ENOUGH
    browser.drag([(80, 60), (100, 50)], button="right")
    shown(browser)
    moved = viewed(browser, page)
    assert torch.equal(moved.viewmat[:3, :3], camera(0.8).viewmat[:3, :3])
    step = moved.viewmat[:3, 3] - camera(0.8).viewmat[:3, 3]
    assert step[0] > 0.1 and step[1] < -0.05 and abs(step[2]) < 1e-4
    browser.send("Input.dispatchMouseEvent", type="mouseWheel", x=80, y=60, deltaX=0, deltaY=-300)
    browser.wait_for(f"{VIEWER}.viewed.position[0] !== {moved.position[0].item()}")
    shown(browser)
    assert viewed(browser, page).viewmat[2, 3] < moved.viewmat[2, 3] - 0.3
    browser.press("KeyR", "r")
    assert psnr(shown(browser), rendering(model(), camera(0.8))) > ENOUGH
    browser.send("Input.dispatchKeyEvent", type="keyDown", code="KeyW", key="w")
    browser.wait_for(
        "(p => Math.hypot(...p) < 3.2)("
        f"{VIEWER}.viewed.position.map((x, i) => x + {scene_of(page)['origin']}[i] - 7))"
    )
    browser.send("Input.dispatchKeyEvent", type="keyUp", code="KeyW", key="w")
    assert psnr(shown(browser), rendering(model(), viewed(browser, page))) > ENOUGH
    browser.press("KeyH", "h")
    assert browser.evaluate(f"{VIEWER}.querySelector('.panel').hidden")


def test_two_fingers_on_a_phone(browser: Any, page: Path) -> None:
    browser.open(page, 195, 210, phone=True)
    assert shown(browser).shape == (420, 390, 3)
    first = viewed(browser, page)
    # the whole view of the camera in the middle of a window of another shape
    s = 390 / WIDTH
    want = torch.tensor([150 * s, 140 * s, 71.3 * s, 66.9 * s + (420 - HEIGHT * s) / 2])
    assert torch.allclose(first.K[[0, 1, 0, 1], [0, 1, 2, 2]], want, atol=1e-2)

    def touch(kind: str, *places: tuple[int, int]) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", (80, 100), (110, 100))
    touch("touchMove", (65, 100), (125, 100))
    touch("touchEnd")
    image, second = shown(browser), viewed(browser, page)
    assert second.viewmat[2, 3] - first.viewmat[2, 3] < -1.0
    assert psnr(image, rendering(model(), second)) > ENOUGH
    touch("touchStart", (80, 100))
    touch("touchMove", (130, 100))
    touch("touchEnd")
    shown(browser)
    turned = viewed(browser, page).viewmat[:3, :3]
    assert not torch.allclose(turned, second.viewmat[:3, :3], atol=0.1)


def test_it_stands_inside_another_page(browser: Any, tmp_path: Path) -> None:
    views = [fragment(model(), [camera(turn)], background=BACKGROUND) for turn in (0.0, 0.8)]
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    boxes = "".join(f'<div style="height: {HEIGHT}px">{view}</div>' for view in views)
    (tmp_path / "report.html").write_text(
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; worker-src blob:">'
        f'<body style="margin: 0">{boxes}'
    )
    browser.open(tmp_path / "report.html", WIDTH, 2 * HEIGHT)
    browser.wait_for("document.querySelectorAll('.splats[data-state=shown]').length === 2")
    browser.evaluate("document.querySelectorAll('.panel').forEach(panel => panel.remove())")
    image = torch.from_numpy(browser.screenshot().copy())
    want = torch.cat([rendering(model(), camera(turn)) for turn in (0.0, 0.8)])
    assert psnr(image, want) > ENOUGH


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("HTMLCanvasElement.prototype.getContext = () => null;", "this browser has no WebGL 2."),
        ("Worker = class { postMessage() { this.onerror?.(); } };", "may not start its worker."),
        ("DecompressionStream = class { };", "The 3D view cannot be shown: "),
    ],
)
def test_a_browser_that_cannot_show_it_says_so(
    browser: Any, page: Path, source: str, message: str
) -> None:
    added = browser.send("Page.addScriptToEvaluateOnNewDocument", source=source)
    try:
        browser.open(page, WIDTH, HEIGHT)
        browser.wait_for(f"{VIEWER}.dataset.state === 'failed'")
        text = browser.evaluate(f"{VIEWER}.querySelector('.message').textContent")
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", **added)
    assert text.endswith(message) or text.startswith(message)


def test_without_half_floats_it_blends_in_8_bits(browser: Any, page: Path) -> None:
    source = "WebGL2RenderingContext.prototype.getExtension = () => null;"
    added = browser.send("Page.addScriptToEvaluateOnNewDocument", source=source)
    try:
        browser.open(page, WIDTH, HEIGHT)
        image = shown(browser)
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", **added)
    assert psnr(image, rendering(model(), camera(0.0))) > ENOUGH_IN_8_BITS


class Scripts(HTMLParser):
    """Collects the attributes of all elements, and the text of the scripts by class."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, str] = {}
        self._class = None
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self._class = dict(attrs).get("class") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._class:
            self.texts[self._class] = self.texts.get(self._class, "") + data


def test_the_page_is_one_file_and_names_cannot_break_it(tmp_path: Path) -> None:
    name = '</script><img src="x"> & "b".png'
    size = write_page(tmp_path / "page.html", model(), [camera(0.0, name)], title="a < b</title>")
    page = Scripts(tmp_path / "page.html")
    assert size == (tmp_path / "page.html").stat().st_size
    assert json.loads(page.texts["scene"])["cameras"][0]["name"] == name
    assert not {key for key, _ in page.attributes} & {"src", "href"}
    policy = next(value for key, value in page.attributes if key == "content" and value)
    assert policy.startswith("default-src 'none'; ")


def test_the_vertical_is_that_of_the_cameras(tmp_path: Path) -> None:
    # all look down by 30 degrees, from a quarter of a circle
    tilt = torch.eye(4)
    tilt[1:3, 1:3] = torch.tensor([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    views = []
    for i in range(5):
        view = camera(0.4 * i)
        views.append(Camera(**{**vars(view), "viewmat": tilt @ view.viewmat}))
    write_page(tmp_path / "page.html", model(), views)
    assert scene_of(tmp_path / "page.html")["up"] == pytest.approx([0, -1, 0], abs=0.03)
    write_page(tmp_path / "page.html", model(), views[:1])
    up = -views[0].viewmat[1, :3]
    assert scene_of(tmp_path / "page.html")["up"] == pytest.approx(up.tolist(), abs=1e-4)


def test_a_page_needs_a_camera(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a page needs at least one camera"):
        write_page(tmp_path / "page.html", model(), [])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder and its scene: one training and one test view."""
    scene, out = tmp_path / "scene", tmp_path / "out"
    matrix = [[1, 0, 0, 7], [0, -1, 0, 7], [0, 0, -1, 3.5], [0, 0, 0, 1]]
    for split in ("train", "test"):
        (scene / split).mkdir(parents=True)
        Image.new("RGB", (20, 16)).save(scene / split / "r_0.png")
        frames = [{"file_path": f"./{split}/r_0", "transform_matrix": matrix}]
        text = json.dumps({"camera_angle_x": 0.8, "frames": frames})
        (scene / f"transforms_{split}.json").write_text(text)
    out.mkdir()
    settings = {"source_path": str(scene), "eval": True, "white_background": True}
    (out / "config.json").write_text(json.dumps(settings))
    save_ply(out / "point_cloud/iteration_30/point_cloud.ply", model())
    return out


def test_the_command_writes_the_page_of_a_run(run: Path, tmp_path: Path) -> None:
    main(["-m", str(run)])
    scene = scene_of(run / "view.html")
    assert [view["name"] for view in scene["cameras"]] == ["test/r_0.png"]
    assert scene["degree"] == 3
    assert 'value="#ffffff"' in (run / "view.html").read_text()
    main(["-m", str(run), "--output", str(tmp_path / "small.html"), "--sh_degree", "0"])
    assert scene_of(tmp_path / "small.html")["degree"] == 0


def test_the_command_refuses_what_it_cannot_show(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="--sh_degree 4: choose 0, 1, 2 or 3"):
        main(["-m", str(run), "--sh_degree", "4"])
    with pytest.raises(SplatrimError, match="no such folder"):
        main(["-m", str(tmp_path / "nowhere")])
    faint = {**model(), "opacities": torch.full((400,), -9.0)}
    save_ply(run / "point_cloud/iteration_40/point_cloud.ply", faint)
    with pytest.raises(SplatrimError, match="cannot be shown: none of 400 Gaussians"):
        main(["-m", str(run)])
    assert not (run / "view.html").exists()
