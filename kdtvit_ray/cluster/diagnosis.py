"""What the doctor says of what it has found: a table in green and red, and one line of advice for each red.

Pure Python: what was found comes from `kdtvit_ray.cluster.doctor`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdtvit_ray.cluster.examination import Sight
from kdtvit_ray.cluster.probe import Expected, Probe, differences, mismatch
from kdtvit_ray.results.sessions import DECISIVE

CHECKS = ("package", "device", "cache", "storage", "data", "/dev/shm")
"""What is checked on each node, in the order of the table."""
GB = 10**9
LEAST_FREE = 1 * GB
"""Fewer free bytes of storage are red: stages' weights would soon fill them."""
LEAST_SHARED = 1 * GB
"""Less shared memory is red: a container has 64 MB of it by default, and Ray and torch pass tensors through it."""
HOST_WIDTH = 12


@dataclass(frozen=True)
class Found:
    """What was found of one node, by Ray's id `node`; `trains` says whether it has room for a worker. `error` says why
    there is no `sight`. `device` is the probe of a process that had a worker's GPU, `device_error` why there is none;
    `storage` says why the driver does not see what the node wrote. `object_store` is what Ray keeps there, in bytes."""

    node: str
    host: str
    trains: bool
    sight: Sight | None = None
    error: str = ""
    device: Probe | None = None
    device_error: str = ""
    storage: str = ""
    object_store: float = 0.0


@dataclass(frozen=True)
class Cell:
    """The outcome of a check: in short, and where it is red why, and what to do."""

    text: str
    trouble: str = ""
    advice: str = ""


NOT_ASKED = Cell("-")
COPIED = Cell("copied")
DIFFERS = "differs"


@dataclass(frozen=True)
class Diagnosis:
    """A cell for each check: of each node, which is named by its host and the beginning of Ray's id, and of the cluster
    as a whole."""

    nodes: Mapping[str, Mapping[str, Cell]]
    whole: Mapping[str, Cell]

    @property
    def reds(self) -> list[tuple[str, Cell]]:
        """What is red, each with where."""
        there = [(f"{name}, {check}", cell) for name, cells in self.nodes.items() for check, cell in cells.items()]
        return [(where, cell) for where, cell in (*there, *self.whole.items()) if cell.trouble]


@dataclass(frozen=True)
class Needs:
    """What a study needs: the set of this fingerprint and size in bytes, empty and 0 where no data was named; whether a
    storage was named."""

    fingerprint: str = ""
    size: int = 0
    storage: bool = False


def kept_device(found: Sequence[Found]) -> str:
    """The device that most nodes have, to which a study keeps that mixes none; empty where no device was seen."""
    kinds = Counter(each.device.device for each in found if each.device and each.device.device)
    return kinds.most_common(1)[0][0] if kinds else ""


def of_node(wanted: Expected, found: Found, needs: Needs) -> dict[str, Cell]:
    """All checks of one node. A study that mixes no devices keeps to that of `wanted`."""
    if found.sight is None:
        return {**dict.fromkeys(CHECKS, NOT_ASKED), "package": _no_answer(wanted, found.error)}
    sight = found.sight
    return {
        "package": _package(wanted, sight.probe),
        "device": _device(wanted, found),
        "cache": _cache(sight),
        "storage": _storage(found, sight) if needs.storage else NOT_ASKED,
        "data": _data(sight, needs) if needs.fingerprint else NOT_ASKED,
        "/dev/shm": _shared_memory(found, sight),
    }


def sets_aside(cells: Mapping[str, Cell]) -> str:
    """Why a sweep would run nothing on a node with these cells; empty where it would. Versions that only differ are no
    reason, nor is what is merely short."""
    for check in ("package", "device", "cache"):
        if cells[check].trouble and cells[check].text != DIFFERS:
            return cells[check].trouble
    return ""


def of_groups(fit: int, wanted: int, most: int, needs: str) -> Cell:
    """`fit` worker groups fit on the nodes that work, `wanted` were asked for (0: as many as fit), `most` can have work
    (0: not known without a space); each needs `needs`."""
    if not fit:
        return Cell(
            "none fits",
            f"no worker group fits on the nodes that work; each needs {needs}",
            "repair or add nodes, or take fewer --workers or --gpus-per-worker",
        )
    told = f"{fit} fit{'s' if fit == 1 else ''}, of {needs} each"
    if wanted > fit:
        return Cell(
            told, f"{wanted} groups were asked for and {fit} fit", "add nodes, or take fewer --groups: the others wait"
        )
    if not most:
        return Cell(f"{told}; how many can have work depends on --space")
    will = min(wanted or fit, most)
    return Cell(f"{told}; {most} can have work, so there will be {will}")


def of_reduction(workers: int, trouble: str, asked: bool) -> Cell:
    """The outcome of an all-reduce of one group."""
    if not asked:
        return Cell("not tried: no group fits")
    if trouble:
        return Cell(
            "fails",
            trouble,
            "see 'ray status' for what is held; open all ports between the nodes",
        )
    return Cell("right, 1 worker by itself" if workers == 1 else f"right, between {workers} workers")


def of_driver_storage(trouble: str) -> Cell:
    return Cell("fails", trouble, "name another --out, or let this user write there")


def names(found: Sequence[Found]) -> dict[str, str]:
    """How each node is called, by Ray's id."""
    return {each.node: f"{_short(each.host)} {each.node[:8]}" for each in found}


