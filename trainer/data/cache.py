"""Photographs: a folder, zip, tar shards or lmdb of pictures -> one memory-mapped uint8 array a size.

Every picture is decoded once; the array stays in the user's cache directory under the data set's
fingerprint, so a second run starts at once and memory holds only the pages in use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr import decoding
from pgsr.cli import progress_bar
from pgsr.errors import PgsrError
from pgsr.files import ending_cleanly, remove_leftovers, writable_cache
from pgsr.machine import usable_cores
from pgsr.schema import visible

from .listing import UNREADABLE, LeftOut, Pictures, Read, fingerprint_of
from .pixel_file import PixelFile, open_pixels, writing_pixels
from .sources import MAX_DAMAGED, Damage, of_size, open_pictures, reading

T = TypeVar("T")

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}  # paper 1, Table 1
REDUCED_BY = "lanczos"  # where nothing else is asked for

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


def upright(picture: Image.Image, height: int, width: int, resampling: Image.Resampling) -> Image.Image:
    """The middle of a picture at width x height, in the middle of a black square of the height."""
    scale = min(picture.width / width, picture.height / height)
    across, down = width * scale, height * scale
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    middle = picture
    if picture.size != (width, height):
        middle = picture.resize((width, height), resampling, box=(left, top, left + across, top + down))
    canvas = Image.new("RGB", (height, height))
    canvas.paste(middle, ((height - width) // 2, 0))
    return canvas


def problem(data: bytes, size: int, turn: bool = True, width: int = 0) -> tuple[Image.Image | None, str]:
    """The decoded picture, or None and why it cannot be used at `size`, or at width x size."""
    try:
        picture = decode(data, turn)
    except decoding.PictureError as error:
        return None, error.reason
    if picture.width < (width or size) or picture.height < size:
        return None, f"too small ({picture.width}x{picture.height})"
    return picture, ""


@dataclass(frozen=True)
class Photographs:
    """A data set at one size, decoded."""

    pixels: NDArray[np.uint8]  # [N, size, size, 3], memory-mapped
    fingerprint: str
    left_out: tuple[LeftOut, ...]  # of everything that was looked at
    labels: NDArray[np.int64] | None = None  # [N], where the archive has them
    label_names: tuple[str, ...] = ()
    positions: NDArray[np.int64] | None = None  # [N], in the source's listing; None: all of it
    older_fingerprint: str = ""  # that pgsr 0.1 gave these files
    as_stored: int = 0  # pictures that had this very size, so that nothing was resampled
    file: PixelFile | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def in_listing(self) -> NDArray[np.int64]:
        """The position of each in the source's listing: [N]."""
        return np.arange(len(self)) if self.positions is None else self.positions

    def check_length(self) -> None:
        """Raises PgsrError if the file behind the pixels has been cut short."""
        if self.file is not None:
            self.file.check_length()


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


def load_photographs(source: Path, size: int, reduce: str = REDUCED_BY, width: int = 0) -> Photographs:
    """All usable pictures at size x size, from the cache if they have been decoded before.

    With a `width` below the size they are width x size, in the middle of a black square.
    A prepared archive (pgsr-data) with that size gives its own pictures; any other is cropped to the
    centred square and reduced by a filter of FILTERS. Pictures that are damaged or too small, and a set
    that was prepared by another filter, are named on stderr.
    Raises PgsrError if fewer than two are left, or labels do not fit the pictures.
    """
    whole = open_pictures(source)
    pictures = of_size(whole, size)
    if whole.sizes and max(whole.sizes) < size:
        raise PgsrError(
            f"{source} was prepared at {','.join(map(str, whole.sizes))}, which is too small for {size}: "
            f"prepare it with pgsr-data --sizes {size}"
        )
    if reduce != REDUCED_BY and whole.filter not in ("", reduce):
        print(
            f"note: {source} was reduced by {whole.filter}, and {reduce} is asked for: prepare it with "
            f"pgsr-data --filter {reduce}",
            file=sys.stderr,
        )
    file = _pixel_file(pictures, size, reduce, width)
    if len(file.pixels) < 2:
        raise PgsrError(
            f"{source} has {len(file.pixels)} usable picture(s) of {size}x{size}; training needs at least 2"
        )
    labels = None if pictures.labels is None else np.array(pictures.labels, np.int64)[file.positions]
    return Photographs(
        file.pixels,
        pictures.fingerprint,
        (*pictures.left_out, *file.left_out),
        labels,
        pictures.label_names,
        file.positions,
        pictures.identity.older,
        file.as_stored,
        file,
    )


