"""The page of the live viewer, served by viser: what its visitors want to see, and their pictures.

Visitors have a camera each; what is chosen in the panel holds for all. viser calls back in threads
of its own, where nothing but plain values is written; whoever draws reads them in time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.camera import Camera
from ..errors import SplatrimError
from .jpeg import QUALITY, Encoder
from .page import describe_cameras, upward
from .picture import MASKS, SHOWS, Look, Masks, Show

if TYPE_CHECKING:
    import viser

FREE = "free"
MOVING = 0.3  # seconds after the last movement for which a camera counts as moving
GRACE = 1.5  # seconds in which a visitor's camera arrives where it was sent
LARGEST = 1600  # pixels a side
GRAIN = 8  # pixels; sizes are multiples, so that few differ
NEARNESS = 0.01  # of the distance to what is looked at; a camera so near has not left


class Visitor:
    """One browser that looks on."""

    def __init__(self, window: Window, client: viser.ClientHandle) -> None:
        self._window, self._client = window, client
        self._moved_at = self._sent_at = -math.inf
        self._target: NDArray[np.float64] | None = None  # position that it was sent to
        self.waits, self.drawn_at = True, 0.0
        client.camera.on_update(self._moved)

    @property
    def moving(self) -> bool:
        """Whether its camera moves now."""
        return time.perf_counter() - self._moved_at < MOVING

    def size(self, scale: float) -> tuple[int, int]:
        """Width and height of a picture for its window."""
        camera = self._client.camera
        sides = camera.image_width, camera.image_height
        scale *= min(LARGEST / max(*sides, 1), 1)
        width, height = (max(round(x * scale / GRAIN), 1) * GRAIN for x in sides)
        return width, height

    def camera(self, width: int, height: int, near: float) -> Camera:
        """Its own camera."""
        handle = self._client.camera
        viewmat = torch.eye(4)
        axes = rotation(np.asarray(handle.wxyz, dtype=np.float64))
        viewmat[:3, :3] = torch.from_numpy(axes.T)
        viewmat[:3, 3] = torch.from_numpy(-axes.T @ np.asarray(handle.position))
        focal = height / 2 / math.tan(handle.fov / 2)
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        return Camera("visitor", None, width, height, viewmat, K, width, height, near=near)

    def go_to(self, view: dict[str, Any]) -> None:
        """Move its camera to a view, as `describe_cameras` gives it."""
        axes, position = np.array(view["axes"]), np.array(view["position"])
        self._target, self._sent_at = position, time.perf_counter()
        camera = self._client.camera
        camera.up_direction = -axes[1] if self._window.up is None else self._window.up
        camera.position = position
        camera.look_at = position + view["distance"] * axes[2]
        camera.fov = 2 * math.atan(view["height"] / 2 / view["lens"][1])
        self.waits = True

    def show(self, pixels: NDArray[np.uint8]) -> None:  # [H, W, 3]
        """Send it a picture, if it is still there."""
        if self not in self._window.visitors():
            return
        self._window.send(self._client, pixels)

    def _moved(self, camera: viser.CameraHandle) -> None:
        now = time.perf_counter()
        self._moved_at, self.waits = now, True
        self._window.changed.set()
        if self._target is None or now - self._sent_at < GRACE:
            return
        way = np.linalg.norm(np.asarray(camera.position) - self._target)
        if way > NEARNESS * np.linalg.norm(np.asarray(camera.look_at) - self._target):
            self._target = None
            self._window.free()


class Window:
    """The server and its panel.

    Args:
        host: Address that it listens on.
        port: Port; the next free one where it is taken.
        trains: Whether there is a training to pause and masks to choose.

    Raises:
        SplatrimError: viser is not installed, or the port cannot be had.
    """

    def __init__(self, host: str, port: int, *, trains: bool) -> None:
        viser = _import_viser()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints addresses
                self._server: viser.ViserServer = viser.ViserServer(
                    host=host, port=port, label="splatrim", verbose=False
                )
        except OSError as error:
            raise SplatrimError(f"the viewer cannot listen on {host}:{port}: {error}") from error
        name = "localhost" if host in ("0.0.0.0", "127.0.0.1") else host
        self.address = f"http://{name}:{self._server.get_port()}"
        self.changed = threading.Event()
        self.look, self.rate, self.paused = Look(), 10.0, False
        self.chosen: int | None = None
        """Camera that is shown beside its image; None: the visitors' own cameras."""
        self.up: NDArray[np.float64] | None = None
        self._views: list[dict[str, Any]] = []
        self._visitors: dict[int, Visitor] = {}
        self._encoder, self._send_file = Encoder(), _background_sender()
        self._server.gui.configure_theme(
            control_layout="floating",
            control_width="small",
            dark_mode=True,
            show_logo=False,
            show_share_button=False,
        )
        self._add_panel(trains)
        self._server.on_client_connect(self._enter)
        self._server.on_client_disconnect(self._leave)

    def visitors(self) -> list[Visitor]:
        """Who looks on."""
        return list(self._visitors.values())

    def offer(self, cameras: Sequence[Camera], points: NDArray[np.float64]) -> None:
        """Name the cameras to choose from; visitors begin at the first.

        Args:
            cameras: Views with images.
            points: Some of the scene, to tell how far it is. [M, 3]
        """
        self._views = describe_cameras(cameras, np.zeros(3), points)
        self.up = upward(np.array([view["axes"] for view in self._views]))
        self._server.scene.set_up_direction(tuple(self.up.tolist()))
        self._camera.options = (FREE, *(view["name"] for view in self._views))
        for visitor in self.visitors():
            visitor.go_to(self._views[0])

    def tell(self, text: str) -> None:
        """Show a line of Markdown above the panel."""
        self._status.content = text

    def send(self, client: viser.ClientHandle, pixels: NDArray[np.uint8]) -> None:  # [H, W, 3]
        """Show a browser a picture; called from one thread.

        viser has no name for a picture that is a JPEG file already, so its message is made here.
        """
        if self._send_file is None:  # another viser than this was written for
            client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=QUALITY)
            return
        self._send_file(client, self._encoder.encode(pixels))

    def free(self) -> None:
        """Show the visitors' own cameras again."""
        self.chosen, self._camera.value = None, FREE

    def close(self) -> None:
        """End the server."""
        self._encoder.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def _add_panel(self, trains: bool) -> None:
        gui = self._server.gui
        self._status = gui.add_markdown("waiting for the first iteration")
        pause = gui.add_button("Pause", visible=trains)
        show = gui.add_dropdown("Show", SHOWS)
        size = gui.add_slider("Size of Gaussians", 0.1, 1.5, 0.1, self.look.size, visible=False)
        masks = gui.add_dropdown("Masks", MASKS, visible=trains)
        self._camera = gui.add_dropdown("Camera", (FREE,), hint="a view beside its image")
        rate = gui.add_slider("Pictures per second", 1, 30, 1, 10, visible=trains)

        @pause.on_click
        def _(_: object) -> None:
            self.paused = not self.paused
            pause.label = "Go on" if self.paused else "Pause"
            self._refresh()

        def choose(_: object) -> None:
            size.visible = show.value == "Gaussians"
            self.look = Look(cast(Show, show.value), cast(Masks, masks.value), float(size.value))
            self.rate = float(rate.value)
            self._refresh()

        for handle in (show, size, masks, rate):
            handle.on_update(choose)

        @self._camera.on_update
        def _(_: object) -> None:
            names = [view["name"] for view in self._views]
            if self._camera.value not in names:
                self.chosen = None
            else:
                self.chosen = names.index(self._camera.value)
                for visitor in self.visitors():
                    visitor.go_to(self._views[self.chosen])
            self._refresh()

    def _refresh(self) -> None:
        for visitor in self.visitors():
            visitor.waits = True
        self.changed.set()

    def _enter(self, client: viser.ClientHandle) -> None:
        visitor = self._visitors[client.client_id] = Visitor(self, client)
        if self._views:
            visitor.go_to(self._views[self.chosen or 0])
        self.changed.set()

    def _leave(self, client: viser.ClientHandle) -> None:
        self._visitors.pop(client.client_id, None)


def _import_viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise SplatrimError(
            f"the viewer needs viser ({error}): pip install 'splatrim[viewer]' brings it"
        ) from error
    return viser


def _background_sender() -> Callable[[Any, bytes], None] | None:
    """Sends a client a JPEG file as its background; None where viser has other names inside."""
    try:
        from viser._messages import BackgroundImageMessage as Message
    except ImportError:
        return None
    fields = [field.name for field in dataclasses.fields(Message)]
    if fields != ["format", "rgb_data", "depth_data"]:
        return None

    def send(client: Any, file: bytes) -> None:
        client._websock_connection.queue_message(Message("jpeg", file, None))

    return send


def rotation(wxyz: NDArray[np.float64]) -> NDArray[np.float64]:  # [4] -> [3, 3]
    """The matrix of a quaternion, camera to world."""
    w, x, y, z = wxyz / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