def view(diagnosis: Diagnosis, colour: bool) -> RenderableType:
    """The table and the advice, for 80 columns. Red cells begin with `!`, which tells them where there is no colour."""
    table = Table(box=None, pad_edge=False, header_style="bold" if colour else "", padding=(0, 1))
    for name in ("node", *CHECKS):
        table.add_column(name, overflow="fold")
    for name, cells in diagnosis.nodes.items():
        table.add_row(name, *(_text(cells[check]) for check in CHECKS))
    whole = [Text.assemble(f"{name:<12}", _text(cell)) for name, cell in diagnosis.whole.items()]
    if any(cells["data"] == COPIED for cells in diagnosis.nodes.values()):
        whole.append(Text("copied: the set is copied to that node from the study's storage when a sweep starts"))
    reds = diagnosis.reds
    advice = [
        Text.assemble((f"\n{where}: ", "bold"), (cell.trouble, "red"), f"\n  -> {cell.advice}") for where, cell in reds
    ]
    end = Text(f"\n{len(reds)} red" if reds else "\nNothing is red.", "bold red" if reds else "bold green")
    return Group(table, Text(), *whole, *advice, end)


# -- the checks of a node ----------------------------------------------------------------------------------------------


def _no_answer(wanted: Expected, error: str) -> Cell:
    if "No module named" in error:
        return Cell("missing", error, _install(wanted))
    return Cell("no answer", error, "see Ray's log on that node, and start Ray there again")


def _package(wanted: Expected, found: Probe) -> Cell:
    # the device and the cache have columns of their own
    if wrong := mismatch(replace(wanted, mix=True), replace(found, trouble="")):
        return Cell("other", wrong, _install(wanted))
    if told := differences(wanted, found):
        differing = [name for name in DECISIVE if found.versions.get(name) != wanted.versions.get(name)]
        advice = f"{_install(wanted, differing)}; else the last bits of results may differ"
        return Cell(DIFFERS, f"it has {told}", advice)
    return Cell(found.versions.get("kdtvit-ray", "?"))


def _install(wanted: Expected, packages: Sequence[str] = ("kdtvit-ray",)) -> str:
    same = " and ".join(f"{name} {wanted.versions[name]}" for name in packages if name in wanted.versions)
    return f"pip install the driver's {same} there"


def _device(wanted: Expected, found: Found) -> Cell:
    if not found.trains:
        return Cell("no room")
    if found.device is None:
        return Cell("?", found.device_error, "'ray status' tells what holds the GPUs there: wait, or end it")
    if not found.device.device:
        advice = "install a torch there that its driver can run, or leave the node out"
        return Cell("none", found.device.trouble, advice)
    if wrong := mismatch(wanted, replace(found.device, recipe=wanted.recipe, key=wanted.key, trouble="")):
        return Cell(found.device.device, wrong, "leave the node out, or set mix_devices = true in [study]")
    return Cell(found.device.device)


def _cache(sight: Sight) -> Cell:
    if sight.probe.trouble:
        advice = "let Ray's user write there, or set KDTVIT_CACHE before 'ray start'"
        return Cell("locked", sight.probe.trouble, advice)
    return Cell(_size(sight.cache_free))


def _storage(found: Found, sight: Sight) -> Cell:
    if trouble := sight.storage or found.storage:
        advice = "mount one folder at one path on every node, or take --out s3://..."
        return Cell("other", trouble, advice)
    if sight.storage_free is None:
        return Cell("shared")
    if sight.storage_free < LEAST_FREE:
        trouble = f"the study's storage has {_size(sight.storage_free)} free; it needs {_size(LEAST_FREE)}"
        return Cell(_size(sight.storage_free), trouble, "free some space there, or take another --out")
    return Cell(_size(sight.storage_free))


def _data(sight: Sight, needs: Needs) -> Cell:
    if sight.data:
        return Cell("damaged", sight.data, "delete it on that node: a sweep copies it there")
    if sight.fingerprint == needs.fingerprint:
        return Cell("here")
    if sight.cached:
        return Cell("cached")
    if sight.probe.trouble:
        return Cell("-")  # the cache is red
    if sight.cache_free is not None and sight.cache_free < needs.size:
        return Cell(
            "no space",
            f"the set takes {_size(needs.size)} and its cache {sight.cache} has {_size(sight.cache_free)} free",
            "free some space there, or set KDTVIT_CACHE before 'ray start'",
        )
    return COPIED


def _shared_memory(found: Found, sight: Sight) -> Cell:
    have = sight.shared_memory
    if have is None:
        return Cell("none")  # not Linux, and Ray does without
    least = max(LEAST_SHARED, int(found.object_store))
    if have < least:
        size = -(-least // GB) + 1
        advice = f"Docker: --shm-size={size}g; Kubernetes: an emptyDir with medium: Memory there"
        return Cell(_size(have), f"its /dev/shm has {_size(have)}, and Ray and torch want {_size(least)}", advice)
    return Cell(_size(have))


def _text(cell: Cell) -> Text:
    if cell.trouble:
        return Text(f"! {cell.text}", "red")
    return Text(cell.text, "" if cell == NOT_ASKED else "green")


def _short(host: str) -> str:
    """The host without its domain, an address as it is."""
    name = host if host.replace(".", "").isdecimal() else host.partition(".")[0]
    return name if len(name) <= HOST_WIDTH else f"{name[: HOST_WIDTH - 1]}…"


def _size(size: int | None) -> str:
    if size is None:
        return "?"
    return f"{size / GB:.0f} GB" if size >= 10 * GB else f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.0f} MB"
