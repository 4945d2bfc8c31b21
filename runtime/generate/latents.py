"""Where a folder's latents come from: a stretch of one seed, one face of each of several seeds, or a file.

A source is a row of faces, counted from 0 by their position; `number` is what a face's file is called.
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.files import open_regular, sha256
from pgsr.schema import shortened

from ..synthesizer import LIMIT, check_window


class Source(Protocol):
    """Where latents come from, one row for each face."""

    @property
    def identity(self) -> dict[str, Any]:
        """What, besides its number, decides a face."""
        ...

    def __len__(self) -> int: ...

    @property
    def last(self) -> int:
        """The largest number of all."""
        ...

    def number(self, position: int) -> int: ...

    def position(self, number: int) -> int | None:
        """Returns where the face of that number stands; None if it is not among these."""
        ...

    def check(self, size: int) -> None:
        """Raises PgsrError if the source cannot give latents of that size."""
        ...

    def note(self, position: int) -> dict[str, Any]:
        """Returns what a face's file says of its origin; its index, unless that is the number."""
        ...

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        """[N, size], as `check` has allowed."""
        ...


@dataclass(frozen=True)
class Window:
    """Images start ... start + count - 1 of one seed."""

    seed: int = 0
    start: int = 0
    count: int = 64

    def __post_init__(self) -> None:
        check_window(self.seed, self.count, self.start)

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def __len__(self) -> int:
        return self.count

    @property
    def last(self) -> int:
        return self.start + self.count - 1

    def number(self, position: int) -> int:
        return self.start + position

    def position(self, number: int) -> int | None:
        return number - self.start if self.start <= number <= self.last else None

    def check(self, size: int) -> None:
        """Any size will do."""

    def note(self, position: int) -> dict[str, Any]:
        return {"seed": self.seed}

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        return draws.latents(self.seed, [self.number(i) for i in positions], size)


SEEDS = r"\s*(\d{1,30})(?:-(\d{1,30}))?\s*"  # zeros may lead


@dataclass(frozen=True)
class Seeds:
    """Image 0 of each of several seeds, in files called by the seed."""

    text: str  # "0-99,200": seeds and stretches of them, both ends included

    def __post_init__(self) -> None:
        """Raises PgsrError for a text that is none, names a seed twice, or more seeds than can be counted."""
        if sum(r.stop - r.start for r in self.ranges) > sys.maxsize:
            raise PgsrError(f"--seeds {shortened(self.text)} names more than {sys.maxsize} seeds: name fewer")
        ordered = sorted(self.ranges, key=lambda r: r.start)
        for before, after in pairwise(ordered):
            if after.start < before.stop:
                raise PgsrError(f"--seeds {shortened(self.text)} names seed {after.start} twice")

    @cached_property
    def ranges(self) -> list[range]:
        parts = self.text.split(",")
        matches = [re.fullmatch(SEEDS, part, re.ASCII) for part in parts]
        ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in matches if m]
        if len(ranges) < len(parts) or not all(ranges) or any(r.stop > LIMIT for r in ranges):
            raise PgsrError(
                f"--seeds {shortened(self.text)!r} is not a list of seeds below 2**64: write it as 0-99,200"
            )
        return ranges

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": "as the file is called"}

    def __len__(self) -> int:
        return sum(r.stop - r.start for r in self.ranges)

    @cached_property
    def last(self) -> int:
        return max(stretch.stop - 1 for stretch in self.ranges)

    def position(self, number: int) -> int | None:
        before = 0
        for stretch in self.ranges:
            if number in stretch:
                return before + number - stretch.start
            before += stretch.stop - stretch.start
        return None

    def check(self, size: int) -> None:
        """Any size will do."""

    def number(self, position: int) -> int:
        for stretch in self.ranges:
            if position < stretch.stop - stretch.start:
                return stretch.start + position
            position -= stretch.stop - stretch.start
        raise IndexError(position)

    def note(self, position: int) -> dict[str, Any]:
        return {"seed": self.number(position), "index": 0}

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        return np.concatenate([draws.latents(self.number(i), [0], size) for i in positions])


LARGEST = 1e4  # of a latent's numbers; half precision ends at 65,504
ROWS_AT_ONCE = 2**22  # bytes of a stored file that are looked at together


@dataclass(frozen=True)
class Stored:
    """The rows of a .npy file, in files called by the row."""

    path: Path

    def __post_init__(self) -> None:
        """Raises PgsrError if the file is not one of latents."""
        if self._rows.ndim != 2 or self._rows.size == 0 or self._rows.dtype.kind != "f":
            raise PgsrError(
                f"{self.path} holds {shortened(str(self._rows.dtype))} {list(self._rows.shape)}: latents are "
                "floating-point numbers, a row for each face"
            )

    @cached_property
    def _rows(self) -> NDArray[Any]:
        with open_regular(self.path):  # a pipe would be waited for, a device has no end
            pass
        try:
            with warnings.catch_warnings(action="ignore"):
                return np.lib.format.open_memmap(self.path, mode="r")
        except Exception as error:  # whatever numpy's parser of Python's literals and mmap raise
            reason = shortened(str(error) or repr(error), 200)
            raise PgsrError(f"{self.path} cannot be read as a .npy file: {reason}") from error

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"seed": None, "latents": sha256(self.path)}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def last(self) -> int:
        return len(self._rows) - 1

    def number(self, position: int) -> int:
        return position

    def position(self, number: int) -> int | None:
        return number if number <= self.last else None

    def note(self, position: int) -> dict[str, Any]:
        return {"latents": self.identity["latents"]}

    def check(self, size: int) -> None:
        """Raises PgsrError, too, for numbers that are not finite or so large that networks overflow."""
        width = self._rows.shape[1]
        if width != size:
            raise PgsrError(f"{self.path} holds latents of {width} numbers; this model takes {size}")
        step = max(1, ROWS_AT_ONCE // (width * self._rows.dtype.itemsize))
        for start in range(0, len(self._rows), step):
            good = (np.abs(self._rows[start : start + step]) <= LARGEST).all(axis=1)  # not of NaN
            if not good.all():
                row = start + int(np.argmin(good))
                raise PgsrError(
                    f"{self.path} holds numbers in row {row} that are not finite or beyond {LARGEST:g}: "
                    "latents are about standard normal"
                )

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        return np.asarray(self._rows[positions], dtype=np.float32)
