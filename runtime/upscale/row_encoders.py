"""Pictures to files from top to bottom, some rows at a time, so that a whole one need not be in memory.

    with open_encoder("png", file, (width, height), "RGB", quality=None, options={}) as encoder:
        encoder.write(rows)   # uint8 [some, width, channels]

PNG and JPEG are written as the rows come. WebP is encoded as a whole: Pillow has no other way, and the format
ends at 16,383 pixels a side.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.decoding import PictureError

from ..output.encoders import SIGNATURE, chunk, filtered

Rows = NDArray[np.uint8]  # [some, W, C], or [some, W] of a grey picture

MOST_SIDE = {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383}  # pixels; libjpeg's own, less than the format's
QUALITY = {"jpeg": 95, "webp": 90}


class RowEncoder(Protocol):
    """A picture being written."""

    def write(self, rows: Rows) -> None:
        """Takes the next rows."""
        ...

    def close(self) -> None:
        """Ends the file, when all rows have come."""
        ...


def check_size(name: str, format: str, size: tuple[int, int]) -> None:
    """Raises PictureError for sides that the format cannot have."""
    most = MOST_SIDE[format]
    if max(size) > most:
        raise PictureError(
            name,
            f"would be {size[0]}x{size[1]}, and {format} ends at {most:,} pixels a side: use --format png",
        )


def open_encoder(
    format: str,
    file: IO[bytes],
    size: tuple[int, int],
    mode: str,  # L, LA, RGB or RGBA
    quality: int | None,
    options: Mapping[str, Any],
) -> RowEncoder:
    """Begins a file. `options` are Pillow's, for metadata."""
    if format != "png":
        options = {"quality": quality or QUALITY[format], **options}
    encoders: dict[str, Callable[..., RowEncoder]] = {"png": PngRows, "jpeg": JpegRows, "webp": WebpRows}
    return encoders[format](file, size, mode, options)


class PngRows:
    """Deflated as the rows come, by the filter of all our PNGs and runs alone. Pillow writes the metadata, in
    a picture of one pixel."""

    def __init__(self, file: IO[bytes], size: tuple[int, int], mode: str, options: Mapping[str, Any]) -> None:
        self._file = file
        self._above: Rows | None = None
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        pixel = io.BytesIO()
        Image.new(mode, (1, 1)).save(pixel, "PNG", **options)
        file.write(SIGNATURE)
        for name, data in _chunks(pixel.getvalue()):
            if name == b"IHDR":
                data = b"".join(side.to_bytes(4, "big") for side in size) + data[8:]
            if name not in (b"IDAT", b"IEND"):
                file.write(chunk(name, data))

    def write(self, rows: Rows) -> None:
        rows = rows[..., None] if rows.ndim == 2 else rows
        data = self._deflate.compress(filtered(rows, self._above).data)
        self._above = rows[-1].copy()
        if data:
            self._file.write(chunk(b"IDAT", data))

    def close(self) -> None:
        self._file.write(chunk(b"IDAT", self._deflate.flush()) + chunk(b"IEND", b""))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks."""
    place = len(SIGNATURE)
    while place < len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], png[place + 8 : end]
        place = end + 4


class JpegRows:
    """Encoded in strips by libjpeg, which begins anew at every restart marker (ITU-T T.81, section E.1.4).

    So a picture's scan is its strips' scans one after the other, with the marker between that is next: the
    same bytes as of the whole picture at once. Strips hold a multiple of eight rows of blocks, since markers
    count to eight.
    """

    STRIP = 8 * 16  # rows of pixels
    LAST = b"\xff\xd7"  # the marker behind a multiple of eight rows of blocks
    END = b"\xff\xd9"

    def __init__(self, file: IO[bytes], size: tuple[int, int], mode: str, options: Mapping[str, Any]) -> None:
        self._file, self._height = file, size[1]
        self._first = dict(options)
        self._every = {"quality": options["quality"], "subsampling": "4:2:0", "restart_marker_rows": 1}
        self._waiting: list[Rows] = []

    def write(self, rows: Rows) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self.STRIP:
            joined = np.concatenate(self._waiting)
            whole = len(joined) - len(joined) % self.STRIP
            for top in range(0, whole, self.STRIP):
                self._write_strip(joined[top : top + self.STRIP])
            self._waiting = [joined[whole:]]

    def _write_strip(self, rows: Rows) -> None:
        buffer = io.BytesIO()
        Image.fromarray(rows).save(buffer, "JPEG", **{**self._first, **self._every})
        data = buffer.getvalue()
        frame, scan = _places(data)
        if self._first:
            height = self._height.to_bytes(2, "big")
            self._file.write(data[: frame + 5] + height + data[frame + 7 : scan])
            self._first = {}
        else:
            self._file.write(self.LAST)
        self._file.write(data[scan : -len(self.END)])

    def close(self) -> None:
        rest = np.concatenate(self._waiting)
        if len(rest):
            self._write_strip(rest)
        self._file.write(self.END)


def _places(jpeg: bytes) -> tuple[int, int]:
    """Where the marker of a baseline JPEG's frame stands, and where its scan's data begin."""
    place, frame = 2, 0
    while jpeg[place + 1] != 0xDA:
        if jpeg[place + 1] == 0xC0:
            frame = place
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return frame, place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")


class WebpRows:
    """Kept until all have come."""

    def __init__(self, file: IO[bytes], size: tuple[int, int], mode: str, options: Mapping[str, Any]) -> None:
        self._file, self._options = file, options
        self._picture, self._top = Image.new(mode, size), 0

    def write(self, rows: Rows) -> None:
        self._picture.paste(Image.fromarray(rows), (0, self._top))
        self._top += len(rows)

    def close(self) -> None:
        self._picture.save(self._file, "WEBP", **self._options)
