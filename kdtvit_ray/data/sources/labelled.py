"""From labelled images to a dataset: what a table and a folder of images have in common.

Every mistake is told before an image is decoded, and all of them at once.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdtvit_ray.data.dataset import KNOWN_POSITIVES, MAGNIFICATIONS_ALLOWED, MOST_CLASSES, Dataset, in_order, sides
from kdtvit_ray.data.findings import CONTROL, Finding, Refused, Wrong
from kdtvit_ray.data.sources.files import Found, Scan, shortened
from kdtvit_ray.errors import UserError, counted, readable, unknown

REQUIRED = ("path", "label", "magnification", "patient")
OPTIONAL = ("slide", "subtype", "fold")
MOST_FOLDS = 100

_WHOLE = re.compile(r"([0-9]+)(?:\.0+)?")
_MAGNIFICATION = re.compile(r"([0-9]+)(?:\.0{1,2})?\s*[xX]?")  # not 1.000, which some countries write for 1000
_NUMBER = re.compile(r"0*([0-9]+)(?:\.0+)?")
_UNSAFE = re.compile(r"[^A-Za-z0-9._/-]+")


@dataclass(frozen=True)
class Labelled:
    """One image as its source tells it: `where` names it in messages, `path` is relative to the source's root. An empty
    `slide` stands for the patient, an empty `subtype` for the label; `folds` are those in which the slide is tested.
    `called` is the path that its name is made of, where that is another."""

    where: str
    path: str
    label: str
    magnification: int
    patient: str
    slide: str
    subtype: str
    folds: tuple[int, ...]
    bytes: int
    modified: int
    called: str = ""


def check_words(words: Mapping[str, str], written: Mapping[str, str] | None = None) -> None:
    """Raise `Wrong` for an empty one of the words that say what an image is, but for those that may be, and for one
    with a line break or another control character, which no report can show; a path may have them. `written` are the
    words as they stood there, where some of them count as empty."""
    if empty := [name for name, word in words.items() if not word and name not in ("slide", "fold")]:
        told = dict.fromkeys(written[name] for name in empty if written[name]) if written else ()
        why = f" ({', '.join(map(repr, told))} says that a value is missing: write another word)" if told else ""
        raise Wrong(f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty{why}", "something that is empty")
    for name, word in words.items():
        if name != "path" and CONTROL.search(word):
            raise Wrong(
                f"{name} {word!r} has a line break or another control character; allowed: text of one line",
                "a control character",
            )


def whole(text: str) -> str:
    """Text without the point and zeros of a whole number: `1` for `1.0`, as data frames with gaps write it."""
    found = _WHOLE.fullmatch(text)
    return found[1] if found else text


def magnification_of(text: str) -> int:
    """The number in "40", "40X" or "40x". Raises `Wrong`."""
    found = _MAGNIFICATION.fullmatch(text.strip())
    low, high = MAGNIFICATIONS_ALLOWED
    if not found or not low <= int(found[1]) <= high:
        raise Wrong(f"'{text}' is no magnification; allowed: a whole number such as 40 or 40X", "no magnification")
    return int(found[1])


def folds_of(text: str) -> tuple[int, ...]:
    """The official folds in "3", "1;3" or "". Raises `Wrong`."""
    found = [_WHOLE.fullmatch(each) for each in re.split(r"[;|\s]+", text.strip()) if each]
    folds = sorted({int(each[1]) if each else 0 for each in found})
    if folds and not 1 <= folds[0] <= folds[-1] <= MOST_FOLDS:
        raise Wrong(
            f"'{text}' is no fold; allowed: the number from 1 on of the fold in which the slide is tested, several "
            "joined by ';', or nothing",
            "no fold",
        )
    return tuple(folds)


def assemble(
    kind: str,
    source: Path,
    root: Path,
    thing: str,
    rows: Sequence[Labelled],
    findings: Sequence[Finding],
    total: int,
    positive: Sequence[str],
) -> Scan:
    """The scan of a source from its labelled images.

    kind: of the source, "manifest" or "folder". findings: what is wrong already, of `total` things, each a "line" or
    an "image".
    positive: the positive labels as the user named them, one or several joined by commas in each text; none where the
    labels say it themselves.
    Raises `Refused` for findings, and `UserError` for labels that do not make a dataset.
    """
    findings = [*findings, *_contradictions(rows)]
    if findings:
        raise Refused(findings, f"{counted(len(findings), 'finding')} in the {counted(total, thing)} of '{source}'")
    labels = in_order({row.label for row in rows})
    positives = _positives(source, labels, positive)
    subtypes = in_order({row.subtype or row.label for row in rows})
    if len(subtypes) > MOST_CLASSES:
        raise UserError(
            f"'{source}' names {len(subtypes)} classes ({shortened(subtypes, 5)}); allowed: up to {MOST_CLASSES}"
        )
    label_of = {row.subtype or row.label: row.label for row in rows}
    negative_classes = [each for each in subtypes if label_of[each] not in positives]
    positive_classes = [each for each in subtypes if label_of[each] in positives]
    words = sides(labels, positives)
    test_in_fold = {row.slide or row.patient: row.folds for row in rows if row.folds}
    folds = max((fold for each in test_in_fold.values() for fold in each), default=0)
    if empty := sorted(set(range(1, folds + 1)) - {fold for each in test_in_fold.values() for fold in each}):
        raise UserError(
            f"'{source}' has folds up to {folds}, but nothing is tested in fold {', '.join(map(str, empty))}; allowed: "
            "folds numbered from 1 on without a gap"
        )
    dataset = Dataset(
        name=readable(source.name.removesuffix(source.suffix) if source.is_file() else source.resolve().name),
        source=kind,
        magnifications=tuple(sorted({row.magnification for row in rows})),
        classes=(*negative_classes, *positive_classes),
        positives=tuple(positive_classes),
        negative=words[0],
        positive=words[1],
        folds=folds,
        test_in_fold=dict(sorted(test_in_fold.items())),
    )
    return Scan(source, root, dataset, _found(rows), [], _both_sides(rows, positives, dataset))


def parts(text: str) -> list[str]:
    """`a, b`: what stands between commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


