"""Where a folder's latents come from: a stretch of one seed, one face of each of several seeds, or a file.

A source is a row of faces, counted from 0 by their position; `number` is what a face's file is called.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.files import sha256

from ..synthesizer import LIMIT, check_window


class Source(Protocol):
    """Where latents come from, one row for each face."""

    @property
    def identity(self) -> dict[str, Any]:
        """What, besides its number, decides a face."""
        ...

    def __len__(self) -> int: ...

    def number(self, position: int) -> int: ...

    def note(self, position: int) -> dict[str, Any]:
        """Returns what a face's file says of its origin; its index, unless that is the number."""
        ...

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        """[N, size]. Raises PgsrError if the source cannot give latents of that size."""
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

    def number(self, position: int) -> int:
        return self.start + position

    def note(self, position: int) -> dict[str, Any]:
        return {"seed": self.seed}

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        return draws.latents(self.seed, [self.number(i) for i in positions], size)


@dataclass(frozen=True)
class Seeds:
    """Image 0 of each of several seeds, in files called by the seed."""

    text: str  # "0-99,200": seeds and stretches of them, both ends included

    def __post_init__(self) -> None:
        """Raises PgsrError for a text that is none, or names a seed twice."""
        ordered = sorted(self.ranges, key=lambda r: r.start)
        for before, after in pairwise(ordered):
            if after.start < before.stop:
                raise PgsrError(f"--seeds {self.text} names seed {after.start} twice")

    @cached_property
    def ranges(self) -> list[range]:
        parts = self.text.split(",")
        matches = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part) for part in parts]
        ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in matches if m]
        if len(ranges) < len(parts) or not all(ranges) or any(r.stop > LIMIT for r in ranges):
            raise PgsrError(f"--seeds {self.text!r} is not a list of seeds below 2**64: write it as 0-99,200")
        return ranges

    @property
    def identity(self) -> dict[str, Any]:
        return {"seed": "as the file is called"}

    def __len__(self) -> int:
        return sum(r.stop - r.start for r in self.ranges)

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


@dataclass(frozen=True)
class Stored:
    """The rows of a .npy file, in files called by the row."""

    path: Path

    def __post_init__(self) -> None:
        """Raises PgsrError if the file is not one of latents."""
        if self._rows.ndim != 2 or len(self._rows) == 0 or self._rows.dtype.kind != "f":
            raise PgsrError(
                f"{self.path} holds {self._rows.dtype} {list(self._rows.shape)}: latents are floating-point "
                "numbers, a row for each face"
            )

    @cached_property
    def _rows(self) -> NDArray[Any]:
        try:
            rows: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PgsrError(f"{self.path} cannot be read as a .npy file: {error}") from error
        return rows

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"seed": None, "latents": sha256(self.path)}

    def __len__(self) -> int:
        return len(self._rows)

    def number(self, position: int) -> int:
        return position

    def note(self, position: int) -> dict[str, Any]:
        return {"latents": self.identity["latents"]}

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        if self._rows.shape[1] != size:
            raise PgsrError(
                f"{self.path} holds latents of {self._rows.shape[1]} numbers; this model takes {size}"
            )
        rows = np.asarray(self._rows[positions], dtype=np.float32)
        if not np.isfinite(rows).all():
            raise PgsrError(f"{self.path} holds numbers that are not finite in rows {positions[0]} and after")
        return rows
