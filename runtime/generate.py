"""A folder of faces: what is missing in it is made, what is there stays.

    with Synthesizer() as synthesizer:
        result = generate(synthesizer, Job(out=Path("faces"), count=1000))

The folder holds 000000.png and so on, named by index, manifest.json, which says what they were made
with, and a contact sheet of the first of them. Memory does not grow with the count.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing, write_text
from pgsr.images import sheet

from .sources import Source, Window
from .synthesizer import Synthesizer
from .writers import FORMATS, Encoding, FolderWriter

MANIFEST = "manifest.json"
SCHEMA = "pgsr-faces-1"

SHEET_IMAGES = 64
SHEET_COLUMNS = 8
SHEET_CELL = 256  # pixels a side, at most

CHECKED_AT_ONCE = 64  # files

Report = Callable[[int], None]  # is told how many of the images are made or were there


@dataclass(frozen=True)
class Job:
    """What is wanted. Raises PgsrError for values out of range."""

    out: Path
    count: int = 64
    start: int = 0
    seed: int = 0
    encoding: Encoding = field(default_factory=Encoding)
    sheet: Path | None = None  # where the contact sheet goes, if anywhere
    threads: int = 0  # that encode; 0 is one a core, 8 at most
    source: Source | None = None  # of latents, in place of images start ... start + count - 1 of the seed
    latents: Path | None = None  # where the latents go as the networks get them, if anywhere

    def __post_init__(self) -> None:
        if self.source is None:
            object.__setattr__(self, "source", Window(self.seed, self.start, self.count))
        object.__setattr__(self, "count", len(self.faces))
        if self.out.exists() and not self.out.is_dir():
            raise PgsrError(f"{self.out} is a file, not a folder: name another --out")
        if self.sheet is not None and self.sheet.is_dir():
            raise PgsrError(f"{self.sheet} is a folder: give --sheet a file's name")

    @property
    def faces(self) -> Source:
        """The source, whichever it is."""
        assert self.source is not None
        return self.source

    def path(self, position: int) -> Path:
        """The file of the face at a position of the source."""
        return self.encoding.path(self.out, self.faces.number(position))


@dataclass(frozen=True)
class Result:
    """What was done."""

    made: int
    present: int  # whole already, and left alone
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Of those made."""
        return self.made / self.seconds if self.seconds > 0 else 0.0


def generate(synthesizer: Synthesizer, job: Job, report: Report = lambda done: None) -> Result:
    """Makes the images of `job` that its folder does not hold, and the contact sheet.

    Raises PgsrError if the folder holds something else or cannot be written.
    """
    began = time.perf_counter()
    _claim(make_folder(job.out), _manifest(synthesizer, job))
    made = 0
    with FolderWriter(job.out, job.encoding, synthesizer.note, job.threads) as writer:
        wanted = missing(job, synthesizer.size)
        for positions, pictures in synthesizer.rendered(wanted, job.faces.latents):
            for position, picture in zip(positions, pictures, strict=True):
                writer.put(job.faces.number(position), picture, job.faces.note(position))
            made += len(positions)
            report(positions[-1] + 1)  # all up to the last one of a batch are made or were there
    report(job.count)
    if job.sheet is not None:
        _write_sheet(job, job.sheet)
    if job.latents is not None:
        _write_latents(synthesizer, job, job.latents)
    return Result(made, job.count - made, time.perf_counter() - began)


def survey(synthesizer: Synthesizer, job: Job) -> int:
    """How many images `generate` would make; changes nothing. Raises PgsrError as it does."""
    if job.out.is_dir():
        _check_claim(job.out, _manifest(synthesizer, job))
    return sum(1 for _ in missing(job, synthesizer.size))


def missing(job: Job, size: int) -> Iterator[int]:
    """The positions whose file is absent or damaged, in order, found as they are asked for."""
    rest = iter(range(job.count))
    with ThreadPoolExecutor(job.threads or None) as pool:
        while chunk := list(islice(rest, CHECKED_AT_ONCE)):
            paths = [job.path(position) for position in chunk]
            whole = pool.map(job.encoding.is_whole, paths, [size] * len(paths))
            yield from (position for position, there in zip(chunk, whole, strict=True) if not there)


