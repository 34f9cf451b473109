"""Figures, each a ratio to a named peer in the same run: python -m tests.benchmarks [--trials N] [NAME ...]"""

import argparse
import importlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path


def machine() -> str:
    """Processor, cores and the versions that matter."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = f"{names[0]}, {len(names)} cores" if names else model
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "optuna", "timm"))
    return f"{model}; Python {platform.python_version()}, {versions}"


def main() -> int:
    known = sorted(each.stem for each in Path(__file__).parent.glob("[a-z]*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=f"Names: {', '.join(known)}")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--trials", help="of warm_trials (200 unless said) and documented_pattern (4); studies of class_weights (4)"
    )
    given = parser.parse_args()
    chosen = given.names or known
    unknown = [name for name in chosen if name not in known]
    if unknown:
        print(f"Unknown benchmark '{unknown[0]}'; allowed: {', '.join(known)}", file=sys.stderr)
        return 2
    if given.trials:
        os.environ["BENCH_TRIALS"] = given.trials  # read when the benchmark is imported
    print(machine())
    for name in chosen:
        print(f"\n{name}", flush=True)
        importlib.import_module(f"tests.benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
