"""One page of faces without a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgsr.errors import PgsrError
from pgsr.files import make_folder, write_bytes
from pgsr.images import sheet

from ..output.writers import Encoding
from ..synthesizer import Synthesizer
from .job import Report
from .latents import Source

GRID_MOST = 1024  # images; they are in memory together


@dataclass(frozen=True)
class Grid:
    """One page of faces. Raises PgsrError for values out of range."""

    path: Path  # a PNG
    columns: int = 8
    rows: int = 8

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 1 or self.most > GRID_MOST:
            raise PgsrError(f"--grid {self.columns}x{self.rows} is not 1 to {GRID_MOST} faces")
        if self.path.suffix.lower() != ".png" or self.path.is_dir():
            raise PgsrError(f"{self.path} is not a name for --grid's picture: let it end in .png")

    @property
    def most(self) -> int:
        return self.columns * self.rows


def write_grid(
    synthesizer: Synthesizer, source: Source, grid: Grid, report: Report = lambda done: None
) -> int:
    """The first images of the source on one page, whole or not at all; gives back how many."""
    count = min(len(source), grid.most)
    rows_of_pictures = []
    for positions, pictures in synthesizer.rendered(range(count), source.latents):
        rows_of_pictures.append(pictures)
        report(positions[-1] + 1)
    make_folder(grid.path.parent)
    write_bytes(grid.path, Encoding("png").encode(sheet(np.concatenate(rows_of_pictures), grid.columns), {}))
    return count
