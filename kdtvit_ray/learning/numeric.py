"""Device, threads, precision: what decides the last bits of a result, in one place."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import Numeric

COMPILE_CAPABILITY = (8, 0)
COMPILE_WORK = 1e11
"""Parameters times images from which compiling a model (tens of seconds) is repaid within one stage."""


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; without one, this process's current GPU, else the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def hardware_name(device: torch.device) -> str:
    """The device as a measured time has to name it: the GPU's model, or the processor's and how many threads ran."""
    if device.type != "cpu":
        return device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


@contextmanager
def numeric_mode(numeric: Numeric, device: torch.device) -> Iterator[None]:
    """Set threads and determinism for one stage, and put back what was there.

    Raises `UserError` for bfloat16 on a device without it: running in float32 instead would file the result under the
    wrong key, and emulating it is many times slower.
    """
    if numeric.dtype == "bfloat16" and not _has_bfloat16(device):
        raise UserError(f"dtype 'bfloat16' is not supported by this device ({device_name(device)}); allowed: float32")
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a fixed workspace only
    if device.type == "cpu":
        torch.set_num_threads(numeric.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        debugging.fill_uninitialized_memory = fill


def autocast(numeric: Numeric, device: torch.device) -> AbstractContextManager:
    if numeric.dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def compiled(model: nn.Module, device: torch.device, images: int) -> nn.Module:
    """`torch.compile` of a model where the device gains by it and `images` training images repay it, else the model.

    The decision depends on the stage and the kind of device alone, so equal stages are compiled alike.
    """
    work = sum(each.numel() for each in model.parameters()) * images
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < COMPILE_CAPABILITY or work < COMPILE_WORK:
        return model
    if find_spec("triton") is None:
        return model
    return torch.compile(model)  # type: ignore[return-value]


def _processor() -> str:
    try:  # Linux tells the platform module no more than the architecture
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.processor() or platform.machine() or "CPU")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        names = ("avx512_bf16", "amx_bf16", "amx")
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(features.get(name, False) for name in names)
    return False
