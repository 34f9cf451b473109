"""A folder or archive of images whose paths say what they are: `magnification/class/patient/*`, or a naming pattern.

A pattern is written as the paths look, with the parts that matter in braces:

    {magnification}x/{label}/{patient}_{rest}.png

The parts are magnification, label and patient, which every pattern needs; slide, subtype and fold, where there are
such; and `rest` for what does not matter. `*` stands for anything within one name, `**` for any folders as well. A
pattern without a slash is held against the file's name, whatever folder it is in. Capitals make no difference. A path
that fits in two ways, such as `a_b_c.png` does `{rest}_{patient}.png`, is refused: its patient might be none.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from kdtvit_ray.data.findings import Finding, Wrong
from kdtvit_ray.data.sources.files import NOT_UTF8, TWICE, Scan, check_name, shortened
from kdtvit_ray.data.sources.labelled import OPTIONAL, Labelled, assemble, check_words, folds_of, magnification_of
from kdtvit_ray.errors import UserError, counted, unknown

LAYOUT = "{magnification}/{label}/{patient}/**"
EXAMPLE = "40X/benign/p01/a.png"
NEEDED = ("magnification", "label", "patient")
FIELDS = (*NEEDED, *OPTIONAL, "rest")

_PARTS = re.compile(r"\{([^{}]*)\}|(\*\*|\*)|([^{}*]+)|([{}])")
_FORMS = {
    "*": ("[^/]*", "[^/]*?"),
    "**": (".*", ".*?"),
    "magnification": ("[0-9]+[xX]?", "[0-9]+?[xX]??"),
    "rest": ("[^/]*?", "[^/]*"),
}
"""What a part stands for, in the first and in the last of the ways to read a path: each takes as much as it can in one
and as little in the other, so that both ways are the same where there is only one."""
_NAME = ("[^/]+?", "[^/]+")


def scan(source: Path, paths: Iterable[tuple[str, int, int]], pattern: str = "", positive: Sequence[str] = ()) -> Scan:
    """The images of a source among its files, (path, bytes, modification time) each, by `pattern` or by the layout
    `magnification/class/patient/*`, there also where further folders are around the whole set. Raises `UserError` for a
    pattern that is none, or that fits nothing, and `Refused` with all images that do not fit."""
    form, other = compiled(pattern or LAYOUT), compiled(pattern or LAYOUT, last=True)
    rows: list[Labelled] = []
    findings: list[Finding] = []
    paths = sorted(paths)
    inside = "" if pattern else _around([path for path, _, _ in paths], form)
    before, fitting = "", False
    for path, size, modified in paths:
        try:
            check_name(path)
            if path == before:
                raise Wrong(TWICE)
            before = path
            below = path.removeprefix(inside)
            text = below if "/" in (pattern or LAYOUT) else PurePosixPath(path).name
            parts, others = _read(form, text), _read(other, text)
            if not parts:
                raise Wrong(f"does not fit '{pattern}'") if pattern else _misplaced(below)
            fitting = True
            if parts != others:
                raise Wrong(
                    f"fits '{pattern}' in two ways, {_differing(parts, others)}; allowed: a pattern that it fits in "
                    "one, such as with a {rest} for each piece of the name that does not matter",
                    "fits the pattern in two ways",
                )
            check_words(parts)
            rows.append(
                Labelled(
                    path,
                    below,
                    parts["label"],
                    magnification_of(parts["magnification"]),
                    parts["patient"],
                    parts.get("slide", ""),
                    parts.get("subtype", ""),
                    folds_of(parts.get("fold", "")),
                    size,
                    modified,
                )
            )
        except Wrong as error:
            findings.append(error.at(path))
    if not fitting and not any(each.kind == NOT_UTF8 for each in findings):
        raise UserError(_nothing(source, [path for path, _, _ in paths], pattern))
    made = assemble("folder", source, source, "image", rows, findings, len(paths), positive)
    made.inside = inside
    return made


def compiled(pattern: str, last: bool = False) -> re.Pattern[str]:
    """The regular expression of a naming pattern, which finds the first or the `last` of the ways in which a path fits.
    Raises `UserError` for one that cannot be read or lacks a part."""
    expression, used, before = "", [], ""
    for name, star, text, brace in _PARTS.findall(pattern):
        if brace:
            raise UserError(f"Pattern '{pattern}' has a single '{brace}'; allowed: parts in braces, such as {{label}}")
        if text:
            expression += re.escape(text)
            before = ""
            continue
        part = star or f"{{{name}}}"
        if before:
            raise UserError(
                f"Pattern '{pattern}' has nothing between {before} and {part}, so nobody can say where one ends; "
                "allowed: a character between them"
            )
        before = part
        if star:
            expression += _FORMS[star][last]
            continue
        if name not in FIELDS:
            raise UserError(f"Pattern '{pattern}': {unknown('part', name, FIELDS)}")
        if name in used and name != "rest":
            raise UserError(f"Pattern '{pattern}' has the part {part} twice; allowed: once")
        form = _FORMS.get(name, _NAME)[last]
        expression += f"(?:{form})" if name == "rest" else f"(?P<{name}>{form})"
        used.append(name)
    if missing := [name for name in NEEDED if name not in used]:
        raise UserError(
            f"Pattern '{pattern}' lacks {', '.join(f'{{{name}}}' for name in missing)}; allowed: "
            "such as {magnification}x/{label}/{patient}_{rest}.png"
        )
    return re.compile(expression, re.IGNORECASE)


def _around(paths: Sequence[str], layout: re.Pattern[str]) -> str:
    """The folders around a whole set, such as "set/" where it was packed with its own folder: of those that all images
    have in common as many as leave most images in the layout. Were they as few as that, `2024/40X/benign/p01/a.png`
    would be of magnification 2024."""
    common = PurePosixPath(os.path.commonpath([os.path.dirname(path) for path in paths])).parts  # noqa: PTH120

    def left(folders: str) -> int:
        read = (layout.fullmatch(path.removeprefix(folders)) for path in paths)
        return sum(bool(each and each["magnification"].strip("0xX")) for each in read)

    around = ["".join(f"{each}/" for each in common[:depth]) for depth in range(len(common), -1, -1)]
    return max(around, key=left) if any(map(left, around)) else ""


def _read(form: re.Pattern[str], text: str) -> dict[str, str]:
    """The parts of a path, none where it does not fit."""
    fits = form.fullmatch(text)
    return {name: value.strip() for name, value in fits.groupdict().items()} if fits else {}


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The parts that two ways to read a path do not share: "patient 'a' or 'a_b'"."""
    return ", ".join(f"{name} {one[name]!r} or {other[name]!r}" for name in one if one[name] != other[name])


def _misplaced(path: str) -> Wrong:
    """Why a path is not in the layout magnification/class/patient."""
    *folders, _ = PurePosixPath(path).parts
    if len(folders) < len(NEEDED):
        depth = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
        return Wrong(f"in {depth}, not in the three of magnification/class/patient", "in too few folders")
    return Wrong(f"'{folders[0]}' is no magnification; allowed: a folder such as 40 or 40X", "no magnification")


def _nothing(source: Path, paths: Sequence[str], pattern: str) -> str:
    kind = "Archive" if source.is_file() else "Folder"
    examples = shortened(paths, 3)
    if pattern:
        return (
            f"{kind} '{source}' holds {counted(len(paths), 'image')}, but none fits the pattern '{pattern}': {examples}"
        )
    return (
        f"{kind} '{source}' holds {counted(len(paths), 'image')}, but none with a BreakHis name, and none in folders "
        f"magnification/class/patient such as {EXAMPLE}: {examples}; allowed: --pattern, which says how the paths are "
        f"to be read, or a table (.csv) with the columns path, label, magnification and patient"
    )
