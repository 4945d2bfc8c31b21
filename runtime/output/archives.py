"""Samples in one file, .tar or .zip, in WebDataset's form: 000000.png, 000000.json, 000001.png, ...

with ArchiveFile(Path("faces.tar")) as archive:
    archive.append("000000.png", data)   # and so on; the name appears when the block ends without an error

Until it is whole the file is called .partial.faces.tar; a killed process leaves it, and the next one goes on
in it. Members are stored as they are, with no time in them, so that the same samples make the same file.
Nothing is kept in memory for each member: a zip's directory is made of the members' own headers at the end,
which zipfile, that keeps it in memory, cannot do; nor can it go on in a file without one.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pgsr.errors import PgsrError
from pgsr.files import cannot_read, cannot_write, open_regular

LARGEST_MEMBER = 2**29  # bytes that are read: no picture that is written here is as large


@dataclass(frozen=True)
class Member:
    """A file in an archive, and where its bytes lie."""

    name: str
    start: int  # where its header begins
    data: int  # where its contents begin
    size: int  # of its contents
    end: int  # where the next member begins
    crc: int = 0  # in a .zip


# ----------------------------------------------------------------------------
# Tar (POSIX ustar).

BLOCK = tarfile.BLOCKSIZE


def tar_entry(name: str, data: bytes) -> bytes:
    """A member with its header, filled up to a block."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _tar_members(file: BinaryIO, length: int) -> Iterator[Member]:
    start = 0
    while start + BLOCK <= length:
        file.seek(start)
        try:
            header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            return
        data = start + BLOCK
        end = data + header.size + -header.size % BLOCK
        if header.size < 0 or end > length:
            return
        yield Member(header.name, start, data, header.size, end)
        start = end


def _tar_end(file: BinaryIO, reader: BinaryIO) -> None:
    file.write(tar_end(file.seek(0, os.SEEK_END)))


def tar_end(length: int) -> bytes:
    """What ends a tar of so many bytes: two empty blocks, filled up to a record."""
    return bytes(2 * BLOCK + -(length + 2 * BLOCK) % tarfile.RECORDSIZE)


# ----------------------------------------------------------------------------
# Zip (APPNOTE.TXT 6.3, sections 4.3 and 4.5), stored.

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
OFFSET_64 = struct.Struct("<2HQ")

NEEDS, NEEDS_64 = 20, 45  # versions of the format
NO_TIME = (0, 0x21)  # 1 January 1980, midnight
MADE_ON_UNIX = 3 << 8
RIGHTS = 0o100644 << 16
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit field"


def _zip_entry(name: str, data: bytes) -> bytes:
    text, size = name.encode("ascii"), len(data)
    header = LOCAL.pack(b"PK\3\4", NEEDS, 0, 0, *NO_TIME, zlib.crc32(data), size, size, len(text), 0)
    return header + text + data


def _zip_members(file: BinaryIO, length: int) -> Iterator[Member]:
    start = 0
    while start + LOCAL.size <= length:
        file.seek(start)
        sign, *_, crc, size, _, name_size, extra = LOCAL.unpack(file.read(LOCAL.size))
        data = start + LOCAL.size + name_size + extra
        if sign != b"PK\3\4" or data + size > length:
            return
        yield Member(file.read(name_size).decode("ascii", "replace"), start, data, size, data + size, crc)
        start = data + size


def _zip_end(file: BinaryIO, reader: BinaryIO) -> None:
    """The directory: one record a member, then how many there are and where."""
    where = file.seek(0, os.SEEK_END)
    count = 0
    for count, member in enumerate(_zip_members(reader, where), 1):  # noqa: B007
        file.write(_zip_record(member))
    size = file.tell() - where
    if count >= FULL_16 or where + size >= FULL_32:
        end = where + size
        numbers = (count, count, size, where)
        file.write(END_64.pack(b"PK\6\6", END_64.size - 12, NEEDS_64, NEEDS_64, 0, 0, *numbers))
        file.write(LOCATOR_64.pack(b"PK\6\7", 0, end, 1))
    few, short = min(count, FULL_16), min(where, FULL_32)
    file.write(END.pack(b"PK\5\6", 0, 0, few, few, min(size, FULL_32), short, 0))


def _zip_record(member: Member) -> bytes:
    text, far = member.name.encode("ascii"), member.start >= FULL_32
    extra = OFFSET_64.pack(1, 8, member.start) if far else b""
    needs = NEEDS_64 if far else NEEDS
    sizes = (member.crc, member.size, member.size, len(text), len(extra), 0, 0, 0, RIGHTS)
    offset = min(member.start, FULL_32)
    header = CENTRAL.pack(b"PK\1\2", MADE_ON_UNIX | needs, needs, 0, 0, *NO_TIME, *sizes, offset)
    return header + text + extra


# ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How an archive's members and its end are written and read."""

    entry: Callable[[str, bytes], bytes]  # a member with its header
    members: Callable[[BinaryIO, int], Iterator[Member]]  # the whole ones at the beginning of a file
    end: Callable[[BinaryIO, BinaryIO], None]  # ends a file; the second handle reads it


ARCHIVES = {
    ".tar": Form(tar_entry, _tar_members, _tar_end),
    ".zip": Form(_zip_entry, _zip_members, _zip_end),
}


def form_of(path: Path) -> Form | None:
    """Returns an archive's form by the name's ending; None for a folder."""
    return ARCHIVES.get(path.suffix.lower())


def members(path: Path) -> Iterator[tuple[Member, bytes]]:
    """The members of a whole or partial archive, with their contents.

    Raises PgsrError if it cannot be read.
    """
    form = form_of(path)
    assert form is not None
    try:
        with open_regular(path) as file:
            for member in form.members(file, os.fstat(file.fileno()).st_size):
                file.seek(member.data)
                yield member, file.read(min(member.size, LARGEST_MEMBER))
    except OSError as error:
        raise cannot_read(path, error) from error


def partial(path: Path) -> Path:
    """Returns where an archive stands until it is whole."""
    return path.with_name(f".partial.{path.name}")


class ArchiveFile:
    """An archive being written; one process at a time."""

    def __init__(self, path: Path, form: Form | None = None) -> None:
        """`form`: unless the name's ending tells. Raises PgsrError if the file cannot be written, or another
        process writes it."""
        form = form or form_of(path)
        assert form is not None
        self._form, self._path, self._partial = form, path, partial(path)
        try:
            self._file: BinaryIO = open(self._partial, "ab+")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise PgsrError(f"another process is writing {path}: name another --out") from error
        if not self._is_there():
            self._file.close()
            raise PgsrError(f"another process has just written {path}: run the same command again")

    def _is_there(self) -> bool:
        """Whether what is locked is still the beginning, and not the archive that somebody made of it."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._partial))
        except OSError:
            return False

    def keep(self, length: int) -> None:
        """Cuts off what stands behind so many bytes."""
        try:
            self._file.truncate(length)  # what is appended stands there, since the file is open to append
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def append(self, name: str, data: bytes) -> None:
        """Raises PgsrError for a full disk."""
        try:
            self._file.write(self._form.entry(name, data))
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._finish()
        except OSError as fault:
            if error is None:  # else it is the same one, from writing what was left
                raise cannot_write(self._path, fault) from fault

    def _finish(self) -> None:
        self._file.flush()
        with open(self._partial, "rb") as reader:
            self._form.end(self._file, reader)
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)
