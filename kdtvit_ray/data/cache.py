"""Prepared sets and weights files on this node: where they lie already, or copied here once from the study's storage.

Groups of one node share the copy, and through the page cache its memory. Of several that need it at once, one copies
and the others wait; the copy is checked against its fingerprint before anybody sees it, so a torn copy is never used.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdtvit_ray.data.prepared import Prepared, fingerprint_of, open_prepared
from kdtvit_ray.errors import NodeFault, UserError
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_IMAGES, PREPARED_TABLE, Folder, expanded, without_secrets

CHUNK = 16 << 20
FILES = (PREPARED_IMAGES, PREPARED_TABLE, PREPARED_ABOUT)
_DIGESTS: dict[tuple[str, int, int], str] = {}


def cache_folder() -> Path:
    """Where copies lie on this node: `KDTVIT_CACHE`, else a folder of the user's cache. Raises `UserError` where
    this machine knows no home of the user's."""
    return expanded(os.environ.get("KDTVIT_CACHE") or "~/.cache/kdtvit_ray")


def local_copy(location: str, fingerprint: str = "", otherwise: str = "") -> Prepared:
    """The prepared set at `location`, a path or a URI, open on this node.

    A path that exists here is used as it is when its fingerprint fits; anything else is copied to the cache, from
    `location` where that is a URI, else from `otherwise` (a set that `publish` has put on storage). Raises `UserError`
    where there is no such set, or another one, `OSError` where it cannot be read from there, and `NodeFault` where the
    cache cannot hold it.
    """
    if "://" not in location:
        if (Path(location) / PREPARED_ABOUT).is_file() or not otherwise:
            found = open_prepared(Path(location))
            if not fingerprint or found.fingerprint == fingerprint:
                return found
            if not otherwise:
                raise UserError(_another(location, fingerprint, found.fingerprint))
        location = otherwise
    source = Folder(location)
    told = _told(source)
    if not told:
        raise UserError(
            f"'{source.shown}' holds no prepared set; allowed: a folder that 'kdtvit-ray prepare' has finished"
        )
    if fingerprint and told != fingerprint:
        raise UserError(_another(location, fingerprint, told))
    with _held(told) as target:
        if not (target / PREPARED_ABOUT).is_file():
            _fetch(source, target, told)
    return open_prepared(target)


def local_file(location: str, digest: str, otherwise: str = "") -> Path:
    """A file of the content digest `digest` on this node: at `location` where that fits, else copied to the cache from
    the folder `otherwise`, where `publish_file` has put it. Raises `UserError` where neither has it,
    `OSError` where it cannot be read from that folder, and `NodeFault` where the cache cannot hold it."""
    here = Path(location)
    if here.is_file() and digest_of(here) == digest:
        return here
    if not otherwise:
        raise UserError(f"The file '{location}' is not on this node, or is not what it was when the study started")
    name = digest + here.suffix
    with _held(name) as target:
        if not target.is_file():
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
        if not target.is_file() or digest_of(target) != target.stem:
            with _arriving(target) as partial, _on_this_node():
                partial.write_bytes(content)
    return target


def digest_of(path: Path) -> str:
    """Content digest of a file: BLAKE2b, 32 hex digits. Read once a process for as long as the file is unchanged."""
    about = path.stat()
    known = (str(path), about.st_mtime_ns, about.st_size)
    if known not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[known] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return _DIGESTS[known]


def publish(prepared: Prepared, folder: Folder, name: str) -> str:
    """Put a prepared set on storage under `name` of `folder`, if it is not there whole; returns its location there."""
    target = Folder(_inside(folder, name))
    first = (PREPARED_IMAGES, PREPARED_TABLE)
    # sizes: a machine that lost its power may have kept the file that came last and not all of the others
    sizes = {each: (prepared.path / each).stat().st_size for each in first}
    if _told(target) != prepared.fingerprint or any(target.size(each) != size for each, size in sizes.items()):
        target.fs.create_dir(target.root, recursive=True)
        for each in first:
            with (prepared.path / each).open("rb") as source, target.fs.open_output_stream(target.path(each)) as sink:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)
        target.write(PREPARED_ABOUT, (prepared.path / PREPARED_ABOUT).read_bytes())  # it makes the others a set
    return target.location


def publish_file(path: Path, digest: str, folder: Folder, name: str) -> str:
    """Put a file on storage under its digest in the folder `name` of `folder`; returns that folder's location."""
    target = Folder(_inside(folder, name))
    if not target.exists(digest + path.suffix):
        target.write(digest + path.suffix, path.read_bytes())
    return target.location


def _told(folder: Folder) -> str:
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
            partial.rename(target)
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
    with source.fs.open_input_stream(source.path(name)) as reader:
        with _on_this_node():
            path.write_bytes(b"")  # a process that was killed may have left a part
        while chunk := reader.read(CHUNK):
            # closed after each chunk: some disks tell only then that they are full
            with _on_this_node(), path.open("ab") as sink:
                sink.write(chunk)


def _fetch(source: Folder, target: Path, fingerprint: str) -> None:
    for left in target.parent.glob(f"{fingerprint}.*/"):  # by one that was killed while it copied
        shutil.rmtree(left, ignore_errors=True)
    with _on_this_node():
        partial = Path(tempfile.mkdtemp(prefix=f"{fingerprint}.", dir=target.parent))
    try:
        for name in FILES:
            _copy(source, name, partial / name)
        found = fingerprint_of(open_prepared(partial))
        if found != fingerprint:
            raise UserError(
                f"The prepared set copied from '{source.shown}' is damaged: its content has fingerprint {found}, "
                f"not {fingerprint}; prepare it again"
            )
        shutil.rmtree(target, ignore_errors=True)
        with _on_this_node():
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _inside(folder: Folder, name: str) -> str:
    """A location inside another: before the query of a URI, which holds options of the file system."""
    base, mark, query = folder.location.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}" if "://" in base else folder.path(name)


def _another(location: str, wanted: str, found: str) -> str:
    return (
        f"The prepared set '{without_secrets(location)}' has fingerprint {found}, not {wanted}; use the set that the "
        "study was made for"
    )
