"""Picture files of any origin -> Pillow, by decoders that are meant and no others.

Pillow looks at a file's first bytes, not at its name, and knows some formats that are programs: it hands
PostScript to Ghostscript, which runs it, whatever the file is called.
"""

from __future__ import annotations

import ctypes
import functools
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, ImageFile

FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"),
    "TGA",  # the last, since it is not known by its first bytes
)

SUFFIXES = {  # of files of these formats, in lower case
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga"),
}


@contextmanager
def open_picture(source: Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """Opens a file, or the bytes of one, in one of `FORMATS`; its pixels are read when they are asked for.

    Raises PIL.UnidentifiedImageError (an OSError) for another format, and what Pillow raises for damage.
    """
    with _Bytes(source) if isinstance(source, bytes) else _File(io.FileIO(source)) as file:
        yield Image.open(file, formats=_installed())


MOST_SECONDS = 60.0  # of a processor, that the decoding of one picture may take


class Refused(Exception):
    """A picture that is not decoded. Its text is the reason, and can follow the name: "is too large"."""


class _Clock:
    """Ends the decoding of a picture that takes too long, where the decoder asks for more of the file.

    A small JPEG may hold thousands of scans of many pixels each, and a text of numbers may be read for hours.
    The decoders that ask once, for all (WebP, AVIF, JPEG 2000), are bounded by the pixels alone.
    """

    def _start(self) -> None:
        self._end = time.thread_time() + MOST_SECONDS

    def _check(self) -> None:
        if time.thread_time() > self._end:
            raise Refused(f"takes more than {MOST_SECONDS:g} seconds to decode")


class _Bytes(io.BytesIO, _Clock):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._start()

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        return super().read(size)


class _File(io.BufferedReader, _Clock):
    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._start()

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        return super().read(size)


@functools.cache
def silence_libtiff() -> None:
    """Keeps libtiff from writing to standard error by itself, many lines of them for one damaged file: the
    library that Pillow has loaded, of which nothing else can be asked for it."""
    with suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        for path in {line.split(maxsplit=5)[-1] for line in maps if "libtiff" in line}:
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


@functools.cache
def _installed() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
