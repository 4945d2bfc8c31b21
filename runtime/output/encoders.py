"""Pictures to bytes: for every format its encoders, the fastest first.

Only this file imports their libraries.

    encode = open_encoder("png").encode      # the fastest one installed
    data = encode(picture, None, {"seed": 5})   # uint8 [H, W, 3] -> a file's contents

All PNG encoders give back the same pixels; a file's bytes depend on the encoder, and on nothing else. The
order is by speed as measured (docs/generate.md), and fixed: choosing by a clock could put files of two
encoders into one folder.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pgsr.decoding import naming
from pgsr.errors import check_choice, missing_package
from pgsr.pictures import open_picture

EXIF_IMAGE_DESCRIPTION = 0x010E
EXTRAS = {"imagecodecs": "jxl"}  # what installs an encoder; of the others, "fast"

Picture = NDArray[np.uint8]  # [H, W, 3]
Note = Mapping[str, Any]  # what is written into a file: {"seed": ..., "index": ..., "model": ...}
Encode = Callable[[Picture, int | None, Note], bytes]  # picture, quality, note


# ----------------------------------------------------------------------------
# PNG: the note as text chunks pgsr:NAME.

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = len(SIGNATURE) + 25  # behind the IHDR chunk
AVERAGE = 3  # the number of a filter (PNG specification, section 9.2)


def _fpng() -> Encode:
    """fpng: deflate with fixed match distances, written for pictures."""
    import fpng

    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        data: bytes = fpng.from_ndarray(np.ascontiguousarray(picture))
        return data[:HEADER_END] + _text_chunks(note) + data[HEADER_END:]

    return encode


def _isal() -> Encode:
    """Intel's deflate."""
    from isal import isal_zlib

    return _deflating(lambda lines: isal_zlib.compress(lines, 1))


def _zlib() -> Encode:
    """Python's own deflate without a search for matches, of which filtered photographs have few: smaller than
    zlib's level 1 and quicker."""

    def deflate(lines: Any) -> bytes:
        stream = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
        return stream.compress(lines) + stream.flush()

    return _deflating(deflate)


def _deflating(deflate: Callable[[Any], bytes]) -> Encode:
    """A PNG by this deflate."""

    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        height, width, channels = picture.shape
        header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
        parts = (chunk(b"IHDR", header), _text_chunks(note), chunk(b"IDAT", deflate(filtered(picture))))
        return b"".join((SIGNATURE, *parts, chunk(b"IEND", b"")))

    return encode


