"""Photographs: a folder, zip, tar shards or lmdb of pictures -> one memory-mapped uint8 array a size.

Every picture is decoded once; the array stays in the user's cache directory under the data set's
fingerprint, so a second run starts at once and memory holds only the pages in use.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr import decoding
from pgsr.cli import progress_bar
from pgsr.errors import PgsrError
from pgsr.files import ending_cleanly, hold, remove_leftovers, replacing, writable_cache

from .sources import LABELS, MAX_DAMAGED, UNREADABLE, Damage, Pictures, open_pictures, reading

T = TypeVar("T")

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}  # paper 1, Table 1

UNREAD = "cannot be read"  # how the reason begins where a picture is damaged


def decode(data: bytes, turn: bool = True) -> Image.Image:
    """A whole RGB picture, turned as its EXIF says unless `turn` is false, what is transparent composed over
    `decoding.BACKGROUND`. Raises PictureError if it cannot be used."""
    return decoding.composed(decoding.decode(data, turn=turn))


def square(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """The centred square of a picture at size x size."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return picture.crop(box)
    return picture.resize((size, size), resampling, box=box)


def problem(data: bytes, size: int, turn: bool = True) -> tuple[Image.Image | None, str]:
    """The decoded picture, or None and why it cannot be used at `size`."""
    try:
        picture = decode(data, turn)
    except decoding.PictureError as error:
        return None, error.reason
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
    pictures = of_size(pictures, size)
    cached = cache_folder() / f"{pictures.fingerprint[:32]}-{size}-{decoding.VERSION}.npy"
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


def of_size(pictures: Pictures, size: int) -> Pictures:
    """The pictures of that size alone, where pgsr-data prepared it: SIZE/KEY.png in a zip, KEY.SIZE.png in
    tar shards; else all."""
    if pictures.kind == "shards":
        ends = tuple(f".{size}.{suffix}" for suffix in ("png", "jpg"))
        own = [i for i, name in enumerate(pictures.names) if name.endswith(ends)]
    else:
        own = [i for i, name in enumerate(pictures.names) if name.startswith(f"{size}/")]
    if not own:
        return pictures
    labels = None if pictures.labels is None else tuple(pictures.labels[i] for i in own)
    return replace(pictures, names=tuple(pictures.names[i] for i in own), labels=labels)


def load_labels(pictures: Pictures, usable: int) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The label of each picture and the labels' names; (None, ()) if the archive has none.

    Raises PgsrError if they are damaged, or a picture is not usable, so that it is unknown whose is whose.
    """
    if pictures.labels is not None:
        if len(pictures.labels) != usable:
            raise PgsrError(
                f"{len(pictures) - usable} labelled pictures in {pictures.source} cannot be used, so it "
                "is unknown whose labels are whose: prepare them with pgsr-data"
            )
        return np.array(pictures.labels, dtype=np.int64), pictures.label_names
    if pictures.kind != "zip":
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
    except (*UNREADABLE, IndexError, TypeError, OverflowError) as error:
        raise PgsrError(f"{LABELS} of {pictures.source} does not fit ({error}): prepare it again") from error
    return labels, names


def _mapped(cached: Path) -> NDArray[np.uint8] | None:
    """The decoded array, or None if there is none or it is damaged."""
    try:
        pixels: NDArray[np.uint8] = np.load(cached, mmap_mode="r")
        return pixels
    except (OSError, ValueError, EOFError):
        return None


def cache_folder() -> Path:
    """Returns where decoded data sets are kept: $PGSR_CACHE, or pgsr in the user's cache directory."""
    return writable_cache("data")


def _decode_all(pictures: Pictures, size: int, cached: Path, skipped: list[str]) -> None:
    """Decodes into one .npy; a picture that fails is reported in `skipped` and on stderr."""

    def pixels(picture: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(square(picture, size, Image.Resampling.LANCZOS))

    count = 0
    remove_leftovers(cached.parent)
    with ending_cleanly(), replacing(cached) as temporary, open(temporary, "wb") as file:
        hold(file)
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
    pictures: Pictures, size: int, work: Callable[[Image.Image], T], max_damaged: int = MAX_DAMAGED
) -> Iterator[tuple[str, T | None, str]]:
    """(name, work(picture), "") of each picture in order, or (name, None, why it cannot be used).

    Raises PgsrError if more than `max_damaged` cannot be read.
    """

    def one(name: str) -> tuple[str, T | None, str]:
        try:
            data = read(name)
        except UNREADABLE as error:
            return name, None, f"{UNREAD} ({error})"
        picture, why = problem(data, size)
        return name, None if picture is None else work(picture), why

    damage = Damage(max_damaged)
    progress = progress_bar(len(pictures), "decoding")
    workers = ThreadPoolExecutor(max_workers=os.cpu_count())
    with reading(pictures) as read, workers as pool, progress as bar:
        for start in range(0, len(pictures), 256):
            chunk = pictures.names[start : start + 256]
            for name, result, why in pool.map(one, chunk):
                yield name, result, why
                if why.startswith(UNREAD):
                    damage.count(name)
            bar.update(len(chunk))
