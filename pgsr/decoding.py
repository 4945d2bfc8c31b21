"""A picture file -> levels as people see them. Training, the upscaler and the benchmarks all decode by this.

    decoded = decode(Path("a.tif"), "a.tif")
    decoded.colours       # Pillow, RGB or L, 8 bits, upright
    decoded.alpha         # L, if anything is transparent
    composed(decoded)     # RGB in sRGB, what is transparent over BACKGROUND

Every mode of Pillow is either read right or refused with the reason. Whatever a decoder raises becomes a
`PictureError`, and what stands beside the pixels (EXIF, text) never decides over them.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from pgsr.errors import PgsrError
from pgsr.pictures import Refused, open_picture, silence_libtiff

Levels = NDArray[np.uint8]  # [H, W]

VERSION = 2  # of what is made of a file's levels: pixels that another one made are decoded again
MOST_PIXELS = 178_956_970  # of a picture: Pillow's own limit, whatever it is set to
PLAUSIBLE_PIXELS = 2**25  # that a file of any length may have
PIXELS_A_BYTE = 2**14  # of larger ones: deflate packs 8,256 pixels of one bit into a byte, and nothing more
BACKGROUND = (255, 255, 255)  # over which what is transparent is composed for training

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
PNG_OF_PIXELS = (b"tRNS", b"gAMA", b"sRGB", b"eXIf")  # that say how they are seen

ORIENTATION = 0x0112  # a tag of EXIF and TIFF
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 0x0102, 0x0106, 0x0153  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the last two
JPEG_BLOCK = 4096  # bytes read at once, so that the clock is looked at: a scan of all pixels takes a dozen
SAID = 200  # characters of what a decoder says
ROUNDING = 1e-4  # by which floats may lie outside 0 to 1
UNSURE_ALPHA = ("BMP", "DIB", "TGA")  # whose fourth channel is often left at 0 and means nothing
SAVE_AS_8 = "save it with 8 or 16 bits a channel"
SIGNED_NUMBERS = f"holds signed integers, of which none is surely white: {SAVE_AS_8}"

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by orientation (EXIF 3.0, section 4.6.5.1.6)


class PictureError(PgsrError):
    """A picture that cannot be used: its name, and the reason, which can follow any name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.reason = reason

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


@dataclass(frozen=True)
class Decoded:
    """A picture's levels."""

    colours: Image.Image  # RGB, or L of a grey picture
    alpha: Image.Image | None  # L, of the same size; None: nothing can be transparent
    profile: bytes | None  # of colours other than sRGB


def decode(source: Path | bytes, name: str = "it", turn: bool = True) -> Decoded:
    """The levels of a file, or of the bytes of one, turned as its EXIF says unless `turn` is false.

    Raises PictureError if it cannot be read, or is of a kind whose levels nobody can tell.
    """
    with opened(source, name) as image:
        return levels(image, turn)


def composed(decoded: Decoded, name: str = "it") -> Image.Image:
    """The picture as RGB in sRGB, what is transparent over `BACKGROUND`.

    Raises PictureError if nothing of it can be seen.
    """
    colours = decoded.colours
    if decoded.profile is not None:
        colours = _by_profile(colours, decoded.profile) or colours
    colours = colours.convert("RGB")
    if decoded.alpha is None:
        return colours
    if decoded.alpha.getextrema() == (0, 0):
        raise PictureError(name, "is transparent everywhere")
    return Image.composite(colours, Image.new("RGB", colours.size, BACKGROUND), decoded.alpha)


# ----------------------------------------------------------------------------
# Opening, and what can go wrong.


@contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """A picture with its pixels read, as Pillow has it. Whatever is raised by Pillow, inside the block too,
    becomes a PictureError."""
    with naming(name), ExitStack() as files:
        try:
            image = _loaded(source, files)
        except (Refused, Image.DecompressionBombError):
            raise
        except Exception:
            bare = _bare_png(source)
            if bare is None:
                raise
            image = _loaded(bare, files)
        yield image


