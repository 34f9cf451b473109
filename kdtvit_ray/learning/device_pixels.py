"""Pixels on the GPU that trains: one copy a process, shared by its stages, by students, teachers and features.

A batch then costs two numbers an image, its position and its view: the GPU gathers and turns. Pixels that do not fit
are gathered by the host and copied batch by batch (`learning.feed`). The bytes are the same.
"""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from kdtvit_ray.data.batches import Pixels, turned
from kdtvit_ray.learning.numeric import device_name, free_memory, lacks_memory
from kdtvit_ray.learning.upload import Buffers, uploaded
from kdtvit_ray.recipe import Training

SHARE = 0.25
"""The part that pixels may take of the memory that this process can still have. The rest is for weights, gradients and
activations: they decide whether a stage can be trained, pixels only how fast."""
PIECE = 1 << 25
"""Bytes that are copied to the device at once."""

log = logging.getLogger(__name__)


def sources(size: int) -> np.ndarray:
    """For each view of the square (8, S * S): from which pixel of the stored image each pixel comes."""
    pixels = np.arange(size * size).reshape(1, size, size)
    return np.stack([turned(pixels, view).reshape(-1) for view in range(Training.VIEWS["d4"])])


class DevicePixels:
    """All of `pixels` (N, S, S, 3) uint8 in the memory of a device. Images of a set in memory come when they are made.

    `users` are those who gather from it, as long as they live.
    """

    def __init__(self, pixels: Pixels, device: torch.device) -> None:
        self.pixels = weakref.ref(pixels)  # nobody needs the copy of pixels that are gone
        self.device, self.size = device, pixels.size
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self._there = np.zeros(len(pixels.made), bool)
        self._count = 0
        self._bytes = torch.empty((len(pixels.made), self.size**2, 3), dtype=torch.uint8, device=device)
        self._sources = uploaded(sources(self.size), device)
        self._bring(pixels)

    @property
    def nbytes(self) -> int:
        return self._bytes.nbytes

    def gather(self, rows: np.ndarray, views: np.ndarray | None) -> Tensor:
        """Images `rows` (B,) in their `views` (B,), or as stored: (B, S, S, 3) uint8. They must have been made."""
        pixels = self.pixels()
        assert pixels is not None
        self._bring(pixels)
        if views is None or not views.any():
            found = self._bytes.index_select(0, uploaded(rows, self.device))
        else:
            image, view = uploaded(np.stack((rows, views)), self.device)
            found = self._bytes[image[:, None], self._sources.index_select(0, view)]
        return found.view(len(rows), self.size, self.size, 3)

    def _bring(self, pixels: Pixels) -> None:
        """Copy the images that were made since the last time, in pieces: a mapped file need not fit into memory."""
        count = int(np.count_nonzero(pixels.made))
        if count == self._count:
            return
        missing = np.flatnonzero(pixels.made & ~self._there)
        at_once = min(len(missing), max(1, PIECE // (3 * self.size**2)))
        buffers = Buffers((at_once, self.size, self.size, 3), self.device)
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            for start in range(0, len(run), at_once):
                rows = run[start : start + at_once]
                buffer = buffers.next()
                pixels.gather(rows, None, buffer.numpy())
                there = self._bytes[rows[0] : rows[-1] + 1]
                there.copy_(buffer[: len(rows)].flatten(1, 2), non_blocking=True)
                buffers.sent()
        self._there[missing] = True
        self._count = count


class DeviceCopies:
    """The copies of one process. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: list[DevicePixels] = []  # the last used one comes last
        self._closed = False

    def of(self, pixels: Pixels, device: torch.device, user: object) -> DevicePixels | None:
        """The copy of `pixels` on a device, which stays as long as the `user` lives; None where there is no room.

        For a new one the least recently used copies go, save for those that are in use.
        """
        self._kept = [each for each in self._kept if each.pixels() is not None]
        if self._closed:
            return None
        found = next((each for each in self._kept if each.pixels() is pixels and each.device == device), None)
        if found is None and self._has_room(pixels, device):
            found = _copied(pixels, device)
        if found is not None:
            self._kept = [*(each for each in self._kept if each is not found), found]
            found.users.add(user)
        return found

    def clear(self) -> bool:
        """Give up all copies. Their memory is free when their users are gone. Returns whether there were any."""
        found, self._kept = self._kept, []
        return bool(found)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody gets a copy meanwhile."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    def _has_room(self, pixels: Pixels, device: torch.device) -> bool:
        """Whether `pixels` fit beside the copies in use; idle ones that are in the way are given up then."""
        here = [each for each in self._kept if each.device == device]
        needed = 3 * len(pixels.made) * pixels.size**2
        allowed = SHARE * (free_memory(device) + sum(each.nbytes for each in here))
        if needed + sum(each.nbytes for each in here if each.users) > allowed:
            return False
        while needed + sum(each.nbytes for each in here) > allowed:
            here.remove(next(each for each in here if not each.users))
        self._kept = [each for each in self._kept if each in here or each.device != device]
        return True


def _copied(pixels: Pixels, device: torch.device) -> DevicePixels | None:
    what = f"{len(pixels.made)} images of {pixels.size} x {pixels.size} pixels"
    try:
        found = DevicePixels(pixels, device)
    except (MemoryError, RuntimeError) as error:  # others may use the same GPU
        if not lacks_memory(error):
            raise
        log.warning("%s find no room on %s and are gathered by the host", what, device_name(device))
        return None
    log.info("%s lie on %s, shared by its stages", what, device_name(device))
    return found


COPIES = DeviceCopies()
"""The copies of this process."""
