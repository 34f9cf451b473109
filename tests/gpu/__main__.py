"""Check a machine with an NVIDIA GPU and measure on it, in under 10 minutes: python -m tests.gpu [--only NAME]

Prints tables and writes gpu.json; logs of a search that has failed go into the folder gpu.failed beside it. Exit codes:
0 done (also where an aim was missed), 1 something failed, 2 a mistake in the arguments, 3 there is no GPU.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SECONDS = 580.0
"""What is not done by then is left out; a rehearsal has an hour."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="a check or a figure; may be given again")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the file that is written (gpu.json)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in tiny sizes: does the script work?")
    given = parser.parse_args(arguments)
    # read once by CUDA's libraries, before the first product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not given.rehearse and (missing := _no_gpu()):
        print(missing, file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="kdtvit-gpu-", ignore_cleanup_errors=True) as place:
        # what was compiled or copied before must not count
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{place}/inductor"
        os.environ["TRITON_CACHE_DIR"] = f"{place}/triton"
        os.environ["KDTVIT_CACHE"] = f"{place}/cache"
        from tests.gpu.items import ITEMS, run_all

        unknown = [name for name in given.only or () if name not in ITEMS]
        if unknown:
            print(f"Unknown check or figure '{unknown[0]}'; allowed: {', '.join(ITEMS)}", file=sys.stderr)
            return 2
        names = [name for name in ITEMS if not given.only or name in given.only]
        seconds = 3600.0 if given.rehearse else SECONDS
        return run_all(names, Path(place), given.out, rehearsal=given.rehearse, seconds=seconds)


def _no_gpu() -> str:
    """Why there is no GPU to check; empty where there is one."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return (
        f"There is no NVIDIA GPU that torch {torch.__version__} ({built}) can use; nothing was checked. "
        "Does nvidia-smi show one? `python -m tests.gpu --rehearse` tries the script on the CPU."
    )


if __name__ == "__main__":
    raise SystemExit(main())
