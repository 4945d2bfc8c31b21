"""Pictures for pgsr-upscale: read as people see them, written with what belonged to them.

Orientation is applied to the pixels; transparency, EXIF, XMP, text, colour profile and resolution are kept.
Grey pictures stay grey. 16-bit and CMYK pictures become 8-bit RGB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.decoding import PictureError, levels, naming, opened
from pgsr.files import sha256
from pgsr.pictures import Refused

from .hidden import fill_hidden
from .metadata import Metadata, read_metadata, saving_options
from .row_encoders import check_size, open_encoder

Rows = NDArray[np.uint8]  # [some, W, 3]
ROWS = 64  # that are encoded at once


@dataclass(frozen=True)
class Photograph:
    """A decoded picture and what goes with it."""

    name: str
    colours: Image.Image  # RGB, or L of a grey picture; hidden ones are filled
    alpha: Image.Image | None  # L, of the same size
    format: str  # of the file: png, jpeg, webp or another's name
    sha256: str  # of the file
    metadata: Metadata

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.colours.size

    def rows(self, top: int, bottom: int) -> Rows:
        """Any rows of the colours, as RGB."""
        strip = self.colours.crop((0, top, self.colours.width, bottom))
        return np.asarray(strip.convert("RGB"), dtype=np.uint8)


def read_photograph(source: Path | bytes, name: str) -> Photograph:
    """Raises PictureError if it is not a still picture that can be decoded."""
    digest = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256(source)
    with opened(source, name) as image:
        kind = (image.format or "").lower()
        if getattr(image, "is_animated", False) and kind != "mpo":
            raise Refused("holds several pictures, or moves: only still pictures are upscaled")
        decoded = levels(image)
        metadata = read_metadata(image, decoded.profile)
    colours = decoded.colours if decoded.alpha is None else fill_hidden(decoded.colours, decoded.alpha)
    return Photograph(name, colours, decoded.alpha, "jpeg" if kind == "mpo" else kind, digest, metadata)


def check_format(photograph: Photograph, format: str, scale: int) -> None:
    """Raises PictureError if a format cannot hold the enlarged picture."""
    width, height = photograph.size
    check_size(photograph.name, format, (width * scale, height * scale))
    if format == "jpeg" and photograph.alpha is not None and photograph.alpha.getextrema() != (255, 255):
        raise PictureError(
            photograph.name, "has transparency, which a JPEG has not: use --format png or webp"
        )


def write_photograph(
    photograph: Photograph,
    larger: Iterable[Rows],
    file: IO[bytes],
    scale: int,
    format: str,
    quality: int | None,
    note: dict[str, Any],
) -> list[str]:
    """Writes a file as rows of `larger` come in place of the photograph's colours, the note beside them.

    Returns what of its metadata is left out. Raises PictureError if it cannot be encoded, and OSError if the
    file cannot be written.
    """
    size = (photograph.size[0] * scale, photograph.size[1] * scale)
    alpha = None if format == "jpeg" else photograph.alpha
    mode = photograph.colours.mode + ("" if alpha is None else "A")
    top = 0
    with _encoding(photograph.name):
        options, lost = saving_options(photograph.metadata, format, size, note)
        encoder = open_encoder(format, file, size, mode, quality, options)
    for rows in _portions(larger):
        with _encoding(photograph.name):
            encoder.write(_in_mode(rows, photograph, alpha, scale, top))
        top += len(rows)
    assert top == size[1]
    with _encoding(photograph.name):
        encoder.close()
    return lost


def _portions(larger: Iterable[Rows]) -> Iterator[Rows]:
    """The same rows, fewer at a time, since each is copied some times on its way."""
    for rows in larger:
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS]


def _in_mode(
    rows: Rows, photograph: Photograph, alpha: Image.Image | None, scale: int, top: int
) -> NDArray[np.uint8]:
    """Enlarged rows as the photograph's are: grey, and with alpha."""
    mode = photograph.colours.mode
    if mode == "RGB" and alpha is None:
        return rows
    picture = Image.fromarray(rows).convert(mode)
    if alpha is not None:
        picture.putalpha(_part(alpha, scale, top, len(rows)))
    return np.asarray(picture)


@contextmanager
def _encoding(name: str) -> Iterator[None]:
    """Names the picture in what an encoder raises. A file's own errors, which have a number, go on."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        with naming(name, "cannot be encoded"):
            raise


def _part(alpha: Image.Image, scale: int, top: int, height: int) -> Image.Image:
    """Some rows of alpha enlarged, as they are in the whole of it enlarged: down, then across, since Pillow
    does both in an order of its own."""
    box = (0.0, top / scale, float(alpha.width), (top + height) / scale)
    taller = alpha.resize((alpha.width, height), Image.Resampling.BICUBIC, box=box)
    return taller.resize((alpha.width * scale, height), Image.Resampling.BICUBIC)
