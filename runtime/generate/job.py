"""What pgsr-generate is to make: a job, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pgsr.errors import PgsrError

from ..output.archives import form_of
from ..output.writers import MOST_DIGITS, Encoding, digits_of
from .latents import Source, Window

STDOUT = Path("-")


Report = Callable[[int], None]  # gets how many of the images are made or were there


@dataclass(frozen=True)
class Job:
    """What is wanted. Raises PgsrError for values out of range."""

    out: Path  # a folder, an archive (.tar, .zip), or STDOUT
    count: int = 64
    start: int = 0
    seed: int = 0
    encoding: Encoding = field(default_factory=Encoding)
    sheet: Path | None = None  # where the contact sheet goes, if anywhere; of a folder
    threads: int = 0  # that encode; 0 is one a core
    source: Source | None = None  # of latents, in place of images start ... start + count - 1 of the seed
    latents: Path | None = None  # where the latents go as the networks get them, if anywhere; of a folder
    shard: tuple[int, int] = (0, 1)  # (k, n): of every n faces the one at place k; others make the rest
    digits: int = 0  # of files' names; 0 is as many as the largest number has, so that names sort

    def __post_init__(self) -> None:
        if self.source is None:
            object.__setattr__(self, "source", Window(self.seed, self.start, self.count))
        object.__setattr__(self, "count", len(self.faces))
        if self.digits == 0:
            object.__setattr__(self, "digits", digits_of(self.faces.last))
        k, n = self.shard
        if not 0 <= k < n:
            raise PgsrError(f"--shard {k}/{n} is not one of 0/{n} to {max(0, n - 1)}/{n}")
        if not self.positions:
            raise PgsrError(f"--shard {k}/{n} of {self.count} faces is empty: take fewer shards")
        if self.is_folder and self.out.exists() and not self.out.is_dir():
            raise PgsrError(f"{self.out} is a file, not a folder: name another --out")
        if self.is_archive and self.out.is_dir():
            raise PgsrError(f"{self.out} is a folder, not an archive: name another --out")
        for option, path in (("--sheet", self.sheet), ("--save-latents", self.latents)):
            if path is not None and not self.is_folder:
                raise PgsrError(f"{option} is for a folder of faces, not for --out {self.out}: leave it out")
        if self.sheet is not None and self.sheet.is_dir():
            raise PgsrError(f"{self.sheet} is a folder: give --sheet a file's name")

    @property
    def is_archive(self) -> bool:
        return form_of(self.out) is not None

    @property
    def is_folder(self) -> bool:
        return self.out != STDOUT and not self.is_archive

    @property
    def faces(self) -> Source:
        """The source, whichever it is."""
        assert self.source is not None
        return self.source

    @property
    def positions(self) -> range:
        """The places of this shard's faces in the source."""
        k, n = self.shard
        return range(k, self.count, n)

    def path(self, position: int) -> Path:
        """The file of the face at a position of the source."""
        return self.encoding.path(self.out, self.faces.number(position), self.digits)

    def position(self, name: str) -> int | None:
        """The position of the face whose file in the folder has this name; None if it is not this job's."""
        digits = name.partition(".")[0]
        if not digits.isascii() or not digits.isdecimal() or len(digits) > MOST_DIGITS:
            return None
        position = self.faces.position(int(digits))
        if position not in self.positions or name != self.encoding.name(int(digits), self.digits):
            return None
        return position


@dataclass(frozen=True)
class Result:
    """What was done."""

    made: int
    present: int  # whole already, and left alone
    seconds: float

    @property
    def images_per_second(self) -> float:
        """The speed of the images that were made."""
        return self.made / self.seconds if self.seconds > 0 else 0.0
