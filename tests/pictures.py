"""Picture files, zips and damage for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pgsr.trainer.data.procedural import draw


def png(size: int | tuple[int, int] = 32, index: int = 0) -> bytes:
    """A drawn picture's file, stretched if `size` is a pair."""
    picture = draw(index, size if isinstance(size, int) else max(size))
    if not isinstance(size, int):
        picture = picture.resize(size)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(
    path: Path, members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A zip with these members in this order."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    """The same bytes with one bit turned over."""
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]
