"""Targets that are pictures: for training, for the upscaler, and those that were made here before."""

from __future__ import annotations

import functools
import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.runtime.output.writers import FORMATS, Encoding
from pgsr.runtime.upscale.notes import held_note
from pgsr.runtime.upscale.photographs import check_format, read_photograph, write_photograph
from pgsr.trainer.data.cache import FILTERS, problem, square

from .harness import Defect, Target, check_line, put
from .strategies import bytes_near, numbers

SCALE = 2


def read_for_training(data: bytes) -> None:
    made, why = problem(data, 4)
    if made is None:
        check_line(why)
        raise PgsrError(why)
    assert np.asarray(square(made, 4, FILTERS["lanczos"])).shape == (4, 4, 3)


def read_for_upscaling(data: bytes) -> None:
    """Read, enlarged by repeating pixels in the network's place, and written in every format."""
    photograph = read_photograph(data, "it")
    if photograph.size[0] * photograph.size[1] > 2**18:
        raise PgsrError("more pixels than are enlarged here")
    for format in ("png", "jpeg", "webp"):
        file = io.BytesIO()
        try:
            check_format(photograph, format, SCALE)
            write_photograph(photograph, _enlarged(photograph), file, SCALE, format, None, {"model": "x"})
        except PgsrError as error:
            check_line(str(error))
            continue
        with Image.open(io.BytesIO(file.getvalue())) as image:
            if image.size != (photograph.size[0] * SCALE, photograph.size[1] * SCALE):
                raise Defect(f"{format} of {image.size} for {photograph.size}")


def _enlarged(photograph: Any) -> Iterator[Any]:
    for top in range(0, photograph.size[1], 64):
        rows = photograph.rows(top, min(top + 64, photograph.size[1]))
        yield rows.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def read_note(data: bytes) -> None:
    held_note(put("made.png", data))


def read_made(data: bytes) -> None:
    """A face that lies in a folder already: whole, or to be made again."""
    for format in FORMATS:
        with suppress(PgsrError):  # a format that needs a package which is not there
            Encoding(format).is_whole_data(data, 8)


# ----------------------------------------------------------------------------
# Small pictures of every format and mode.


def _picture(mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> Image.Image:
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    levels = np.stack([across * 20, down * 30, across * down], -1).astype(np.uint8)
    return Image.fromarray(levels).convert(mode)


@functools.cache
def examples() -> list[bytes]:
    """Files of a few hundred bytes."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0131] = 6, "camera"
    exif[0x8769] = {0xA002: 9, 0x9286: b"ASCII\0\0\0hello"}
    profile = b"\0" * 40
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("RGB", "PNG", {"exif": exif, "dpi": (72, 72)}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("L", "PNG", {"icc_profile": profile}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "JPEG", {"exif": exif, "comment": b"hello", "progressive": True}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"xmp": b"<x:xmpmeta/>"}),
        ("RGB", "WEBP", {"exif": exif, "lossless": True}),
        ("RGB", "WEBP", {"quality": 50}),
        ("P", "GIF", {}),
        ("RGB", "BMP", {}),
        ("1", "PPM", {}),
        ("RGB", "PPM", {}),
        ("RGB", "TGA", {"compression": "tga_rle"}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("F", "TIFF", {}),
        ("CMYK", "TIFF", {"compression": "tiff_deflate"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("LAB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("RGB", "JPEG2000", {}),
        ("RGB", "AVIF", {"quality": 30}),
    ]
    return [
        _file(_picture("RGB" if mode == "LAB" else mode), mode, format, options)
        for mode, format, options in kinds
    ]


def _file(picture: Image.Image, mode: str, format: str, options: dict[str, Any]) -> bytes:
    if mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, picture.tobytes())
    if mode == "F":
        picture = Image.fromarray(np.asarray(picture) / 256)
    with tempfile.TemporaryFile() as file:  # libtiff wants a real one
        picture.save(file, format, **options)
        file.seek(0)
        return file.read()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def pngs() -> SearchStrategy[bytes]:
    """PNGs whose chunks are sound, and say odd things."""
    side = st.one_of(st.integers(1, 12), st.sampled_from([0, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
    small = st.integers(0, 17)
    head = st.tuples(
        side, side, st.sampled_from([1, 2, 4, 8, 16, 0, 3]), st.integers(0, 7), st.just(0), st.just(0)
    )
    header = st.tuples(head, st.integers(0, 2)).map(lambda d: struct.pack(">IIBBBBB", *d[0], d[1]))
    names = st.sampled_from(
        [b"PLTE", b"tRNS", b"gAMA", b"sRGB", b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"pHYs"]
    )
    more = st.sampled_from(
        [b"acTL", b"fcTL", b"fdAT", b"cHRM", b"bKGD", b"IDAT", b"IHDR", b"IEND", b"sBIT", b"xxxx"]
    )
    packed = st.binary(max_size=40).map(zlib.compress)
    text = st.tuples(st.sampled_from([b"pgsr", b"Comment", b"XML:com.adobe.xmp", b"x"]), packed).map(
        lambda d: d[0] + b"\0\0" + d[1]
    )
    body = st.one_of(st.binary(max_size=40), text, packed, st.lists(numbers(), max_size=4).map(b"".join))
    others = st.lists(st.tuples(st.one_of(names, more), body).map(lambda d: chunk(*d)), max_size=4)
    data = st.tuples(small, st.binary(max_size=300)).map(lambda d: zlib.compress(d[1] + bytes(20 * d[0])))
    return st.tuples(header, others, data, others).map(
        lambda d: (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", d[0])
            + b"".join(d[1])
            + chunk(b"IDAT", d[2])
            + b"".join(d[3])
            + chunk(b"IEND", b"")
        )
    )


def tiffs() -> SearchStrategy[bytes]:
    """TIFFs whose directory is sound, and says odd things."""
    tags = [
        256,
        257,
        258,
        259,
        262,
        273,
        274,
        277,
        278,
        279,
        282,
        283,
        284,
        296,
        317,
        320,
        322,
        323,
        324,
        325,
        338,
    ]
    tag = st.sampled_from([*tags, 339, 347, 700, 34665, 34675, 530, 532, 33432])
    value = st.one_of(st.integers(0, 20), st.sampled_from([0, 1, 2, 8, 16, 2**16, 2**31, 2**32 - 1]))
    entry = st.tuples(tag, st.integers(0, 13), st.one_of(st.integers(0, 6), st.just(2**31)), value)
    sound = [(256, 3, 1, 9), (257, 3, 1, 7), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    sound += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 7), (279, 4, 1, 63)]
    entries = st.tuples(st.just(sound), st.lists(entry, max_size=5)).map(
        lambda d: sorted({e[0]: e for e in [*d[0], *d[1]]}.values())
    )
    return entries.map(_tiff)


def _tiff(entries: list[tuple[int, int, int, int]]) -> bytes:
    body = bytes(range(200)) * 2
    directory = (
        struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    )
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def pictures() -> SearchStrategy[bytes]:
    return st.one_of(pngs(), tiffs(), bytes_near(examples()))


TARGETS = [
    Target("picture-for-training", read_for_training, examples, pictures),
    Target("picture-to-upscale", read_for_upscaling, examples, pictures),
    Target("upscaled-before", read_note, examples, pictures),
    Target("face-made-before", read_made, examples, pictures),
]
