"""Device, threads, precision: what decides the last bits of a result, in one place."""

import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdtvit_ray.errors import NodeFault, UserError, first_line
from kdtvit_ray.recipe import Numeric

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention whose backward pass has a deterministic form, which torch takes when it has to be strict (its
notes on randomness). cuDNN's has none in torch."""
CUBLAS_WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS is deterministic."""

CONTEXT_BYTES = 3 << 28
"""Bytes of a GPU that a process takes beside torch's tensors, for its CUDA context and the kernels of libraries, which
nobody tells. 733 MiB on an H100, with torch 2.11 and CUDA 13.0 (619 before a model has run)."""


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; without one, this process's current GPU, else the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def reserved_device(gpus: float) -> torch.device:
    """The device of a process for which Ray has reserved so many GPUs: its current GPU, or the CPU where that is none,
    whatever GPUs it sees; they are others'.

    Raises `NodeFault` where a GPU was reserved and torch cannot use one: on the CPU the stage would take hours, and its
    result would be filed as a GPU's.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NodeFault(_no_gpu("it sees none"))
    try:
        return torch.device("cuda", torch.cuda.current_device())
    except RuntimeError as error:  # the driver lists a GPU that does not start
        raise NodeFault(_no_gpu(first_line(error))) from error


def cap_memory(share: float, device: torch.device) -> None:
    """Keep this process to its share of a GPU's memory. What goes beyond it ends as `OutOfMemory` in this process, not
    in another one that keeps to its own share. Torch counts its tensors alone, so what the process takes beside them is
    kept free, up to half of its share. Nothing happens on the CPU and where the GPU, or several, are all its own
    (`share` of 1 or more)."""
    assert share > 0
    if device.type == "cuda" and share < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        tensors = max(share * total - CONTEXT_BYTES, share * total / 2)
        torch.cuda.set_per_process_memory_fraction(tensors / total, device)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have on a GPU, within its share: what nobody uses, and what torch keeps for
    tensors to come. 0 on the CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    unused = free + torch.cuda.memory_reserved(device) - used
    return max(0, min(unused, int(torch.cuda.get_per_process_memory_fraction(device) * total) - used))


LACKS_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""Words of errors for which torch has no exception of its own: of the CPU, of a recording, of a library on a GPU."""


def lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in str(error) for each in LACKS_MEMORY)


def empty_caches(after_error: bool = False) -> None:
    """Give back memory of the GPU that torch keeps for tensors to come, after out of memory and between stages of
    unlike size, which would find it cut into pieces of the wrong size."""
    if after_error:
        gc.collect()  # an exception's traceback and its frames hold each other, and a model: half a second
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
    """Set threads, determinism and full float32 (`_no_reduced_precision`) for one stage, and put back what was there.

    Raises `NodeFault` for bfloat16 on a device without it: running in float32 instead would file the result under the
    wrong key, and emulating it is many times slower. Also for a setting of cuBLAS with which results cannot be
    reproduced. Raises `UserError` for an operation that has no deterministic form on this device.
    """
    if numeric.dtype == "bfloat16" and not has_bfloat16(device):
        raise NodeFault(f"dtype 'bfloat16' is not supported by this device ({device_name(device)}); allowed: float32")
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES[0])
    if device.type == "cuda" and workspace not in CUBLAS_WORKSPACES:
        raise NodeFault(
            f"The environment variable CUBLAS_WORKSPACE_CONFIG is '{workspace}', with which results cannot be "
            f"reproduced; allowed: {' or '.join(CUBLAS_WORKSPACES)}, or not set"
        )
    if device.type == "cpu":
        torch.set_num_threads(numeric.threads)
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        with sdpa_kernel(ATTENTION), _no_reduced_precision():
            yield
    except RuntimeError as error:
        if operation := _without_deterministic_form(error):
            raise UserError(
                f"Results cannot be reproduced on {device_name(device)}: torch has no deterministic form of "
                f"'{operation}' there; use another model, or other arguments of it"
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        debugging.fill_uninitialized_memory = fill


def autocast(numeric: Numeric, device: torch.device) -> AbstractContextManager:
    if numeric.dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def _no_reduced_precision() -> Iterator[None]:
    """float32 in full, without TF32, which torch allows cuDNN's convolutions by default, and without bfloat16 inside of
    float32 products: the dtype alone decides what is computed in.

    torch says it in two ways and refuses to read the first where they disagree (its notes on CUDA, "TensorFloat-32").
    So both are set, and of the first what can be read is put back.
    """
    backends: Any = torch.backends
    parts = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    before = [each.fp32_precision for each in parts]
    matmul, cudnn = _readable(torch.get_float32_matmul_precision), _readable(lambda: backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for each in parts:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            backends.cudnn.allow_tf32 = cudnn
        for each, precision in zip(parts, before, strict=True):
            each.fp32_precision = precision


def _readable(read: Callable[[], Any]) -> Any:
    """What is read; None where torch refuses."""
    try:
        return read()
    except RuntimeError:
        return None


def _without_deterministic_form(error: Exception) -> str:
    """The operation that torch has refused because it has no deterministic form, where an error says so."""
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    return operation.split()[-1] if found and operation.split() else ""


def _no_gpu(found: str) -> str:
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        f"A GPU was reserved for a worker on host {platform.node()}, but torch {torch.__version__} ({built}) cannot "
        f"use one: {found} (CUDA_VISIBLE_DEVICES is {'not set' if visible is None else repr(visible)}); check the "
        "driver of this host with nvidia-smi"
    )


def _processor() -> str:
    try:  # Linux tells the platform module no more than the architecture
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.processor() or platform.machine() or "CPU")


def auto_dtype(devices: Sequence[torch.device]) -> str:
    """The dtype of a study that trains on these devices and leaves the dtype to them: bfloat16 where each is a GPU with
    native bfloat16, else float32. On a CPU bfloat16 is computed only where it is asked for by name."""
    assert devices
    both = all(device.type == "cuda" and has_bfloat16(device) for device in devices)
    return "bfloat16" if both else "float32"


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        names = ("avx512_bf16", "amx_bf16", "amx")
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(features.get(name, False) for name in names)
    return False