def _loaded(source: Path | bytes, files: ExitStack) -> ImageFile.ImageFile:
    image = files.enter_context(open_picture(source))
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Refused(f"is too large: {width}x{height}, and at most {MOST_PIXELS:,} pixels are read")
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if width * height > max(PLAUSIBLE_PIXELS, PIXELS_A_BYTE * size):
        raise Refused(f"is damaged: {width}x{height} pixels are not in {size:,} bytes")
    _load(image, source)
    return image


def _bare_png(source: Path | bytes) -> bytes | None:
    """A PNG without its texts and profiles, over which Pillow refuses a picture if they are damaged or long;
    None for another file."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if not data.startswith(PNG_SIGNATURE):
        return None
    parts, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + length]
        sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind in PNG_CRITICAL or (kind in PNG_OF_PIXELS and sound):
            parts.append(chunk)
        place += 12 + length
    return b"".join(parts)


@contextmanager
def naming(name: str, failure: str = "cannot be read as a picture") -> Iterator[None]:
    """Turns whatever Pillow raises, which may be nearly any exception, into a PictureError."""
    try:
        yield
    except PgsrError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(name, f"is too large: more than {MOST_PIXELS:,} pixels") from error
    except Refused as error:
        raise PictureError(name, str(error)) from error
    except Exception as error:
        raise PictureError(name, f"{failure}: {said(error)}") from error


def said(error: Exception) -> str:
    """What an exception says, on one short line and without addresses in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "it is of no format that is read, or its beginning is damaged"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:SAID] or type(error).__name__


def _load(image: ImageFile.ImageFile, source: Path | bytes) -> None:
    """Reads the pixels. Pillow turns a TIFF upright as it does so, and reads all of its EXIF for it; it is
    shown the orientation alone, since the rest may be damaged."""
    own = Image.Exif()
    if image.format == "TIFF":
        silence_libtiff()
        with suppress(Exception):  # damaged EXIF raises what it likes
            own = image.getexif()
        alone = Image.Exif()
        alone[ORIENTATION] = _known_orientation(_tag(image, ORIENTATION, 1))
        image.getexif = lambda: alone  # type: ignore[method-assign]
    if image.format in ("JPEG", "MPO"):
        image.decodermaxblock = JPEG_BLOCK
    raw = image.tile[0][3] if image.tile else None
    image.load()
    if image.format == "TIFF":
        image.getexif = lambda: own  # type: ignore[method-assign]
    if image.format == "PNG" and image.mode in ("L", "RGB") and "transparency" in image.info:
        _apply_key(image, source, str(raw))


def _apply_key(image: ImageFile.ImageFile, source: Path | bytes, raw: str) -> None:
    """Turns the colour that a PNG says is transparent, which counts in the file's own bits, into one of 8
    bits, or into alpha where 8 bits cannot tell it."""
    key = image.info.pop("transparency")
    if raw == "RGB;16B":
        with open_picture(source) as again:
            (tile,) = again.tile
            other_end = (*tile[:3], "RGB;16L")  # little-endian by mistake: the low bytes are read
            again.tile = [getattr(tile, "_make", tuple)(other_end)]  # type: ignore[list-item]
            sixteen = np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)
        hidden = (sixteen == np.array(key, dtype=np.uint16)).all(axis=-1)
        image.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
        return
    bits = int(raw.partition(";")[2]) if raw in ("L;2", "L;4") else 8
    top = 2**bits - 1
    values = key if isinstance(key, tuple) else (key,)
    if max(values) <= top:  # no pixel has any other
        image.info["transparency"] = key * 255 // top if isinstance(key, int) else key


def _tag(image: Image.Image, number: int, default: int) -> Any:
    """A tag of a TIFF; the first of its values, if there are several, as of samples."""
    try:
        value = image.tag_v2.get(number, default)  # type: ignore[attr-defined]
        return value[0] if isinstance(value, tuple) and number != ORIENTATION else value
    except Exception:  # damaged tags raise what they like
        return default


def orientation(image: Image.Image) -> int:
    """The orientation of a loaded picture that is still to be applied, 1 to 8; 1 where EXIF is damaged."""
    if image.format == "TIFF":
        return 1
    try:
        return _known_orientation(image.getexif().get(ORIENTATION, 1))
    except Exception:  # what stands beside the pixels never decides over them
        return 1


