"""Videos and pictures to enlarge: work that has a thread to itself, and stops when it is told to."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pgsr.decoding import naming
from pgsr.errors import PgsrError
from pgsr.pictures import open_picture

from ..generate.video import Painter, VideoJob, make_video
from ..upscale.photographs import check_format, read_photograph, write_photograph
from ..upscale.run import format_of, note_of
from ..upscale.upscaler import Upscaler

HELD_BYTES = 2**26  # of a file in memory; what is longer lies on disk, without a name
NAME = "the picture"


class Stopped(Exception):
    """Nobody wants the work any more."""


class Job:
    """How far some work is, and whether it is still wanted."""

    def __init__(self) -> None:
        self.done = 0.0  # 0 to 1
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Lets the work end at its next step."""
        self._stopped.set()

    def tell(self, done: float) -> None:
        """Notes how far it is. Raises Stopped if it is to end."""
        self.done = done
        if self._stopped.is_set():
            raise Stopped


class TooLarge(PgsrError):
    """A picture of more pixels than the server enlarges."""


def make_film(painter: Painter, film: Callable[[Path], VideoJob], suffix: str, job: Job) -> IO[bytes]:
    """A video, as an open file that has no name any more. Raises PgsrError if it cannot be made."""
    with tempfile.TemporaryDirectory(prefix="pgsr-serve-") as folder:
        wanted = film(Path(folder) / f"video{suffix}")
        make_video(painter, wanted, report=lambda count: job.tell(count / wanted.frames))
        return open(wanted.out, "rb")


def enlarge(
    upscaler: Upscaler, data: bytes, format: str | None, quality: int | None, most_pixels: int, job: Job
) -> tuple[IO[bytes], str]:
    """A picture's file, enlarged as pgsr-upscale does, and its format: the same bytes.

    Raises TooLarge for more than `most_pixels`, PictureError if it cannot be read or written, and PgsrError
    if the graph cannot be run.
    """
    job.tell(0.0)
    _check_pixels(data, most_pixels)
    photograph = read_photograph(data, NAME)
    format = format or format_of(photograph)
    check_format(photograph, format, upscaler.scale)
    width, height = photograph.size

    def rows() -> Any:
        made = 0
        for band in upscaler.bands(height, width, photograph.rows):
            made += len(band)
            yield band
            job.tell(made / (height * upscaler.scale))

    file = tempfile.SpooledTemporaryFile(HELD_BYTES)  # noqa: SIM115 (the answer closes it)
    try:
        note = note_of(upscaler, photograph.sha256, quality)
        write_photograph(photograph, rows(), file, upscaler.scale, format, quality, note)
    except BaseException:
        file.close()
        raise
    return file, format


def _check_pixels(data: bytes, most: int) -> None:
    """Raises TooLarge before any pixel is decoded."""
    with naming(NAME), open_picture(data) as image:
        width, height = image.size
    if width * height > most:
        raise TooLarge(f"the picture has {width}x{height} pixels; at most {most:,} are enlarged here")
