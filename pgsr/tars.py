"""Tar archives of any origin, within limits."""

from __future__ import annotations

import tarfile
import zlib
from typing import Self

LARGEST_NAME = 2**20  # bytes of a member's name or of its extended header
LARGEST = 2**62  # bytes of a member: what is beyond, no file can be sought to

# What reading a tar raises where it is damaged.
DAMAGED = (OSError, EOFError, ValueError, OverflowError, RecursionError, zlib.error, tarfile.TarError)


class Header(tarfile.TarInfo):
    """A member's header; one whose name would fill the memory, or whose size is none, is refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        extended = (*b"xgLKX",)
        if header.type[0] in extended and header.size > LARGEST_NAME:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        if not 0 <= header.size < LARGEST:
            raise tarfile.ReadError(f"a member of {header.size} bytes")
        return header
