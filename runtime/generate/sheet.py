"""Contact sheets: small pictures of the first faces on one page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.files import make_folder, write_bytes
from pgsr.images import sheet

from ..output.encoders import decoded
from ..output.writers import FORMATS, Encoding
from .job import Job

SHEET_IMAGES = 64


SHEET_COLUMNS = 8


SHEET_CELL = 256  # pixels a side, at most


# ----------------------------------------------------------------------------
# The contact sheet.


class Cells:
    """The first pictures of a job as they are made; those that were there are read back."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._wanted = range(job.count)[:SHEET_IMAGES] if job.sheet else range(0)
        self._made: dict[int, NDArray[np.uint8]] = {}

    def look(self, position: int, picture: NDArray[np.uint8]) -> None:
        if position in self._wanted and FORMATS[self._job.encoding.format].quality is None:
            self._made[position] = _reduced(Image.fromarray(picture))

    def write(self, path: Path) -> None:
        """Writes the sheet, unless other shards still make some of it: the last one to end has them all."""
        if not all(p in self._made or self._job.path(p).exists() for p in self._wanted):
            return
        cells = [self._made[p] if p in self._made else self._read(p) for p in self._wanted]
        page = Encoding("png").encode(sheet(np.stack(cells), SHEET_COLUMNS), {})
        write_bytes(make_folder(path.parent) / path.name, page)

    def _read(self, position: int) -> NDArray[np.uint8]:
        data = self._job.path(position).read_bytes()
        return _reduced(Image.fromarray(decoded(data, self._job.encoding.format)))


def _reduced(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture, reduced by a whole number to SHEET_CELL or less: uint8 [S, S, 3]."""
    factor = -(-picture.width // SHEET_CELL)
    return np.asarray(picture.reduce(factor), dtype=np.uint8)
