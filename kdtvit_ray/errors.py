"""Errors that a user meets, each one plain sentence, and the exit codes that they end in."""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_TRIALS_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_BUG = 70
"""An error of this program: the one code that comes with a traceback."""
EXIT_AWAY = 75
"""The cluster or the storage is away or unfit: the same command goes on when it is back."""
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake of the user's: one plain sentence that names the thing, what was found and what is allowed.

    The command line prints it without a traceback and exits with `EXIT_USER_ERROR`.
    """

    def __str__(self) -> str:
        return readable(super().__str__())


class Away(UserError):
    """The cluster or the storage of a study is away or unfit; its user has made no mistake, and the same command goes
    on when it is back. The command line exits with `EXIT_AWAY`."""


class NodeFault(UserError):
    """The machine is at fault, not the stage that ran on it: no GPU where one was reserved, a cache that cannot be
    written, a package that is missing. Another machine can run the stage."""


class StageFailed(Exception):
    """A stage that cannot be finished, whatever machine runs it: a non-finite loss, out of memory.

    The message carries epoch, step and reason. The trials below the stage fail with it; the study goes on.
    """


class OutOfMemory(StageFailed):
    """Memory ran out on one worker; other workers of its group may be waiting for it in a collective call."""


class StorageLost(OSError):
    """Storage stayed away through all attempts; the message names what was tried, the folder and the last error."""


class RemoteFailed(OSError):
    """Storage that is no disk of this machine failed once, and may be asked again; the message names what was tried,
    the folder and the error."""


def no_permission(error: OSError) -> bool:
    """Whether a file or folder may not be written, by this user or by anyone. Storage works otherwise."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def counted(number: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`, `1,200 images`; `many` is the plural where no s makes it."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def readable(text: str) -> str:
    """Text that every file, table and terminal can hold. Bytes of a file's name that are not UTF-8, which Python keeps
    as lone surrogates (`os.fsdecode`), become `\\xff`; any other text stays as it is."""

    def escaped(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return re.sub("[\ud800-\udfff]", escaped, text)


def relabelled(error: UserError, name: str, label: str) -> str:
    """What an error says of a model, where its user has given the architecture `name` a `label` of their own."""
    if label == name:
        return str(error)
    return re.sub(rf"([Mm]odel) '{re.escape(name)}'", lambda found: f"{found[1]} '{label}' ({name})", str(error))


def choose(what: str, found: object, allowed: Iterable[str]) -> str:
    """Return `found` if it is one of `allowed`, else raise a `UserError` that names the nearest allowed word."""
    words = list(allowed)
    if isinstance(found, str) and found in words:
        return found
    raise UserError(unknown(what, found, words))


def unknown(what: str, found: object, allowed: Iterable[str]) -> str:
    """One sentence for a word that is not among the allowed ones, with the nearest one as a guess."""
    words = list(allowed)
    near = get_close_matches(str(found), words, n=1, cutoff=0.5)
    guess = f" (did you mean '{near[0]}'?)" if near else ""
    return f"Unknown {what} '{found}'{guess}; allowed: {', '.join(words)}"
