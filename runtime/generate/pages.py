"""One page of faces without a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.files import make_folder, write_bytes
from pgsr.images import sheet

from ..output.writers import Encoding
from ..synthesizer import Synthesizer
from .interpolation import along
from .job import Report
from .latents import Source

GRID_MOST = 1024  # images; they are in memory together


@dataclass(frozen=True)
class Grid:
    """One page of faces. Raises PgsrError for values out of range."""

    path: Path  # a PNG
    columns: int = 8
    rows: int = 8
    between: bool = False  # a row leads from one face to the next, which the row below begins with

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 1 or self.most > GRID_MOST:
            raise PgsrError(f"--grid {self.columns}x{self.rows} is not 1 to {GRID_MOST} faces")
        if self.path.suffix.lower() != ".png" or self.path.is_dir():
            raise PgsrError(f"{self.path} is not a name for --grid's picture: let it end in .png")
        if self.between and self.columns < 2:
            raise PgsrError(f"--between: a row from face to face needs two columns, not {self.columns}")

    @property
    def most(self) -> int:
        return self.columns * self.rows

    @property
    def faces(self) -> int:
        """Of the source, at most."""
        return self.rows + 1 if self.between else self.most


def shows(source: Source, grid: Grid) -> Source | Between:
    """What the page's pictures are of. Raises PgsrError if a way between faces lacks its second."""
    return Between(source, grid.columns) if grid.between else source


def write_grid(
    synthesizer: Synthesizer, source: Source, grid: Grid, report: Report = lambda done: None
) -> int:
    """The first images of the source on one page, whole or not at all; gives back how many pictures.

    Raises PgsrError if the source has too few faces for rows between them.
    """
    shown = shows(source, grid)
    count = min(len(shown), grid.most)
    rows_of_pictures = []
    for positions, pictures in synthesizer.rendered(range(count), shown.latents):
        rows_of_pictures.append(pictures)
        report(positions[-1] + 1)
    make_folder(grid.path.parent)
    write_bytes(grid.path, Encoding("png").encode(sheet(np.concatenate(rows_of_pictures), grid.columns), {}))
    return count


@dataclass(frozen=True)
class Between:
    """Rows of so many latents, each from a face of the source to the next by equal angles."""

    source: Source
    columns: int

    def __post_init__(self) -> None:
        if len(self.source) < 2:
            raise PgsrError("--between leads from face to face: give it two or more")

    def __len__(self) -> int:
        return (len(self.source) - 1) * self.columns

    def latents(self, positions: list[int], size: int) -> NDArray[np.float32]:
        """[N, size]; the ends of a row are the faces' own."""
        return np.stack([self._latent(*divmod(position, self.columns), size) for position in positions])

    def _latent(self, row: int, column: int, size: int) -> NDArray[np.float32]:
        ends = self.source.latents([row, row + 1], size)
        return along(ends, column / (self.columns - 1))
