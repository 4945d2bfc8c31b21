"""What the files of pgsr-upscale say of their making: the source's sha256 and the model's.

Read from a file's head and end alone, since the pictures are large and the question is asked of every file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image

from .metadata import SOFTWARE

PNG, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG, JPEG_END, START_OF_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
MOST_BYTES = 2**20  # of a note and what stands around it
MOST_PARTS = 10_000  # of a file, that are looked at

Note = dict[str, Any]


def held_note(path: Path) -> Note | None:
    """The note in a file that pgsr-upscale made; None if there is none, or the file is cut short."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            if head.startswith(PNG):
                return _of_png(file)
            if head.startswith(JPEG):
                return _of_jpeg(file)
            if head[:4] == b"RIFF" and head[8:] == b"WEBP":
                return _of_webp(file, 8 + int.from_bytes(head[4:8], "little"))
    except Exception:  # files of others hold anything, and their EXIF raises anything
        pass
    return None


def is_own(path: Path) -> bool:
    """Returns whether pgsr-upscale made a file."""
    note = held_note(path)
    return note is not None and {"model", "source"} <= note.keys()


def _of_png(file: IO[bytes]) -> Note | None:
    if not _ends_with(file, PNG_END):
        return None
    file.seek(len(PNG))
    for _ in range(MOST_PARTS):
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name in (b"IDAT", b""):
            return None
        if name == b"tEXt" and length <= MOST_BYTES:
            key, _, text = file.read(length).partition(b"\0")
            if key == b"pgsr":
                return _note(text)
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    return None


def _of_jpeg(file: IO[bytes]) -> Note | None:
    if not _ends_with(file, JPEG_END):
        return None
    file.seek(len(JPEG))
    for _ in range(MOST_PARTS):
        head = file.read(4)
        if len(head) < 4 or head[1] == START_OF_SCAN:
            return None
        body = file.read(int.from_bytes(head[2:], "big") - 2)
        if head[1] == 0xE1 and body.startswith(b"Exif\0\0"):
            return _of_exif(body)
    return None


def _of_webp(file: IO[bytes], size: int) -> Note | None:
    if file.seek(0, os.SEEK_END) < size:
        return None
    for name, length in _riff_parts(file):
        if name == b"EXIF" and length <= MOST_BYTES:
            return _of_exif(file.read(length))
    return None


def _riff_parts(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Name and length of each part; the file stands where its contents begin."""
    place = 12
    for _ in range(MOST_PARTS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        yield head[:4], length
        place += 8 + length + length % 2


def _of_exif(data: bytes) -> Note | None:
    exif = Image.Exif()
    exif.load(data)
    found = json.loads(exif[SOFTWARE])["pgsr"]
    return found if isinstance(found, dict) else None


def _note(text: bytes) -> Note | None:
    found = json.loads(text)
    return found if isinstance(found, dict) else None


def _ends_with(file: IO[bytes], ending: bytes) -> bool:
    file.seek(-len(ending), os.SEEK_END)
    return file.read() == ending
