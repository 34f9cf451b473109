"""What is wrong with a source, file by file, and how it is told: a few by name, all by number, the rest in a file."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kdtvit_ray.errors import UserError, readable

SHOWN = 10
"""As many findings are told by name; more than that go to a file."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks and other control characters, which a name may have and a line cannot show."""
_MARK = "kdtvit-ray prepare: "
"""How the first line of such a file begins: any other file of that name is the user's own."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file or line: where, the reason in words, and the kind under which it is counted. All are
    `readable` text of one line, whatever bytes the name of the file has."""

    where: str
    reason: str
    kind: str = ""

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            object.__setattr__(self, name, CONTROL.sub(lambda found: repr(found[0])[1:-1], readable(text)))

    @property
    def counted(self) -> str:
        return self.kind or self.reason.partition(" (")[0]


class Wrong(ValueError):
    """What is wrong with one file or line, until somebody knows which; `kind` is what it is counted under."""

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind

    def at(self, where: str) -> Finding:
        return Finding(where, str(self), self.kind)


class Refused(UserError):
    """A source that cannot be used, with all that is wrong in it; `head` says so in words."""

    def __init__(self, findings: Sequence[Finding], head: str) -> None:
        self.findings = tuple(findings)
        self.head = head
        super().__init__(self._told("they are listed where 'kdtvit-ray prepare' was to write its set"))

    @property
    def counts(self) -> str:
        """How many findings there are of each kind, the commonest first."""
        kinds = Counter(each.counted for each in self.findings)
        return ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items(), key=lambda each: (-each[1], each)))

    def written_beside(self, out: Path) -> "Refused":
        """The same refusal, with all its findings in a file beside the folder `out` where they are too many to tell.
        A file that cannot be written takes nothing from the refusal."""
        if len(self.findings) > SHOWN:
            path = next(each for each in _files(out) if _is_ours(each) or not os.path.lexists(each))
            lines = [f"{_MARK}{self.head}: {self.counts}", *(f"{each.where}: {each.reason}" for each in self.findings)]
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
                self.args = (self._told(f"all of them are in '{path}'"),)
            except OSError as error:
                self.args = (self._told(f"the list of all of them could not be written to '{path}': {error.strerror}"),)
        return self

    def _told(self, rest: str) -> str:
        listed = "; ".join(f"{each.where}: {each.reason}" for each in self.findings[:SHOWN])
        if len(self.findings) <= SHOWN:
            return f"{self.head}: {listed}"
        return f"{self.head} ({self.counts}); the first {SHOWN}: {listed}; {rest}"


def delete_findings(out: Path) -> None:
    """Delete the file beside a prepared set's folder that an earlier refusal has left; what is not ours stays."""
    for path in _files(out):
        if not os.path.lexists(path):
            return
        if _is_ours(path):
            with suppress(OSError):  # the folder around a volume may be read-only
                path.unlink()


def _files(out: Path) -> Iterator[Path]:
    """Where the findings of a source may be, beside its set's folder: a user's own file of the first name is kept."""
    whole = out.resolve()  # `.` has no name of its own
    for number in count(1):
        yield whole.parent / f"{whole.name}-findings{f'-{number}' if number > 1 else ''}.txt"


def _is_ours(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except OSError:
        return False
