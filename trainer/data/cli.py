"""pgsr-data: folders, zips, tar shards, lmdbs of pictures, MNIST's and CIFAR-10's own files -> one archive.

The archive is a stored zip: `SIZE/000000.png` for every size, and `manifest.json` with the fingerprint,
the counts and what was skipped; where every picture has a label, `labels.json` names and lists them. With
--shard it is a folder of WebDataset tar files. Training reads either without resizing again.

    pgsr-data photos/ more.zip --out faces.zip --sizes 64,256 --filter lanczos
    pgsr-data train-images-idx3-ubyte.gz --out mnist.zip
    pgsr-data img_align_celeba/ --out women.zip --label Male,Smiling --part train
    pgsr-data bedroom_train_lmdb/ --out bedrooms --sizes 256 --shard 10000
    pgsr-data --procedural 500 --out toy.zip --sizes 32
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from PIL import Image

from pgsr import __version__
from pgsr.cli import Command, emit, json_option, option, version_option
from pgsr.errors import PgsrError, check_choice
from pgsr.schema import visible

from . import procedural
from .archive_writer import shard_folder, zip_archive
from .cache import FILTERS, each_picture, square
from .celeba import PARTS, Selection, select
from .listing import Pictures, by_reason, tell
from .mnist_cifar import Native, open_native
from .sources import MAX_DAMAGED, of_size, open_pictures

LARGEST_SIDE = 2**13  # pixels of a prepared picture
MOST_DRAWN = 10_000_000


@dataclass(frozen=True)
class Settings:
    """What every picture of an archive goes through."""

    sizes: tuple[int, ...]  # sides of the square pictures kept; (): the sources' own
    resampling: str  # a name in FILTERS
    image_format: str  # "png" or "jpeg"
    quality: int  # of JPEG
    max_damaged: int = MAX_DAMAGED  # pictures of a source that may be damaged

    def __post_init__(self) -> None:
        check_choice("--filter", self.resampling, FILTERS)
        if self.sizes and not 4 <= min(self.sizes) <= max(self.sizes) <= LARGEST_SIDE:
            raise PgsrError(f"--sizes must name sides of at least 4 and at most {LARGEST_SIDE}: 64,256")
        twice = [size for size in self.sizes if self.sizes.count(size) > 1]
        if twice:
            raise PgsrError(f"--sizes names {twice[0]} twice")

    @property
    def suffix(self) -> str:
        """The ending of the files' names."""
        return "png" if self.image_format == "png" else "jpg"

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
    """Returns what a path holds. Raises PgsrError if it is neither pictures nor a data set of a known
    format."""
    return open_native(source) or open_pictures(source)


def own_sizes(sources: Sequence[Pictures | Native]) -> tuple[int, ...]:
    """Returns the sizes to keep without --sizes: the data sets' own, if they have one in common; else 64."""
    sides = {source.side if isinstance(source, Native) else 64 for source in sources}
    return tuple(sides) if len(sides) == 1 else (64,)


def common_labels(sources: Sequence[Pictures | Native], drawn: int) -> tuple[str, ...] | None:
    """The labels' names, if every picture has a label and they mean the same everywhere."""
    names = {source_labels(source) for source in sources}
    return None if drawn or len(names) != 1 else names.pop()


def source_labels(source: Pictures | Native) -> tuple[str, ...] | None:
    """The names of a source's labels, if it has any."""
    if source.labels is None:
        return None
    return source.names if isinstance(source, Native) else source.label_names


@dataclass(frozen=True)
class Encoded:
    """A picture on its way into the archive."""

    name: str
    files: list[bytes] | None  # at each size; None if it cannot be used
    why: str = ""
    label: int | None = None


def each_encoded(sources: Sequence[Pictures | Native], drawn: int, settings: Settings) -> Iterator[Encoded]:
    """The sources' pictures come first, then `drawn` procedural ones. Raises PgsrError if more pictures of a
    source are damaged than the settings allow."""
    for source in sources:
        labels = itertools.repeat(None) if source.labels is None else map(int, source.labels)
        if isinstance(source, Native):
            for index, label in zip(range(len(source)), labels, strict=False):
                files = settings.encode(source.picture(index))
                yield Encoded(f"{source.source.name}/{index}", files, label=label)
            continue
        pictures = each_picture(source, max(settings.sizes), settings.encode, settings.max_damaged)
        for (name, encoded, why), label in zip(pictures, labels, strict=False):
            yield Encoded(f"{source.source.name}/{name}", encoded, why, label)
    for index in range(drawn):
        yield Encoded(f"procedural {index}", settings.encode(procedural.draw(index, max(settings.sizes))))


