"""What pgsr-data writes: one stored zip, or WebDataset tar shards for sets too large for one file.

    with zip_archive(path, "png") as archive:           # SIZE/000000.png, labels.json, manifest.json
    with shard_folder(path, 10_000, "png") as archive:  # 000000.tar: 000000.SIZE.png, 000000.cls
        archive.add(0, {64: data}, label)
        manifest = archive.finish(manifest, names of labels)

Nothing stands at the path until all is written; the same pictures make the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pgsr.errors import PgsrError
from pgsr.files import cannot_write, make_folder, remove_leftovers, replacing, temporary_beside

from .listing import LABELS, MANIFEST, UNREADABLE
from .zips import unpacking

FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # so that the same pictures make the same archive


class Archive(Protocol):
    """Being written."""

    def add(self, index: int, files: Mapping[int, bytes], label: int | None) -> None:
        """One picture: its file at each size."""
        ...

    def finish(self, manifest: Mapping[str, Any], label_names: Sequence[str] | None) -> dict[str, Any]:
        """Writes the manifest with the fingerprint, and the labels' names if there are any; returns it."""
        ...


@contextmanager
def zip_archive(path: Path, suffix: str) -> Iterator[Archive]:
    """Opens a zip archive for pictures with names ending in .suffix. Raises PgsrError if it cannot be
    written, or something else than such an archive stands there."""
    if path.exists() and not _is_archive(path):
        raise PgsrError(f"{path} is there already and no archive of pgsr-data: name another file with --out")
    remove_leftovers(make_folder(path.parent), of=path)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        yield _Zip(archive, suffix)


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive, unpacking():
            return "fingerprint" in json.loads(archive.read(MANIFEST))
    except (*UNREADABLE, TypeError):
        return False


class _Zip:
    def __init__(self, archive: zipfile.ZipFile, suffix: str) -> None:
        self._archive, self._suffix = archive, suffix
        self._digest = hashlib.sha256()
        self._labels: list[int | None] = []

    def add(self, index: int, files: Mapping[int, bytes], label: int | None) -> None:
        for size, data in files.items():
            self._write(f"{size}/{index:06d}.{self._suffix}", data)
        self._labels.append(label)

    def _write(self, name: str, data: bytes) -> None:
        self._archive.writestr(zipfile.ZipInfo(name, FIXED_DATE), data)
        self._digest.update(data)

    def finish(self, manifest: Mapping[str, Any], label_names: Sequence[str] | None) -> dict[str, Any]:
        if label_names is not None:
            self._write(LABELS, json.dumps({"names": list(label_names), "labels": self._labels}).encode())
        whole = {**manifest, "fingerprint": self._digest.hexdigest()}
        self._archive.writestr(zipfile.ZipInfo(MANIFEST, FIXED_DATE), json.dumps(whole, indent=1))
        return whole


@contextmanager
def shard_folder(path: Path, pictures: int, suffix: str) -> Iterator[Archive]:
    """A folder of tar files of so many pictures. Raises PgsrError if it is there, or cannot be written."""
    if path.exists():
        raise PgsrError(f"{path} is there already: remove it, or name another folder with --out")
    make_folder(path.parent)
    remove_leftovers(path.parent, of=path)
    temporary = temporary_beside(path)
    try:
        temporary.mkdir()
        shards = _Shards(temporary, pictures, suffix)
        yield shards
        shards.close()
        os.rename(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Shards:
    def __init__(self, folder: Path, pictures: int, suffix: str) -> None:
        self._folder, self._pictures, self._suffix = folder, pictures, suffix
        self._digest = hashlib.sha256()
        self._archive: tarfile.TarFile | None = None

    def add(self, index: int, files: Mapping[int, bytes], label: int | None) -> None:
        if index % self._pictures == 0:
            self.close()
            name = f"{index // self._pictures:06d}.tar"
            self._archive = tarfile.TarFile(self._folder / name, "w", format=tarfile.USTAR_FORMAT)
        for size, data in files.items():
            self._write(f"{index:06d}.{size}.{self._suffix}", data)
        if label is not None:
            self._write(f"{index:06d}.cls", str(label).encode())

    def _write(self, name: str, data: bytes) -> None:
        assert self._archive is not None
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._archive.addfile(member, io.BytesIO(data))
        self._digest.update(data)

    def finish(self, manifest: Mapping[str, Any], label_names: Sequence[str] | None) -> dict[str, Any]:
        whole = {**manifest, "fingerprint": self._digest.hexdigest()}
        (self._folder / MANIFEST).write_text(json.dumps(whole, indent=1))
        return whole

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()
            self._archive = None
