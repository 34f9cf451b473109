"""What is wrong with a source, file by file, and how it is told: a few by name, all by number, the rest in a file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtvit_ray.errors import UserError, readable

SHOWN = 10
"""As many findings are told by name; more than that go to a file."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file or line: where, the reason in words, and the kind under which it is counted. All are
    `readable` text, whatever bytes the name of the file has."""

    where: str
    reason: str
    kind: str = ""

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            object.__setattr__(self, name, readable(text))

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
            path = findings_file(out)
            lines = [f"{self.head}: {self.counts}", *(f"{each.where}: {each.reason}" for each in self.findings)]
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


def findings_file(out: Path) -> Path:
    """The file beside a prepared set's folder that holds what is wrong with its source."""
    whole = out.resolve()  # `.` has no name of its own
    return whole.parent / f"{whole.name}-findings.txt"
