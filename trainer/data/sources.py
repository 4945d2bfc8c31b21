"""Where pictures lie: a folder, a zip, WebDataset's tar shards, or an LSUN lmdb. Listed without decoding any.

    pictures = open_pictures(Path("photos"))
    with reading(pictures) as read:
        data = read(pictures.names[0])

Nothing is loaded but names: a member is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgsr.errors import PgsrError
from pgsr.pictures import SUFFIXES

from .folders import list_folder, reading_folder
from .listing import Pictures, Read, summary
from .lmdbs import DATA, list_lmdb, reading_lmdb
from .shards import list_shards, reading_shards
from .zips import list_zip, reading_zip

MAX_DAMAGED = 100  # pictures of a source that may be damaged before it is given up


class Damage:
    """Counts damaged pictures up to a limit."""

    def __init__(self, limit: int = MAX_DAMAGED) -> None:
        self.limit = limit
        self.number = 0

    def count(self, name: str) -> None:
        """Raises PgsrError beyond the limit."""
        self.number += 1
        if self.number > self.limit:
            raise PgsrError(
                f"more than {self.limit} pictures are damaged, the last of them {name}: get the data again, "
                "or let more be left out with --max-damaged (pgsr-data)"
            )


def open_pictures(source: Path) -> Pictures:
    """Lists pictures without decoding anything.

    Raises PgsrError if there is nothing there, it is of no known kind, or it holds no pictures.
    """
    pictures = LISTERS[_kind(source)](source)
    if not pictures.names:
        others = f"; {summary(pictures.left_out)}" if pictures.left_out else ""
        raise PgsrError(f"{source} holds no pictures ({', '.join(sorted(SUFFIXES))}){others}")
    return pictures


@contextmanager
def reading(pictures: Pictures) -> Iterator[Read]:
    """A function from a picture's name to its file, for several threads at once; it raises one of UNREADABLE
    for a damaged one."""
    with READERS[pictures.kind](pictures) as read:
        yield read


def of_size(pictures: Pictures, size: int) -> Pictures:
    """The pictures prepared at one size, where pgsr-data prepared them at several: SIZE/KEY.png in a zip,
    KEY.SIZE.png in tar shards. That is the size asked, or the next larger one. All of any others."""
    if not pictures.sizes:
        return pictures
    side = min((s for s in pictures.sizes if s >= size), default=max(pictures.sizes))
    others = [s for s in pictures.sizes if s != side]
    ours = [_prepared_at(pictures, name, (side,)) for name in pictures.names]
    if not any(ours):
        return pictures
    theirs = [_prepared_at(pictures, name, others) for name in pictures.names]
    known = [a or b for a, b in zip(ours, theirs, strict=True)]
    chosen = pictures.only(known, "beside the pictures that pgsr-data prepared")
    return chosen.only([own for own, any_size in zip(ours, known, strict=True) if any_size])


def _prepared_at(pictures: Pictures, name: str, sizes: tuple[int, ...] | list[int]) -> bool:
    if pictures.kind == "shards":
        return any(name.endswith((f".{size}.png", f".{size}.jpg")) for size in sizes)
    return any(name.startswith(f"{size}/") for size in sizes)


def _kind(source: Path) -> str:
    if (source / DATA).is_file():
        return "lmdb"
    if source.is_dir():
        return "folder"
    if not source.is_file():
        raise PgsrError(f"no folder or zip of pictures at {source}")
    if source.name.endswith((".tar.gz", ".tgz")):
        raise PgsrError(f"{source} is compressed, so its pictures cannot be found: gunzip it first")
    return "shards" if source.suffix == ".tar" else "zip"


def _list_shard(source: Path) -> Pictures:
    return list_shards(source, [source.name])


@contextmanager
def _reading_members(pictures: Pictures) -> Iterator[Read]:
    with reading_shards(pictures) as (_, read):
        yield read


LISTERS = {"folder": list_folder, "zip": list_zip, "shards": _list_shard, "lmdb": list_lmdb}
READERS = {"folder": reading_folder, "zip": reading_zip, "shards": _reading_members, "lmdb": reading_lmdb}
