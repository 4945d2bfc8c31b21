"""Pixels to files: PNG, JPEG and WebP, encoded on threads while the networks make the next batch.

with FolderWriter(folder, Encoding("png"), note) as writer:
    writer.put(0, picture)   # folder/000000.png, whole or not at all
"""

from __future__ import annotations

import io
import json
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pgsr.errors import PgsrError, check_choice
from pgsr.files import write_bytes

EXIF_IMAGE_DESCRIPTION = 0x010E


# ----------------------------------------------------------------------------
# Formats. A note is what is written into a file: {"seed": ..., "index": ..., "model": ...}.

Note = Mapping[str, Any]


def _png(picture: NDArray[np.uint8], quality: int | None, note: Note) -> bytes:
    """Lossless; the note as text chunks pgsr:NAME.

    Runs alone instead of matches: of smooth pictures files are a tenth smaller and take less time.
    """
    info = PngInfo()
    for name, value in note.items():
        info.add_text(f"pgsr:{name}", str(value))
    return _save(picture, format="PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=info)


def _jpeg(picture: NDArray[np.uint8], quality: int | None, note: Note) -> bytes:
    """The note as EXIF."""
    return _save(picture, format="JPEG", quality=quality, exif=exif(note))


def _webp(picture: NDArray[np.uint8], quality: int | None, note: Note) -> bytes:
    """The note as EXIF."""
    return _save(picture, format="WEBP", quality=quality, exif=exif(note))


def _save(picture: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, **options)
    return buffer.getvalue()


def exif(note: Note) -> Image.Exif:
    """The note as JSON in the image description."""
    data = Image.Exif()
    data[EXIF_IMAGE_DESCRIPTION] = json.dumps({"pgsr": dict(note)})
    return data


@dataclass(frozen=True)
class Format:
    encode: Callable[[NDArray[np.uint8], int | None, Note], bytes]
    suffix: str
    ending: bytes  # the last bytes of every file, if they are fixed: decoders do without them
    quality: int | None  # unless the user names one; None is lossless


FORMATS = {
    "png": Format(_png, ".png", b"IEND\xaeB`\x82", None),
    "jpeg": Format(_jpeg, ".jpg", b"\xff\xd9", 95),
    "webp": Format(_webp, ".webp", b"", 90),
}


@dataclass(frozen=True)
class Encoding:
    """How pictures are written. Raises PgsrError for a quality that the format does not have."""

    format: str = "png"  # one of FORMATS
    quality: int | None = None  # 1 to 100; None is the format's own

    def __post_init__(self) -> None:
        check_choice("--format", self.format, FORMATS)
        lossless = FORMATS[self.format].quality is None
        if self.quality is None:
            object.__setattr__(self, "quality", FORMATS[self.format].quality)
        elif lossless:
            raise PgsrError(f"--quality is not for {self.format}, which loses nothing: leave it out")
        elif not 1 <= self.quality <= 100:
            raise PgsrError(f"--quality {self.quality} is not between 1 and 100")

    def path(self, folder: Path, index: int) -> Path:
        """Where image `index` stands."""
        return folder / f"{index:06d}{FORMATS[self.format].suffix}"

    def encode(self, picture: NDArray[np.uint8], note: Note) -> bytes:
        """uint8 [S, S, 3] -> a file's contents."""
        return FORMATS[self.format].encode(picture, self.quality, note)

    def is_whole(self, path: Path, size: int) -> bool:
        """Whether a file is there, in this format, decodes to its end and is `size` x `size` pixels."""
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                picture.verify()  # the chunks' checksums; the decoder skips them
            with Image.open(io.BytesIO(data)) as picture:
                if (picture.format, *picture.size) != (self.format.upper(), size, size):
                    return False
                picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all of them mean damage
            return False
        return data.endswith(FORMATS[self.format].ending)


# ----------------------------------------------------------------------------
# The writer.


class FolderWriter:
    """Encodes and writes pictures on threads, with at most `limit` of them in memory.

    A thread's error is raised by the next `put`, or at the end of the `with` block; pictures that wait
    are dropped then, and when the block is left by an error or Ctrl-C. Files are never half written.
    """

    def __init__(
        self,
        folder: Path,
        encoding: Encoding,
        note: Note,  # written into each file, with its index and its own
        threads: int = 0,  # 0 is one a core, 8 at most
        limit: int = 0,  # pictures waiting or being written; 0 is four a thread
    ) -> None:
        threads = threads or min(8, os.cpu_count() or 1)
        self._folder = folder
        self._encoding = encoding
        self._note = dict(note)
        self._slots = threading.Semaphore(limit or 4 * threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pgsr-writer")
        self._error: BaseException | None = None

    def put(self, index: int, picture: NDArray[np.uint8], note: Note = MappingProxyType({})) -> None:
        """Takes a picture, uint8 [S, S, 3], and a note of its own; waits while `limit` are in work.

        Raises PgsrError if one before it could not be written.
        """
        self._slots.acquire()
        try:
            self._raise_error()
            future = self._pool.submit(self._write, index, picture, note)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(self._done)

    def _write(self, index: int, picture: NDArray[np.uint8], note: Note) -> None:
        if self._error is None:
            told = {**note, **self._note, "index": note.get("index", index)}
            data = self._encoding.encode(picture, told)
            # A file that the machine's crash cut short is found and made again by the next run.
            write_bytes(self._encoding.path(self._folder, index), data, durable=False)

    def _done(self, future: Future[None]) -> None:
        if not future.cancelled() and self._error is None:
            self._error = future.exception()
        self._slots.release()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._raise_error()
