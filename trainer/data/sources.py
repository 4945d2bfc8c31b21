"""Where pictures lie: a folder, a zip, WebDataset's tar shards, or an LSUN lmdb. Listed without decoding any.

    pictures = open_pictures(Path("photos"))
    with reading(pictures) as read:
        data = read(pictures.names[0])

Nothing is loaded but names: a member is read when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pgsr.errors import PgsrError, missing_package
from pgsr.pictures import SUFFIXES

# What reading a member raises where it is damaged, encrypted or packed in a way Python does not know.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)

LABELS = "labels.json"  # in a prepared archive: {"names": one a label, "labels": one a picture, in order}
MANIFEST = "manifest.json"

MAX_DAMAGED = 100  # pictures of a source that may be damaged before it is given up

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Pictures:
    """Pictures and the order they come in: that of their names, or of the shards."""

    source: Path
    names: tuple[str, ...]
    fingerprint: str  # of names and contents, and of labels
    kind: str = "folder"  # one of READERS
    labels: tuple[int, ...] | None = None  # one a picture, where the source or its annotations have them
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


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
    kind = _kind(source)
    pictures = LISTERS[kind](source)
    if not pictures.names:
        raise PgsrError(f"{source} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return pictures


@contextmanager
def reading(pictures: Pictures) -> Iterator[Read]:
    """A function from a picture's name to its file, for several threads at once; it raises one of UNREADABLE
    for a damaged one."""
    with READERS[pictures.kind](pictures.source) as read:
        yield read


def _kind(source: Path) -> str:
    if (source / "data.mdb").is_file():
        return "lmdb"
    if source.is_dir():
        return "shards" if _shards(source) else "folder"
    if not source.is_file():
        raise PgsrError(f"no folder or zip of pictures at {source}")
    if source.name.endswith((".tar.gz", ".tgz")):
        raise PgsrError(f"{source} is compressed, so its pictures cannot be found: gunzip it first")
    return "shards" if source.suffix == ".tar" else "zip"


def _fingerprint(identity: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(identity).encode("utf-8", "surrogateescape")).hexdigest()


def is_picture(name: str) -> bool:
    """Returns whether a name is a picture's, by its suffix; macOS leaves other files with such names in
    zips."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


# ----------------------------------------------------------------------------
# Folders, nested or not.


def _list_folder(source: Path) -> Pictures:
    files = sorted(p for p in source.rglob("*") if is_picture(p.name))
    names = [p.relative_to(source).as_posix() for p in files]
    stats = [p.stat() for p in files]
    identity = [f"{n} {s.st_size} {s.st_mtime_ns}" for n, s in zip(names, stats, strict=True)]
    return Pictures(source, tuple(names), _fingerprint(identity), "folder")


@contextmanager
def _read_folder(source: Path) -> Iterator[Read]:
    yield lambda name: (source / name).read_bytes()


# ----------------------------------------------------------------------------
# Zips: FFHQ's with its nested folders, CelebA's, pgsr-data's.


def _list_zip(source: Path) -> Pictures:
    try:
        with zipfile.ZipFile(source) as archive:
            every = archive.infolist()
    except UNREADABLE as error:
        raise PgsrError(f"{source} is not a zip archive of pictures: {error}") from error
    members = sorted((m for m in every if is_picture(m.filename)), key=lambda m: m.filename)
    if not members and any(m.filename.endswith("data.mdb") for m in every):
        raise PgsrError(f"{source} holds an lmdb: unzip it and name the folder with data.mdb in it")
    labels = [m for m in every if m.filename == LABELS]
    identity = [f"{m.filename} {m.file_size} {m.CRC:08x}" for m in (*members, *labels)]
    return Pictures(source, tuple(m.filename for m in members), _fingerprint(identity), "zip")


@contextmanager
def _read_zip(source: Path) -> Iterator[Read]:
    with zipfile.ZipFile(source) as archive:
        yield archive.read  # safe from several threads


# ----------------------------------------------------------------------------
# WebDataset: tar files whose members KEY.jpg and KEY.cls belong together; KEY ends at the first dot of the
# name. They are read in their own order, by their places in the file, so a shard is never loaded.


def _shards(source: Path) -> list[Path]:
    return sorted(source.glob("*.tar")) if source.is_dir() else [source]


