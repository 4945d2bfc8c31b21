"""Where the pictures of CelebA-HQ's making come from: files and a table of landmarks, or drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.files import sha256

from .. import celeba
from ..listing import Pictures
from ..sources import open_pictures
from . import wild


@dataclass(frozen=True)
class Files:
    """CelebA's in-the-wild pictures."""

    pictures: Pictures
    table: celeba.Table

    @property
    def names(self) -> tuple[str, ...]:
        return self.pictures.names

    @property
    def identity(self) -> dict[str, Any]:
        return {"pictures": self.pictures.fingerprint, "landmarks": sha256(self.table.path)}

    @property
    def older_fingerprint(self) -> str:
        """Of the pictures, as pgsr 0.1 wrote it down."""
        return self.pictures.identity.older

    @property
    def place(self) -> Place:
        return Pictures(self.pictures.source, (), self.pictures.kind, shards=self.pictures.shards)

    def landmarks(self, name: str) -> NDArray[np.float64] | None:
        """[5, 2], or None where the table has none."""
        name_in_table = celeba.file_name(name)
        return celeba.landmarks(self.table, name_in_table) if name_in_table in self.table else None


@dataclass(frozen=True)
class Drawn:
    """Cartoon faces with known landmarks (trainer/data/celebahq/wild.py)."""

    count: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{i:06d}.jpg" for i in range(self.count))

    @property
    def identity(self) -> dict[str, Any]:
        return {"procedural": self.count}

    @property
    def older_fingerprint(self) -> str:
        """None: drawn pictures are known by their number."""
        return ""

    @property
    def place(self) -> Place:
        return None

    def landmarks(self, name: str) -> NDArray[np.float64] | None:
        index = int(PurePosixPath(name).stem)
        return wild.landmarks(index, wild.view(index)).round()  # CelebA's are whole numbers


Source = Files | Drawn
Place = Pictures | None  # where files are to be read; None: drawn. As little as worker processes need


def drawn_file(name: str) -> bytes:
    """The JPEG file of a drawn picture."""
    buffer = io.BytesIO()
    index = int(PurePosixPath(name).stem)
    wild.draw(index, wild.view(index)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def open_source(source: Path, landmarks: Path | None) -> Files:
    """Raises PgsrError if pictures or landmarks are missing, or two pictures have one name."""
    pictures = open_pictures(source)
    table = celeba.read_table(landmarks or celeba.find(source, celeba.LANDMARKS))
    table.need(celeba.LANDMARK_COLUMNS)
    stems = [PurePosixPath(name).stem for name in pictures.names]
    if len(set(stems)) < len(stems):
        twice = next(name for name in stems if stems.count(name) > 1)
        raise PgsrError(f"{source} has two pictures named {twice}: landmarks and results go by the name")
    return Files(pictures, table)
