"""WebDataset: tar files whose members KEY.jpg and KEY.cls belong together; KEY ends at the first dot of the
name. They are read in their own order, by their places in the file, so a shard is never loaded.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from pgsr.errors import PgsrError
from pgsr.files import regular_handle
from pgsr.first_bytes import HEAD_BYTES, begins_like_picture
from pgsr.schema import parsed_json
from pgsr.tars import DAMAGED, Header

from .contents import crc32_of_files
from .listing import (
    LARGEST_FILE,
    MOST_CLASSES,
    Identity,
    LeftOut,
    Pictures,
    Read,
    check_count,
    fingerprint_of,
    has_picture_suffix,
    hidden_reason,
    no_picture,
    prepared_filter,
    prepared_sizes,
    read_manifest,
    too_large,
    without_manifest,
)

LONGEST_CHAIN = 16  # links to links
LABEL = ".cls"

Place = tuple[int, int]  # where a member's bytes begin, and how many they are


@dataclass(frozen=True)
class Member:
    """A file in a tar, whichever member holds its bytes."""

    name: str
    place: Place


@dataclass(frozen=True)
class Shard:
    """What a tar file holds."""

    pictures: tuple[Member, ...]
    classes: Mapping[str, int]  # of samples, by their keys
    left_out: tuple[LeftOut, ...]
    older: tuple[str, ...]  # lines of the fingerprint that pgsr 0.1 made


def list_shards(
    source: Path, names: Sequence[str], left_out: Sequence[LeftOut] = (), with_labels: bool = True
) -> Pictures:
    """The pictures of tar files in a folder, or of one. Raises PgsrError if one is damaged, compressed or cut
    short."""
    root = _root(source)
    shards = {name: read_shard(root / name) for name in names}
    members = [(name, shard, member) for name, shard in shards.items() for member in shard.pictures]
    labels = [shard.classes.get(key_of(member.name), -1) for _, shard, member in members]
    labelled = with_labels and bool(labels) and min(labels) >= 0
    manifest = read_manifest(root)
    sizes = prepared_sizes(manifest)
    label_names = _label_names(manifest) or tuple(str(i) for i in range(max(labels, default=0) + 1))
    others = [LeftOut(f"{n}/{o.name}", o.why) for n, shard in shards.items() for o in shard.left_out]
    if not labelled:
        others += _unused_labels(shards)
    return Pictures(
        source,
        tuple(f"{name}/{member.name}" for name, _, member in members),
        "shards",
        tuple(labels) if labelled else None,
        label_names if labelled else (),
        shards=tuple(names),
        sizes=sizes,
        filter=prepared_filter(manifest),
        left_out=without_manifest([*left_out, *others], sizes),
        identify=partial(_identity, root, tuple(names), {n: shard.older for n, shard in shards.items()}),
    )


def _root(source: Path) -> Path:
    """The folder that shards' names are relative to."""
    return source if source.is_dir() else source.parent


def _unused_labels(shards: Mapping[str, Shard]) -> Iterator[LeftOut]:
    for name, shard in shards.items():
        for key in shard.classes:
            yield LeftOut(f"{name}/{key}{LABEL}", "a label, where not every picture has one")


def _identity(root: Path, names: Sequence[str], older: Mapping[str, Sequence[str]]) -> Identity:
    lines = []
    for name in names:
        state = (root / name).stat()
        lines += [f"{PurePosixPath(name).name} {state.st_size} {state.st_mtime_ns}", *older[name]]
    return Identity(fingerprint_of(shard_lines(root, names)), fingerprint_of(lines))


def shard_lines(root: Path, names: Sequence[str]) -> list[str]:
    """A line for each tar file, by its contents."""
    contents = crc32_of_files(root, names)
    return [f"{name} {contents[name].size} {contents[name].crc:08x}" for name in names]


def key_of(name: str) -> str:
    """Returns what the members of a sample have in common: all up to the first dot of the file's name."""
    path = PurePosixPath(name)
    return (path.parent / path.name.split(".")[0]).as_posix()


def _label_names(manifest: bytes | None) -> tuple[str, ...]:
    """The labels' names where pgsr-data wrote the shards."""
    try:
        return tuple(map(str, parsed_json(manifest or b"")["labels"]))
    except (ValueError, KeyError, TypeError):
        return ()


