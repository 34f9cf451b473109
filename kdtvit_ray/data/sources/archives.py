"""The files of a tar or zip archive, in one forward pass that unpacks nothing, and what is told of one that is not
whole."""

import errno
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kdtvit_ray.errors import UserError, counted

ZIP_SUFFIX = ".zip"
SUFFIXES = (".tar.gz", ".tgz", ".tar", ZIP_SUFFIX)
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error)
"""What the readers raise for damaged archives, with `isal_zlib.IsalError`; numbers and names that make no sense are a
`ValueError` or a `struct.error`."""

Member = tuple[str, int, str, Callable[[], bytes]]
"""A file of an archive: its path, its bytes, what it is a link to ("" where it is none), and what reads it."""

_BLOCK = 1 << 20
_ENCRYPTED = 1
_LOCAL_HEAD = b"PK\x03\x04"
_ZIP_HEADS = (_LOCAL_HEAD, b"PK\x05\x06")
_GZIPPED = b"\x1f\x8b"
_TAR_MARK, _TAR_MARK_AT, _HEAD = b"ustar", 257, 512
_TAR, _TAR_GZ, _ZIP = "tar", "tar.gz", "zip"


def is_zip(source: Path) -> bool:
    """Whether an archive is a zip by its first bytes; where they are those of no archive, by its name."""
    kind = _kind(source)
    return kind == _ZIP if kind else source.name.lower().endswith(ZIP_SUFFIX)


def _kind(source: Path) -> str:
    """What an archive is by its first bytes, whatever it is called: a tar that is packed or not, a zip, or ""."""
    with source.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_GZIPPED):
        return _TAR_GZ
    if head[_TAR_MARK_AT:].startswith(_TAR_MARK):
        return _TAR
    return _ZIP if head.startswith(_ZIP_HEADS) else ""


def entries(source: Path) -> Iterator[Member]:
    """The files of an archive in its order. Raises one of `DAMAGE` or `IsalError` for a damaged one, and `UserError`
    for one that is encrypted or several archives in one file."""
    return _in_zip(source) if is_zip(source) else _in_tar(source)


def why_unread(source: Path, error: BaseException, count: int) -> UserError:
    """The sentence for an archive that could not be read on after `count` images."""
    # EINVAL is what a damaged zip gives, which names places that are none; other numbers are the disk's or the user's
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return UserError(f"Archive '{source}' cannot be read ({error.strerror})")
    reason = str(error) or type(error).__name__
    after = counted(count, "image")
    return UserError(f"Archive '{source}' is truncated or damaged after {after} ({reason}); fetch it again")


class _Whole(tarfile.TarInfo):
    """A member whose damaged or missing head is an error: `tarfile` itself takes each but the first for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Whole":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # zeros: the mark of the end
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it has no end") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _in_tar(source: Path) -> Iterator[Member]:
    from isal import igzip

    kind = _kind(source)
    compressed = kind == _TAR_GZ if kind else source.name.lower().endswith("gz")
    with source.open("rb") as raw:
        # a gzip reader, and not tarfile's, because it is the one that tells a cut-off stream from the end of one;
        # ISA-L's, because it is the quicker one, and the archive is inflated twice
        file: Any = igzip.open(raw) if compressed else raw
        with tarfile.open(fileobj=file, mode="r|", bufsize=_BLOCK, tarinfo=_Whole) as tar:
            for member in tar:
                if member.issym() or member.islnk():
                    yield member.name, 0, member.linkname, bytes
                elif member.isfile():
                    data = tar.extractfile(member)
                    yield member.name, member.size, "", data.read if data else bytes
            # to the end of the stream, where its checksum is, past the zeros that fill it up
            while rest := tar.fileobj.read(_BLOCK):
                if rest.count(0) < len(rest):
                    raise UserError(
                        f"Archive '{source}' goes on after its end: it is several archives in one file, or damaged; "
                        "unpack it with 'tar -i' and name its folder, or fetch it again"
                    )


def _in_zip(source: Path) -> Iterator[Member]:
    with source.open("rb") as file, zipfile.ZipFile(file) as packed:
        found = packed.infolist()
        file.seek(0)
        # zipfile reads the last one's list; what is before that one's files it takes for a program that unpacks them
        if found and min(each.header_offset for each in found) >= len(_LOCAL_HEAD) * 2 and file.read(4) == _LOCAL_HEAD:
            raise UserError(
                f"Archive '{source}' is several archives in one file, of which the last alone would be read; unpack "
                "each and name a folder that holds them all"
            )
        for member in found:
            if member.is_dir():
                continue
            if member.flag_bits & _ENCRYPTED:
                raise UserError(f"Archive '{source}' is encrypted; unpack it and name its folder")
            name = member.filename.replace("\\", "/")  # as some programs on Windows write them
            if stat.S_ISLNK(member.external_attr >> 16):
                yield name, 0, packed.read(member).decode(errors="replace"), bytes
                continue
            yield name, member.file_size, "", partial(packed.read, member)