def first_size(source: Path) -> tuple[int, int] | None:
    """Width and height of a source's first picture, or the largest size that it was prepared at, twice; None
    if none of the first can be read."""
    pictures = open_pictures(source)
    if pictures.sizes:
        return max(pictures.sizes), max(pictures.sizes)
    with reading(pictures) as read:
        for name in pictures.names[:MAX_DAMAGED]:
            try:
                picture, _ = problem(read(name), 1)
            except UNREADABLE:
                continue
            if picture is not None:
                return picture.size
    return None


def _pixel_file(pictures: Pictures, size: int, reduce: str, width: int) -> PixelFile:
    """The decoded pictures, from the cache or anew."""
    by = ("" if reduce == REDUCED_BY else f"-{reduce}") + (f"-{width}" if width else "")
    cached = cache_folder() / f"{pictures.fingerprint[:32]}-{size}{by}-{decoding.VERSION}.npy"
    content = fingerprint_of([pictures.fingerprint, *pictures.names])  # and which of its pictures
    file = open_pixels(cached, content, size)
    if file is not None:
        return file
    if cached.exists():
        print(f"note: {cached} is damaged, or of an older version: decoding again", file=sys.stderr)
    _decode_all(pictures, size, reduce, width, cached, content)
    file = open_pixels(cached, content, size)
    if file is None:
        raise PgsrError(f"{cached} does not hold what was written to it: is the disk sound?")
    return file


def cache_folder() -> Path:
    """Returns where decoded data sets are kept: $PGSR_CACHE, or pgsr in the user's cache directory."""
    return writable_cache("data")


def _decode_all(pictures: Pictures, size: int, reduce: str, width: int, cached: Path, content: str) -> None:
    """Decodes into one file; a picture that fails is reported in it and on stderr."""

    def pixels(picture: Image.Image) -> tuple[NDArray[np.uint8], bool]:
        if width:
            made = upright(picture, size, width, FILTERS[reduce])
            return np.asarray(made), picture.size == (width, size)
        return np.asarray(square(picture, size, FILTERS[reduce])), min(picture.size) == size

    remove_leftovers(cached.parent)
    with ending_cleanly(), writing_pixels(cached, content, size) as file:
        for position, (name, decoded, why) in enumerate(each_picture(pictures, size, pixels, width=width)):
            if decoded is None:
                file.left_out.append(LeftOut(name, why))
                print(visible(f"skipped {name}: {why}"), file=sys.stderr)
            else:
                file.add(position, *decoded)


def each_picture(
    pictures: Pictures, size: int, work: Callable[[Image.Image], T], width: int = 0
) -> Iterator[tuple[str, T | None, str]]:
    """(name, work(picture), "") of each picture in order, or (name, None, why it cannot be used).

    Raises PgsrError if too many cannot be read.
    """
    damage = Damage()
    progress = progress_bar(len(pictures), "decoding")
    workers = ThreadPoolExecutor(max_workers=usable_cores())
    with reading(pictures) as read, workers as pool, progress as bar:
        for start in range(0, len(pictures), 256):
            chunk = pictures.names[start : start + 256]
            results = pool.map(lambda name: picture_made(read, name, size, work, width), chunk)
            for name, (result, why) in zip(chunk, results, strict=True):
                yield name, result, why
                if why.startswith(UNREAD):
                    damage.count(name)
            bar.update(len(chunk))


def picture_made(
    read: Read, name: str, size: int, work: Callable[[Image.Image], T], width: int = 0
) -> tuple[T | None, str]:
    """work(picture) of a picture's file, and ""; or None, and why it cannot be used at `size`."""
    try:
        data = read(name)
    except UNREADABLE as error:
        return None, f"{UNREAD} ({error})"
    picture, why = problem(data, size, width=width)
    return None if picture is None else work(picture), why