def filtered(picture: Picture, before: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A picture's lines less the average of left and above (rounded down), each behind its filter's number:
    uint8 [H, W, C] -> [H, 1 + W * C]. `before` is the line above them, [W, C], if they are not the first."""
    height, width, channels = picture.shape
    raw = picture.reshape(height, width * channels)
    left, above = np.zeros_like(raw), np.zeros_like(raw)
    left[:, channels:], above[1:] = raw[:, :-channels], raw[:-1]
    if before is not None:
        above[0] = before.reshape(-1)
    lines = np.empty((height, 1 + raw.shape[1]), dtype=np.uint8)
    lines[:, 0] = AVERAGE
    np.subtract(raw, (left & above) + ((left ^ above) >> 1), out=lines[:, 1:])  # in 8 bits, without a carry
    return lines


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG (PNG specification, section 5.3)."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _text_chunks(note: Note) -> bytes:
    texts = ((f"pgsr:{name}".encode("latin-1"), str(value).encode("latin-1")) for name, value in note.items())
    return b"".join(chunk(b"tEXt", name + b"\0" + text) for name, text in texts)


def _pillow_png() -> Encode:
    """Runs alone instead of matches: of smooth pictures files are a tenth smaller and take less time."""

    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        info = PngInfo()
        for name, value in note.items():
            info.add_text(f"pgsr:{name}", str(value))
        return _save(picture, format="PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=info)

    return encode


def _save(picture: Picture, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, **options)
    return buffer.getvalue()


# ----------------------------------------------------------------------------
# JPEG (4:2:0) and WebP: the note as EXIF.


def exif(note: Note) -> Image.Exif:
    """The note as JSON in the image description."""
    data = Image.Exif()
    data[EXIF_IMAGE_DESCRIPTION] = json.dumps({"pgsr": dict(note)})
    return data


def _simplejpeg() -> Encode:
    import simplejpeg

    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        data: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(picture), quality, colorspace="RGB", colorsubsampling="420"
        )
        behind = 4 + int.from_bytes(data[4:6], "big")  # start of image, and the JFIF segment
        body = exif(note).tobytes()
        return data[:behind] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[behind:]

    return encode


def _pillow_jpeg() -> Encode:
    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        return _save(picture, format="JPEG", quality=quality, subsampling="4:2:0", exif=exif(note))

    return encode


def _pillow_webp() -> Encode:
    """Method 0 of 0 to 6: three times as fast as 4, and a sixth larger."""

    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        return _save(picture, format="WEBP", quality=quality, method=0, exif=exif(note))

    return encode


# ----------------------------------------------------------------------------
# JPEG XL, lossless (ISO/IEC 18181-2): boxes, the note as EXIF in front of the picture, so that a file that is
# cut anywhere does not decode.

CONTAINER_END = 32  # behind the boxes that say what the file is


def _imagecodecs() -> Encode:
    """Libjxl with the least effort."""
    from imagecodecs import jpegxl_encode

    def encode(picture: Picture, quality: int | None, note: Note) -> bytes:
        codestream = jpegxl_encode(
            np.ascontiguousarray(picture), lossless=True, effort=1, usecontainer=True, numthreads=1
        )
        data = bytes(codestream)
        tiff = exif(note).tobytes().removeprefix(b"Exif\0\0")
        box = struct.pack(">I4sI", 12 + len(tiff), b"Exif", 0) + tiff  # 0: the TIFF header comes at once
        return data[:CONTAINER_END] + box + data[CONTAINER_END:]

    return encode


def _decoded_jxl(data: bytes) -> Picture:
    from imagecodecs import jpegxl_decode

    return np.asarray(jpegxl_decode(data, numthreads=1))


# ----------------------------------------------------------------------------
# Back again.


def decoded(data: bytes, format: str) -> Picture:
    """A file's picture, uint8 [H, W, 3], checked to its end.

    Raises PictureError if it is damaged, or of another format.
    """
    with naming("the picture"):
        if format == "jxl":
            return _decoded_jxl(data)
        with open_picture(data) as picture:
            if picture.format != format.upper():
                raise OSError(f"a {picture.format} file")
            picture.verify()  # the chunks' checksums; the decoder skips them
        with open_picture(data) as picture:
            return np.asarray(picture.convert("RGB"))


# ----------------------------------------------------------------------------
# The table. An entry raises ImportError if its library is not installed.

ENCODERS: dict[str, dict[str, Callable[[], Encode]]] = {
    "png": {"fpng": _fpng, "isal": _isal, "zlib": _zlib, "pillow": _pillow_png},
    "jpeg": {"simplejpeg": _simplejpeg, "pillow": _pillow_jpeg},
    "webp": {"pillow": _pillow_webp},
    "jxl": {"imagecodecs": _imagecodecs},
}
NAMES = tuple(dict.fromkeys(name for entries in ENCODERS.values() for name in entries))


@dataclass(frozen=True)
class Encoder:
    """An encoder of a format that can run here."""

    name: str
    encode: Encode


def open_encoder(format: str, name: str = "auto") -> Encoder:
    """The named encoder of a format, or the fastest that is installed.

    Raises PgsrError if the format has no such encoder, or what it needs is missing.
    """
    entries = ENCODERS[format]
    if name != "auto":
        check_choice(f"--encoder of {format}", name, ("auto", *entries))
        try:
            return Encoder(name, entries[name]())
        except ImportError as error:
            raise missing_package(f"--encoder {name}", EXTRAS.get(name, "fast"), error) from error
    for encoder_name, encode in _installed(format):
        return Encoder(encoder_name, encode)
    return open_encoder(format, next(iter(entries)))  # which says what to install


def _installed(format: str) -> Iterator[tuple[str, Encode]]:
    """Pairs of name and function; Pillow's are always among them, where it has the format."""
    for name, entry in ENCODERS[format].items():
        try:
            yield name, entry()
        except ImportError:
            continue


def installed(format: str) -> list[str]:
    """The names of a format's encoders that can be used here, the fastest first."""
    return [name for name, _ in _installed(format)]
