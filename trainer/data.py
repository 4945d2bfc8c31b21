"""Photographs: a folder or zip of pictures -> one memory-mapped uint8 array a size.

Every picture is decoded once; the array stays in the user's cache directory under the data set's
fingerprint, so a second run starts at once and memory holds only the pages in use.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing

T = TypeVar("T")

# What reading a zip raises where it is damaged, encrypted or packed in a way Python does not know.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)

LABELS = "labels.json"  # in a prepared archive: {"names": one a label, "labels": one a picture, in order}

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}  # paper 1, Table 1


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder or a zip, in the order of their names."""

    source: Path
    names: tuple[str, ...]
    fingerprint: str  # of names and contents, and of labels

    def __len__(self) -> int:
        return len(self.names)


@contextmanager
def reading(pictures: Pictures) -> Iterator[Callable[[str], bytes]]:
    """A function from a picture's name to its file; raises one of UNREADABLE for a damaged one."""
    if pictures.source.is_dir():
        yield lambda name: (pictures.source / name).read_bytes()
        return
    with zipfile.ZipFile(pictures.source) as archive:
        yield archive.read  # safe from several threads


def open_pictures(source: Path) -> Pictures:
    """Lists a folder or zip without decoding anything.

    Raises PgsrError if there is nothing there, it is neither, or it holds no pictures.
    """
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        names = [p.relative_to(source).as_posix() for p in files]
        identity = [
            f"{n} {p.stat().st_size} {p.stat().st_mtime_ns}" for n, p in zip(names, files, strict=True)
        ]
    elif source.is_file():
        names, identity = _zip_members(source)
    else:
        raise PgsrError(f"no folder or zip of pictures at {source}")
    if not names:
        raise PgsrError(f"{source} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    fingerprint = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return Pictures(source, tuple(names), fingerprint)


def _zip_members(source: Path) -> tuple[list[str], list[str]]:
    try:
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).suffix.lower() in SUFFIXES]
            labels = [m for m in archive.infolist() if m.filename == LABELS]
    except UNREADABLE as error:
        raise PgsrError(f"{source} is not a zip archive of pictures: {error}") from error
    members.sort(key=lambda m: m.filename)
    identity = [f"{m.filename} {m.file_size} {m.CRC:08x}" for m in (*members, *labels)]
    return [m.filename for m in members], identity


def decode(data: bytes) -> Image.Image:
    """A whole RGB picture, turned as its EXIF says. Raises OSError or ValueError if it is damaged."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture).convert("RGB")


def square(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """The centred square of a picture at size x size."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return picture.crop(box)
    return picture.resize((size, size), resampling, box=box)


def problem(data: bytes, size: int) -> tuple[Image.Image | None, str]:
    """The decoded picture, or None and why it cannot be used at `size`."""
    try:
        picture = decode(data)
    except Image.DecompressionBombError as error:
        return None, f"too large ({error})"
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile) as error:
        return None, f"cannot be read ({error})"
    if min(picture.size) < size:
        return None, f"too small ({picture.width}x{picture.height})"
    return picture, ""


@dataclass(frozen=True)
class Photographs:
    """A data set at one size, decoded."""

    pixels: NDArray[np.uint8]  # [N, size, size, 3], memory-mapped
    fingerprint: str
    skipped: tuple[str, ...]  # "name: why"
    labels: NDArray[np.int64] | None = None  # [N], where the archive has them
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Noise:
    """Random pixels in place of photographs, to time training without any."""

    pictures: int
    labels: int = 0  # kinds of them

    def photographs(self, side: int) -> Photographs:
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (self.pictures, side, side, 3), np.uint8)
        labels = random.integers(0, self.labels, self.pictures) if self.labels else None
        return Photographs(pixels, "noise", (), labels)


Source = Path | Noise


