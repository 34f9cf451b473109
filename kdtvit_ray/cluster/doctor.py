"""The checks before a sweep: asks every node of the cluster what a study would find there, and one worker group to add
up a tensor. Leaves nothing behind but its log.

A sweep makes the cheap ones of these checks by itself (`kdtvit_ray.cluster.nodes`).
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kdtvit_ray.cluster import diagnosis
from kdtvit_ray.cluster.common_storage import CommonStorage
from kdtvit_ray.cluster.connection import connect
from kdtvit_ray.cluster.diagnosis import Cell, Diagnosis, Found, Needs
from kdtvit_ray.cluster.environment import set_environment
from kdtvit_ray.cluster.examination import Request, Sight, examine
from kdtvit_ray.cluster.groups import groups_that_fit
from kdtvit_ray.cluster.nodes import PROBE_SECONDS, Nodes, on_the_drivers_node, said, task_on
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.cluster.probe import Expected, Probe, expected, probe
from kdtvit_ray.console import quiet
from kdtvit_ray.errors import EXIT_OK, EXIT_TRIALS_FAILED, UserError
from kdtvit_ray.paths import Folder, without_secrets
from kdtvit_ray.study.binding import check_models
from kdtvit_ray.study.ledger import most_at_once
from kdtvit_ray.study.space import Space, load_space

REDUCE_SECONDS = 300.0
"""Seconds after which an all-reduce has failed; a worker group takes up to half a minute to start, on a busy machine
longer."""
SAMPLE = "demo"
"""The space whose first stage is the sample of a stage key where no space is named."""


def doctor(options: Options, data: str, space: str, console: Console) -> int:
    """Check the cluster at the address of the options, or this machine, for a study with these options. `out`, `data`
    and `space` may be empty; then nothing is said of them.

    Returns the exit code: 1 where something is red. Raises `UserError` for a space, a set or an address that is not
    there.
    """
    loaded = load_space(space or SAMPLE)
    check_models(loaded)
    path, needs = _needs(data, storage=bool(options.out))
    wanted = expected(loaded.plan({})[0], loaded.study["mix_devices"])
    handle, log = tempfile.mkstemp(prefix="kdtvit-ray-doctor-", suffix=".log")
    os.close(handle)
    console.print(_about(wanted, space or SAMPLE))
    console.print(f"Log in {log}", soft_wrap=True)
    set_environment()
    with quiet(Path(log)) as terminal:
        import ray

        try:
            with terminal.status("starting Ray"):
                connect(options.address, Path(log))
            told = _Examiner(options, wanted, path, needs, loaded if space else None, terminal).diagnose()
        finally:
            ray.shutdown()
    console.print(diagnosis.view(told, colour=console.is_terminal))
    return EXIT_TRIALS_FAILED if told.reds else EXIT_OK


def _needs(data: str, storage: bool) -> tuple[str, Needs]:
    """The location of the set for every node, and what a study needs of one. Raises `UserError` where there is none."""
    from kdtvit_ray.data.cache import FILES, fingerprint_at
    from kdtvit_ray.data.prepared import open_prepared

    if not data:
        return "", Needs(storage=storage)
    fingerprint = fingerprint_at(Folder(data)) if "://" in data else open_prepared(Path(data)).fingerprint
    folder = Folder(data)
    if not fingerprint:
        raise UserError(f"'{folder.shown}' holds no prepared set; allowed: what 'kdtvit-ray prepare' has finished")
    return folder.location, Needs(fingerprint, sum(folder.size(each) for each in FILES), storage)


def _about(wanted: Expected, space: str) -> str:
    shown = ", ".join(
        f"{name} {wanted.versions[name]}"
        for name in ("kdtvit-ray", "python", "torch", "ray", "timm")
        if name in wanted.versions
    )
    return f"Driver: {shown}; recipe {wanted.recipe}; key of a stage of '{space}' {wanted.key[:12]}"


@dataclass
class _Examiner:
    """Asks the nodes of a Ray that is connected. `space` is None where none was named."""

    options: Options
    wanted: Expected
    data: str
    needs: Needs
    space: Space | None
    terminal: Console

    def diagnose(self) -> Diagnosis:
        import ray

        nodes = Nodes(self.wanted, self.data, address="")  # the probing is ours, the book-keeping a sweep's
        nodes.look()
        resources = {each["NodeID"]: each["Resources"] for each in ray.nodes() if each["NodeID"] in nodes.living}
        count = f"{len(resources)} node{'s' if len(resources) > 1 else ''}"
        with self.terminal.status(f"asking {count}"):
            found, trouble = self._look_around(nodes.living, resources)
            gpus = self._gpus(found, resources)
            found = self._see_devices(found, resources, gpus)
        if not self.wanted.mix:
            self.wanted = replace(self.wanted, device=diagnosis.kept_device(found))
        needs = replace(self.needs, storage=self.needs.storage and not trouble)
        called = diagnosis.names(found)
        cells = {each.node: diagnosis.of_node(self.wanted, each, needs) for each in found}
        nodes.set_aside({node: reason for node, each in cells.items() if (reason := diagnosis.sets_aside(each))})
        whole: dict[str, Cell] = {"storage": diagnosis.of_driver_storage(trouble)} if trouble else {}
        workers = self.options.workers
        fit = groups_that_fit(nodes.resources(), workers, gpus)
        most = most_at_once(self.space, judged=bool(self.space.parts)) if self.space else 0
        each_needs = f"{workers} x ({f'{gpus:g} GPU and ' if gpus else ''}1 CPU)"
        whole["groups"] = diagnosis.of_groups(fit, self.options.groups, most, each_needs)
        with self.terminal.status("a worker group adds up a tensor"):
            reduced = self._reduce(gpus, sorted(nodes.unfit)) if fit else ""
        whole["all-reduce"] = diagnosis.of_reduction(workers, reduced, asked=bool(fit))
        return Diagnosis({called[node]: each for node, each in cells.items()}, whole)

    def _look_around(
        self, living: Mapping[str, str], resources: Mapping[str, Mapping[str, float]]
    ) -> tuple[list[Found], str]:
        """What is found on each node, and why the driver cannot use the study's storage."""
        asked, wrote, trouble = Request(self.wanted.spec, self.data, self.needs.fingerprint), {}, ""
        if self.options.out:
            with CommonStorage(self.options.out) as common:
                token = "" if common.trouble else common.token
                answers = self._ask(living, replace(asked, location=common.folder.location, token=token))
                answered = [node for node, each in answers.items() if isinstance(each, Sight) and not each.storage]
                wrote = {node: common.answered(node) for node in answered if token}
            trouble = common.trouble
        else:
            answers = self._ask(living, asked)
        found = []
        for node, host in living.items():
            answer = answers[node]
            one = Found(
                node,
                host,
                trains=bool(resources[node].get("CPU")),
                storage=wrote.get(node, ""),
                object_store=resources[node].get("object_store_memory", 0.0),
            )
            found.append(replace(one, error=answer) if isinstance(answer, str) else replace(one, sight=answer))
        return sorted(found, key=lambda each: (each.host, each.node)), trouble

    def _ask(self, living: Mapping[str, str], asked: Request) -> dict[str, Any]:
        """The `Sight` of each node, or why there is none."""
        return _answers({node: task_on(node, examine).remote(node, asked) for node in living})

    def _gpus(self, found: list[Found], resources: Mapping[str, Mapping[str, float]]) -> float:
        """The share of a GPU of each worker, chosen as a sweep does: one where any node that answers has a GPU."""
        if self.options.gpus_per_worker >= 0:
            return self.options.gpus_per_worker
        return 1.0 if any(resources[each.node].get("GPU") for each in found if each.sight) else 0.0

    def _see_devices(
        self, found: list[Found], resources: Mapping[str, Mapping[str, float]], gpus: float
    ) -> list[Found]:
        """With what a process sees for which a worker's share of a GPU was reserved, where there is room for one."""
        found = [replace(each, trains=each.trains and resources[each.node].get("GPU", 0) >= gpus) for each in found]
        asked = {
            each.node: task_on(each.node, probe, gpus).remote(
                each.node, self.wanted.spec, self.data, gpus=gpus, train=True
            )
            for each in found
            if each.sight and each.trains
        }
        answers = _answers(asked)
        seen = {node: answer for node, answer in answers.items() if isinstance(answer, Probe)}
        return [
            replace(each, device=seen.get(each.node), device_error=str(answers.get(each.node, ""))) for each in found
        ]

    def _reduce(self, gpus: float, unfit: list[str]) -> str:
        """Why one worker group cannot add up a tensor, empty where it can."""
        import ray

        from kdtvit_ray.cluster.all_reduce import reduce_once

        with tempfile.TemporaryDirectory(prefix="kdtvit-ray-doctor-", ignore_cleanup_errors=True) as folder:
            config = {"workers": self.options.workers, "gpus_per_worker": gpus, "unfit": unfit, "storage": folder}
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_the_drivers_node())(reduce_once)
            answer = _answers({"": task.remote(config)}, REDUCE_SECONDS)[""]
            return str(answer)


def _answers(tasks: Mapping[str, Any], seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """What each task returns, or a sentence where it fails or has not ended after `seconds`."""
    import ray

    waiting = list(tasks.values())
    ended = set(ray.wait(waiting, num_returns=len(waiting), timeout=seconds)[0]) if waiting else set()
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        if task not in ended:
            ray.cancel(task, force=True)
            found[name] = f"there was no answer within {seconds:.0f} s"
            continue
        try:
            found[name] = ray.get(task)
        except ray.exceptions.RayError as error:
            found[name] = without_secrets(said(error))
    return found
