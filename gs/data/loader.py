"""Training images: decoded when asked for or just before, kept within bounds of memory.

Where a camera has a mask (gs.data.masks), all images have it as a fourth channel.

On a GPU, 8-bit images stay on the device up to `max_device_bytes`: no copies per step then. Those
beyond the bound are prefetched into pinned memory and copied when asked for.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import SplatrimError
from .camera import Camera
from .image_file import check_size, decode, image_size, is_transparent
from .masks import has_mask, read_mask, transparency_at


class CameraImages(Protocol):
    """Images of cameras by index, on the device: an ImageLoader's, or some of them."""

    cameras: list[Camera]
    has_masks: bool
    transparent: bool

    @property
    def targets(self) -> "CameraImages": ...

    def __getitem__(self, index: int, /) -> Tensor: ...  # [H, W, 3 or 4] uint8

    def prefetch(self, indices: list[int], /) -> None: ...


class ImageLoader:
    """The images of some cameras as uint8 tensors, by index. Safe to use from several threads.

    Decoded images stay in the host's memory (pinned where the device is a GPU) until they exceed
    `max_bytes`; then those go that were not used for longest. What threads are decoding at the
    moment and tensors that the caller holds come on top. A decoding error in a thread is raised
    where the image is asked for.
    """

    def __init__(
        self,
        cameras: list[Camera],
        *,
        white_background: bool = False,
        transparent: bool = False,
        device: str | torch.device = "cpu",
        max_bytes: int = 2 * 2**30,
        max_device_bytes: int = 4 * 2**30,
        threads: int = 2,
    ) -> None:
        """Nothing is decoded yet.

        Args:
            cameras: The cameras whose images are wanted; indices refer to this list.
            white_background: Composite transparent images over white, else black.
            transparent: Composite them over black, and give alpha as a fourth channel.
            device: Where the returned tensors live.
            max_bytes: Bound of the cache of decoded images (width x height x 3 or 4 bytes each).
            max_device_bytes: Bound of the images that stay on a GPU, first come, first kept.
            threads: Number of decoding threads.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected a size in bytes, got {max_bytes}")
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        self.cameras = list(cameras)
        self.white_background = white_background
        self.transparent = transparent
        self.has_masks = any(map(has_mask, self.cameras))
        self.targets = self
        self.device = torch.device(device)
        self.max_bytes = max_bytes
        self._cache: OrderedDict[int, Tensor] = OrderedDict()  # least recently used first
        self._bytes = 0
        self.max_device_bytes = max_device_bytes if self.device.type == "cuda" else 0
        self._resident: dict[int, Tensor] = {}
        self._device_bytes = 0
        self._pending: dict[int, Future[Tensor]] = {}
        # pinned memory is freed by the thread that uses it: another one could do so while a graph
        # is captured, whose stream then gets an event that nobody may ask for
        self._dropped: list[Tensor] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: int) -> Tensor:  # [H, W, 3 or 4] uint8
        """The image of camera `index`, composited, at the training resolution, on the device.

        Of a fourth channel, where `has_masks`, 255 says that a pixel counts. On the CPU it is the
        cached tensor itself: do not write into it.

        Raises:
            SplatrimError: The file is missing, damaged or of another size than its camera says.
        """
        index = range(len(self.cameras))[index]
        image = self._resident.get(index)
        if image is not None:
            return image
        with self._lock:
            self._dropped.clear()
        image = self._host_image(index).to(self.device, non_blocking=True)
        if self._device_bytes + image.nbytes <= self.max_device_bytes:
            with self._lock:
                self._resident[index] = image
                self._device_bytes += image.nbytes
                self._drop(index)
        return image

    def prefetch(self, indices: Iterable[int]) -> None:
        """Start decoding in the background; images that the cache cannot hold are left out."""
        for index in indices:
            index = range(len(self.cameras))[index]
            if index in self._resident:
                continue
            camera = self.cameras[index]
            n_channels = 4 if self.has_masks or self.transparent else 3
            if camera.width * camera.height * n_channels <= self.max_bytes:
                with self._lock:
                    if index not in self._cache:
                        self._submit(index)

    def check(self, *, keep_alpha: bool = False) -> None:
        """Open the header of every file: SplatrimError names one that is missing or mismatched.

        Args:
            keep_alpha: Give steps over random backgrounds their images: `targets` are transparent
                then, if an image is. SplatrimError if one has a mask too.
        """
        for camera in self.cameras:
            if camera.image_path is None:
                raise SplatrimError(f"camera {camera.image_name} has no image")
            path, name = camera.image_path, camera.image_name
            size = image_size(path, name, upright=camera.upright)
            check_size(camera.image_name, size, camera.expected_file_size)
        if keep_alpha:
            self._keep_alpha()

    def _keep_alpha(self) -> None:
        paths = [camera.image_path for camera in self.cameras if camera.image_path is not None]
        if not any(map(is_transparent, paths)) or any(c.alpha_is_mask for c in self.cameras):
            return
        if self.has_masks:
            raise SplatrimError(
                "--random_background does not go with masks of transparent images:"
                " leave it out, or give --masks none"
            )
        self.targets = ImageLoader(
            self.cameras,
            transparent=True,
            device=self.device,
            max_bytes=self.max_bytes,
            max_device_bytes=self.max_device_bytes,
        )

    @property
    def cached_bytes(self) -> int:
        """Memory that the cache takes now; at most `max_bytes`."""
        return self._bytes

    def close(self) -> None:
        """Stop the threads and drop the cache."""
        if self.targets is not self:
            self.targets.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._pending.clear()
            self._cache.clear()
            self._dropped.clear()
            self._resident.clear()
            self._bytes = self._device_bytes = 0

    def __enter__(self) -> "ImageLoader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _host_image(self, index: int) -> Tensor:
        with self._lock:
            image = self._cache.get(index)
            if image is not None:
                self._cache.move_to_end(index)
                return image
            future = self._submit(index)
        try:
            return future.result()
        finally:
            with self._lock:
                # A failure is told once; asking again tries again.
                if self._pending.get(index) is future:
                    del self._pending[index]

    def _submit(self, index: int) -> Future[Tensor]:
        """Decode in a thread unless one does already. Call with the lock held."""
        future = self._pending.get(index)
        if future is None:
            future = self._pending[index] = self._pool.submit(self._decode, index)
        return future

    def _decode(self, index: int) -> Tensor:
        camera = self.cameras[index]
        if camera.image_path is None:
            raise SplatrimError(f"camera {camera.image_name} has no image")
        size = (camera.width, camera.height)
        pixels = decode(
            camera.image_path,
            camera.image_name,
            camera.expected_file_size,
            size,
            self.white_background and not self.transparent,
            opaque=camera.alpha_is_mask,
            upright=camera.upright,
            undistortion=camera.undistortion,
        )
        if self.has_masks or self.transparent:
            fourth = read_mask(camera) if self.has_masks else transparency_at(camera)
            pixels = np.concatenate([pixels, fourth[..., None]], axis=2)
        image = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            image = image.pin_memory()
        with self._lock:
            self._store(index, image)
            self._pending.pop(index, None)
        return image

    def _store(self, index: int, image: Tensor) -> None:
        """Cache an image and drop the oldest beyond the bound. Call with the lock held."""
        if image.nbytes > self.max_bytes or index in self._cache:
            return
        self._cache[index] = image
        self._bytes += image.nbytes
        while self._bytes > self.max_bytes:
            self._drop(next(iter(self._cache)))

    def _drop(self, index: int) -> None:
        """Remove an image from the host's cache. Call with the lock held."""
        image = self._cache.pop(index, None)
        if image is not None:
            self._bytes -= image.nbytes
            self._dropped.append(image)
