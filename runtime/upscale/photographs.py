"""Picture files for pgsr-upscale: read as people see them, written with what belonged to them.

Orientation is applied to the pixels; transparency, EXIF, colour profile and resolution are kept. Grey
pictures stay grey. 16-bit and CMYK pictures become 8-bit RGB.
"""

from __future__ import annotations

import glob
import io
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from pgsr import pictures
from pgsr.errors import PgsrError
from pgsr.pictures import open_picture

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
QUALITY = {"jpeg": 95, "webp": 90}

EXIF_SOFTWARE = 0x0131
STDIN = "-"


@dataclass(frozen=True)
class Photograph:
    """A decoded picture and what goes with it."""

    name: str
    colours: NDArray[np.uint8]  # [H, W, 3]
    alpha: Image.Image | None  # L, of the same size
    grey: bool
    format: str  # of the file: png, jpeg, webp or another's name
    exif: Image.Exif
    icc_profile: bytes | None
    dpi: tuple[float, float] | None


def read_photograph(data: bytes, name: str) -> Photograph:
    """Raises PgsrError if it is not a still picture that can be decoded."""
    try:
        with open_picture(data) as image:
            kind = (image.format or "").lower()
            if getattr(image, "is_animated", False) and kind != "mpo":
                raise PgsrError(f"{name} moves: only still pictures are upscaled")
            image.load()
            picture = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PgsrError(f"{name} cannot be read as a picture: {error}") from error
    profile = picture.info.get("icc_profile")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    return Photograph(
        name=name,
        colours=_colours(picture),
        alpha=alpha,
        grey=picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16"),
        format="jpeg" if kind == "mpo" else kind,
        exif=picture.getexif(),
        icc_profile=None if picture.mode == "CMYK" else profile,  # a profile of inks is none of RGB
        dpi=picture.info.get("dpi"),
    )


def _colours(picture: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3]."""
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint16) >> 8
        picture = Image.fromarray(levels.astype(np.uint8))
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return np.asarray(picture.convert(mode), dtype=np.uint8)[..., :3]


def encode_photograph(
    photograph: Photograph, larger: NDArray[np.uint8], format: str, quality: int | None, note: dict[str, Any]
) -> bytes:
    """A file's contents: `larger` in place of the photograph's colours, the note beside them.

    Raises PgsrError if the picture has transparency and the format has none.
    """
    picture = Image.fromarray(larger)
    if photograph.grey:
        picture = picture.convert("L")
    if photograph.alpha is not None:
        if format == "jpeg":
            raise PgsrError(
                f"{photograph.name} has transparency, which a JPEG has not: use --format png or webp"
            )
        picture.putalpha(photograph.alpha.resize(picture.size, Image.Resampling.BICUBIC))
    options: dict[str, Any] = {"icc_profile": photograph.icc_profile}
    if photograph.dpi:
        options["dpi"] = photograph.dpi
    exif = photograph.exif
    if format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("pgsr", json.dumps(note))
        options |= {"pnginfo": info, "compress_level": 1, "compress_type": zlib.Z_RLE}
    else:
        exif[EXIF_SOFTWARE] = json.dumps({"pgsr": note})
        options["quality"] = quality or QUALITY[format]
    if len(exif):
        options["exif"] = exif
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def held_note(path: Path) -> Any:
    """The note in a file that `encode_photograph` made, or None."""
    try:
        with open_picture(path) as picture:
            picture.load()
            if picture.format == "PNG":
                return json.loads(picture.info["pgsr"])
            return json.loads(picture.getexif()[EXIF_SOFTWARE])["pgsr"]
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, Image.DecompressionBombError):
        return None


# ----------------------------------------------------------------------------
# Which files, and where what is made of them goes.


@dataclass(frozen=True)
class UpscaleTask:
    """A picture to enlarge, and where its result goes."""

    source: Path  # or STDIN
    place: Path  # relative to the output folder, with the source's suffix

    def target(self, out: Path, format: str) -> Path:
        return out / self.place.with_suffix(SUFFIXES[format])

    @property
    def format(self) -> str:
        """The format by the name's ending; PNG unless it is one that is written."""
        return FORMATS.get(self.source.suffix.lower(), "png")


def tasks(arguments: Iterable[str]) -> list[UpscaleTask]:
    """Files, folders (with all pictures under them) and patterns.

    Raises PgsrError for one that names nothing.
    """
    result: list[UpscaleTask] = []
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN or path.is_file():
            result.append(UpscaleTask(path, Path(path.name)))
        elif path.is_dir():
            result += _in_folder(path)
        elif re.search(r"[*?\[]", argument):
            matches = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]
            result += [UpscaleTask(match, Path(match.name)) for match in matches if match.is_file()]
            if not result:
                raise PgsrError(f"no file matches {argument}")
        else:
            raise PgsrError(f"{argument} is not there")
    return result


def _in_folder(folder: Path) -> list[UpscaleTask]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in pictures.SUFFIXES and p.is_file())
    visible = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if not visible:
        raise PgsrError(f"{folder} holds no pictures")
    return [UpscaleTask(p, p.relative_to(folder)) for p in visible]
