"""Prepared sets and weights files on this node: where they lie already, or copied here once from the study's storage.

Groups of one node share the copy, and through the page cache its memory. Of several that need it at once, one copies
and the others wait. Each process reads what lies in the cache once, whole, before it uses it: what is not what it was,
by its fingerprint or digest, is removed and copied again. A set that is used where it lies is read so once, where the
study starts. The 1.6 GB of a set like BreakHis at 256 pixels take 1.6 s of
one core, and what the disk needs for them. What befalls a copy later, while the process runs, is not seen.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdtvit_ray.data.prepared import Prepared, fingerprint_of, open_prepared
from kdtvit_ray.errors import NodeFault, UserError
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_IMAGES, PREPARED_TABLE, Folder, expanded, sync, without_secrets

CHUNK = 16 << 20
FILES = (PREPARED_IMAGES, PREPARED_TABLE, PREPARED_ABOUT)
_DIGESTS: dict[tuple[str, int, int], str] = {}
_WHOLE: set[tuple[tuple[str, int, int], ...]] = set()
"""The files of sets that this process has found to be what they were."""

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where copies lie on this node: `KDTVIT_CACHE`, else a folder of the user's cache. Raises `UserError` where
    this machine knows no home of the user's."""
    return expanded(os.environ.get("KDTVIT_CACHE") or "~/.cache/kdtvit_ray")


def local_copy(location: str, fingerprint: str = "", otherwise: str = "") -> Prepared:
    """The prepared set at `location`, a path or a URI, open on this node.

    A path that exists here is used as it is when its fingerprint fits; anything else is copied to the cache, from
    `location` where that is a URI, else from `otherwise` (a set that `publish` has put on storage), unless the cache
    has it whole. Raises `UserError` where there is no such set, or another one, or a damaged one, `OSError` where it
    cannot be read from there, and `NodeFault` where the cache cannot hold it.
    """
    if "://" not in location:
        try:
            found = open_prepared(Path(location))
            if not fingerprint or found.fingerprint == fingerprint:
                return found
            raise UserError(_another(location, fingerprint, found.fingerprint))
        except UserError:  # none here, another one, or a damaged one
            if not otherwise:
                raise
        location = otherwise
    source = Folder(location)
    told = fingerprint_at(source)
    if not told:
        raise UserError(
            f"'{source.shown}' holds no prepared set; allowed: a folder that 'kdtvit-ray prepare' has finished"
        )
    if fingerprint and told != fingerprint:
        raise UserError(_another(location, fingerprint, told))
    if kept := _whole(cache_folder() / told, told):  # without the lock, or the node's processes would read in turn
        return kept
    with _held(told) as target:
        return _whole(target, told) or _fetch(source, target, told)


def local_file(location: str, digest: str, otherwise: str = "") -> Path:
    """A file of the content digest `digest` on this node: at `location` where that fits, else copied to the cache from
    the folder `otherwise`, where `publish_file` has put it, unless the cache has it. Raises `UserError` where neither
    has it, `OSError` where it cannot be read from that folder, and `NodeFault` where the cache cannot hold it."""
    here = Path(location)
    if _has(here, digest):
        return here
    if not otherwise:
        raise UserError(f"The file '{location}' is not on this node, or is not what it was when the study started")
    name = digest + here.suffix
    if _has(target := cache_folder() / name, digest):  # without the lock, or the node's processes would read in turn
        return target
    with _held(name) as target:
        if not _has(target, digest):
            _tell_damaged(target)
            source = Folder(otherwise)
            with _arriving(target) as partial:
                _copy(source, name, partial)
                with _on_this_node():
                    found = digest_of(partial)
                if found != digest:
                    raise UserError(f"'{source.shown}/{name}' is damaged: its content has digest {found}; delete it")
    return target


def kept_file(content: bytes, name: str) -> Path:
    """A file of the cache with this content; its `name` is its digest with a suffix. Raises `NodeFault`."""
    with _held(name) as target:
        if not _has(target, target.stem):
            with _arriving(target) as partial, _on_this_node():
                partial.write_bytes(content)
    return target


def digest_of(path: Path) -> str:
    """Content digest of a file: BLAKE2b, 32 hex digits. Read once a process for as long as the file is unchanged."""
    known = _state(path)
    if known not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[known] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return _DIGESTS[known]


def _state(path: Path) -> tuple[str, int, int]:
    """What changes when a file is written to."""
    about = path.stat()
    return str(path), about.st_mtime_ns, about.st_size


