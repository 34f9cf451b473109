"""Steps that a GPU repeats from a recording (a CUDA graph), without being told each kernel by the host.

A step of a small vision transformer is over a thousand kernels of some ten microseconds, and the host takes longer to
launch one than the GPU to run it. A recording is launched at once. It runs the same kernels on the same numbers, so
the results are the same bits.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdtvit_ray.errors import first_line
from kdtvit_ray.learning.numeric import autocast, empty_caches, lacks_memory
from kdtvit_ray.recipe import Numeric

log = logging.getLogger(__name__)

Given = Mapping[str, Tensor]
"""What a step is given, by name: all that differs between two steps of a stage lies in these tensors."""
Step = Callable[[Given, int], Tensor]
"""A step over what it is given, of a global batch of so many images. It answers with one tensor, waits for nothing on
the device, and may be broken off and begun anew."""


@dataclass
class _Recording:
    """A step with a place in memory for what it is given and for what it answers."""

    graph: torch.cuda.CUDAGraph
    given: dict[str, Tensor]
    found: Tensor

    def play(self, given: Given) -> Tensor:
        for name, place in self.given.items():
            place.copy_(given[name], non_blocking=True)
        self.graph.replay()
        return self.found


class RecordedSteps:
    """A `step` that is recorded when it comes a second time with tensors of the same shapes.

    The first time it is simply run, which makes what a recording has to find (the optimiser's moments, the workspaces
    of libraries). A step that cannot be recorded, as it waits for the device or memory is lacking, is run each time.
    `buffers` are the tensors of the model that a forward pass changes by itself (running statistics): they are put
    back when a step is begun anew. What is answered lies in the same place each time. Another thread may use the GPU
    meanwhile.
    """

    def __init__(self, step: Step, device: torch.device, buffers: Iterable[Tensor] = ()) -> None:
        self._step, self._device, self._buffers = step, device, tuple(buffers)
        self._recordings: dict[object, _Recording | None] = {}
        self._pool: Any = None
        self._possible = True

    def __call__(self, given: Given, batch: int) -> Tensor:
        """Run the step of a global batch of so many images. Raises what the step raises."""
        here, stream = torch.cuda.current_stream(self._device), _stream(self._device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            found = self._run(given, batch)
        here.wait_stream(stream)
        return found

    def _run(self, given: Given, batch: int) -> Tensor:
        shapes = batch, tuple((name, each.shape, each.dtype, each.stride()) for name, each in given.items())
        if not self._possible:
            return self._step(given, batch)
        if shapes not in self._recordings:
            self._recordings[shapes] = None
            return self._first(given, batch)
        recording = self._recordings[shapes]
        if recording is None:
            try:
                recording = self._recordings[shapes] = self._record(given, batch)
            except RuntimeError as error:
                self._give_up(error)
            if recording is None:
                self._make_room()
                return self._step(given, batch)
        return recording.play(given)

    def _first(self, given: Given, batch: int) -> Tensor:
        """Run a step of new shapes. The recordings there are hold memory as for another such step beside it, so they
        are given up where it is lacking: in the passes over the model, before anything but `buffers` has changed."""
        if not any(self._recordings.values()):
            return self._step(given, batch)
        before = [each.clone() for each in self._buffers]
        try:
            return self._step(given, batch)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            self._give_up(error)
        self._make_room()
        with torch.no_grad():
            for each, value in zip(self._buffers, before, strict=True):
                each.copy_(value)
        return self._step(given, batch)

    def _give_up(self, error: Exception) -> None:
        log.warning("A step cannot be recorded and is launched anew each time: %s", first_line(error))
        self._possible = False

    def _make_room(self) -> None:
        """Give up all recordings and their memory. Called when the error is gone, whose traceback holds more of it."""
        self._recordings.clear()
        with suppress(RuntimeError):  # what torch cannot give back is no reason to end a stage
            empty_caches(after_error=True)

    def _record(self, given: Given, batch: int) -> _Recording:
        places = {name: each.clone() for name, each in given.items()}
        graph = torch.cuda.CUDAGraph()
        # recordings share their memory: none needs what another one has left there
        pool = self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=_stream(self._device), capture_error_mode="thread_local"):
                found = self._step(places, batch)
        except BaseException:
            _leave(pool, self._device)
            raise
        return _Recording(graph, places, found)


def _leave(pool: Any, device: torch.device) -> None:
    """Tell torch that nothing is recorded into a pool any more. A recording that has failed may not have done so (torch
    up to 2.12), and then this process could never again give memory back."""
    with suppress(RuntimeError, AttributeError):  # it was told; a torch without these calls
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)  # else it is kept for a recording that will never be


REPAID_FROM = 8
"""Batches from which a frozen model is recorded for them. On an H100, in bfloat16 and batches of 256 images, eight of
`micro` at 64 px took 40 ms launched and 17 recorded, of a ViT-Ti/16 at 224 px 109 and 81, of a ViT-S/16 138 and 138;
of four, only `micro` gained."""
_forbidden = False


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where all steps of this process run: the default stream cannot be recorded, autograd keeps to the stream that it
    began on, and libraries have workspaces for each."""
    return torch.cuda.Stream(device)


def steps_on(step: Step, device: torch.device, buffers: Iterable[Tensor] = ()) -> Step:
    """The step, as it is run on this device: recorded on a GPU. `buffers` are those of `RecordedSteps`."""
    return RecordedSteps(step, device, buffers) if device.type == "cuda" and not _forbidden else step


def frozen_on(
    run: Callable[[Tensor], Tensor], numeric: Numeric, device: torch.device, batches: int = REPAID_FROM
) -> Callable[[Tensor], Tensor]:
    """What a frozen model yields, as it is `run`: outputs (B, D) float32 for inputs (B, 3, S, S), without gradients.
    Recorded on a GPU, where the next call overwrites them, unless there are but few `batches`."""

    @torch.no_grad()
    def step(given: Given, batch: int) -> Tensor:
        with autocast(numeric, device):
            return run(given["inputs"]).float()

    steps = steps_on(step, device) if batches >= REPAID_FROM else step
    return lambda inputs: steps({"inputs": inputs}, len(inputs))


@contextmanager
def no_recordings() -> Iterator[None]:
    """Nothing is recorded meanwhile: recordings hold memory that their steps use once only."""
    global _forbidden
    before, _forbidden = _forbidden, True
    try:
        yield
    finally:
        _forbidden = before
