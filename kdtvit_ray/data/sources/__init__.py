"""Where images come from: BreakHis by its names, a table, or a folder whose paths say what is in it."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from kdtvit_ray.data.sources import archives, breakhis
from kdtvit_ray.data.sources.files import Scan, files, is_archive, shortened
from kdtvit_ray.errors import UserError, readable
from kdtvit_ray.paths import PREPARED_IMAGES

ALLOWED = (
    f"BreakHis (its folder, images such as {breakhis.EXAMPLE}, or its archive), a folder or archive "
    f"({', '.join(archives.SUFFIXES)}) of magnification/class/patient, one with --pattern, or a table (.csv, .tsv, "
    ".parquet)"
)
_BESIDE = re.compile(
    r".*\.(txt|md|rst|html?|pdf|docx?|csv|tsv|xlsx?|ods|parquet|jsonl?|xml|ya?ml|toml|ini|cfg|log|py|sh|m|r|md5|sha256|db)"
    r"|readme|licen[sc]e|copying|changelog|checksums|md5sums|sha256sums",
    re.IGNORECASE,
)
"""Names of what usually lies beside images and is none: that it is passed over goes without saying, as it does of a set
that was prepared there."""


def scan(source: Path, *, pattern: str = "", positive: Sequence[str] = ()) -> Scan:
    """Find the images of a source and the dataset that they make.

    A .csv, .tsv or .parquet file is a table of images. A folder or archive with BreakHis names is BreakHis, unless a
    `pattern` says how its paths are to be read; any other is read as magnification/class/patient. `positive` are the
    labels that count as positive, where the source does not say it itself: one, or several joined by commas, in each
    text. Raises `UserError`.
    """
    from kdtvit_ray.data.sources import manifest

    if not source.exists():
        raise UserError(f"There is no folder, archive or table '{source}'; allowed: {ALLOWED}")
    if source.is_file() and source.suffix.lower() in manifest.SUFFIXES:
        if pattern:
            raise UserError(f"A table says itself what its images are, so '{source}' takes no --pattern")
        return manifest.scan(source, positive)
    if source.is_file() and not is_archive(source):
        raise UserError(f"'{source}' is a file, and no archive of images or table; allowed: {ALLOWED}")
    hidden: list[str] = []
    others: list[str] = []
    wanted = files(
        source, lambda name: breakhis.is_candidate(name) or is_image(name), None, hidden.append, others.append
    )
    found = list(wanted)
    passed_over = f"{len(hidden)} ({readable(shortened(hidden, 3))})"
    if not found:
        kind, but = "Archive" if source.is_file() else "Folder", f" but hidden ones, {passed_over}" if hidden else ""
        if by_suffix := _by_suffix(others):
            but += f"{' and' if but else ' but'} files of other kinds, {by_suffix}"
        raise UserError(f"{kind} '{source}' holds no images{but}; allowed: {ALLOWED}")
    made = _of_files(source, found, pattern, positive, others)
    if hidden:
        made.notes.append(f"Hidden images and folders that were passed over: {passed_over}")
    if by_suffix := _by_suffix(others):
        made.notes.append(f"Files of other kinds that were passed over: {by_suffix}")
    return made


def _by_suffix(paths: Sequence[str]) -> str:
    """How many files there are of each kind, with an example, without those that usually lie beside images."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        name = PurePosixPath(path).name.lower()
        suffix = next((each for each in archives.SUFFIXES if name.endswith(each)), PurePosixPath(name).suffix)
        if name != PREPARED_IMAGES and not _BESIDE.fullmatch(name):
            kinds[suffix].append(path)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    told = [f"{len(each)} {suffix or 'without a suffix'} (such as {min(each)})" for suffix, each in ordered]
    return readable(shortened(told, 5))


def _of_files(
    source: Path, found: Sequence[tuple[str, int, int]], pattern: str, positive: Sequence[str], others: list[str]
) -> Scan:
    """The images of a folder or an archive among its files; the rest of them goes to the `others`."""
    from kdtvit_ray.data.sources import folder

    claimed = not pattern and any(breakhis.claims_name(path) for path, _, _ in found)
    fits = breakhis.is_candidate if claimed else is_image
    chosen = [each for each in found if fits(PurePosixPath(each[0]).name)] or found
    kept = {path for path, _, _ in chosen}
    others += [path for path, _, _ in found if path not in kept]
    if claimed:
        if positive:
            raise UserError(
                f"'{source}' holds BreakHis images, of which it is known which are malignant; leave out --positive, or "
                "say with --pattern how the paths are to be read"
            )
        return breakhis.scan(source, chosen)
    return folder.scan(source, chosen, pattern, positive)


def is_image(path: str) -> bool:
    """Whether a file's name ends as those of images do that are read."""
    return PurePosixPath(path).suffix.lower() in _readable_suffixes()


@cache
def _readable_suffixes() -> frozenset[str]:
    """Suffixes of the formats in which images are read."""
    from PIL import Image

    from kdtvit_ray.data.decode import formats

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats())
