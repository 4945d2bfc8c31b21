"""A run of pgsr-upscale: pictures read and enlarged on one thread, encoded and written on others.

What is large goes from the network to its file in rows, so that memory does not grow with the result. A
picture that cannot be made is named at the end and does not stop the others.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

import click

from pgsr.decoding import PictureError
from pgsr.errors import PgsrError
from pgsr.files import make_folder, remove_leftovers, replacing, sha256

from ..pipeline import Finisher, prefetch
from .notes import held_note
from .photographs import Photograph, Rows, check_format, read_photograph, write_photograph
from .tasks import SUFFIXES, Found, UpscaleTask, targets
from .upscaler import Upscaler

STREAM = Path("-")
BANDS_AHEAD = 1  # rows of tiles that wait for their encoder, besides the one at hand
SMALL = 2**25  # bytes of a result that is kept whole, so that several are encoded at once
SMALL_BEHIND = 4  # of them
HELD_BYTES = 2**26  # of stdout's file in memory; the rest of it is on disk
MOST_STDIN = 2**31  # bytes
TOLD = 5  # of the pictures that were not made

# What is wrong with one file's name or place, and says nothing of the others.
OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class Piece:
    """Some rows of a picture's result, or why there are no more."""

    position: int
    photograph: Photograph | None = None  # None if it could not be read
    rows: Rows | None = None
    error: PgsrError | None = None


class Run:
    """What is done with every picture."""

    def __init__(
        self, upscaler: Upscaler, out: Path, file_format: str | None, quality: int | None, overwrite: bool
    ) -> None:
        self.upscaler, self.out = upscaler, out
        self.format, self.quality, self.overwrite = file_format, quality, overwrite

    def stream(self, task: UpscaleTask) -> str:
        """One picture to stdout, when it is made."""
        began = time.perf_counter()
        streamed = task.source == STREAM
        photograph = read_photograph(*((_stdin(), "stdin") if streamed else (task.source, str(task.source))))
        format = self.format or (format_of(photograph) if streamed else task.format)
        check_format(photograph, format, self.upscaler.scale)
        with tempfile.SpooledTemporaryFile(HELD_BYTES) as file:
            self.write(photograph, self.bands(photograph), file, format)
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return f"{time.perf_counter() - began:.1f} s on {self.upscaler.provider}"

    def files(self, found: Found, is_file: bool) -> tuple[dict[str, Any], str]:
        """Pictures to files. Raises PgsrError at the end if some could not be made."""
        began = time.perf_counter()
        places = [self.out] if is_file else targets(found.tasks, self.out, self.format)
        batch = Batch(self, found, places)
        try:
            batch.run()
        except KeyboardInterrupt:
            raise PgsrError("stopped; the same command again makes the rest") from None
        batch.raise_refusals()
        seconds = time.perf_counter() - began
        result = {
            "out": str(self.out),
            "made": batch.made,
            "present": batch.present,
            "left_alone": dict(found.left_alone),
            "scale": self.upscaler.scale,
            "model": self.upscaler.bundle.name,
            "precision": self.upscaler.graph.precision,
            "provider": self.upscaler.provider,
            "seconds": round(seconds, 3),
        }
        others = "".join(f", {count} {reason} left alone" for reason, count in found.left_alone.items())
        text = f"{self.out}: {batch.made} made, {batch.present} already there{others}, {seconds:.1f} s"
        return result, f"{text} on {self.upscaler.provider}"

    def bands(self, photograph: Photograph) -> Iterator[Rows]:
        """The enlarged colours from top to bottom. Raises PgsrError if the graph cannot be run."""
        width, height = photograph.size
        try:
            yield from self.upscaler.bands(height, width, photograph.rows)
        except MemoryError:
            raise PgsrError(
                f"{photograph.name} takes more memory than there is: a smaller --tile takes less"
            ) from None

    def write(self, photograph: Photograph, larger: Iterable[Rows], file: IO[bytes], format: str) -> None:
        """Writes the enlarged picture, and says what of its metadata is left out."""
        note = self.note(photograph.sha256)
        lost = write_photograph(photograph, larger, file, self.upscaler.scale, format, self.quality, note)
        if lost:
            click.echo(f"note: {photograph.name}: left out, {', '.join(lost)}", err=True)

    def note(self, source_sha256: str) -> dict[str, Any]:
        """Returns what a file says of what it was made of."""
        return note_of(self.upscaler, source_sha256, self.quality)


def note_of(upscaler: Upscaler, source_sha256: str, quality: int | None) -> dict[str, Any]:
    """What a file says of what it was made of; the quality, if the user gave one."""
    entries = {"model": upscaler.graph.sha256, "source": source_sha256}
    return entries if quality is None else {**entries, "quality": quality}


def format_of(photograph: Photograph) -> str:
    """The format of a result when nobody named one: the picture's own, or PNG where that is not written."""
    return photograph.format if photograph.format in SUFFIXES else "png"


def _stdin() -> bytes:
    data = sys.stdin.buffer.read(MOST_STDIN + 1)
    if len(data) > MOST_STDIN:
        raise PgsrError(f"stdin holds more than {MOST_STDIN:,} bytes: name the file instead")
    return data