def _positives(source: Path, labels: Sequence[str], positive: Sequence[str]) -> set[str]:
    """The positive ones of the labels, as they are named or as everybody knows them. A text is one label where it is
    one as a whole, commas included; only another text is several labels joined by commas."""
    if len(labels) == 1:
        raise UserError(
            f"All images of '{source}' have the label '{labels[0]}'; allowed: one negative and one positive at least"
        )
    named = [each for text in positive for each in ([text.strip()] if text.strip() in labels else parts(text))]
    if not named:
        known = KNOWN_POSITIVES.get(tuple(each.lower() for each in labels))
        if known is None:
            raise UserError(
                f"The labels of '{source}' are {shortened(labels, 10)}: name those that count as positive with "
                "--positive LABEL[,LABEL...]; only benign and malignant, or 0 and 1, need no naming"
            )
        return {each for each in labels if each.lower() == known}
    named = [each if each in labels else whole(each) for each in named]
    for each in named:
        if each not in labels:
            raise UserError(f"--positive: {unknown('label', each, labels)}")
    if set(named) == set(labels):
        raise UserError(f"--positive names all labels of '{source}'; allowed: all but one of {', '.join(labels)}")
    return set(named)


def _contradictions(rows: Sequence[Labelled]) -> list[Finding]:
    """Subtypes under two labels, slides of two patients, slides in two sets of folds, and names in two spellings."""
    slides = {row.slide for row in rows}

    def slide(row: Labelled) -> tuple[str, str]:
        # a patient without slides is a slide by its own name, which must not be the name of another patient's slide
        name = row.slide or row.patient
        return "slide" if name in slides else "patient", name

    found = []
    for what, key, value in (
        ("label", lambda row: ("subtype", row.subtype), lambda row: row.label),
        ("patient", slide, lambda row: row.patient),
        ("fold", slide, lambda row: ";".join(map(str, row.folds)) or "none"),
    ):
        values: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        last: dict[tuple[tuple[str, str], str], str] = {}
        for row in rows:
            if key(row)[1]:
                values[key(row)][value(row)] += 1
                last.setdefault((key(row), value(row)), row.where)
        for (column, name), counts in values.items():
            if len(counts) > 1:
                words = ", ".join(f"{each} ({n}, first {last[(column, name), each]})" for each, n in counts.items())
                found.append(Finding(f"{column} {name}", f"more than one {what}: {words}", f"{column} of two {what}s"))
    return found + _spellings(rows)


