"""One decoder for all: every mode and bit depth gives the levels that people see, or is refused by name."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pgsr import decoding, pictures
from pgsr.decoding import PictureError, composed, decode, levels

SIDE = 32
Y, X = np.mgrid[0:SIDE, 0:SIDE]
GREY = (X * 8).astype(np.uint8)
COLOUR = np.stack([X * 8, Y * 8, 255 - X * 8], axis=-1).astype(np.uint8)
SIXTEEN = GREY.astype(np.uint16) * 257


def seen(data: bytes) -> NDArray[np.uint8]:
    """The picture as training takes it."""
    return np.asarray(composed(decode(data)))


def as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=-1)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


# ----------------------------------------------------------------------------
# Files that Pillow cannot write.


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(bits: int, kind: int, lines: list[bytes], *more: bytes) -> bytes:
    """`kind`: 0 grey, 2 RGB; `more`: chunks in front of the pixels."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = (chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def big_endian(values: NDArray[np.uint16]) -> list[bytes]:
    return [line.astype(">u2").tobytes() for line in values]


def tiff(pixels: bytes, bits: int, order: str = "<", photometric: int = 1, format: int = 1) -> bytes:
    """One uncompressed strip of grey."""
    tags = [(256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1)]
    tags += [(278, SIDE), (279, len(pixels)), (339, format)]
    start = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack(order + "H", len(tags))
    for number, value in tags:
        value = start if number == 273 else value
        body += struct.pack(order + "HHI", number, 4, 1) + struct.pack(order + "I", value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + body + struct.pack(order + "I", 0) + pixels


def packed_12(values: NDArray[np.uint16]) -> bytes:
    """Two numbers of 12 bits in three bytes."""
    a, b = values.reshape(-1, 2).T.astype(np.uint32)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=-1).astype(np.uint8).tobytes()


def pgm(most: int) -> bytes:
    values = np.rint(GREY / 255 * most).astype(">u2" if most > 255 else np.uint8)
    return f"P5\n{SIDE} {SIDE}\n{most}\n".encode() + values.tobytes()


