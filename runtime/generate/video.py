"""Interpolation videos: a smooth way through latent space (paper 2, section 6.3), frame by frame to one file.

    with Synthesizer() as synthesizer:
        make_video(synthesizer, Film(Path("faces.mp4"), seconds=10))

Memory does not grow with the length. The file appears when it is whole.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, replacing
from pgsr.machine import usable_cores

from ..output.animation import CONTAINERS, Container
from ..synthesizer import check_window
from .interpolation import LIMIT, walk

FPS = {".mp4": 60, ".gif": 50, ".webp": 60}  # unless the user says; paper 2 has 60
FASTEST = {".mp4": 240, ".gif": 50, ".webp": 240}  # browsers slow down a GIF with less than 20 ms a frame
LONGEST_SMOOTH = 60.0  # seconds

WEBP_QUALITY = 90
ENCODED_AHEAD = 4  # frames a thread


@dataclass(frozen=True)
class VideoJob:
    """What is wanted. Raises PgsrError for values out of range."""

    out: Path  # its ending is one of CONTAINERS
    seconds: float = 10.0
    fps: int = 0  # 0 is FPS
    smooth: float = 0.75  # standard deviation of the blur in seconds: paper 2's 45 frames at 60 Hz
    loop: bool = False  # whether the last frame is followed by the first
    seed: int = 0
    quality: int | None = None  # of .webp, 1 to 100

    def __post_init__(self) -> None:
        check_choice("the ending of --video", self.suffix, CONTAINERS)
        if self.out.is_dir():
            raise PgsrError(f"{self.out} is a folder: give --video a file's name")
        if self.fps == 0:
            object.__setattr__(self, "fps", FPS[self.suffix])
        if not 1 <= self.fps <= FASTEST[self.suffix]:
            raise PgsrError(
                f"--fps {self.fps} is not between 1 and the {FASTEST[self.suffix]} of {self.suffix}"
            )
        if not 0.0 <= self.smooth <= LONGEST_SMOOTH:
            raise PgsrError(f"--smooth {self.smooth} is not between 0 and {LONGEST_SMOOTH:g} seconds")
        if not 0.0 < self.seconds < float("inf") or self.frames < 1:
            raise PgsrError(f"--seconds {self.seconds} is not even a frame: give a longer time")
        if self.frames > sys.maxsize:
            raise PgsrError(
                f"--seconds {self.seconds} is longer than frames can be counted: give a shorter time"
            )
        self._check_quality()
        check_window(self.seed, self.frames, 0)

    def _check_quality(self) -> None:
        if self.suffix == ".webp" and self.quality is None:
            object.__setattr__(self, "quality", WEBP_QUALITY)
        elif self.quality is not None and self.suffix != ".webp":
            raise PgsrError(f"--quality is for .webp videos, not for {self.suffix}: leave it out")
        elif self.quality is not None and not 1 <= self.quality <= 100:
            raise PgsrError(f"--quality {self.quality} is not between 1 and 100")

    @property
    def suffix(self) -> str:
        return self.out.suffix.lower()

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)

    @property
    def sigma(self) -> float:
        """The blur's standard deviation in frames."""
        return self.smooth * self.fps

    @property
    def period(self) -> int:
        """Frames after which the way comes back."""
        return self.frames if self.loop else LIMIT


class Painter(Protocol):
    """Makes the pictures of latents, as a Synthesizer does."""

    bundle: Bundle

    @property
    def size(self) -> int: ...

    @property
    def note(self) -> dict[str, Any]: ...

    def pictures(self, latents: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.uint8]]: ...


def make_video(
    synthesizer: Painter,
    film: VideoJob,
    threads: int = 0,  # that encode; 0 is one a core, 8 at most
    report: Callable[[int], None] = lambda count: None,  # gets how many frames are made
) -> float:
    """Writes the film; gives back the seconds that it took.

    Raises PgsrError if the file cannot be written or the encoder is not installed.
    """
    began = time.perf_counter()
    make_folder(film.out.parent)
    note = {"seed": film.seed, **synthesizer.note, "smooth": film.smooth, "loop": film.loop}
    container_of = CONTAINERS[film.suffix]
    with (
        replacing(film.out) as temporary,
        container_of(temporary, synthesizer.size, film.fps, note, film.quality) as container,
    ):
        _fill(synthesizer, film, container, threads or min(8, usable_cores()), report)
    return time.perf_counter() - began


def _fill(
    synthesizer: Painter,
    film: VideoJob,
    container: Container,
    threads: int,
    report: Callable[[int], None],
) -> None:
    """Encodes on threads while the networks make the next frames; writes in order."""
    size = synthesizer.bundle.latent_size
    latents = walk(film.seed, range(film.frames), size, film.sigma, film.period)
    threads = threads if container.parallel else 1
    waiting: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pgsr-video")
    try:
        for count, picture in enumerate(synthesizer.pictures(latents), 1):
            waiting.append(pool.submit(container.encode, picture))
            if len(waiting) > ENCODED_AHEAD * threads:
                container.write(waiting.popleft().result())
            report(count)
        while waiting:
            container.write(waiting.popleft().result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def description(film: VideoJob) -> dict[str, Any]:
    """Returns what results say of a film."""
    return {
        "out": str(film.out),
        "seed": film.seed,
        "frames": film.frames,
        "fps": film.fps,
        "seconds_long": round(film.frames / film.fps, 3),
        "smooth": film.smooth,
        "loop": film.loop,
    }
