"""Pictures to files: a folder of them, one archive, or raw pixels to a stream. Sinks of runtime.pipeline.

with Finisher(FolderSink(folder, Encoding("png"), faces)) as finisher:
    finisher.put([0], pictures)   # folder/000000.png, whole or not at all
"""

from __future__ import annotations

import json
import select
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pgsr.decoding import PictureError
from pgsr.errors import PgsrError, check_choice
from pgsr.files import cannot_write, write_bytes

from .archives import ArchiveFile
from .encoders import Encoder, Note, decoded, open_encoder

# ----------------------------------------------------------------------------
# Formats.


@dataclass(frozen=True)
class Format:
    """A picture format and what it needs."""

    suffix: str
    ending: bytes  # the last bytes of every file, if they are fixed: decoders do without them
    quality: int | None  # unless the user names one; None is lossless


FORMATS = {
    "png": Format(".png", b"IEND\xaeB`\x82", None),
    "jpeg": Format(".jpg", b"\xff\xd9", 95),
    "webp": Format(".webp", b"", 90),
    "jxl": Format(".jxl", b"", None),
}


LEAST_DIGITS, MOST_DIGITS = 6, 20  # of files' names; 20 are enough for 2**64


def digits_of(number: int) -> int:
    """Returns how many digits the names of files have that are numbered up to `number`, so that they sort."""
    return max(LEAST_DIGITS, len(str(number)))


@dataclass(frozen=True)
class Encoding:
    """How pictures are written. Raises PgsrError for a quality that the format does not have."""

    format: str = "png"  # one of FORMATS
    quality: int | None = None  # 1 to 100; None is the format's own
    encoder: str = "auto"  # one of the format's in runtime.encoders

    def __post_init__(self) -> None:
        check_choice("--format", self.format, FORMATS)
        lossless = FORMATS[self.format].quality is None
        if self.quality is None:
            object.__setattr__(self, "quality", FORMATS[self.format].quality)
        elif lossless:
            raise PgsrError(f"--quality is not for {self.format}, which loses nothing: leave it out")
        elif not 1 <= self.quality <= 100:
            raise PgsrError(f"--quality {self.quality} is not between 1 and 100")

    @cached_property
    def codec(self) -> Encoder:
        """The encoder that is used. Raises PgsrError if there is no such encoder here."""
        return open_encoder(self.format, self.encoder)

    def name(self, index: int, digits: int = LEAST_DIGITS) -> str:
        """Returns what image `index` is called, with zeros before it up to so many digits."""
        return f"{index:0{digits}d}{FORMATS[self.format].suffix}"

    def path(self, folder: Path, index: int, digits: int = LEAST_DIGITS) -> Path:
        """Returns where image `index` stands."""
        return folder / self.name(index, digits)

    def encode(self, picture: NDArray[np.uint8], note: Note) -> bytes:
        """uint8 [S, S, 3] -> a file's contents."""
        return self.codec.encode(picture, self.quality, note)

    def is_whole(self, path: Path, size: int) -> bool:
        """Returns whether a file is there, in this format, decodes to its end and is `size` x `size`
        pixels."""
        try:
            data = path.read_bytes()
        except OSError:
            return False
        return self.is_whole_data(data, size)

    def is_whole_data(self, data: bytes, size: int) -> bool:
        """Returns whether a file's contents are whole, as `is_whole` does for a file."""
        if not data.endswith(FORMATS[self.format].ending):
            return False
        try:
            return decoded(data, self.format).shape == (size, size, 3)
        except PictureError:
            return False


# ----------------------------------------------------------------------------
# Sinks. What a picture is called, and its note, come from its position.


@dataclass(frozen=True)
class Faces:
    """Numbers and notes of positions."""

    number: Callable[[int], int]
    note: Callable[[int], dict[str, Any]]
    digits: int = LEAST_DIGITS  # of the numbers in files' names


class FolderSink:
    """A file for each picture. A file that the machine's crash cut short is made again by the next run."""

    ordered = False

    def __init__(self, folder: Path, encoding: Encoding, faces: Faces) -> None:
        """Raises PgsrError if the encoder is not here."""
        self._folder, self._encoding, self._faces = folder, encoding, faces
        encoding.codec  # noqa: B018 (before any thread needs it)

    def encode(self, position: int, picture: NDArray[np.uint8]) -> bytes:
        return self._encoding.encode(picture, self._faces.note(position))

    def write(self, position: int, data: bytes) -> None:
        path = self._encoding.path(self._folder, self._faces.number(position), self._faces.digits)
        write_bytes(path, data, durable=False)


class ArchiveSink:
    """A picture and its note as JSON for each position, in their order."""

    ordered = True

    def __init__(self, archive: ArchiveFile, encoding: Encoding, faces: Faces) -> None:
        """Raises PgsrError if the encoder is not here."""
        self._archive, self._encoding, self._faces = archive, encoding, faces
        encoding.codec  # noqa: B018 (before any thread needs it)

    def encode(self, position: int, picture: NDArray[np.uint8]) -> tuple[bytes, bytes]:
        note = self._faces.note(position)
        return self._encoding.encode(picture, note), note_json(note)

    def write(self, position: int, data: tuple[bytes, bytes]) -> None:
        names = sample_names(self._encoding, self._faces.number(position), self._faces.digits)
        for name, part in zip(names, data, strict=True):
            self._archive.append(name, part)


def sample_names(encoding: Encoding, number: int, digits: int) -> tuple[str, str]:
    """Returns what the two members of a sample are called."""
    return encoding.name(number, digits), f"{number:0{digits}d}.json"


def note_json(note: Note) -> bytes:
    """Encodes a note as the JSON file beside a sample."""
    return json.dumps(dict(note), sort_keys=True).encode()


class RawSink:
    """Pixels alone, uint8 [S, S, 3] one after the other, to a stream.

    A stream with a buffer has a lock, too, which the thread holds that waits for a reader; nobody else can
    flush or close it then.
    """

    ordered = True

    def __init__(self, stream: BinaryIO | RawIOBase) -> None:
        self._stream = stream

    def encode(self, position: int, picture: NDArray[np.uint8]) -> memoryview:
        return np.ascontiguousarray(picture).data.cast("B")

    def write(self, position: int, data: memoryview) -> None:
        try:
            while data:
                written = self._stream.write(data)
                if written is None:  # whoever gave us the pipe lets nobody wait in it
                    select.select([], [self._stream], [])
                data = data[written or 0 :]
            self._stream.flush()
        except BrokenPipeError:  # whoever read them has enough
            raise
        except OSError as error:
            raise cannot_write(Path("-"), error) from error
