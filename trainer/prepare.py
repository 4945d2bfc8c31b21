"""pgsr-data: folders and zips of pictures -> one prepared archive.

The archive is a stored zip: `SIZE/000000.png` for every size, and `manifest.json` with the fingerprint,
the counts and what was skipped. Training reads it as it reads any zip, without resizing again.

    pgsr-data photos/ more.zip --out faces.zip --sizes 64,256 --filter lanczos
    pgsr-data --procedural 500 --out toy.zip --sizes 32
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from pgsr import __version__
from pgsr.cli import Command, emit, json_option, version_option
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, replacing

from . import procedural
from .data import FILTERS, Pictures, each_picture, open_pictures, square

FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # so that the same pictures make the same archive


@dataclass(frozen=True)
class Settings:
    """What every picture of an archive goes through."""

    sizes: tuple[int, ...]  # sides of the square pictures kept
    resampling: str  # a name in FILTERS
    image_format: str  # "png" or "jpeg"
    quality: int  # of JPEG

    def __post_init__(self) -> None:
        check_choice("--filter", self.resampling, FILTERS)
        if not self.sizes or min(self.sizes) < 4:
            raise PgsrError("--sizes must name sides of at least 4, for example 64,256")
        twice = [size for size in self.sizes if self.sizes.count(size) > 1]
        if twice:
            raise PgsrError(f"--sizes names {twice[0]} twice")

    def encode(self, picture: Image.Image) -> list[bytes]:
        """The picture's file at each size."""
        return [self._file(square(picture, size, FILTERS[self.resampling])) for size in self.sizes]

    def _file(self, picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        if self.image_format == "png":
            picture.save(buffer, "PNG", compress_level=1)
        else:
            picture.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        return buffer.getvalue()


def each_encoded(
    sources: Sequence[Pictures], drawn: int, settings: Settings
) -> Iterator[tuple[str, list[bytes] | None, str]]:
    """(name, its file at each size, "") of every picture, or (name, None, why it cannot be used).

    The sources' pictures come first, then `drawn` procedural ones.
    """
    largest = max(settings.sizes)
    for pictures in sources:
        for name, files, why in each_picture(pictures, largest, settings.encode):
            yield f"{pictures.source.name}/{name}", files, why
    for index in range(drawn):
        yield f"procedural {index}", settings.encode(procedural.draw(index, largest)), ""


def prepare(sources: Sequence[Path], out: Path, settings: Settings, drawn: int = 0) -> dict[str, Any]:
    """Writes the archive or nothing, and returns its manifest.

    Raises PgsrError if there are neither sources nor pictures to draw, a source is not there, or not one
    picture can be used.
    """
    if not sources and not drawn:
        raise PgsrError("name folders or zips of pictures, or how many to draw with --procedural")
    opened = [open_pictures(source) for source in sources]
    make_folder(out.parent)
    digest, skipped, count = hashlib.sha256(), [], 0
    suffix = "png" if settings.image_format == "png" else "jpg"
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, files, why in each_encoded(opened, drawn, settings):
            if files is None:
                skipped.append({"picture": name, "why": why})
                print(f"skipped {name}: {why}", file=sys.stderr)
                continue
            for size, data in zip(settings.sizes, files, strict=True):
                archive.writestr(zipfile.ZipInfo(f"{size}/{count:06d}.{suffix}", FIXED_DATE), data)
                digest.update(data)
            count += 1
        if count == 0:
            raise PgsrError(
                f"not one usable picture in {', '.join(map(str, sources))}: {len(skipped)} skipped"
            )
        manifest = {
            "pgsr": __version__,
            "count": count,
            "skipped": skipped,
            "sizes": list(settings.sizes),
            "filter": settings.resampling,
            "format": settings.image_format,
            "fingerprint": digest.hexdigest(),
        }
        archive.writestr(zipfile.ZipInfo("manifest.json", FIXED_DATE), json.dumps(manifest, indent=1))
    return manifest


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PgsrError(f"--sizes {text!r} is not a list of numbers such as 64,256") from None


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The archive to write.")
@click.option("--sizes", default="64", show_default=True, help="Sides of the pictures kept: 64,256")
@click.option("--filter", "resampling", default="lanczos", show_default=True, help=", ".join(FILTERS))
@click.option(
    "--procedural", "drawn", type=click.IntRange(0), default=0, help="Draw so many pictures instead."
)
@click.option(
    "--format", "image_format", type=click.Choice(["png", "jpeg"]), default="png", show_default=True
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of JPEG.")
@json_option
@version_option
def main(
    sources: tuple[Path, ...],
    out: Path,
    sizes: str,
    drawn: int,
    resampling: str,
    image_format: str,
    quality: int,
    as_json: bool,
) -> None:
    """Prepare pictures in SOURCES (folders, zips) for training: one zip, square, at the sizes asked.

    Pictures that are damaged or smaller than the largest size are named, counted and left out.
    """
    settings = Settings(_sizes(sizes), resampling, image_format, quality)
    manifest = prepare(sources, out, settings, drawn)
    result = {"archive": str(out), **manifest, "skipped": len(manifest["skipped"])}
    emit(
        result,
        f"{out}: {result['count']} pictures at {sizes}, {result['skipped']} skipped, "
        f"fingerprint {result['fingerprint'][:16]}",
        as_json,
    )


if __name__ == "__main__":
    main()
