"""Picture files of any origin -> Pillow, by decoders that are meant and no others.

Pillow looks at a file's first bytes, not at its name, and knows some formats that are programs: it hands
PostScript to Ghostscript, which runs it, whatever the file is called.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"),
    "TGA",  # the last, since it is not known by its first bytes
)

SUFFIXES = {  # of files of these formats, in lower case
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga"),
}


def open_picture(source: Path | bytes) -> Image.Image:
    """Opens a file, or the bytes of one, in one of `FORMATS`; its pixels are read when they are asked for.

    Raises PIL.UnidentifiedImageError (an OSError) for another format, and what Pillow raises for damage.
    """
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