def load_photographs(source: Path, size: int) -> Photographs:
    """All usable pictures at size x size, from the cache if they have been decoded before.

    A prepared archive (pgsr-data) with that size gives its own pictures; any other is cropped to the
    centred square and reduced by Lanczos. Pictures that are damaged or too small are named on stderr.
    Raises PgsrError if fewer than two are left, or labels do not fit the pictures.
    """
    pictures = open_pictures(source)
    own = tuple(n for n in pictures.names if n.startswith(f"{size}/"))
    if own:
        pictures = Pictures(pictures.source, own, pictures.fingerprint)
    cached = cache_folder() / f"{pictures.fingerprint[:32]}-{size}.npy"
    skipped: list[str] = []
    pixels = _mapped(cached)
    if pixels is None:
        _decode_all(pictures, size, cached, skipped)
        pixels = np.load(cached, mmap_mode="r")
    if len(pixels) < 2:
        raise PgsrError(
            f"{source} has {len(pixels)} usable picture(s) of {size}x{size}; training needs at least 2"
        )
    labels, names = load_labels(pictures, len(pixels))
    return Photographs(pixels, pictures.fingerprint, tuple(skipped), labels, names)


def load_labels(pictures: Pictures, usable: int) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The label of each picture and the labels' names; (None, ()) if the archive has none.

    Raises PgsrError if they are damaged, or a picture is not usable, so that it is unknown whose is whose.
    """
    if pictures.source.is_dir():
        return None, ()
    try:
        with zipfile.ZipFile(pictures.source) as archive:
            if LABELS not in archive.namelist():
                return None, ()
            content = json.loads(archive.read(LABELS))
        names = tuple(map(str, content["names"]))
        every = np.array(content["labels"], dtype=np.int64)
        labels = every[[int(Path(name).stem) for name in pictures.names]]
        if labels.shape != (usable,) or labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{len(every)} labels of {len(names)} names for {usable} pictures")
    except (*UNREADABLE, KeyError, IndexError, TypeError, OverflowError) as error:
        raise PgsrError(f"{LABELS} of {pictures.source} does not fit ({error}): prepare it again") from error
    return labels, names


def _mapped(cached: Path) -> NDArray[np.uint8] | None:
    """The decoded array, or None if there is none or it is damaged."""
    try:
        return np.load(cached, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None


def cache_folder() -> Path:
    """Where decoded data sets are kept: $PGSR_CACHE, or pgsr in the user's cache directory."""
    base = os.environ.get("PGSR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pgsr"
    return make_folder(Path(base).expanduser() / "data")


def _decode_all(pictures: Pictures, size: int, cached: Path, skipped: list[str]) -> None:
    """Decodes into one .npy; a picture that fails is reported in `skipped` and on stderr."""

    def pixels(picture: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(square(picture, size, Image.Resampling.LANCZOS))

    count = 0
    with replacing(cached) as temporary, open(temporary, "wb") as file:
        _npy_header(file, len(pictures), size)
        for name, array, why in each_picture(pictures, size, pixels):
            if array is None:
                skipped.append(f"{name}: {why}")
                print(f"skipped {name}: {why}", file=sys.stderr)
            else:
                file.write(array.tobytes())
                count += 1
        file.seek(0)
        _npy_header(file, count, size)  # numpy pads headers so that the first axis may change
    if skipped:
        print(f"skipped {len(skipped)} of {len(pictures)} pictures", file=sys.stderr)


def _npy_header(file: IO[bytes], count: int, size: int) -> None:
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def each_picture(
    pictures: Pictures, size: int, work: Callable[[Image.Image], T]
) -> Iterator[tuple[str, T | None, str]]:
    """(name, work(picture), "") of each picture in order, or (name, None, why it cannot be used)."""

    def one(name: str) -> tuple[str, T | None, str]:
        try:
            data = read(name)
        except UNREADABLE as error:
            return name, None, f"cannot be read ({error})"
        picture, why = problem(data, size)
        return name, None if picture is None else work(picture), why

    hidden = not sys.stderr.isatty()
    progress = click.progressbar(length=len(pictures), label="decoding", file=sys.stderr, hidden=hidden)
    workers = ThreadPoolExecutor(max_workers=os.cpu_count())
    with reading(pictures) as read, workers as pool, progress as bar:
        for start in range(0, len(pictures), 256):
            chunk = pictures.names[start : start + 256]
            yield from pool.map(one, chunk)
            bar.update(len(chunk))