def _members(shard: Path) -> list[tarfile.TarInfo]:
    try:
        with open(shard, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise PgsrError(f"{shard} is compressed, so its members cannot be found: gunzip it first")
        with tarfile.open(shard, "r:") as archive:
            members = [m for m in archive if m.isfile()]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise PgsrError(f"{shard} is damaged, or not a tar archive: {error}") from error
    size = shard.stat().st_size
    if members and members[-1].offset_data + members[-1].size > size:
        raise PgsrError(f"{shard} is cut short: get it again")
    return members


def key_of(name: str) -> str:
    """Returns what the members of a sample have in common: all up to the first dot of the file's name."""
    path = PurePosixPath(name)
    return (path.parent / path.name.split(".")[0]).as_posix()


def _list_shards(source: Path) -> Pictures:
    names, identity, labels = [], [], []
    for shard in _shards(source):
        members = _members(shard)
        identity.append(f"{shard.name} {shard.stat().st_size} {shard.stat().st_mtime_ns}")
        pictures = [m for m in members if is_picture(m.name)]
        names += [f"{shard.name}/{m.name}" for m in pictures]
        identity += [f"{m.name} {m.size} {m.chksum}" for m in members]
        classes = _classes(shard, members)
        labels += [classes.get(key_of(m.name), -1) for m in pictures]
    labelled = bool(labels) and min(labels) >= 0
    label_names = _manifest_labels(source) or tuple(str(i) for i in range(max(labels, default=0) + 1))
    return Pictures(
        source,
        tuple(names),
        _fingerprint(identity),
        "shards",
        tuple(labels) if labelled else None,
        label_names if labelled else (),
    )


def _classes(shard: Path, members: Sequence[tarfile.TarInfo]) -> dict[str, int]:
    """The content of every KEY.cls, if they are whole numbers. Raises PgsrError if one is not."""
    labels = {}
    with open(shard, "rb") as file:
        for member in members:
            if not member.name.endswith(".cls"):
                continue
            content = os.pread(file.fileno(), min(member.size, 32), member.offset_data)
            if not content.strip().isdigit():
                raise PgsrError(f"{shard}: {member.name} is not the number of a class: {content[:20]!r}")
            labels[key_of(member.name)] = int(content)
    return labels


def _manifest_labels(source: Path) -> tuple[str, ...]:
    """The labels' names where pgsr-data wrote the shards."""
    path = (source if source.is_dir() else source.parent) / MANIFEST
    try:
        return tuple(map(str, json.loads(path.read_text())["labels"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


@contextmanager
def _read_shards(source: Path) -> Iterator[Read]:
    places: dict[str, tuple[int, int, int]] = {}
    with ExitStack() as stack:
        for shard in _shards(source):
            handle = stack.enter_context(open(shard, "rb")).fileno()
            for member in _members(shard):
                if is_picture(member.name):
                    places[f"{shard.name}/{member.name}"] = (handle, member.size, member.offset_data)

        def read(name: str) -> bytes:
            handle, size, offset = places[name]
            return os.pread(handle, size, offset)

        yield read


# ----------------------------------------------------------------------------
# LSUN: an lmdb folder with a picture's file a key.


def _open_lmdb(source: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise missing_package("an lmdb of pictures", "lmdb", error) from error
    try:
        return lmdb.open(str(source), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise PgsrError(f"{source} is damaged, or not an lmdb: {error}") from error


def _list_lmdb(source: Path) -> Pictures:
    import contextlib

    with contextlib.closing(_open_lmdb(source)) as database, database.begin() as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
        last = database.info()["last_txnid"]
    names = tuple(key.decode("latin-1") for key in keys)  # any bytes, and back again
    identity = [f"{last} {(source / 'data.mdb').stat().st_size}", *names]
    return Pictures(source, names, _fingerprint(identity), "lmdb")


@contextmanager
def _read_lmdb(source: Path) -> Iterator[Read]:
    database = _open_lmdb(source)

    def read(name: str) -> bytes:
        with database.begin() as transaction:
            data = transaction.get(name.encode("latin-1"))
        if data is None:
            raise KeyError(name)
        return bytes(data)

    try:
        yield read
    finally:
        database.close()


LISTERS = {"folder": _list_folder, "zip": _list_zip, "shards": _list_shards, "lmdb": _list_lmdb}
READERS = {"folder": _read_folder, "zip": _read_zip, "shards": _read_shards, "lmdb": _read_lmdb}