DEEP: dict[str, Callable[[], bytes]] = {
    "16-bit PNG": lambda: saved(Image.fromarray(SIXTEEN), "PNG"),
    "16-bit TIFF": lambda: saved(Image.fromarray(SIXTEEN), "TIFF"),
    "compressed": lambda: saved(Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
    "big-endian": lambda: tiff(SIXTEEN.astype(">u2").tobytes(), 16, ">"),
    "12-bit TIFF": lambda: tiff(packed_12(np.rint(GREY / 255 * 4095).astype(np.uint16)), 12),
    "white is 0": lambda: tiff((255 - GREY).tobytes(), 8, photometric=0),
    "white is 0, 16 bits": lambda: tiff((65535 - SIXTEEN).tobytes(), 16, photometric=0),
    "white is 0, floats": lambda: tiff((1 - GREY / 255).astype("<f4").tobytes(), 32, "<", 0, 3),
    "floats": lambda: saved(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
    "big-endian floats": lambda: tiff((GREY / 255).astype(">f4").tobytes(), 32, ">", 1, 3),
    "PFM": lambda: b"Pf\n32 32\n-1.0\n" + (GREY / 255)[::-1].astype("<f4").tobytes(),
    "PGM of 4 bits": lambda: pgm(15),
    "PGM": lambda: pgm(255),
    "PGM of 10 bits": lambda: pgm(1023),
    "PGM of 12 bits": lambda: pgm(4095),
    "PGM of 16 bits": lambda: pgm(65535),
    "plain PGM of 16 bits": lambda: (
        b"P2 32 32 65535\n" + b"\n".join(b" ".join(b"%d" % v for v in line) for line in SIXTEEN)
    ),
    "JPEG 2000 of 16 bits": lambda: saved(Image.fromarray(SIXTEEN), "JPEG2000"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_grey_of_every_depth(kind: str) -> None:
    decoded = decode(DEEP[kind]())
    assert (decoded.colours.mode, decoded.alpha) == ("L", None)
    error = np.abs(np.asarray(decoded.colours).astype(int) - GREY)
    assert error.max() <= (9 if kind == "PGM of 4 bits" else 0)


def test_colours_of_16_bits() -> None:
    lines = [(line.astype(">u2") * 257).tobytes() for line in COLOUR]
    assert np.array_equal(seen(png(16, 2, lines)), COLOUR)


def in_mode(mode: str) -> Image.Image:
    """A ramp of colours, or of grey, as Pillow has it in a mode."""
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (SIDE, SIDE), SIXTEEN.astype(">u2" if "B" in mode else "<u2").tobytes())
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(colour, srgb, lab, outputMode="LAB")  # type: ignore[return-value]
    made: dict[str, Callable[[], Image.Image]] = {
        "I": lambda: Image.fromarray(SIXTEEN.astype(np.int32)),
        "F": lambda: Image.fromarray((GREY / 255).astype(np.float32)),
        "L": lambda: grey,
        "1": lambda: grey.point([0] * 128 + [255] * 128),
        "La": lambda: Image.merge("LA", (grey, grey.point(lambda _: 255))).convert("La"),
        "LA": lambda: Image.merge("LA", (grey, grey.point(lambda _: 255))),
        "PA": lambda: colour.quantize(256).convert("PA"),
        "P": lambda: colour.quantize(256),
        "RGBa": lambda: colour.convert("RGBA").convert("RGBa"),
    }
    return made.get(mode, lambda: colour.convert(mode))()


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16B", "I;16L"),
)
NEAR = {"P": 24, "PA": 24, "YCbCr": 3, "HSV": 6, "LAB": 36}  # as exact as the mode is; LAB is 1.5 on average


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(mode: str) -> None:
    found = np.asarray(composed(levels(in_mode(mode)))).astype(int)
    grey = GREY if mode != "1" else np.where(GREY < 128, 0, 255).astype(np.uint8)
    expected = as_rgb(grey) if mode in ("1", "L", "LA", "La", "I", "F") or "16" in mode else COLOUR
    assert np.abs(found - expected).max() <= NEAR.get(mode, 0)


def test_no_mode_is_forgotten() -> None:
    """Of those that files are opened in."""
    known = {*getattr(Image, "MODES", MODES)}
    assert known - {*MODES} <= {"I;16N"}


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
@pytest.mark.parametrize(
    "profile", [None, b"damaged", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_inks(format: str, profile: bytes | None) -> None:
    """A profile that is damaged, or of something else than inks, is no reason to lose a picture."""
    options = {"icc_profile": profile, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {})}
    data = saved(Image.fromarray(COLOUR).convert("CMYK"), format, **options)
    decoded = decode(data)
    assert decoded.profile is None
    assert np.abs(np.asarray(composed(decoded)).astype(int) - COLOUR).max() <= 3


REFUSED = {
    "int8": lambda: tiff((GREY >> 1).tobytes(), 8, format=2),
    "int16": lambda: tiff((SIXTEEN >> 1).tobytes(), 16, format=2),
    "int32": lambda: saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"),
    "uint32": lambda: tiff((SIXTEEN.astype("<u4") << 16).tobytes(), 32),
    "floats to 255": lambda: saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "floats below 0": lambda: saved(Image.fromarray(GREY / np.float32(255) - np.float32(0.5)), "TIFF"),
    "not a number": lambda: saved(Image.fromarray(np.where(X == 3, np.nan, 0.5).astype(np.float32)), "TIFF"),
    "transparent": lambda: saved(Image.fromarray(np.dstack([COLOUR, 0 * GREY])), "PNG"),
    "64-bit floats": lambda: tiff((GREY / 255).astype("<f8").tobytes(), 64, format=3),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_levels_that_nobody_can_tell_are_refused(kind: str) -> None:
    with pytest.raises(PictureError, match=r"^a\.tif (holds|is transparent everywhere|cannot be read)"):
        composed(decode(REFUSED[kind](), "a.tif"), "a.tif")


# ----------------------------------------------------------------------------
# Transparency.


def test_the_transparent_is_over_white() -> None:
    alpha = np.where(X < 16, 255, np.where(X < 24, 128, 0)).astype(np.uint8)
    expected = np.rint(COLOUR * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None])
    for data in (
        saved(Image.fromarray(np.dstack([COLOUR, alpha])), "PNG"),
        saved(Image.fromarray(np.dstack([COLOUR, alpha])), "WEBP", lossless=True, exact=True),
    ):
        assert np.abs(seen(data) - expected).max() <= 1
    grey = saved(Image.fromarray(np.dstack([GREY, alpha])), "PNG")
    assert np.abs(seen(grey)[..., 0] - (GREY * (alpha / 255) + 255 - alpha)).max() <= 1


def test_a_palettes_transparency() -> None:
    image = Image.fromarray((X >= 16).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 255, 0, 255])
    for transparency in (1, bytes([255, 0])):
        found = seen(saved(image, "PNG", transparency=transparency))
        assert (found[:, :16] == (10, 20, 30)).all()
        assert (found[:, 16:] == 255).all()


def bits_of(values: NDArray[np.uint8], bits: int) -> list[bytes]:
    groups = values.reshape(SIDE, -1, 8 // bits).astype(int)
    shifts = np.arange(8 - bits, -1, -bits)
    return [line.astype(np.uint8).tobytes() for line in (groups << shifts).sum(axis=-1)]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_key_of_grey_png_of_every_depth(bits: int) -> None:
    """The colour that is transparent counts in the file's own bits."""
    most = 2**bits - 1
    values = X * 2 % (most + 1) if bits < 16 else X + 300  # all of one high byte
    lines = big_endian(values.astype(np.uint16)) if bits == 16 else bits_of(values.astype(np.uint8), bits)
    key = int(values[0, 1])
    decoded = decode(png(bits, 0, lines, chunk(b"tRNS", struct.pack(">H", key))))
    assert decoded.alpha is not None
    assert np.array_equal(np.asarray(decoded.alpha) == 0, values == key)
    assert np.abs(np.asarray(decoded.colours) - values * 255 / most).max() <= 0.5


@pytest.mark.parametrize("bits", [8, 16])
def test_the_key_of_coloured_png(bits: int) -> None:
    values = np.stack([X, Y, X + Y], axis=-1) + (0x1200 if bits == 16 else 0)
    lines = [line.astype(">u2" if bits == 16 else np.uint8).tobytes() for line in values]
    key = values[5, 7]
    decoded = decode(png(bits, 2, lines, chunk(b"tRNS", struct.pack(">HHH", *key))))
    assert decoded.alpha is not None
    assert np.array_equal(np.asarray(decoded.alpha) == 0, (values == key).all(axis=-1))


def test_a_key_that_no_pixel_can_have() -> None:
    decoded = decode(png(8, 0, bits_of(GREY, 8), chunk(b"tRNS", b"\x01\x08")))  # not the level 8
    assert decoded.alpha is None


def test_a_fourth_channel_of_zeros() -> None:
    """In formats whose writers leave it at that."""
    clear = Image.fromarray(np.dstack([COLOUR, 0 * GREY]))
    assert np.array_equal(seen(saved(clear, "TGA")), COLOUR)


# ----------------------------------------------------------------------------
# Colours.


def swapped_profile() -> bytes:
    """A profile of a screen whose red is blue."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", data[128:132])
    places = {bytes(data[p : p + 4]): p + 4 for p in range(132, 132 + 12 * count, 12)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def test_colours_by_their_profile() -> None:
    image = Image.fromarray(COLOUR)
    found = seen(saved(image, "PNG", icc_profile=swapped_profile())).astype(int)
    assert np.abs(found - COLOUR[..., ::-1]).max() <= 3
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"damaged"):  # to the bit
        assert np.array_equal(seen(saved(image, "PNG", icc_profile=profile)), COLOUR)
    assert decode(saved(image, "PNG", icc_profile=swapped_profile())).profile == swapped_profile()


@pytest.mark.parametrize(
    ("gamma", "exponent"), [(100000, 1 / 2.2), (45455, 1), (55556, 1.8 / 2.2), (0, 1), (1, 1)]
)
def test_levels_by_gamma(gamma: int, exponent: float) -> None:
    data = png(8, 0, bits_of(GREY, 8), chunk(b"gAMA", struct.pack(">I", gamma)))
    assert np.abs(seen(data)[..., 0] - 255 * (GREY / 255) ** exponent).max() <= 0.6


# ----------------------------------------------------------------------------
# EXIF.


def exif(*entries: tuple[int, int, int, bytes], more: bytes = b"") -> bytes:
    """Little-endian; entries: tag, type, count, four bytes."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + more


TURNED = (0x112, 3, 1, struct.pack("<H", 6))
END = 8 + 2 + 2 * 12 + 4
DAMAGED_EXIF = {  # the turn is read where it is whole
    "a rational of -1/0": (
        exif(TURNED, (0x9204, 10, 1, struct.pack("<I", END)), more=struct.pack("<ii", -1, 0)),
        6,
    ),
    "resolution as text": (exif(TURNED, (0x11A, 2, 4, b"300\0")), 6),
    "two resolutions": (exif(TURNED, (0x11A, 5, 2, struct.pack("<I", END)), more=bytes(16)), 6),
    "width as text": (exif((0x100, 2, 5, struct.pack("<I", END)), TURNED, more=b"wide\0"), 6),
    "a float that is none": (exif(TURNED, (0x9204, 11, 1, struct.pack("<f", np.nan))), 6),
    "a type that is none": (exif(TURNED, (0x10F, 99, 1, b"abcd")), 6),
    "beyond the end": (exif(TURNED, (0x11A, 5, 1, struct.pack("<I", 60000))), 6),
    "a huge count": (exif(TURNED, (0x10F, 2, 0xFFFFFFF0, struct.pack("<I", END))), 6),
    "a directory in itself": (exif(TURNED, (0x8769, 4, 1, struct.pack("<I", 8))), 6),
    "a directory beyond the end": (exif(TURNED, (0x8769, 4, 1, struct.pack("<I", 999999))), 6),
    "a directory as text": (exif(TURNED, (0x8769, 2, 4, b"abc\0")), 6),
    "orientation as text": (exif((0x112, 2, 2, b"6\0")), 1),
    "orientation 9": (exif((0x112, 3, 1, struct.pack("<H", 9))), 1),
    "cut": (exif(TURNED)[:14], 1),
    "no TIFF": (b"garbage garbage", 1),
    "nothing": (b"", 1),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", DAMAGED_EXIF)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_never_decides_over_a_picture(case: str, format: str) -> None:
    data, orientation = DAMAGED_EXIF[case]
    colours = np.zeros((16, 24, 3), np.uint8)
    colours[:8, :12] = 255
    found = seen(saved(Image.fromarray(colours), format, exif=b"Exif\0\0" + data))
    expected = np.rot90(colours, -1) if orientation == 6 else colours
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once(orientation: int, compression: str | None) -> None:
    """Pillow turns it as it loads."""
    made = Image.Exif()
    made[decoding.ORIENTATION] = orientation
    colours = COLOUR[:20]
    plain = saved(Image.fromarray(colours), "PNG", exif=made)
    assert np.array_equal(
        seen(saved(Image.fromarray(colours), "TIFF", exif=made, compression=compression)), seen(plain)
    )


def test_a_tiffs_damaged_directories() -> None:
    """Pillow reads them all before it gives a TIFF's pixels."""
    made = Image.Exif()
    made[0x8769] = {0x9003: "2020:01:01 00:00:00"}
    made[decoding.ORIENTATION] = 6
    data = saved(Image.fromarray(COLOUR[:20]), "TIFF", exif=made.tobytes())
    place = data.index(struct.pack("<HHI", 0x8769, 4, 1)) + 8
    for damage in (b"\xff\xff\xff\x7f", b"\x08\0\0\0", b"\x01\0\0\0"):
        found = seen(data[:place] + damage + data[place + 4 :])
        assert np.array_equal(found, np.rot90(COLOUR[:20], -1))


def test_a_pngs_texts_never_decide_over_it() -> None:
    """Nor damaged profiles: Pillow refuses a PNG for a text of more than a megabyte, and for any damage."""
    long = b"workflow\0\0" + zlib.compress(bytes(3_000_000))
    turned = chunk(b"eXIf", exif(TURNED))
    for notes in (
        chunk(b"zTXt", long),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"zTXt", b"a\0\0damaged") + chunk(b"pHYs", b""),
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",
    ):
        assert np.array_equal(seen(png(8, 0, bits_of(GREY, 8), notes, turned)), np.rot90(as_rgb(GREY), -1))
    damaged = png(8, 0, bits_of(GREY, 8), chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0")
    with pytest.raises(PictureError, match=r"^a\.png cannot be read"):
        decode(damaged[:-40], "a.png")


# ----------------------------------------------------------------------------
# Whatever a file holds.


def sample(format: str) -> bytes:
    options = {"TIFF": {"compression": "tiff_lzw"}}.get(format, {})
    return saved(Image.fromarray(COLOUR), format, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", [f for f in pictures.FORMATS if f != "MPO"])
def test_damage_is_one_sentence_with_the_name(format: str) -> None:
    """Bytes of valid files are changed, or their ends cut off: there are levels, or a PictureError."""
    if format not in pictures._installed():
        pytest.skip(f"Pillow has no {format} here")
    whole = sample(format)
    random = np.random.default_rng(zlib.crc32(format.encode()))
    reasons = []
    for _ in range(60):
        data = bytearray(whole[: random.integers(1, len(whole) + 1)] if random.random() < 0.3 else whole)
        for place in random.integers(0, min(len(data), 200), random.integers(0, 6)):
            data[place] = random.integers(256)
        try:
            composed(decode(bytes(data), "x.dat"), "x.dat")
        except PictureError as error:
            reasons.append(str(error))
    assert len(reasons) > 3
    assert all(re.fullmatch(r"x\.dat \S.{0,280}", reason) for reason in reasons)
    assert not any(re.search(r"0x[0-9a-f]{6}", reason) for reason in reasons)


def test_libtiff_says_nothing_by_itself(tmp_path: Path) -> None:
    """It writes to the standard error of the process, below Python: a line or more for each damaged strip."""
    data = bytearray(sample("TIFF"))
    with Image.open(io.BytesIO(data)) as image:
        (place,) = image.tag_v2[273]  # type: ignore[attr-defined]  # of the strip
    data[place + 10 : place + 30] = b"\xff" * 20
    (tmp_path / "a.tif").write_bytes(data)
    program = (
        "import sys; from pathlib import Path; from PIL import Image; from pgsr import decoding\n"
        "try: {}\nexcept Exception as error: print(error)"
    )
    for call, silent in {
        f"decoding.decode(Path({str(tmp_path / 'a.tif')!r}), 'a.tif')": True,
        f"Image.open({str(tmp_path / 'a.tif')!r}).load()": False,
    }.items():
        done = subprocess.run([sys.executable, "-c", program.format(call)], capture_output=True, text=True)
        assert (done.stderr == "") == silent


def test_what_is_not_a_picture() -> None:
    for data in (b"", b"GIF89a", b"<html>", bytes(1000), b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(PictureError, match=r"^a\.png cannot be read as a picture: .*\w"):
            decode(data, "a.png")
    with pytest.raises(PictureError, match=r"^a\.png cannot be read as a picture: No such file"):
        decode(Path("not/here.png"), "a.png")


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Pillow's own limit is set to."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(PictureError, match=r"x is too large: .*178,956,970 pixels"):
            decode(data, "x")


def claiming(width: int, height: int) -> bytes:
    """A TIFF of 32 bits a pixel, none of which is there."""
    tags = [(256, width), (257, height), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, 63)])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4)


def test_a_short_file_that_claims_many_pixels(tmp_path: Path) -> None:
    """Half a gigabyte would be taken for it, twice."""
    (tmp_path / "x.tif").write_bytes(claiming(9, 14_483_463))
    for source in (tmp_path / "x.tif", claiming(9, 14_483_463)):
        with pytest.raises(PictureError, match=r"x\.tif is damaged: 9x14483463 pixels are not in 122 bytes"):
            decode(source, "x.tif")


def test_a_short_file_that_has_many_pixels() -> None:
    """One bit each, all the same."""
    data = saved(Image.new("1", (5800, 5800), 1), "PNG", compress_level=9)
    assert decoding.PLAUSIBLE_PIXELS < 5800**2
    assert 3000 * len(data) < 5800**2
    assert decode(data, "x").colours.getextrema() == (255, 255)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again: each has all of its pixels done anew."""
    whole = saved(Image.fromarray(GREY).resize((1500, 1500)), "JPEG", progressive=True, quality=50)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + b"\xff\xd9"


@pytest.mark.parametrize("on_disk", [True, False])
def test_too_much_time(on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_SECONDS", 0.1)
    data = many_scans(1500)
    assert len(data) < 2**18
    (tmp_path / "x.jpg").write_bytes(data)
    began = time.thread_time()
    with pytest.raises(PictureError, match=r"x takes more than 0\.1 seconds to decode"):
        decode(tmp_path / "x.jpg" if on_disk else data, "x")
    assert time.thread_time() - began < 5
