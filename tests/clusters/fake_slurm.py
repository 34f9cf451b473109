"""`srun` and `scontrol` as slurm.sh uses them, on this machine: a step's tasks are processes here.

`FAKE_SLURM` is a folder: every call is a line of its calls.jsonl, and `hostname` answers what the file addresses holds.
As SLURM does since 22.05, a task is told `SLURM_CPUS_PER_TASK` only where srun itself has --cpus-per-task. The second
node has a GPU (in Ray's books), the first has none.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

NODES = ("n1", "n2")


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print(*NODES, sep="\n")
    return 0


def srun(arguments: list[str]) -> int:
    options, command = {}, list(arguments)
    while command and command[0].startswith("--"):
        name, _, value = command.pop(0).partition("=")
        options[name] = value
    names = [options["--nodelist"]] if "--nodelist" in options else [n for n in NODES if n != options.get("--exclude")]
    if len(names) != int(options["--nodes"]) or len(names) != int(options["--ntasks"]):
        print(f"srun: error: {options} does not fit the nodes {names}", file=sys.stderr)
        return 1
    if command[0] == "hostname":
        print((Path(os.environ["FAKE_SLURM"]) / "addresses").read_text().strip())
        return 0
    tasks = []
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    for name in names:
        own = {**os.environ, "SLURMD_NODENAME": name, "SLURM_GPUS_ON_NODE": str(NODES.index(name))}
        own.pop("SLURM_CPUS_PER_TASK", None)
        if "--cpus-per-task" in options:
            own["SLURM_CPUS_PER_TASK"] = options["--cpus-per-task"]
        tasks.append(subprocess.Popen(command, env=own))
    return max(abs(task.wait()) for task in tasks)


def main() -> int:
    name, *arguments = sys.argv[1:]
    with (Path(os.environ["FAKE_SLURM"]) / "calls.jsonl").open("a") as file:
        file.write(json.dumps([name, *arguments]) + "\n")
    return {"srun": srun, "scontrol": scontrol}[name](arguments)


if __name__ == "__main__":
    raise SystemExit(main())
