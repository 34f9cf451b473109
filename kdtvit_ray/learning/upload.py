"""From the host's memory to the device's. Where that is a GPU's, the host's is pinned and nobody waits for the copy."""

import numpy as np
import torch
from torch import Tensor


def uploaded(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on the device. On the CPU the two share memory."""
    found = torch.from_numpy(array)
    if device.type != "cuda":
        return found.to(device)
    return found.pin_memory().to(device, non_blocking=True)  # torch keeps pinned memory until the copy has happened


class Buffers:
    """Memory of the host that is filled and copied to the device again and again, uint8 of one `shape`. For a GPU two
    take turns, so that one is filled while the other is copied."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2 if pinned else 1)]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if pinned else []
        self._turn = 0

    def next(self) -> Tensor:
        """The buffer whose turn it is, when its last copy has arrived."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._copied:
            self._copied[self._turn].synchronize()
        return self._buffers[self._turn]

    def sent(self) -> None:
        """The device was told to copy the buffer of the last `next`."""
        if self._copied:
            self._copied[self._turn].record(torch.cuda.current_stream(self._device))