class Batch:
    """The pictures of a run, and what became of each. Also the sink of those that are kept whole."""

    ordered = False

    def __init__(self, run: Run, found: Found, places: Sequence[Path]) -> None:
        self.present = 0
        self._run, self._tasks, self._places = run, found.tasks, places
        self._elsewhere = found.refused
        self.refused: dict[int, str] = {}

    @property
    def made(self) -> int:
        return len(self._tasks) - self.present - len(self.refused)

    def run(self) -> None:
        """Makes what is not there yet."""
        for place in self._places:
            if any(place.parent.glob(f".{glob.escape(place.name)}.*.tmp")):
                remove_leftovers(place.parent, of=place)
        with (
            Finisher(self, limit=SMALL_BEHIND) as finisher,
            closing(prefetch(self._pieces(), BANDS_AHEAD)) as stream,
        ):
            for (position, is_small), pieces in groupby(stream, key=self._way):
                if is_small:
                    finisher.put([position], [list(pieces)])
                else:
                    self.write(position, pieces)

    def _way(self, piece: Piece) -> tuple[int, bool]:
        """Which picture a piece belongs to, and whether that is kept whole."""
        if piece.photograph is None:
            return piece.position, False
        width, height = piece.photograph.size
        return piece.position, width * height * self._run.upscaler.scale**2 * 3 <= SMALL

    # ------------------------------------------------------------------------
    # On the thread of the networks.

    def _pieces(self) -> Iterator[Piece]:
        """The results of all pictures, one after the other."""
        repeated = repeated_places(self._tasks, self._places)
        for position, (task, place) in enumerate(zip(self._tasks, self._places, strict=True)):
            try:
                if position in repeated:
                    raise PgsrError(repeated[position])
                yield from self._pieces_of(position, task, place)
            except PgsrError as error:
                yield Piece(position, error=error)

    def _pieces_of(self, position: int, task: UpscaleTask, place: Path) -> Iterator[Piece]:
        if self._is_there(task, place):
            self.present += 1
            return
        photograph = read_photograph(task.source, str(task.source))
        check_format(photograph, self._run.format or task.format, self._run.upscaler.scale)
        try:
            for rows in self._run.bands(photograph):
                yield Piece(position, photograph, rows)
        except PgsrError as error:
            yield Piece(position, photograph, error=error)

    def _is_there(self, task: UpscaleTask, place: Path) -> bool:
        """Raises PgsrError if something else is there."""
        if not os.path.exists(place):
            return False
        with suppress(OSError):  # the source may have gone
            if place.samefile(task.source):
                raise PgsrError(f"{place} would replace the picture that it is made of: name another --out")
        if held_note(place) == self._run.note(sha256(task.source)):
            return True
        if not self._run.overwrite:
            raise PgsrError(f"{place} is there and is something else: --overwrite replaces it")
        return False

    # ------------------------------------------------------------------------
    # On the threads of the encoders.

    def encode(self, position: int, picture: list[Piece]) -> list[Piece]:
        """Nothing; `write` does it, in rows."""
        return picture

    def write(self, position: int, pieces: Iterable[Piece]) -> None:
        """Writes a picture from its pieces, or notes why not. Raises PgsrError for what would stop the others
        as well."""
        pieces = iter(pieces)
        first = next(pieces)
        try:
            if first.error is None:
                self._write(position, first, pieces)
            else:
                self.refused[position] = str(first.error)
        except PgsrError as error:
            if _stops_all(error):
                raise
            self.refused[position] = str(error)

    def _write(self, position: int, first: Piece, rest: Iterator[Piece]) -> None:
        assert first.photograph is not None
        place, format = self._places[position], self._run.format or self._tasks[position].format
        with replacing(make_folder(place.parent) / place.name) as temporary, open(temporary, "wb") as file:
            self._run.write(first.photograph, _rows(chain([first], rest)), file, format)

    def raise_refusals(self) -> None:
        """Raises PgsrError if there was any."""
        messages = [*self._elsewhere, *(self.refused[position] for position in sorted(self.refused))]
        if error := refusal(messages, len(self._tasks) + len(self._elsewhere)):
            raise error


def repeated_places(tasks: Sequence[UpscaleTask], places: Sequence[Path]) -> dict[int, str]:
    """Returns why those are not made whose file another one before them would be, by position."""
    first: dict[Path, UpscaleTask] = {}
    sentences = {}
    for position, (task, place) in enumerate(zip(tasks, places, strict=True)):
        other = first.setdefault(place, task)
        if other is not task:
            both = f"{other.source} and {task.source} would both be {place}"
            sentences[position] = f"{both}: take them in turn, with another --out"
    return sentences


def refusal(messages: Sequence[str], count: int) -> PgsrError | None:
    """The sentence for pictures that are not made, of so many; None if there is none."""
    if not messages:
        return None
    more = "" if len(messages) <= TOLD else f"; and {len(messages) - TOLD} more"
    several = f"{len(messages)} of {count} are not made: " if count > 1 else ""
    return PgsrError(several + "; ".join(messages[:TOLD]) + more)


def _stops_all(error: PgsrError) -> bool:
    """Returns whether an error is of the disk, say, and not of one picture or its name."""
    number = getattr(error.__cause__, "errno", None)
    return number not in (None, *OF_ONE_FILE) and not isinstance(error, PictureError)


def _rows(pieces: Iterable[Piece]) -> Iterator[Rows]:
    for piece in pieces:
        if piece.error is not None:
            raise piece.error
        assert piece.rows is not None
        yield piece.rows