def _spellings(rows: Sequence[Labelled]) -> list[Finding]:
    """Names that differ in nothing that a reader heeds: a split would take `p01` and `P01` for two patients, and `7`,
    `007` and `7.0`, as spreadsheets and data frames write a number, for three."""
    found = []
    for column in ("patient", "slide", "label", "subtype"):
        places: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            places[getattr(row, column)].append(row.where)
        alike: dict[str, list[str]] = defaultdict(list)
        for name in filter(None, places):
            alike[as_number(name) if column in ("patient", "slide") else as_read(name)].append(name)
        for names in alike.values():
            if len(names) > 1:
                same_on_screen = len({unicodedata.normalize("NFC", each) for each in names}) < len(names)
                shown = ascii if same_on_screen else repr
                words = ", ".join(f"{shown(each)} ({len(places[each])}, first {places[each][0]})" for each in names)
                reason = f"more than one spelling: {words}; write it in one way"
                found.append(Finding(f"{column} {names[0]}", reason, f"{column} in two spellings"))
    return found


def as_read(name: str) -> str:
    """A name without what a reader does not heed: capitals, blanks, and how a character is put together."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(each for each in unicodedata.normalize("NFKC", plain) if each.isprintable() and each != " ")


def as_number(name: str) -> str:
    """A name as it is read, and where that is a whole number, without its zeros in front and behind the point."""
    read = as_read(name)
    number = _NUMBER.fullmatch(read)
    return number[1] if number else read


def _both_sides(rows: Sequence[Labelled], positives: set[str], dataset: Dataset) -> list[str]:
    of_patient: dict[str, set[bool]] = defaultdict(set)
    for row in rows:
        of_patient[row.patient].add(row.label in positives)
    both = in_order(patient for patient, kinds in of_patient.items() if len(kinds) == 2)
    if not both:
        return []
    return [
        f"Patients with {dataset.negative} and {dataset.positive} images: {len(both)} of {len(of_patient)} "
        f"({shortened(both, 10)}); where patients are counted, they count as {dataset.positive}"
    ]


def _found(rows: Sequence[Labelled]) -> list[Found]:
    counted: Counter[str] = Counter()
    taken: set[str] = set()
    images = []
    for row in sorted(rows, key=lambda row: (row.called or row.path, row.path)):
        slide = row.slide or row.patient
        counted[slide] += 1
        name = _name(row.called or row.path, taken)
        taken.add(name)
        images.append(
            Found(
                path=row.path,
                name=name,
                label=row.subtype or row.label,
                magnification=row.magnification,
                slide=slide,
                id=row.patient,
                stem=row.patient,
                sequence=counted[slide],
                bytes=row.bytes,
                modified=row.modified,
            )
        )
    return images


def _name(path: str, taken: Container[str]) -> str:
    """A name for an image: its path without the suffix in plain characters; what is taken is told apart by its suffix,
    then by a digest of the path."""
    whole = _UNSAFE.sub("_", path)
    short = _UNSAFE.sub("_", str(PurePosixPath(path).with_suffix("")))
    digest = hashlib.blake2b(path.encode(), digest_size=4).hexdigest()
    return next(each for each in (short, whole, f"{whole}-{digest}") if each not in taken)