def _known_orientation(value: Any) -> int:
    return value if type(value) is int and 1 <= value <= 8 else 1


# ----------------------------------------------------------------------------
# Levels.


def levels(image: Image.Image, turn: bool = True) -> Decoded:
    """The levels of a loaded picture. Raises PictureError, or what Pillow does; `opened` sees to that."""
    turned = TURNS.get(orientation(image) if turn else 1)
    profile = image.info.get("icc_profile") or None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        colours, alpha = _numbers(image)
    elif image.mode in ("CMYK", "LAB"):
        colours, alpha, profile = _in_rgb(image, profile), None, None
    else:
        colours, alpha = _eight_bits(image)
    colours = _by_gamma(colours, image)
    if turned is not None:
        colours = colours.transpose(turned)
        alpha = None if alpha is None else alpha.transpose(turned)
    return Decoded(colours, alpha, profile)


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours and transparency of a picture of up to 8 bits a channel."""
    if _tag(image, SAMPLE_FORMAT, 1) == SIGNED:
        raise Refused(SIGNED_NUMBERS)
    grey = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == grey else image.convert(grey), None
    kind = image.format
    image = image.convert({"La": "LA"}.get(image.mode, image.mode)).convert("RGBA")
    alpha = image.getchannel("A")
    nothing = alpha.getextrema() == (0, 0) and kind in UNSURE_ALPHA
    colours = image.convert("RGB")
    return colours if grey == "RGB" else colours.convert(grey), None if nothing else alpha


def _in_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Inks by their profile if they have one that can be used; lightness and hue (CIELAB) as they are
    defined."""
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, lab, _srgb(), outputMode="RGB")  # type: ignore[return-value]
    return (profile and _by_profile(image, profile)) or image.convert("RGB")


def _by_profile(colours: Image.Image, profile: bytes) -> Image.Image | None:
    """Colours in sRGB; None if they are in sRGB already, or the profile is damaged or for something else."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return None
        return ImageCms.profileToProfile(colours, own, _srgb(), outputMode="RGB")
    except Exception:  # of many kinds; a picture is not refused for its profile
        return None


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _by_gamma(colours: Image.Image, image: Image.Image) -> Image.Image:
    """The levels for a screen's exponent of 2.2, where a PNG says that its own are for another (PNG
    specification, section 13.13). A profile counts for more."""
    gamma = image.info.get("gamma")
    if image.format != "PNG" or not gamma or "icc_profile" in image.info or "srgb" in image.info:
        return colours
    exponent = 1 / (2.2 * gamma)
    if not 0.1 < exponent < 10 or abs(exponent - 1) < 0.05:
        return colours
    table = [round(255 * (level / 255) ** exponent) for level in range(256)]
    return colours.point(table * len(colours.getbands()))


# ----------------------------------------------------------------------------
# Grey pictures of more than 8 bits.


def _numbers(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Levels of integers from black to the white that their format says, and of floats from 0 to 1."""
    if _tag(image, SAMPLE_FORMAT, 1) == SIGNED:
        raise Refused(SIGNED_NUMBERS)
    values = np.asarray(image)
    grey = _of_floats(values) if image.mode == "F" else _of_integers(values, image)
    if image.format == "TIFF" and _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        grey = 255 - grey
    key = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if key is not None else None
    return Image.fromarray(grey), alpha


def _of_integers(values: NDArray[Any], image: Image.Image) -> Levels:
    bits = _tag(image, BITS_PER_SAMPLE, 16) if image.format == "TIFF" else 16
    if bits not in (12, 16) or values.min() < 0 or values.max() > 65535:
        raise Refused(f"holds integers of {bits} bits, of which none is surely white: {SAVE_AS_8}")
    white = 2**bits - 1
    table = (np.arange(65536, dtype=np.uint32).clip(0, white) * 255 + white // 2) // white
    grey: Levels = table.astype(np.uint8)[values]
    return grey


def _of_floats(values: NDArray[Any]) -> Levels:
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is neither
        raise Refused(f"holds floats from {low:g} to {high:g}, not from 0 to 1: {SAVE_AS_8}")
    return np.rint(values.clip(0, 1) * np.float32(255)).astype(np.uint8)
