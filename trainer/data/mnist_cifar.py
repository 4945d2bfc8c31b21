"""Data sets in their own file formats: MNIST's idx files and CIFAR-10's binary version.

    opened = open_native(Path("train-images-idx3-ubyte.gz"))  # None if it is neither
    opened.pixels, opened.labels, opened.names

A folder or tar gives its training files, or its test files where it has no others; a file gives itself.
Labels of idx pictures are read from the file beside them (train-labels-idx1-ubyte.gz). Nothing here
unpickles: CIFAR-10's Python version is refused.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.files import open_regular, read_regular
from pgsr.tars import DAMAGED, Header

from .listing import has_picture_suffix

IMAGES = re.compile(r"images[-.]idx3-ubyte(\.gz)?$")
BATCH = re.compile(r"^(data|test)_batch(_\d+)?\.bin$")
PICKLES = re.compile(r"^(data_batch_\d+|test_batch)$")  # CIFAR-10's Python version
TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")

LARGEST = 2**31  # bytes of pixels that a header may promise, and of what a file unpacks to
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then planes of red, green, blue
CIFAR_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Native:
    """A data set decoded."""

    source: Path
    pixels: NDArray[np.uint8]  # [N, H, W] grey, or [N, H, W, 3]
    labels: NDArray[np.int64] | None  # [N]
    names: tuple[str, ...]  # of the labels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def side(self) -> int:
        """The side of the largest square in a picture."""
        return int(min(self.pixels.shape[1:3]))

    def picture(self, index: int) -> Image.Image:
        """One picture, in RGB."""
        return Image.fromarray(self.pixels[index]).convert("RGB")


def open_native(source: Path) -> Native | None:
    """The data set at a path, or None if nothing there is in one of the formats.

    Raises PgsrError for files that are damaged, of another kind than their names say, or pickles.
    """
    if source.is_dir():
        return _open_folder(source)
    if not source.is_file():
        return None
    if IMAGES.search(source.name):
        return _read_idx(source, [source])
    if TAR.search(source.name):
        return _open_tar(source)
    if BATCH.search(source.name):
        return _read_cifar(source, {source.name: partial(_whole_file, source)}, None)
    _refuse_pickles(source, [source.name])
    return None


def _open_folder(source: Path) -> Native | None:
    try:
        files = {path.name: path for path in sorted(source.iterdir()) if path.is_file()}
    except OSError as error:
        raise PgsrError(f"cannot read {source}: {error.strerror or error}") from error
    idx = [path for name, path in files.items() if IMAGES.search(name)]
    if idx:
        return _read_idx(source, [path for path in idx if "train" in path.name] or idx)
    batches: dict[str, Read] = {
        name: partial(_whole_file, path) for name, path in files.items() if BATCH.search(name)
    }
    meta = files.get("batches.meta.txt")
    if batches:
        return _read_cifar(source, batches, None if meta is None else partial(_whole_file, meta))
    _refuse_pickles(source, files)
    return None


def _whole_file(path: Path) -> bytes:
    return read_regular(path, LARGEST)


def _refuse_pickles(source: Path, names: Sequence[str] | Mapping[str, object]) -> None:
    if any(PICKLES.search(name) for name in names):
        raise PgsrError(
            f"{source} is CIFAR-10's Python version, whose pickles can run programs: "
            "use its binary version, cifar-10-binary.tar.gz"
        )


# ----------------------------------------------------------------------------
# idx: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian
# 32-bit number, the values.


def _read_idx(source: Path, files: Sequence[Path]) -> Native:
    parts = [_idx_values(path, 3) for path in files]
    if len({part.shape[1:] for part in parts}) > 1:
        raise PgsrError(f"{source} holds pictures of different sizes: name one file")
    labels = [_idx_labels(path, len(part)) for path, part in zip(files, parts, strict=True)]
    label_parts = [part for part in labels if part is not None]
    together = np.concatenate(label_parts) if len(label_parts) == len(parts) else None
    names = () if together is None else tuple(str(i) for i in range(int(together.max()) + 1))
    return Native(source, np.concatenate(parts), together, names)


def _idx_labels(images: Path, count: int) -> NDArray[np.int64] | None:
    """The labels beside a file of pictures, if they are there, compressed or not."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for name in (stem, f"{stem}.gz"):
        path = images.with_name(name)
        if path.is_file():
            labels = _idx_values(path, 1)
            if len(labels) != count:
                raise PgsrError(f"{path} has {len(labels)} labels for {count} pictures in {images.name}")
            return labels.astype(np.int64)
    return None


