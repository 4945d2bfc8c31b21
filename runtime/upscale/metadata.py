"""What belongs to a photograph beside its pixels: EXIF, XMP, colour profile, resolution, text.

It is carried over where it can be, and dropped with a word where it is damaged or the new format has no place
for it. It never decides whether a picture is made.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from pgsr.decoding import ORIENTATION

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
SOFTWARE = 0x0131
WIDTH, HEIGHT = (0x0100, 0xA002), (0x0101, 0xA003)  # in the first directory, in EXIF's own
RESOLUTION = (0x011A, 0x011B, 0x0128)
PLACES = (0x0111, 0x0117, 0x0201, 0x0202)  # of pixels inside a file
DESCRIPTIVE = frozenset(  # tags of a TIFF that say nothing of how its pixels are stored
    (
        *(0x010D, 0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C),
        *(0x4746, 0x4749, 0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F),
    )
)
MOST_DPI = 65535  # in a JPEG
MOST_XMP = 65502  # bytes in a segment of a JPEG
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
XMP_TAG = 700  # of a TIFF
XMP_KEY = "XML:com.adobe.xmp"  # of a PNG's text
COMMENT = "Comment"  # the text of a PNG that a JPEG's or a GIF's comment becomes


@dataclass
class Metadata:
    """As it was read; `lost` names what could not be."""

    tags: dict[int, Any] = field(default_factory=dict)  # of EXIF's first directory
    exif: dict[int, Any] = field(default_factory=dict)
    gps: dict[int, Any] = field(default_factory=dict)
    xmp: bytes = b""
    profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: dict[str, str] = field(default_factory=dict)  # of a PNG, or a comment
    lost: list[str] = field(default_factory=list)


def read_metadata(image: Image.Image, profile: bytes | None) -> Metadata:
    """What a loaded picture's file says beside its pixels; `profile` is the one its levels still need."""
    result = Metadata(profile=profile)
    _read_exif(image, result)
    result.xmp = _xmp(image)
    result.texts = _texts(image)
    if "dpi" in image.info:
        result.dpi = _dpi(image.info["dpi"])
        if result.dpi is None:
            result.lost.append("resolution")
            result.tags = {number: value for number, value in result.tags.items() if number not in RESOLUTION}
    return result


def _read_exif(image: Image.Image, result: Metadata) -> None:
    try:
        exif = image.getexif()
        sub = {number: exif.get_ifd(number) for number in (EXIF_IFD, GPS_IFD) if number in exif}
    except Exception:  # of nearly any kind, where EXIF is damaged
        result.lost.append("EXIF")
        return
    skipped = {ORIENTATION, EXIF_IFD, GPS_IFD, *PLACES}  # the pixels stand upright now
    known = [n for n in exif if n not in skipped and (image.format != "TIFF" or n in DESCRIPTIVE)]
    result.tags = _sound(exif, known, None, result.lost)
    for number, target in ((EXIF_IFD, "exif"), (GPS_IFD, "gps")):
        values = sub.get(number, {})
        setattr(result, target, _sound(values, list(values), number, result.lost))


def _sound(
    values: Mapping[int, Any], numbers: Iterable[int], ifd: int | None, lost: list[str]
) -> dict[int, Any]:
    """Those of the tags that can be read and written again."""
    result = {}
    for number in numbers:
        try:
            exif, value = Image.Exif(), values[number]
            exif[number if ifd is None else ifd] = value if ifd is None else {number: value}
            exif.tobytes()
            result[number] = value
        except Exception:
            lost.append(f"EXIF {ExifTags.TAGS.get(number, hex(number))}")
    return result


def _xmp(image: Image.Image) -> bytes:
    found = image.info.get("xmp") or image.info.get(XMP_KEY) or _xmp_of_older_pillow(image)
    return found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else b""


def _xmp_of_older_pillow(image: Image.Image) -> Any:
    """Where Pillow before 11 keeps it."""
    segments = [body for name, body in getattr(image, "applist", ()) if name == "APP1"]
    packets = [body.removeprefix(XMP_SEGMENT) for body in segments if body.startswith(XMP_SEGMENT)]
    with suppress(Exception):  # a TIFF's tags raise what they like where they are damaged
        packets.append(image.tag_v2[XMP_TAG])  # type: ignore[attr-defined]
    return packets[0] if packets else b""


