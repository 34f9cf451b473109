"""Which machine this is, and what its GPU can do at most."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

import kdtvit_ray

PEAK_TFLOPS = {
    "NVIDIA A10": 125.0,
    "NVIDIA A30": 165.0,
    "NVIDIA A40": 149.7,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA B200": 2250.0,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA H100 80GB HBM3": 989.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H200": 989.5,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA L4": 121.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA RTX A6000": 154.8,
}
"""Peak of dense bfloat16 matrix products with float32 sums, TFLOP/s, by the name that torch gives, from NVIDIA's data
sheets and architecture white papers. Where a sheet has the figure with sparsity only, it is half of that. A name with
anything more, such as a part of a GPU (MIG), is unknown."""


def peak_tflops(name: str) -> float | None:
    """Dense bfloat16 peak of a GPU, TFLOP/s; None where it is unknown."""
    return PEAK_TFLOPS.get(name)


def describe(device: torch.device) -> dict[str, Any]:
    """What a figure has to be read with: device, driver, versions, date, host."""
    gpu = device.type == "cuda"
    about = torch.cuda.get_device_properties(device) if gpu else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "gpus": torch.cuda.device_count() if gpu else 0,
        "memory_gib": round(about.total_memory / 2**30, 1) if about else None,
        "capability": f"{about.major}.{about.minor}" if about else None,
        "peak_bf16_tflops": (peak_tflops(torch.cuda.get_device_name(device)) or "unknown") if gpu else "unknown",
        "driver": _driver() if gpu else "none",
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kdtvit_ray": kdtvit_ray.__version__,
        "versions": {name: metadata.version(name) for name in ("ray", "timm", "numpy", "optuna")},
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):  # a container may lack the tool
        return "unknown"
    return told[0] if told else "unknown"