def prepare(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    drawn: int = 0,
    selection: Selection | None = None,
    shard: int = 0,
    verbose: bool = False,
) -> dict[str, Any]:
    """Writes the archive or nothing, and returns its manifest; with `shard`, a folder of tar files of so many
    pictures each.

    Raises PgsrError if there are neither sources nor pictures to draw, a source is not there or damaged, or
    not one picture can be used.
    """
    if not sources and not drawn:
        raise PgsrError("name folders or zips of pictures, or how many to draw with --procedural")
    if out.exists() and any(source.exists() and out.samefile(source) for source in sources):
        raise PgsrError(f"{out} is where the pictures come from: name another file with --out")
    _check_twice(sources)
    pictures = [open_source(source) for source in sources]
    if selection is not None:
        pictures = [_selected(source, selection) for source in pictures]
    settings = replace(settings, sizes=settings.sizes or own_sizes(pictures))
    _check_sides(pictures, settings)
    pictures = [s if isinstance(s, Native) else of_size(s, max(settings.sizes)) for s in pictures]
    names = common_labels(pictures, drawn)
    left_out = [file for s in pictures if isinstance(s, Pictures) for file in s.left_out]
    for source in pictures:
        if isinstance(source, Pictures):
            tell(source.source, len(source), source.left_out, verbose)
    skipped, count = [], 0
    with shard_folder(out, shard, settings.suffix) if shard else zip_archive(out, settings.suffix) as archive:
        for picture in each_encoded(pictures, drawn, settings):
            if picture.files is None:
                skipped.append({"picture": picture.name, "why": picture.why})
                print(visible(f"skipped {picture.name}: {picture.why}"), file=sys.stderr)
                continue
            files = dict(zip(settings.sizes, picture.files, strict=True))
            archive.add(count, files, picture.label if names is not None else None)
            count += 1
        if count == 0:
            raise PgsrError(
                f"not one usable picture in {', '.join(map(str, sources))}: {len(skipped)} skipped"
            )
        return archive.finish(
            {
                "pgsr": __version__,
                "count": count,
                "skipped": skipped,
                "left out": by_reason(left_out),
                "sizes": list(settings.sizes),
                "filter": settings.resampling,
                "format": settings.image_format,
                "labels": list(names or ()),
            },
            names,
        )


def _check_twice(sources: Sequence[Path]) -> None:
    places = [source.resolve() for source in sources]
    for source, place in zip(sources, places, strict=True):
        if places.count(place) > 1:
            raise PgsrError(f"{source} is named twice: its pictures would count double")


def _selected(source: Pictures | Native, selection: Selection) -> Pictures:
    if isinstance(source, Native):
        raise PgsrError(f"--label and --part are for CelebA's pictures, which {source.source} does not hold")
    return select(source, selection)


def _check_sides(sources: Sequence[Pictures | Native], settings: Settings) -> None:
    """One line instead of one a picture where a whole data set is too small."""
    for source in sources:
        if isinstance(source, Native) and source.side < max(settings.sizes):
            side = f"{source.side}x{source.side}"
            raise PgsrError(f"--sizes {max(settings.sizes)}: the pictures of {source.source} are {side}")


def _sizes(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PgsrError(f"--sizes {text[:50]!r} is not a list of numbers such as 64,256") from None


@click.command(cls=Command)
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@option("Archive", "--out", required=True, type=click.Path(path_type=Path), help="The archive to write.")
@option(
    "Archive",
    "--sizes",
    help="Sides of the pictures kept: 64,256  [default: MNIST 28, CIFAR-10 32, others 64]",
)
@option("Archive", "--filter", "resampling", default="lanczos", show_default=True, help=", ".join(FILTERS))
@option(
    "Pictures",
    "--procedural",
    "drawn",
    type=click.IntRange(0, MOST_DRAWN),
    default=0,
    help="Draw so many pictures instead.",
)
@option(
    "Archive",
    "--format",
    "image_format",
    type=click.Choice(["png", "jpeg"]),
    default="png",
    show_default=True,
)
@option("Archive", "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of JPEG.")
@option(
    "Archive",
    "--shard",
    type=click.IntRange(0),
    default=0,
    help="Write WebDataset tar files of so many to folder OUT.",
)
@option("CelebA", "--label", help="Label pictures by attributes of CelebA: Male or Male,Smiling")
@option("CelebA", "--part", type=click.Choice(list(PARTS)), help="Take that part of CelebA alone.")
@option(
    "CelebA",
    "--attributes",
    type=click.Path(path_type=Path),
    help="list_attr_celeba.txt  [default: found by SOURCE]",
)
@option(
    "CelebA",
    "--partition",
    type=click.Path(path_type=Path),
    help="list_eval_partition.txt  [default: found by SOURCE]",
)
@option(
    "Pictures",
    "--max-damaged",
    type=click.IntRange(0),
    default=MAX_DAMAGED,
    show_default=True,
    help="Pictures of a source that may be damaged.",
)
@option("Pictures", "--verbose", is_flag=True, help="Name every file that is left out, with the reason.")
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
    shard: int,
    label: str | None,
    part: str | None,
    attributes: Path | None,
    partition: Path | None,
    max_damaged: int,
    verbose: bool,
    as_json: bool,
) -> None:
    """Prepare pictures in SOURCES for training: one zip, square, at the sizes asked.

    A source is a folder or zip of pictures (nested ones as well, such as FFHQ's), WebDataset tar shards (one,
    or a folder of them), an LSUN lmdb, or MNIST's or CIFAR-10's own files: idx (.gz), data_batch_1.bin,
    cifar-10-binary.tar.gz, or a folder of them; their labels are kept. Pictures that are damaged or smaller
    than the largest size are named, counted and left out.
    """
    settings = Settings(_sizes(sizes), resampling, image_format, quality, max_damaged)
    selection = Selection(tuple(label.split(",")) if label else (), part, attributes, partition)
    manifest = prepare(sources, out, settings, drawn, selection if label or part else None, shard, verbose)
    result = {"archive": str(out), **manifest, "skipped": len(manifest["skipped"])}
    sizes_text = ",".join(map(str, result["sizes"]))
    emit(
        result,
        f"{out}: {result['count']} pictures at {sizes_text}, {result['skipped']} skipped, "
        f"fingerprint {result['fingerprint'][:16]}",
        as_json,
    )


if __name__ == "__main__":
    main()
