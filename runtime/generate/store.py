"""Where a set of shards lies: a folder, or what fsspec reaches (s3://, gs://, abfs://, hdfs://, ...).

    store = open_store("s3://bucket/faces")
    with store.replacing("shard-000000.tar") as temporary:   # a path on this machine
        write(temporary)                                     # the name appears when the block ends
    store.names()                                            # {"shard-000000.tar"}

What has a name is whole. In a folder it is written beside and renamed. Object stores show an object when
the last byte of its one PUT, or the completion of its multipart upload, has come; file systems behind fsspec
get it under another name first. Two machines may write the same name at once: the later replaces the earlier.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from pgsr.errors import PgsrError, missing_package
from pgsr.files import (
    cannot_read,
    cannot_write,
    flush,
    make_folder,
    read_regular,
    remove_leftovers,
    temporary_beside,
)
from pgsr.schema import LONGEST_DOCUMENT

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2", "tos"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # of pyproject.toml
TOKEN = secrets.token_hex(4)  # processes of several machines may have the same number


class Store(Protocol):
    """Files by name. Names may have one folder: "made/000000.json"."""

    address: str

    def names(self, folder: str = "") -> set[str]:
        """Returns what a folder holds, hidden names and all; nothing if there is none."""
        ...

    def read(self, name: str) -> bytes | None:
        """Returns a file's contents, None if there is none."""
        ...

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Gives a path on this machine; the file or folder made there gets its name as the block ends."""
        ...

    def clean(self) -> None:
        """Removes what processes that are dead left half written, as far as this machine can tell."""
        ...


def open_store(out: Path | str) -> Store:
    """Raises PgsrError if the address cannot be used, or its package is missing."""
    if is_remote(out):
        return RemoteStore(str(out))
    return FolderStore(Path(str(out).removeprefix("file://")))


def is_remote(out: Path | str) -> bool:
    """Returns whether an output is an address for fsspec and not a path."""
    return isinstance(out, str) and "://" in out and not out.startswith("file://")


def write(store: Store, name: str, data: bytes) -> None:
    """Writes a whole file or nothing."""
    with store.replacing(name) as temporary:
        temporary.write_bytes(data)


# ----------------------------------------------------------------------------
# A folder, which several machines may share.


class FolderStore:
    """A folder of a file system that this process sees."""

    def __init__(self, folder: Path) -> None:
        """Raises PgsrError if a file stands in its place."""
        if folder.exists() and not folder.is_dir():
            raise PgsrError(f"{folder} is a file, not a folder: name another --out")
        self._folder = folder.absolute()  # processes of a cluster have folders of their own
        self.address = str(folder)

    def names(self, folder: str = "") -> set[str]:
        try:
            return set(os.listdir(self._folder / folder))
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise cannot_read(self._folder / folder, error) from error

    def read(self, name: str) -> bytes | None:
        path = self._folder / name
        try:
            path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(path, error) from error
        return read_regular(path, LONGEST_DOCUMENT)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        path = self._folder / name
        make_folder(path.parent)
        temporary = temporary_beside(path.with_name(f"{path.name}.{TOKEN}"))
        try:
            yield temporary
            _sync(temporary)
            if path.is_dir():  # somebody else was faster, and a folder replaces no folder
                _remove(temporary)
            else:
                os.replace(temporary, path)
                flush(path.parent)
        except BaseException as error:
            _remove(temporary)
            if isinstance(error, OSError):
                raise cannot_write(path, error) from error
            raise

    def clean(self) -> None:
        if self._folder.is_dir():
            _remove_leftovers(self._folder)
            _remove_leftovers(self._folder / "made")


def _remove_leftovers(folder: Path) -> None:
    """Removes what the dead left, half filled folders too, which remove_leftovers takes one by one alone."""
    remove_leftovers(folder)
    for path in folder.glob(".shard-*.tmp"):
        name = path.name.removeprefix(".").rpartition(".")[0].rpartition(".")[0]
        remove_leftovers(folder, path.with_name(name))


def _sync(path: Path) -> None:
    """Lets a file, or a folder with what is in it, reach the disk."""
    if path.is_dir():
        os.sync()  # once for all files
    flush(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


# ----------------------------------------------------------------------------
# Anywhere else.


class RemoteStore:
    """An address that fsspec reaches. Files are made among this machine's temporary ones ($TMPDIR) first."""

    def __init__(self, address: str) -> None:
        """Raises PgsrError if nothing here knows the address."""
        self.address = address.rstrip("/")
        protocol = address.partition("://")[0]
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(self.address, skip_instance_cache=True)
        except ImportError as error:
            raise missing_package(f"--out {address}", EXTRAS.get(protocol, "s3"), error) from error
        except Exception as error:  # each file system has exceptions of its own
            raise PgsrError(f"--out {address} cannot be used: {_words(error)}") from error
        self._appears_whole = protocol in OBJECT_STORES

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def names(self, folder: str = "") -> set[str]:
        path = self._path(folder)
        with self._as_errors("list", folder):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(path, detail=False)
            except FileNotFoundError:
                return set()
        return {entry.rstrip("/").rpartition("/")[2] for entry in entries} - {""}

    def read(self, name: str) -> bytes | None:
        with self._as_errors("read", name):
            try:
                return bytes(self._files.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        folder = workplace()
        temporary = temporary_beside(folder / name.replace("/", "-"))
        try:
            yield temporary
            with self._as_errors("write", name):
                self._put(temporary, self._path(name))
        except OSError as error:
            raise cannot_write(temporary, error) from error
        finally:
            _remove(temporary)

    def _put(self, here: Path, there: str) -> None:
        if here.is_dir():  # a folder counts when its record has come, which is written last
            names = sorted(os.listdir(here))
            self._files.put([str(here / name) for name in names], [f"{there}/{name}" for name in names])
        elif self._appears_whole:
            self._files.put_file(str(here), there)
        else:
            parent, _, name = there.rpartition("/")
            beside = f"{parent}/.{name}.{TOKEN}.{os.getpid()}.tmp"
            self._files.makedirs(parent, exist_ok=True)
            self._files.put_file(str(here), beside)
            self._files.mv(beside, there)

    @contextmanager
    def _as_errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has exceptions of its own
            raise PgsrError(f"cannot {verb} {self.address}/{name}: {_words(error)}") from error

    def clean(self) -> None:
        """Nothing: what an object store shows is whole, and what it does not is its own to forget."""


def workplace() -> Path:
    """Returns the folder of this user's temporary files where files for elsewhere are made; dead processes'
    are removed from it."""
    folder = make_folder(Path(tempfile.gettempdir()) / f"pgsr-shards-{os.getuid()}")
    _remove_leftovers(folder)
    return folder


def _words(error: Any) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
