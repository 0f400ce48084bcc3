"""JPEG files of another process."""

import io
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

from gs.viewer.jpeg import Encoder, encoded


def gradient(height: int, width: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x * 255 // width, y * 255 // height, 0 * x + 90], -1).astype(np.uint8)


def test_files_are_those_encoded_here_and_look_as_they_should() -> None:
    encoder = Encoder()
    for size in ((300, 500), (24, 40), (720, 1280)):
        pixels = gradient(*size)
        file = encoder.encode(pixels)
        assert file == encoded(pixels)
        shown = np.asarray(Image.open(io.BytesIO(file)))
        assert np.abs(shown.astype(int) - pixels).mean() < 3
    assert encoder.encode(gradient(30, 80)[:, ::2]) == encoded(gradient(30, 80)[:, ::2])
    encoder.close()


def test_a_process_that_has_gone_is_done_without() -> None:
    encoder, pixels = Encoder(), gradient(300, 500)
    encoder.encode(pixels)
    process = encoder._process
    assert process is not None
    process.send_signal(signal.SIGINT)  # Ctrl-C is for who trains
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert encoder.encode(pixels) == encoded(pixels)
    process.kill()
    process.wait()
    assert encoder.encode(pixels) == encoded(pixels)
    encoder.close()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes cannot run at once")
def test_this_process_hardly_works_for_them() -> None:
    encoder, pixels, spent = Encoder(), gradient(1080, 1920), {}
    pixels += np.random.default_rng(0).integers(0, 9, pixels.shape, dtype=np.uint8)
    encoder.encode(pixels)

    def work(name: str) -> None:
        began = time.thread_time()
        for _ in range(5):
            encoder.encode(pixels) if name == "there" else encoded(pixels)
        spent[name] = time.thread_time() - began

    for name in ("here", "there"):
        thread = threading.Thread(target=work, args=(name,))
        thread.start()
        thread.join()
    assert spent["there"] < spent["here"] / 2, spent
    encoder.close()
