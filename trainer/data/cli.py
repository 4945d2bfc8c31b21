"""pgsr-data: folders, zips, tar shards, lmdbs of pictures, MNIST's and CIFAR-10's own files -> one archive.

The archive is a stored zip: `SIZE/000000.png` for every size, and `manifest.json` with the fingerprint,
the counts and what was skipped; where every picture has a label, `labels.json` names and lists them. With
--shard it is a folder of WebDataset tar files. Training reads either without resizing again.

    pgsr-data photos/ more.zip --out faces.zip --sizes 64,256 --filter lanczos
    pgsr-data train-images-idx3-ubyte.gz --out mnist.zip
    pgsr-data img_align_celeba/ --out women.zip --label Male,Smiling --part train
    pgsr-data bedroom_train_lmdb/ --out bedrooms --sizes 256 --shard 10000
    pgsr-data photos/ --out faces.zip --sizes 256 --ray auto
    pgsr-data --procedural 500 --out toy.zip --sizes 32
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pgsr import __version__
from pgsr.cli import PATH, Command, emit, json_option, option, progress_bar, version_option
from pgsr.errors import PgsrError
from pgsr.schema import visible

from .archive_writer import shard_folder, zip_archive
from .cache import FILTERS, UNREAD
from .celeba import PARTS, Selection, select
from .listing import Pictures, by_reason, tell
from .mnist_cifar import Native, open_native
from .recoding import Drawn, Encoded, Recode, Settings, Source, parts_of, recoding, recoding_on
from .sources import MAX_DAMAGED, Damage, of_size, open_pictures

MOST_DRAWN = 10_000_000


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


def each_recoded(
    sources: Sequence[Source], settings: Settings, recode: Recode
) -> Iterator[tuple[Encoded, int | None]]:
    """All pictures, in the sources' order, with their labels. Raises PgsrError if more pictures of a source
    are damaged than the settings allow."""
    damages = [Damage(settings.max_damaged) for _ in sources]
    parts = parts_of(sources, settings)
    with progress_bar(sum(map(len, sources)), "decoding") as bar:
        for part, made in zip(parts, recode(parts), strict=True):
            labels = sources[part.source].labels
            for position, picture in zip(part.positions, made, strict=True):
                yield picture, None if labels is None else int(labels[position])
                if picture.why.startswith(UNREAD):
                    damages[part.source].count(picture.name)
            bar.update(len(made))


def prepare(
    sources: Sequence[Path],
    out: Path,
    settings: Settings,
    drawn: int = 0,
    selection: Selection | None = None,
    shard: int = 0,
    verbose: bool = False,
    ray_address: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Writes the archive or nothing, and returns its manifest; with `shard`, a folder of tar files of so many
    pictures each. With the address of a Ray cluster, its workers decode and resize.

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
    recoded = [*pictures, *([Drawn(drawn, max(settings.sizes))] if drawn else [])]
    skipped, count = [], 0
    with (
        shard_folder(out, shard, settings.suffix) if shard else zip_archive(out, settings.suffix) as archive,
        _recoding(recoded, settings, ray_address, workers) as recode,
    ):
        for picture, label in each_recoded(recoded, settings, recode):
            if picture.files is None:
                skipped.append({"picture": picture.name, "why": picture.why})
                print(visible(f"skipped {picture.name}: {picture.why}"), file=sys.stderr)
                continue
            files = dict(zip(settings.sizes, picture.files, strict=True))
            archive.add(count, files, label if names is not None else None)
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


def _recoding(
    sources: Sequence[Source], settings: Settings, ray_address: str | None, workers: int | None
) -> AbstractContextManager[Recode]:
    if ray_address is None:
        return recoding(sources, settings)
    return recoding_on(ray_address, workers, sources, settings)


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
@click.argument("sources", nargs=-1, type=PATH)
@option("Archive", "--out", required=True, type=PATH, help="The archive to write.")
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
    type=PATH,
    help="list_attr_celeba.txt  [default: found by SOURCE]",
)
@option(
    "CelebA",
    "--partition",
    type=PATH,
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
@option(
    "Clusters",
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Decode and resize on a Ray cluster whose nodes see SOURCES: auto, HOST:PORT, or local.",
)
@option(
    "Clusters",
    "--workers",
    type=int,
    help="Of the cluster, at most [default: as many as it has room for].",
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
    ray_address: str | None,
    workers: int | None,
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
    if workers is not None and ray_address is None:
        raise PgsrError("--workers is for --ray: leave it out")
    chosen = selection if label or part else None
    manifest = prepare(sources, out, settings, drawn, chosen, shard, verbose, ray_address, workers)
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
