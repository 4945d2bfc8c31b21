"""Pictures of any source -> their files in an archive, some at a time, by the threads of this machine or by a
Ray cluster.

    with recoding(sources, settings) as recode:
        for part, made in zip(parts, recode(parts)):
            ...                                     # made: an Encoded for each picture of the part

What becomes of a part is a function of the part alone, `Recoder`, wherever it is called; what comes out comes
in the parts' order. So an archive made on a cluster has the bytes of one made here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from PIL import Image

from pgsr.crew import Hiring, Mapped, connected
from pgsr.errors import PgsrError, check_choice
from pgsr.machine import usable_cores

from . import procedural
from .cache import FILTERS, picture_made, square
from .listing import Pictures, Read, no_identity
from .mnist_cifar import Native
from .sources import MAX_DAMAGED, reading

LARGEST_SIDE = 2**13  # pixels of a prepared picture
PART = 32  # pictures of a part, or fewer of
PART_BYTES = 2**22  # pixels of a part


@dataclass(frozen=True)
class Settings:
    """What every picture of an archive goes through."""

    sizes: tuple[int, ...]  # sides of the square pictures kept; (): the sources' own
    resampling: str  # a name in FILTERS
    image_format: str  # "png" or "jpeg"
    quality: int  # of JPEG
    max_damaged: int = MAX_DAMAGED  # pictures of a source that may be damaged

    def __post_init__(self) -> None:
        check_choice("--filter", self.resampling, FILTERS)
        if self.sizes and not 4 <= min(self.sizes) <= max(self.sizes) <= LARGEST_SIDE:
            raise PgsrError(f"--sizes must name sides of at least 4 and at most {LARGEST_SIDE}: 64,256")
        twice = [size for size in self.sizes if self.sizes.count(size) > 1]
        if twice:
            raise PgsrError(f"--sizes names {twice[0]} twice")

    @property
    def suffix(self) -> str:
        """The ending of the files' names."""
        return "png" if self.image_format == "png" else "jpg"

    def encode(self, picture: Image.Image) -> list[bytes]:
        """The picture's file at each size."""
        return [self._file(square(picture, size, FILTERS[self.resampling])) for size in self.sizes]

    def _file(self, picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        if self.image_format == "png":
            picture.save(buffer, "PNG", compress_level=1)
        else:
            picture.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        return buffer.getvalue()


@dataclass(frozen=True)
class Drawn:
    """Procedural pictures as a source."""

    count: int
    side: int  # pixels
    labels: None = None

    def __len__(self) -> int:
        return self.count

    def picture(self, index: int) -> Image.Image:
        """One picture, in RGB."""
        return procedural.draw(index, self.side)


Source = Pictures | Native | Drawn


@dataclass(frozen=True)
class Part:
    """Some pictures of a source."""

    source: int  # its place among the sources
    positions: range


@dataclass(frozen=True)
class Encoded:
    """A picture on its way into the archive."""

    name: str
    files: list[bytes] | None  # at each size; None if it cannot be used
    why: str = ""


def parts_of(sources: Sequence[Source], settings: Settings) -> list[Part]:
    """All pictures, in order, so many at a time that they fit memory at every size."""
    size = max(1, min(PART, PART_BYTES // sum(3 * side**2 for side in settings.sizes)))
    return [
        Part(number, range(len(source))[start : start + size])
        for number, source in enumerate(sources)
        for start in range(0, len(source), size)
    ]


class Recoder:
    """Open sources: a part -> what becomes of its pictures. Several threads may call it."""

    def __init__(self, sources: Sequence[Source], settings: Settings) -> None:
        """Raises PgsrError if a source is not there."""
        self._sources, self._settings, self._open = sources, settings, ExitStack()
        self._reads: list[Read | None] = []  # of pictures in files
        for source in sources:
            _check_there(source)
            files = self._open.enter_context(reading(source)) if isinstance(source, Pictures) else None
            self._reads.append(files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._open.close()

    def __call__(self, part: Part) -> list[Encoded]:
        return [self._encoded(part.source, position) for position in part.positions]

    def _encoded(self, number: int, position: int) -> Encoded:
        source, read, encode = self._sources[number], self._reads[number], self._settings.encode
        if read is not None:
            assert isinstance(source, Pictures)
            name = source.names[position]
            files, why = picture_made(read, name, max(self._settings.sizes), encode)
            return Encoded(f"{source.source.name}/{name}", files, why)
        assert not isinstance(source, Pictures)
        name = f"{source.source.name}/{position}" if isinstance(source, Native) else f"procedural {position}"
        return Encoded(name, encode(source.picture(position)))


def _check_there(source: Source) -> None:
    """Raises PgsrError if pictures are not where they were listed, as on a node that does not see them: each
    would be taken for a damaged one."""
    if isinstance(source, Pictures):
        file = source.source / source.names[-1] if source.kind == "folder" and not source.shards else None
        if not (file or source.source).exists():
            raise PgsrError(f"{file or source.source} is not there; on a cluster, all nodes must see it")


# ----------------------------------------------------------------------------
# Who does it.

Recode = Callable[[Sequence[Part]], Iterator[list[Encoded]]]


@contextmanager
def recoding(sources: Sequence[Source], settings: Settings) -> Iterator[Recode]:
    """By threads of this process, one a core."""
    threads = usable_cores()
    with Recoder(sources, settings) as recoder, ThreadPoolExecutor(threads) as pool:

        def recode(parts: Sequence[Part]) -> Iterator[list[Encoded]]:
            for start in range(0, len(parts), 4 * threads):  # not all at once: they are held until written
                yield from pool.map(recoder, parts[start : start + 4 * threads])

        yield recode


@contextmanager
def recoding_on(
    address: str, workers: int | None, sources: Sequence[Source], settings: Settings
) -> Iterator[Recode]:
    """By workers of a Ray cluster with a core each, whose nodes see the sources.

    Raises PgsrError if there is no such cluster.
    """
    sent = [_to_be_sent(source) for source in sources]
    hiring = Hiring("cpu", 1, workers)
    with connected(address) as ray, Mapped(ray, partial(Recoder, sent, settings), hiring, "part") as crew:
        yield crew.map


def _to_be_sent(source: Source) -> Source:
    """As other processes find it, without what only this one needs."""
    if not isinstance(source, Pictures):
        return source
    return replace(
        source, source=Path(source.source).absolute(), left_out=(), identify=no_identity, whole=None
    )