# ----------------------------------------------------------------------------
# The folder's manifest: all that a picture depends on, but for its index.


def _manifest(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **job.faces.identity,
        "model": synthesizer.graph.sha256,
        "precision": synthesizer.graph.precision,
        "truncation": synthesizer.truncation,
        "format": job.encoding.format,
        "quality": job.encoding.quality,
        "size": synthesizer.size,
    }


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest into the folder, if it has none."""
    if not _check_claim(folder, manifest):
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _check_claim(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the folder holds this manifest.

    Raises PgsrError if it holds another, or none but files with the names of faces.
    """
    path = folder / MANIFEST
    try:
        held = json.loads(path.read_text())
    except FileNotFoundError:
        _refuse_strangers(folder)
        return False
    except (OSError, ValueError) as error:
        raise PgsrError(f"{path} cannot be read: name another --out, or remove it and its faces") from error
    if not isinstance(held, dict) or held.get("schema") != SCHEMA:
        raise PgsrError(f"{path} is not of a folder of faces: name another --out")
    held = {"truncation": 1.0, **held}  # folders from before there was one
    differing = [name for name in manifest if held.get(name) != manifest[name]]
    if differing:
        told = ", ".join(
            f"{name} {_short(held.get(name))}, not {_short(manifest[name])}" for name in differing
        )
        raise PgsrError(f"{folder} holds faces made with {told}: name another --out")
    return True


def _short(value: Any) -> str:
    """A value for a sentence; hashes are cut."""
    return str(value)[:20]


def _refuse_strangers(folder: Path) -> None:
    """Raises PgsrError if files stand where faces would go: they may be somebody's pictures."""
    suffixes = "|".join(re.escape(entry.suffix) for entry in FORMATS.values())
    face = re.compile(rf"\d{{6,}}({suffixes})")
    for path in folder.iterdir():
        if face.fullmatch(path.name):
            raise PgsrError(f"{folder} holds {path.name} but no {MANIFEST}: name another --out")


# ----------------------------------------------------------------------------
# The contact sheet, read back from the files: those that were there belong on it too.


def _write_sheet(job: Job, path: Path) -> None:
    cells = [_cell(job.path(position)) for position in range(job.count)[:SHEET_IMAGES]]
    make_folder(path.parent)
    with replacing(path) as temporary:
        Image.fromarray(sheet(np.stack(cells), SHEET_COLUMNS)).save(temporary, format="PNG", compress_level=1)


def _cell(path: Path) -> NDArray[np.uint8]:
    """A picture, reduced by a whole number to SHEET_CELL or less: uint8 [S, S, 3]."""
    with Image.open(path) as picture:
        factor = -(-picture.width // SHEET_CELL)
        return np.asarray(picture.convert("RGB").reduce(factor), dtype=np.uint8)


# ----------------------------------------------------------------------------
# Latents beside the images, and images on one page without a folder.


def _write_latents(synthesizer: Synthesizer, job: Job, path: Path) -> None:
    """One row for each face, float32 [count, L], after truncation; a few rows at a time."""
    size = synthesizer.bundle.latent_size
    make_folder(path.parent)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (job.count, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, job.count, CHECKED_AT_ONCE):
            positions = list(range(job.count)[start : start + CHECKED_AT_ONCE])
            file.write(synthesizer.truncated(job.faces.latents(positions, size)).astype("<f4").tobytes())


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
    made = []
    for positions, pictures in synthesizer.rendered(range(count), source.latents):
        made.append(pictures)
        report(positions[-1] + 1)
    make_folder(grid.path.parent)
    with replacing(grid.path) as temporary:
        page = sheet(np.concatenate(made), grid.columns)
        Image.fromarray(page).save(temporary, format="PNG", compress_level=1)
    return count
