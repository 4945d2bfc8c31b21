"""Decoded pictures in one file: a .npy that numpy maps, and behind its pixels what tells them from others.

    with writing_pixels(path, content, size) as file:
        file.add(position, array)
    pixels = open_pixels(path, content, size)  # None if the file holds anything else

Behind the pixels [N, size, size, 3] stand a CRC-32 of each picture [N], the position of each in the source's
listing [N], a line of JSON, and a footer: how many there are, the line's length, the SHA-256 of all that, and
a magic word.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.files import hold, replacing
from pgsr.schema import parsed_json

from .listing import LeftOut

HEADER = 128  # bytes of a .npy's header of such a shape
MAGIC = b"pgsrpix1"
FOOTER = struct.Struct("<QQ32s8s")  # N, length of the JSON, digest of all that is told, MAGIC
CHECKED_BYTES = 2**28  # of pixels, at opening: a file that is no larger is checked whole


def bytes_on_disk(size: int) -> int:
    """What a picture of size x size takes of a file: pixels, checksum, position."""
    return 3 * size * size + 4 + 8


@dataclass(frozen=True)
class PixelFile:
    """An opened file, and what it says of itself."""

    path: Path
    mapped: mmap.mmap
    pixels: NDArray[np.uint8]  # [N, size, size, 3], memory-mapped
    positions: NDArray[np.int64]  # [N], of the pictures in their source's listing
    left_out: tuple[LeftOut, ...]  # pictures of the listing that cannot be used
    as_stored: int  # pictures that had this very size, so that nothing was resampled

    def check_length(self) -> None:
        """Raises PgsrError if the file has been cut short since it was opened: what is mapped beyond its end
        would end the process."""
        if self.mapped.size() < HEADER + self.pixels.nbytes:
            raise PgsrError(f"{self.path} was cut short while it was in use: run the same command again")


@dataclass
class PixelWriter:
    """A file being written."""

    file: IO[bytes]
    digests: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    as_stored: int = 0

    def add(self, position: int, pixels: NDArray[np.uint8], as_stored: bool) -> None:
        data = pixels.tobytes()
        self.file.write(data)
        self.digests.append(zlib.crc32(data))
        self.positions.append(position)
        self.as_stored += as_stored


@contextmanager
def writing_pixels(path: Path, content: str, size: int) -> Iterator[PixelWriter]:
    """Writes the whole file or nothing. Raises PgsrError if that cannot be done."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        hold(file)
        file.write(bytes(HEADER))
        writer = PixelWriter(file)
        yield writer
        file.write(_ending(writer, content, size))
        file.seek(0)
        file.write(_npy_header(len(writer.positions), size))


def _npy_header(count: int, size: int) -> bytes:
    shape, buffer = (count, size, size, 3), io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert buffer.tell() == HEADER  # numpy pads it to a multiple of 64
    return buffer.getvalue()


def _ending(writer: PixelWriter, content: str, size: int) -> bytes:
    about = {
        "content": content,
        "size": size,
        "as stored": writer.as_stored,
        "left out": [[file.name, file.why] for file in writer.left_out],
    }
    arrays = np.array(writer.digests, "<u4").tobytes() + np.array(writer.positions, "<i8").tobytes()
    line = json.dumps(about).encode()
    digest = hashlib.sha256(arrays + line).digest()
    return arrays + line + FOOTER.pack(len(writer.positions), len(line), digest, MAGIC)


# ----------------------------------------------------------------------------
# Opening.


def open_pixels(path: Path, content: str, size: int) -> PixelFile | None:
    """The file, if it is whole and says that it holds that content at that size; else None.

    Every picture is checked in a small file, in a large one as many as fit in `CHECKED_BYTES`, others each
    time.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin, about, digests, positions = _told(mapped)
        count = len(digests)
        if (about["content"], about["size"], begin) != (content, size, HEADER + 3 * count * size**2):
            return None
        if mapped[:HEADER] != _npy_header(count, size):
            return None
        pixels = np.frombuffer(mapped, np.uint8, count * 3 * size**2, HEADER).reshape(count, size, size, 3)
        left_out = tuple(LeftOut(name, why) for name, why in about["left out"])
        opened = PixelFile(path, mapped, pixels, positions, left_out, about["as stored"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    return opened if _agree(opened, digests) else None


def _told(mapped: mmap.mmap) -> tuple[int, dict[str, Any], NDArray[np.uint32], NDArray[np.int64]]:
    """What a file says of its pixels, and where that begins. Raises ValueError or struct.error unless it is
    whole."""
    end = len(mapped) - FOOTER.size
    count, length, digest, magic = FOOTER.unpack_from(mapped, max(0, end))
    begin = end - length - 12 * count
    if magic != MAGIC or begin < HEADER or hashlib.sha256(mapped[begin:end]).digest() != digest:
        raise ValueError("damaged, or another kind of file")
    digests = np.frombuffer(mapped, "<u4", count, begin)
    positions = np.frombuffer(mapped, "<i8", count, begin + 4 * count).astype(np.int64)
    return begin, parsed_json(mapped[end - length : end]), digests, positions


def _agree(opened: PixelFile, digests: NDArray[np.uint32]) -> bool:
    """Whether pictures are what they were when they were written."""
    return all(zlib.crc32(opened.pixels[i].data) == digests[i] for i in _sample(opened.pixels))


def _sample(pixels: NDArray[np.uint8]) -> Sequence[int]:
    count = len(pixels)
    if pixels.nbytes <= CHECKED_BYTES:
        return range(count)
    return sorted(random.sample(range(count), max(2, CHECKED_BYTES // pixels[0].nbytes)))