def _states(place: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple(_state(place / name) for name in FILES)


def _has(path: Path, digest: str) -> bool:
    """Whether there is a file with the content of this digest."""
    try:
        return digest_of(path) == digest
    except OSError:  # there is none, or the disk has lost it
        return False


def _whole(place: Path, fingerprint: str) -> Prepared | None:
    """The set at a place of the cache; None where there is none, or one that is not what was copied there."""
    try:
        found, files = open_prepared(place), _states(place)
    except (UserError, OSError):
        return None
    if files not in _WHOLE:
        if fingerprint_of(found) != fingerprint:
            return None
        _WHOLE.add(files)
    return found if found.fingerprint == fingerprint else None


def check_whole(prepared: Prepared) -> None:
    """Raise `UserError` for a set that is not what was prepared: every pixel is read, once a process for as long as its
    files are unchanged. `local_copy` has done so for a copy, not for a path that exists here, so that a node's
    processes need not all read what the study's start has read."""
    files = _states(prepared.path)
    if files not in _WHOLE:
        if (found := fingerprint_of(prepared)) != prepared.fingerprint:
            raise UserError(
                f"Prepared set '{prepared.path}' is not what 'kdtvit-ray prepare' wrote: its content has fingerprint "
                f"{found}, not {prepared.fingerprint}, so its images were changed or are damaged; delete it and "
                "prepare it again"
            )
        _WHOLE.add(files)


def _tell_damaged(place: Path) -> None:
    if place.exists():
        log.warning("'%s' in the cache of %s is not what was copied there; it is copied again", place, platform.node())


def publish(prepared: Prepared, folder: Folder, name: str) -> str:
    """Put a prepared set on storage under `name` of `folder`, if it is not there whole; returns its location there."""
    target = Folder(folder.inside(name))
    first = (PREPARED_IMAGES, PREPARED_TABLE)
    # sizes only: to read a whole set from storage at every start takes too long; each node checks what it copies
    sizes = {each: (prepared.path / each).stat().st_size for each in first}
    if fingerprint_at(target) != prepared.fingerprint or any(target.size(each) != size for each, size in sizes.items()):
        target.fs.create_dir(target.root, recursive=True)
        for each in first:
            with (prepared.path / each).open("rb") as source, target.fs.open_output_stream(target.path(each)) as sink:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)
            if target.local:
                sync(target.local / each)
        target.write(PREPARED_ABOUT, (prepared.path / PREPARED_ABOUT).read_bytes())  # it makes the others a set
    return target.location


def publish_file(path: Path, digest: str, folder: Folder, name: str) -> str:
    """Put a file on storage under its digest in the folder `name` of `folder`, if it is not there whole; returns that
    folder's location."""
    target = Folder(folder.inside(name))
    if target.size(digest + path.suffix) != path.stat().st_size:
        target.write(digest + path.suffix, path.read_bytes(), before_others=True)
    return target.location


def fingerprint_at(folder: Folder) -> str:
    """The fingerprint that the set in a folder says it has; empty where there is no set, or no whole one."""
    if not folder.exists(PREPARED_ABOUT):
        return ""
    try:
        return str(folder.read_json(PREPARED_ABOUT)["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return ""


@contextmanager
def reserved(name: str) -> Iterator[Path]:
    """A place of the cache that this process alone may fill meanwhile. Raises `OSError` where there is no cache that
    can be written."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache / name


@contextmanager
def _held(name: str) -> Iterator[Path]:
    """A `reserved` place for a copy."""
    with ExitStack() as stack:
        with _on_this_node():
            place = stack.enter_context(reserved(name))
        yield place


@contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A file beside `target` that becomes it once it is whole, and is gone if it never is."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        with _on_this_node():
            sync(partial)
            partial.rename(target)
            sync(target.parent)
    finally:
        with suppress(OSError):  # of a disk that became read-only, say: the first error counts
            partial.unlink()


@contextmanager
def _on_this_node() -> Iterator[None]:
    """Raise `NodeFault` for an `OSError` of the cache. One that is left an `OSError` is of the storage copied from: the
    study stops when that stays away, whereas a node with a full disk is set aside, and others go on."""
    try:
        yield
    except OSError as error:
        raise NodeFault(
            f"The cache '{cache_folder()}' on host {platform.node()} cannot be written ({error.strerror or error}); "
            "set KDTVIT_CACHE to a folder that can hold the prepared set and the weights files"
        ) from error


def _copy(source: Folder, name: str, path: Path) -> None:
    def copy() -> None:
        with source.fs.open_input_stream(source.path(name)) as reader:
            with _on_this_node():
                path.write_bytes(b"")  # a process that was killed may have left a part
            while chunk := reader.read(CHUNK):
                # closed after each chunk: some disks tell only then that they are full
                with _on_this_node(), path.open("ab") as sink:
                    sink.write(chunk)

    source.patiently(f"Copying {name} of {source.shown}", copy)


def _fetch(source: Folder, target: Path, fingerprint: str) -> Prepared:
    """Copy a set to its place in the cache and open it. What lies there goes first: the disk may lack room for two."""
    _tell_damaged(target)
    shutil.rmtree(target, ignore_errors=True)
    for left in target.parent.glob(f"{fingerprint}.*/"):  # by one that was killed while it copied
        shutil.rmtree(left, ignore_errors=True)
    with _on_this_node():
        partial = Path(tempfile.mkdtemp(prefix=f"{fingerprint}.", dir=target.parent))
    try:
        for name in FILES:
            _copy(source, name, partial / name)
            with _on_this_node():
                sync(partial / name)
        if not _whole(partial, fingerprint):
            raise UserError(
                f"The prepared set at '{source.shown}' is damaged: its content is not that of fingerprint "
                f"{fingerprint}; delete it: a study that has put it there does so again, any other is to be prepared "
                "again"
            )
        with _on_this_node():
            sync(partial)
            partial.rename(target)
            sync(target.parent)
        made = open_prepared(target)
        _WHOLE.add(_states(target))
        return made
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _another(location: str, wanted: str, found: str) -> str:
    return (
        f"The prepared set '{without_secrets(location)}' has fingerprint {found}, not {wanted}; use the set that the "
        "study was made for"
    )