def _texts(image: Image.Image) -> dict[str, str]:
    texts = dict(getattr(image, "text", {})) if image.format == "PNG" else {}
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        texts[COMMENT] = comment.decode("utf-8", "replace")
    return {k: v for k, v in texts.items() if k not in ("pgsr", XMP_KEY) and not k.startswith("Raw profile")}


def _dpi(values: Any) -> tuple[float, float] | None:
    """The resolution, if it is one: files also hold 0/0, 1/0 and 4294967295."""
    try:
        across, down = (float(value) for value in values)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (across, down) if all(0.5 <= value <= MOST_DPI for value in (across, down)) else None


# ----------------------------------------------------------------------------
# Written again.


def saving_options(
    metadata: Metadata, format: str, size: tuple[int, int], note: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options that write the metadata and the note into a file of this format and size; and what is
    left out of it, in words."""
    lost = list(metadata.lost)
    exif = _exif(metadata, size)
    profile = metadata.profile
    if profile and format == "webp" and profile[16:20] == b"GRAY":  # and WebP has colours alone
        profile = None
        lost.append("colour profile")
    options: dict[str, Any] = {"icc_profile": profile, "dpi": metadata.dpi}
    xmp = _resized_xmp(metadata.xmp, size)
    if format == "png":
        options |= {"pnginfo": _png_texts(metadata.texts, xmp, note), "exif": exif if len(exif) else None}
    else:
        comment = metadata.texts.get(COMMENT) if format == "jpeg" else None
        options |= {"comment": comment and comment.encode(), **_xmp_options(xmp, format, lost)}
        lost += [f"text {name!r}" for name in metadata.texts if not (comment and name == COMMENT)]
        options["exif"] = _with_note(exif, note)
    options = {name: value for name, value in options.items() if value}
    for name in [name for name, value in options.items() if not _is_written({name: value}, format)]:
        del options[name]
        lost.append({"icc_profile": "colour profile", "exif": "EXIF", "dpi": "resolution"}.get(name, name))
    if format != "png" and "exif" not in options:
        options["exif"] = _with_note(Image.Exif(), note)
    return options, lost


def _exif(metadata: Metadata, size: tuple[int, int]) -> Image.Exif:
    result = Image.Exif()
    own = dict(metadata.exif)
    for numbers, side in zip((WIDTH, HEIGHT), size, strict=True):
        for number, tags in zip(numbers, (metadata.tags, own), strict=True):
            if number in tags:
                tags[number] = side
    for number, value in metadata.tags.items():
        result[number] = value
    for number, values in ((EXIF_IFD, own), (GPS_IFD, metadata.gps)):
        if values:
            result[number] = values
    return result


def _with_note(exif: Image.Exif, note: Mapping[str, Any]) -> Image.Exif:
    exif[SOFTWARE] = json.dumps({"pgsr": dict(note)})
    return exif


def _resized_xmp(xmp: bytes, size: tuple[int, int]) -> bytes:
    """XMP with the sizes and the orientation of the new picture, where it names them."""
    width, height = (str(side).encode() for side in size)
    now = {
        b"tiff:ImageWidth": width,
        b"tiff:ImageLength": height,
        b"exif:PixelXDimension": width,
        b"exif:PixelYDimension": height,
        b"tiff:Orientation": b"1",
    }
    for name, value in now.items():
        xmp = re.sub(rb"(\b" + name + rb"\s*=\s*[\"'])[^\"'<>]*", rb"\g<1>" + value, xmp)
        xmp = re.sub(rb"(<" + name + rb">)[^<]*", rb"\g<1>" + value, xmp)
    return xmp


def _xmp_options(xmp: bytes, format: str, lost: list[str]) -> dict[str, Any]:
    if not xmp:
        return {}
    if format == "webp":
        return {"xmp": xmp}
    if len(xmp) > MOST_XMP:
        lost.append("XMP")
        return {}
    body = XMP_SEGMENT + xmp
    return {"extra": b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body}


def _png_texts(texts: Mapping[str, str], xmp: bytes, note: Mapping[str, Any]) -> PngInfo:
    info = PngInfo()
    info.add_text("pgsr", json.dumps(dict(note)))
    if xmp:
        info.add_itxt(XMP_KEY, xmp.decode("utf-8", "replace"))
    for name, text in texts.items():
        info.add_text(name, text)  # as UTF-8 where it has to be
    return info


def _is_written(options: Mapping[str, Any], format: str) -> bool:
    """Returns whether Pillow writes these into a file of that format."""
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), format, **options)
    except Exception:  # too long, of a wrong type, out of range: of nearly any kind
        return False
    return True
