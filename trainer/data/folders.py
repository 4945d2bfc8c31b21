"""Pictures in a folder, nested or not: every file below it is found, or named with the reason why not.

Links to folders are followed, and each folder is read once, however many ways lead there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pgsr.errors import PgsrError
from pgsr.files import regular_handle
from pgsr.first_bytes import HEAD_BYTES, begins_like_picture

from .contents import crc32_of_files
from .listing import (
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
    read_file,
    read_manifest,
    without_manifest,
)
from .shards import list_shards, reading_shards, shard_lines

SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")  # where files are no files


@dataclass
class Found:
    """What lies below a folder. Names are relative to it, with / between their parts."""

    source: Path
    pictures: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        self.left_out.append(LeftOut(name, why))


def list_folder(source: Path) -> Pictures:
    """Raises PgsrError for a folder that cannot be opened, or damaged shards in it."""
    found = find(source)
    if found.shards and not found.pictures:
        return list_shards(source, found.shards, found.left_out)
    manifest = read_manifest(source)
    sizes = prepared_sizes(manifest)
    pictures = Pictures(
        source,
        tuple(found.pictures),
        shards=tuple(found.shards),
        sizes=sizes,
        filter=prepared_filter(manifest),
        left_out=without_manifest(found.left_out, sizes),
        identify=partial(_identity, source, found.pictures, found.shards),
    )
    if not found.shards:
        return pictures
    shards = list_shards(source, found.shards, found.left_out, with_labels=False)
    return Pictures(
        source,
        (*pictures.names, *shards.names),
        shards=shards.shards,
        sizes=pictures.sizes,
        filter=pictures.filter,
        left_out=shards.left_out,
        identify=pictures.identify,
    )


@contextmanager
def reading_folder(pictures: Pictures) -> Iterator[Read]:
    """Reads pictures by their names."""
    with reading_shards(pictures) as (places, read_member):

        def read(name: str) -> bytes:
            return read_member(name) if name in places else read_file(pictures.source / name)

        yield read


def _identity(source: Path, names: list[str], shards: list[str]) -> Identity:
    """By the size and CRC-32 of each file, as a zip of them would have it; formerly by sizes and times."""
    contents = crc32_of_files(source, names)
    lines = [f"{name} {contents[name].size} {contents[name].crc:08x}" for name in names]
    older = [f"{name} {contents[name].size} {contents[name].modified_ns}" for name in names]
    return Identity(fingerprint_of([*lines, *shard_lines(source, shards)]), fingerprint_of(older))


# ----------------------------------------------------------------------------
# Finding.


def find(source: Path) -> Found:
    """Everything below a folder, pictures and shards in the order of their names' parts.

    Raises PgsrError if the folder itself cannot be opened, or holds more files than are read.
    """
    walk = _Walk(Found(source))
    walk.run()
    found = walk.found
    for names in (found.pictures, found.shards):
        names.sort(key=lambda name: name.split("/"))
    found.left_out.sort(key=lambda file: file.name.split("/"))
    return found


class _Walk:
    """Folders are read before links, so that a file has its own name and not a link's."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.folders, self.links = [""], list[str]()  # names of those to be read; links wait
        self.linked_files: list[tuple[str, tuple[int, int]]] = []
        self.read: dict[tuple[int, int], str] = {}  # folders by device and inode
        self.files: dict[tuple[int, int], str] = {}  # pictures likewise
        self.system = _system_devices()
        self.looked_at = 0

    def run(self) -> None:
        while self.folders or self.links:
            self.links.sort()
            self._read_folder(self.folders.pop() if self.folders else self.links.pop(0))
        for name, place in sorted(self.linked_files):
            if place in self.files:
                self.found.leave_out(name, "a link to a picture that is used already")
            else:
                self._sort_file(name, place)

    def _read_folder(self, name: str) -> None:
        found, path = self.found, self.found.source / name
        try:
            state = os.stat(path)
            known = self.read.get((state.st_dev, state.st_ino))
            if known is not None:
                found.leave_out(name, f"a link to a folder that is read already ({known or '.'})")
                return
            if state.st_dev in self.system:
                found.leave_out(name, "a folder of the system")
                return
            self.read[state.st_dev, state.st_ino] = name
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    self._sort(entry, f"{name}/{entry.name}" if name else entry.name, state.st_dev)
        except OSError as error:
            if not name:
                raise PgsrError(f"cannot read {path}: {error.strerror or error}") from error
            found.leave_out(name, f"a folder that cannot be read ({error.strerror or error})")

    def _sort(self, entry: os.DirEntry[str], name: str, device: int) -> None:
        self.looked_at += 1
        check_count(self.found.source, self.looked_at)
        if entry.is_symlink():
            self._follow(name)
        elif entry.is_dir(follow_symlinks=False):
            self.folders.append(name)
        elif entry.is_file(follow_symlinks=False):
            self._sort_file(name, (device, entry.inode()))
        else:
            self.found.leave_out(name, "not a regular file")

    def _follow(self, name: str) -> None:
        try:
            state = os.stat(self.found.source / name)
        except OSError as error:
            loop = error.errno == errno.ELOOP
            self.found.leave_out(name, "a link that leads to itself" if loop else "a link to nothing")
            return
        if stat.S_ISDIR(state.st_mode):
            self.links.append(name)
        elif stat.S_ISREG(state.st_mode):
            self.linked_files.append((name, (state.st_dev, state.st_ino)))
        else:
            self.found.leave_out(name, "not a regular file")

    def _sort_file(self, name: str, place: tuple[int, int]) -> None:
        why = hidden_reason(name)
        if why is not None:
            self.found.leave_out(name, why)
        elif name.lower().endswith(".tar"):
            self.found.shards.append(name)
        elif has_picture_suffix(name) or self._begins_like_picture(name):
            self.files.setdefault(place, name)
            self.found.pictures.append(name)
        elif name.split("/")[-1] == "data.mdb":
            self.found.leave_out(name, "an lmdb inside: name its folder as a source of its own")
        else:
            self.found.leave_out(name, no_picture(name))

    def _begins_like_picture(self, name: str) -> bool:
        try:
            handle = regular_handle(self.found.source / name)
        except OSError:
            return False
        try:
            return begins_like_picture(os.read(handle, HEAD_BYTES))
        except OSError:
            return False
        finally:
            os.close(handle)


def _system_devices() -> set[int]:
    """Devices of the system's own folders, but for that of the root."""
    devices = set()
    for folder in SYSTEM_FOLDERS:
        if os.path.ismount(folder):
            devices.add(os.stat(folder).st_dev)
    return devices
