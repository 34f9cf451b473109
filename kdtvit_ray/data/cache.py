"""A prepared set on this node: where it lies already, or copied here once from the study's storage.

Groups of one node share the copy, and through the page cache its memory. Of several that need it at once, one copies
and the others wait; the copy is checked against the fingerprint before anybody sees it, so a torn copy is never used.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from kdtvit_ray.data.prepare import Prepared, fingerprint_of, open_prepared
from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import PREPARED_ABOUT, PREPARED_IMAGES, PREPARED_TABLE, Folder, without_secrets

CHUNK = 16 << 20
FILES = (PREPARED_IMAGES, PREPARED_TABLE, PREPARED_ABOUT)


def cache_folder() -> Path:
    """Where copies lie on this node: `KDTVIT_CACHE`, else a folder of the user's cache."""
    chosen = os.environ.get("KDTVIT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "kdtvit_ray"


def local_copy(location: str, fingerprint: str = "", otherwise: str = "") -> Prepared:
    """The prepared set at `location`, a path or a URI, open on this node.

    A path that exists here is used as it is when its fingerprint fits; anything else is copied to the cache, from
    `location` where that is a URI, else from `otherwise` (a set that `publish` has put on storage). Raises `UserError`
    where there is no such set, or another one.
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
    if not source.exists(PREPARED_ABOUT):
        raise UserError(
            f"'{source.shown}' holds no prepared set; allowed: a folder that 'kdtvit-ray prepare' has finished"
        )
    told = source.read_json(PREPARED_ABOUT)["fingerprint"]
    if fingerprint and told != fingerprint:
        raise UserError(_another(location, fingerprint, told))
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / told
    with (cache / f"{told}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / PREPARED_ABOUT).is_file():
            _fetch(source, target, told)
    return open_prepared(target)


def publish(prepared: Prepared, folder: Folder, name: str) -> str:
    """Put a prepared set on storage under `name` of `folder`, if it is not there; returns its location there."""
    target = Folder(_inside(folder, name))
    if not target.exists(PREPARED_ABOUT):
        target.fs.create_dir(target.root, recursive=True)
        for each in FILES:  # the file that makes it a set comes last
            with (prepared.path / each).open("rb") as source, target.fs.open_output_stream(target.path(each)) as sink:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)
    return target.location


def _fetch(source: Folder, target: Path, fingerprint: str) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f"{fingerprint}.", dir=target.parent))
    try:
        for name in FILES:
            with source.fs.open_input_stream(source.path(name)) as reader, (partial / name).open("wb") as sink:
                while chunk := reader.read(CHUNK):
                    sink.write(chunk)
        found = fingerprint_of(open_prepared(partial))
        if found != fingerprint:
            raise UserError(
                f"The prepared set copied from '{source.shown}' is damaged: its content has fingerprint {found}, "
                f"not {fingerprint}; prepare it again"
            )
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise UserError(f"Cannot copy the prepared set '{source.shown}' to '{target}': {error}") from None
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
