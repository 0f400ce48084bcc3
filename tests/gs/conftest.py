"""A small survey; processes of ranks; a headless Chromium, driven over two pipes."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from gs.data.city_scene import CityConfig, write_city_scene

N_PROCESSES = 3
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--mute-audio",
)
# Chromium reads commands from descriptor 3 and answers on 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 120.0  # seconds; software rendering on a busy machine


class Browser:
    """One page of a running Chromium."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        ends = (to_read, to_write)
        command = [sys.executable, "-c", LAUNCH, *map(str, ends), program, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        os.set_blocking(self._from, False)
        self._buffer, self._id, self._session = b"", 0, None
        self.log: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            answer = self._next_message()
            if answer is None:
                assert self._process.poll() is None, "Chromium ended"
                time.sleep(0.01)
            elif answer.get("id") == self._id:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            elif answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.log.append(json.dumps(answer["params"]))
        raise TimeoutError(f"no answer to {method}")

    def _next_message(self) -> dict[str, Any] | None:
        while b"\0" not in self._buffer:
            try:
                self._buffer += os.read(self._from, 1 << 20)
            except BlockingIOError:
                return None
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def open(self, page: Path | str, width: int, height: int, *, phone: bool = False) -> None:
        """Open a file without a network, or an address, in a window of this size."""
        self.send("Page.navigate", url="about:blank")  # ends what the page before says
        self.wait_for("location.href === 'about:blank'")
        self.log.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.send(
            "Network.emulateNetworkConditions",
            offline=isinstance(page, Path),
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        url = page.resolve().as_uri() if isinstance(page, Path) else page
        self.send("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        ends = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < ends, f"{expression} did not come true; {self.log}"
            time.sleep(0.05)

    def screenshot(self) -> NDArray[np.uint8]:  # [H, W, 3]
        """What the window shows."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def drag(self, path: list[tuple[int, int]], button: str = "left") -> None:
        """Press the mouse at the first place, move it through the others and let it go."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(path) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*path, path[-1]], strict=True):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button=button,
                clickCount=1,
                buttons={"left": 1, "right": 2}[button] if kind != "mouseReleased" else 0,
            )

    def press(self, code: str, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, code=code, key=key)

    def close(self) -> None:
        """End this Chromium."""
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small survey from above, which nobody changes."""
    folder = tmp_path_factory.mktemp("scenes") / "city"
    size = {"views": 24, "width": 32, "height": 24, "points": 300}
    write_city_scene(folder, CityConfig(blocks_x=2, blocks_y=2, **size))
    return folder


@pytest.fixture(scope="session")
def processes(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """processes(n, name, *args, **options): what each of n processes returns for a job.

    The jobs are those of distributed/jobs.py, which imports once and forks.
    """
    pipes = [(*os.pipe(), *os.pipe()) for _ in range(N_PROCESSES)]
    theirs = [(into, out) for into, _, _, out in pipes]
    environment = os.environ | {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "distributed/jobs.py"), json.dumps(theirs)],
        pass_fds=[fd for ends in theirs for fd in ends],
        env=environment,
    )
    for fd in (fd for ends in theirs for fd in ends):
        os.close(fd)
    ours = [(open(out, "w"), open(into)) for _, out, into, _ in pipes]
    folder, n_jobs = tmp_path_factory.mktemp("results"), 0

    def run(n: int, name: str, *args: Any, **options: Any) -> list[Any]:
        nonlocal n_jobs
        n_jobs += 1
        # as torchrun's agent holds it: it outlives whichever rank ends first
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        files = [folder / f"{n_jobs}_{rank}.pt" for rank in range(n)]
        for rank, (jobs, _) in enumerate(ours[:n]):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
            place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            job = {"name": name, "args": args, "options": options, "environment": place}
            jobs.write(json.dumps(job | {"result": str(files[rank])}) + "\n")
            jobs.flush()
        for _, answers in ours[:n]:
            assert answers.readline() == "done\n", "a process has failed"
        return [torch.load(path) for path in files]

    yield run
    for jobs, _ in ours:
        jobs.close()
    first.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; skips where none is installed.

    One per file: a page that is left open goes on drawing, on a core of the tests that follow.
    """
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    running = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")


@pytest.fixture
def waits() -> Callable[[Callable[[], object]], list[str]]:
    """The operations of a function for which the host would wait for a device.

    Asked of the profiler, as an autograd formula takes another way where Python sees its calls.
    """

    def found(act: Callable[[], object]) -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            act()
        names = {event.key for event in seen.key_averages()}
        return sorted(name for name in names if any(word in name for word in WAITS))

    return found