class _Gzip(gzip.GzipFile):
    """A packed file that is not unpacked for ever: few bytes may hold gigabytes of zeros."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset > LARGEST:
            raise OSError(f"it unpacks to more than {LARGEST:,} bytes")
        return super().seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > LARGEST:
            raise OSError(f"it unpacks to more than {LARGEST:,} bytes")
        return super().read(size)


def _unpacked(path: Path) -> IO[bytes]:
    """A file's bytes, through gzip if its first bytes say so. What is wrong comes out as one of DAMAGED."""
    with open_regular(path) as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], _Gzip(path)) if packed else open_regular(path)


def _idx_values(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file. Raises PgsrError unless it holds just what its header says."""
    try:
        with _unpacked(path) as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, 8, dimensions)):
                raise PgsrError(
                    f"{path} is not an idx file of {_content(dimensions)}: its first bytes differ"
                )
            if len(header) < 4 + 4 * dimensions:
                raise PgsrError(f"{path} is cut short in its header: get it again")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = _product(shape)
            if not 0 < size <= LARGEST:
                raise PgsrError(f"{path} says it holds {' x '.join(map(str, shape))} values: it is damaged")
            values = file.read(size + 1)
    except DAMAGED as error:
        raise PgsrError(f"{path} is damaged: {error}") from error
    if len(values) != size:
        what = "is cut short" if len(values) < size else "goes on after its last value"
        raise PgsrError(f"{path} {what}: its header says {' x '.join(map(str, shape))}; get it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _content(dimensions: int) -> str:
    return "pictures" if dimensions == 3 else "labels"


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


# ----------------------------------------------------------------------------
# CIFAR-10, binary version: records of a label and 3 x 32 x 32 bytes.


def _read_cifar(source: Path, batches: Mapping[str, Read], meta: Read | None) -> Native:
    """All training batches in the order of their names, or those there are."""
    members = [name for name in sorted(batches) if name.startswith("data")] or sorted(batches)
    records = np.concatenate([_cifar_records(source, name, batches[name]()) for name in members])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    names = CIFAR_NAMES if meta is None else tuple(meta().decode("utf-8", "replace").split())
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(names):
        raise PgsrError(f"{source} has the label {labels.max()}, but only {len(names)} names: it is damaged")
    return Native(source, np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels, names)


def _cifar_records(source: Path, name: str, data: bytes) -> NDArray[np.uint8]:
    where = source if source.name == name else f"{source}/{name}"
    if not data or len(data) % CIFAR_RECORD:
        raise PgsrError(
            f"{where} is not a whole number of records of {CIFAR_RECORD} bytes ({len(data)}): "
            "it is cut short, or not CIFAR-10's binary version"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    if records[:, 0].max() > 9:
        raise PgsrError(f"{where} has the label {records[:, 0].max()}: it is damaged, or not CIFAR-10")
    return records


def _open_tar(source: Path) -> Native | None:
    """Opens a tar of CIFAR-10; None for one of pictures. Members are read, never extracted, so paths lead
    nowhere."""
    try:
        with _unpacked(source) as stream:
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=Header) as archive:
                result = _read_tar(source, archive)
            while result is not None and stream.read(2**20):  # to the end, where gzip keeps its checksum
                pass
    except DAMAGED as error:
        raise PgsrError(f"{source} is damaged, or not a tar archive: {error}") from error
    return result


def _read_tar(source: Path, archive: tarfile.TarFile) -> Native | None:
    members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
    _refuse_pickles(source, members)
    batches: dict[str, Read] = {
        name: partial(_tar_member, archive, m) for name, m in members.items() if BATCH.search(name)
    }
    if not batches and any(map(has_picture_suffix, members)):
        return None
    if not batches:
        raise PgsrError(f"{source} holds no data_batch_1.bin: it is not CIFAR-10's binary version")
    meta = members.get("batches.meta.txt")
    return _read_cifar(source, batches, None if meta is None else partial(_tar_member, archive, meta))


def _tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST:
        raise PgsrError(f"{member.name} says it holds {member.size} bytes: the archive is damaged")
    return (archive.extractfile(member) or io.BytesIO()).read()