@contextmanager
def reading_shards(pictures: Pictures) -> Iterator[tuple[Mapping[str, tuple[int, Place]], Read]]:
    """Where each picture stands, and a function that reads it by its name."""
    places: dict[str, tuple[int, Place]] = {}
    with ExitStack() as stack:
        for shard in pictures.shards:
            path = _root(pictures.source) / shard
            handle = stack.enter_context(open(regular_handle(path), "rb")).fileno()
            for member in read_shard(path).pictures:
                places[f"{shard}/{member.name}"] = (handle, member.place)

        def read(name: str) -> bytes:
            handle, (begin, size) = places[name]
            if size > LARGEST_FILE:
                raise too_large(size)
            return os.pread(handle, size, begin)

        yield places, read


# ----------------------------------------------------------------------------
# One tar file.


def read_shard(path: Path) -> Shard:
    """Raises PgsrError if the file is damaged, compressed, cut short, or labels are no classes."""
    headers = _headers(path)
    older = tuple(f"{h.name} {h.size} {h.chksum}" for h in headers if h.isfile())
    files = {
        posixpath.normpath(h.name): h for h in headers
    }  # of members of one name the last counts, as in unpacking
    pictures, left_out, classes = [], [], {}
    with open(path, "rb") as file:
        for header in headers:
            name = header.name
            place, why = _place(header, files)
            if why or place is None:
                left_out += [LeftOut(name, why)] if why else []
            elif name.endswith(LABEL):
                classes[key_of(name)] = _class(
                    path, name, os.pread(file.fileno(), min(place[1], 32), place[0])
                )
            elif has_picture_suffix(name) or begins_like_picture(
                os.pread(file.fileno(), min(place[1], HEAD_BYTES), place[0])
            ):
                pictures.append(Member(name, place))
            else:
                left_out.append(LeftOut(name, no_picture(name)))
    return Shard(tuple(pictures), classes, tuple(left_out), older)


def _place(header: tarfile.TarInfo, files: Mapping[str, tarfile.TarInfo]) -> tuple[Place | None, str]:
    """Where a member's bytes are, or the reason why there are none; neither of a folder."""
    if header.isdir():
        return None, ""
    if files[posixpath.normpath(header.name)] is not header:
        return None, "replaced by a later member of the same name"
    why = hidden_reason(header.name)
    if why is not None:
        return None, why
    target: tarfile.TarInfo | None = header
    for _ in range(LONGEST_CHAIN):
        if target is None or not (target.islnk() or target.issym()):
            break
        inside = posixpath.dirname(target.name) if target.issym() else ""
        target = files.get(posixpath.normpath(posixpath.join(inside, target.linkname)))
    if target is None or target.islnk() or target.issym():
        return None, "a link to nothing in its archive"
    if not target.isfile() or target.issparse():
        return None, "not a regular file"
    return (target.offset_data, target.size), ""


def _class(shard: Path, name: str, content: bytes) -> int:
    """The number in a KEY.cls."""
    if not content.strip().isdigit():
        raise PgsrError(f"{shard}: {name} is not the number of a class: {content[:20]!r}")
    if int(content) >= MOST_CLASSES:
        raise PgsrError(
            f"{shard}: {name} is class {int(content)}, but classes are numbered from 0 to {MOST_CLASSES - 1}"
        )
    return int(content)


def _headers(path: Path) -> list[tarfile.TarInfo]:
    """Every member's, in order."""
    headers: list[tarfile.TarInfo] = []
    try:
        with open(regular_handle(path), "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise PgsrError(f"{path} is compressed, so its members cannot be found: gunzip it first")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as archive:
                for header in archive:
                    headers.append(header)
                    check_count(path, len(headers))
                end = archive.offset
            size = os.fstat(file.fileno()).st_size
            if any(h.isfile() and not 0 <= h.size <= size - h.offset_data for h in headers):
                raise PgsrError(f"{path} is cut short: get it again")
            file.seek(end)
            while rest := file.read(2**20):
                if rest.strip(b"\0"):
                    raise PgsrError(
                        f"{path} cannot be read beyond byte {end}, after {len(headers)} members: it is "
                        "damaged, or several archives in one"
                    )
    except DAMAGED as error:
        raise PgsrError(f"{path} is damaged, or not a tar archive: {error}") from error
    return headers
