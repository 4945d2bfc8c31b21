"""pgsr-data: folders and zips of pictures, MNIST's and CIFAR-10's own files -> one prepared archive.

The archive is a stored zip: `SIZE/000000.png` for every size, and `manifest.json` with the fingerprint,
the counts and what was skipped; where every picture has a label, `labels.json` names and lists them. Training
reads it as it reads any zip, without resizing again.

    pgsr-data photos/ more.zip --out faces.zip --sizes 64,256 --filter lanczos
    pgsr-data train-images-idx3-ubyte.gz --out mnist.zip
    pgsr-data --procedural 500 --out toy.zip --sizes 32
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from PIL import Image

from pgsr import __version__
from pgsr.cli import Command, emit, json_option, version_option
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, replacing

from . import procedural
from .data import FILTERS, LABELS, Pictures, each_picture, open_pictures, square
from .native import Native, open_native

FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # so that the same pictures make the same archive


@dataclass(frozen=True)
class Settings:
    """What every picture of an archive goes through."""

    sizes: tuple[int, ...]  # sides of the square pictures kept; (): the sources' own
    resampling: str  # a name in FILTERS
    image_format: str  # "png" or "jpeg"
    quality: int  # of JPEG

    def __post_init__(self) -> None:
        check_choice("--filter", self.resampling, FILTERS)
        if self.sizes and min(self.sizes) < 4:
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


def open_source(source: Path) -> Pictures | Native:
    """What a path holds. Raises PgsrError if it is neither pictures nor a data set of a known format."""
    return open_native(source) or open_pictures(source)


def own_sizes(opened: Sequence[Pictures | Native]) -> tuple[int, ...]:
    """Without --sizes: the data sets' own, if they have one in common; else 64."""
    sides = {source.side if isinstance(source, Native) else 64 for source in opened}
    return tuple(sides) if len(sides) == 1 else (64,)


def common_labels(opened: Sequence[Pictures | Native], drawn: int) -> dict[str, Any] | None:
    """labels.json, if every picture has a label and they mean the same everywhere: {"names": one a label,
    "labels": one a picture, in order}."""
    sets = [source for source in opened if isinstance(source, Native) and source.labels is not None]
    if not sets or len(sets) < len(opened) or drawn or len({source.names for source in sets}) > 1:
        return None
    labels = [int(label) for source in sets if source.labels is not None for label in source.labels]
    return {"names": list(sets[0].names), "labels": labels}


def each_encoded(
    sources: Sequence[Pictures | Native], drawn: int, settings: Settings
) -> Iterator[tuple[str, list[bytes] | None, str]]:
    """(name, its file at each size, "") of every picture, or (name, None, why it cannot be used).

    The sources' pictures come first, then `drawn` procedural ones. A data set of its own format gives all.
    """
    largest = max(settings.sizes)
    for source in sources:
        if isinstance(source, Native):
            for index in range(len(source)):
                yield f"{source.source.name}/{index}", settings.encode(source.picture(index)), ""
            continue
        for name, files, why in each_picture(source, largest, settings.encode):
            yield f"{source.source.name}/{name}", files, why
    for index in range(drawn):
        yield f"procedural {index}", settings.encode(procedural.draw(index, largest)), ""


def prepare(sources: Sequence[Path], out: Path, settings: Settings, drawn: int = 0) -> dict[str, Any]:
    """Writes the archive or nothing, and returns its manifest.

    Raises PgsrError if there are neither sources nor pictures to draw, a source is not there or damaged, or
    not one picture can be used.
    """
    if not sources and not drawn:
        raise PgsrError("name folders or zips of pictures, or how many to draw with --procedural")
    opened = [open_source(source) for source in sources]
    settings = replace(settings, sizes=settings.sizes or own_sizes(opened))
    _check_sides(opened, settings)
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
        labels = common_labels(opened, drawn)
        if labels is not None:
            text = json.dumps(labels).encode()
            archive.writestr(zipfile.ZipInfo(LABELS, FIXED_DATE), text)
            digest.update(text)
        manifest = {
            "pgsr": __version__,
            "count": count,
            "skipped": skipped,
            "sizes": list(settings.sizes),
            "filter": settings.resampling,
            "format": settings.image_format,
            "labels": labels["names"] if labels else [],
            "fingerprint": digest.hexdigest(),
        }
        archive.writestr(zipfile.ZipInfo("manifest.json", FIXED_DATE), json.dumps(manifest, indent=1))
    return manifest


def _check_sides(opened: Sequence[Pictures | Native], settings: Settings) -> None:
    """One line instead of one a picture where a whole data set is too small."""
    for source in opened:
        if isinstance(source, Native) and source.side < max(settings.sizes):
            side = f"{source.side}x{source.side}"
            raise PgsrError(f"--sizes {max(settings.sizes)}: the pictures of {source.source} are {side}")


def _sizes(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PgsrError(f"--sizes {text!r} is not a list of numbers such as 64,256") from None


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The archive to write.")
@click.option(
    "--sizes", help="Sides of the pictures kept: 64,256  [default: MNIST 28, CIFAR-10 32, others 64]"
)
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
    sizes: str | None,
    drawn: int,
    resampling: str,
    image_format: str,
    quality: int,
    as_json: bool,
) -> None:
    """Prepare pictures in SOURCES (folders, zips) for training: one zip, square, at the sizes asked.

    Pictures that are damaged or smaller than the largest size are named, counted and left out. A source may
    also be MNIST's or CIFAR-10's own files: idx (.gz), data_batch_1.bin, cifar-10-binary.tar.gz, or a folder
    of them; their labels are kept.
    """
    settings = Settings(_sizes(sizes), resampling, image_format, quality)
    manifest = prepare(sources, out, settings, drawn)
    result = {"archive": str(out), **manifest, "skipped": len(manifest["skipped"])}
    kept = ",".join(map(str, result["sizes"]))
    emit(
        result,
        f"{out}: {result['count']} pictures at {kept}, {result['skipped']} skipped, "
        f"fingerprint {result['fingerprint'][:16]}",
        as_json,
    )


if __name__ == "__main__":
    main()
