"""TensorBoard events of a run; where they cannot be written, the run goes on without them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

logger = logging.getLogger("splatrim")


class _KeptFailure:
    """A record writer whose first failure is kept, instead of ending the thread that writes."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.failure: OSError | None = None

    def write(self, data: bytes) -> None:
        self._try(lambda: self._writer.write(data))

    def flush(self) -> None:
        self._try(self._writer.flush)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, work: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                work()
            except OSError as error:
                self.failure = error


class EventLog:
    """Scalars, images and histograms for TensorBoard.

    Args:
        folder: Where the file of events goes.
        first_step: Iteration at which this part of the run begins; what an earlier part has said
            of it and later ones is not shown.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer: Any = None
        self._records: _KeptFailure | None = None
        self._has_ended = False
        self._attempt(lambda: self._open(folder, first_step if first_step > 1 else None))

    def _open(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        # Events are written by a thread, which would end with a traceback on a full disk.
        with contextlib.suppress(AttributeError):  # what this reaches into may move
            queue = self._writer.file_writer.event_writer._async_writer
            self._records = _KeptFailure(queue._worker._record_writer)
            queue._writer = queue._worker._record_writer = self._records

    def scalar(self, name: str, value: float, step: int) -> None:
        self._attempt(lambda: self._writer.add_scalar(name, value, step))

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        if values.numel():
            with contextlib.suppress(ValueError):  # no value is finite
                self._attempt(lambda: self._writer.add_histogram(name, values, step))

    def image(self, name: str, image: Tensor, step: int) -> None:  # [H, W, 3] uint8
        self._attempt(lambda: self._writer.file_writer.add_summary(_picture(name, image), step))

    def close(self) -> None:
        """Write what is waiting, and end. Safe to call twice."""
        self._attempt(lambda: self._writer.close())
        self._has_ended = True

    def _attempt(self, work: Callable[[], object]) -> None:
        if self._has_ended:
            return
        failure: OSError | None = None
        try:
            work()
        except OSError as error:
            failure = error
        if failure is None and self._records is not None:
            failure = self._records.failure
        if failure is not None:
            self._has_ended = True
            logger.warning(f"no more TensorBoard events are written: {failure.strerror or failure}")


def _picture(name: str, image: Tensor) -> Any:
    """A summary with one image."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

    # The writer's own add_image compresses four times as long for files a fifteenth smaller.
    file, (height, width, _) = io.BytesIO(), image.shape
    Image.fromarray(image.cpu().numpy()).save(file, "PNG", compress_level=1)
    encoded = {"encoded_image_string": file.getvalue(), "colorspace": 3}
    picture = Summary.Image(height=height, width=width, **encoded)
    return Summary(value=[Summary.Value(tag=name, image=picture)])
