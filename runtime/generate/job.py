"""Faces to a folder, an archive or a stream: what is missing is made, what is there stays.

    with Synthesizer() as synthesizer:
        result = generate(synthesizer, Job(out=Path("faces"), count=1000))

A folder holds 000000.png and so on, named by index, manifest.json, which says what they were made with, and a
contact sheet of the first of them. faces.tar and faces.zip hold 000000.png and 000000.json and so on, in
WebDataset's form; `-` is raw pixels on stdout. Memory does not grow with the count.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing, write_bytes, write_text
from pgsr.images import sheet

from ..output.archives import ArchiveFile, form_of, members, partial
from ..output.encoders import decoded
from ..output.writers import (
    FORMATS,
    ArchiveSink,
    Encoding,
    Faces,
    FolderSink,
    RawSink,
    note_json,
    sample_names,
)
from ..pipeline import Finisher, Sink, encoding_threads
from ..synthesizer import Synthesizer
from .latents import Source, Window

MANIFEST = "manifest.json"
SCHEMA = "pgsr-faces-1"
STDOUT = Path("-")

SHEET_IMAGES = 64
SHEET_COLUMNS = 8
SHEET_CELL = 256  # pixels a side, at most

CHECKED_AT_ONCE = 64  # files
WORTH_TUNING = 512  # images: measuring the fastest batch takes seconds

Report = Callable[[int], None]  # is told how many of the images are made or were there


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

    def __post_init__(self) -> None:
        if self.source is None:
            object.__setattr__(self, "source", Window(self.seed, self.start, self.count))
        object.__setattr__(self, "count", len(self.faces))
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
        return self.encoding.path(self.out, self.faces.number(position))


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


def generate(
    synthesizer: Synthesizer,
    job: Job,
    report: Report = lambda count: None,
    stream: BinaryIO | None = None,  # where a job to STDOUT writes
) -> Result:
    """Makes the images of `job` that are not there, and a folder's contact sheet.

    Raises PgsrError if there is something else in their place or it cannot be written.
    """
    if len(job.positions) >= WORTH_TUNING:
        synthesizer.tune()
    began = time.perf_counter()
    if job.is_archive:
        count = _to_archive(synthesizer, job, report)
    elif job.is_folder:
        count = _to_folder(synthesizer, job, report)
    else:
        assert stream is not None
        count = _make(synthesizer, job, job.positions, RawSink(stream), report)
        stream.flush()
    report(len(job.positions))
    return Result(count, len(job.positions) - count, time.perf_counter() - began)


write_faces = generate  # as pgsr.runtime calls it, where `generate` is this module


def _make(
    synthesizer: Synthesizer,
    job: Job,
    positions_to_make: Iterator[int] | range,
    sink: Sink,
    report: Report,
    look: Callable[[int, NDArray[np.uint8]], None] = lambda position, picture: None,  # is shown every picture
) -> int:
    """The pipeline: makes the pictures at these positions; gives back how many."""
    count, first, step = 0, job.positions.start, job.positions.step
    with Finisher(sink, job.threads) as finisher:
        rendered = synthesizer.rendered(positions_to_make, job.faces.latents, early=True)
        with contextlib.closing(rendered):
            for positions, pictures in rendered:
                finisher.put(positions, pictures)
                count += len(positions)
                for position, picture in zip(positions, pictures, strict=True):
                    look(position, picture)
                # All up to the last one of a batch are made or were there.
                report((positions[-1] - first) // step + 1)
    return count


def faces_of(synthesizer: Synthesizer, job: Job, more: dict[str, Any]) -> Faces:
    """Numbers and notes of a job's faces."""

    def note(position: int) -> dict[str, Any]:
        own = job.faces.note(position)
        index = own.get("index", job.faces.number(position))
        return {**own, **synthesizer.note, "index": index, **more}

    return Faces(job.faces.number, note)


def survey(synthesizer: Synthesizer, job: Job) -> int:
    """Returns how many images `generate` would make; changes nothing. Raises PgsrError as it does."""
    if job.is_archive:
        return len(job.positions) - _present(synthesizer, job)[0]
    if job.is_folder and job.out.is_dir():
        _check_claim(job.out, _manifest(synthesizer, job))
    return sum(1 for _ in missing(job, synthesizer.size)) if job.is_folder else len(job.positions)


# ----------------------------------------------------------------------------
# A folder.


def _to_folder(synthesizer: Synthesizer, job: Job, report: Report) -> int:
    sink = FolderSink(job.out, job.encoding, faces_of(synthesizer, job, {}))
    _claim(make_folder(job.out), _manifest(synthesizer, job))
    _remove_leftovers(job.out)
    cells = Cells(job)
    count = _make(synthesizer, job, missing(job, synthesizer.size), sink, report, cells.look)
    if job.sheet is not None:
        cells.write(job.sheet)
    if job.latents is not None:
        _write_latents(synthesizer, job, job.latents)
    return count


def missing(job: Job, size: int) -> Iterator[int]:
    """The positions whose file is absent or damaged, in order, found as they are asked for."""
    rest = iter(job.positions)
    with ThreadPoolExecutor(encoding_threads(job.threads)) as pool:
        while chunk := list(islice(rest, CHECKED_AT_ONCE)):
            present = [position for position in chunk if os.path.exists(job.path(position))]
            checks = {p: pool.submit(job.encoding.is_whole, job.path(p), size) for p in present}
            yield from (p for p in chunk if p not in checks or not checks[p].result())


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes had half written; other processes of this machine may be writing."""
    for path in folder.glob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# ----------------------------------------------------------------------------
# An archive: its samples stand in the order of their positions, so what is there is its beginning.


def _to_archive(synthesizer: Synthesizer, job: Job, report: Report) -> int:
    if job.out.exists():
        _present(synthesizer, job)
        return 0
    make_folder(job.out.parent)
    with ArchiveFile(job.out) as archive:
        count, length = _present(synthesizer, job)
        archive.keep(length)
        sink = ArchiveSink(archive, job.encoding, faces_of(synthesizer, job, _manifest_of_a_sample(job)))
        return _make(synthesizer, job, job.positions[count:], sink, report)


def _present(synthesizer: Synthesizer, job: Job) -> tuple[int, int]:
    """Returns how many samples an archive or the beginning of one holds, and where they end.

    Raises PgsrError if it is of other faces, or whole but of fewer or more.
    """
    path = job.out if job.out.exists() else partial(job.out)
    if not path.exists():
        return 0, 0
    faces = faces_of(synthesizer, job, _manifest_of_a_sample(job))
    count, length = 0, 0
    contents = members(path)
    for position, picture, note in zip(job.positions, contents, contents, strict=False):
        names = sample_names(job.encoding, faces.number(position))
        if (picture[0].name, note[0].name) != names or note[1] != note_json(faces.note(position)):
            raise PgsrError(f"{path} holds other faces: name another --out, or remove it")
        if not job.encoding.is_whole_data(picture[1], synthesizer.size):
            break
        count, length = count + 1, note[0].end
    if path == job.out and (count < len(job.positions) or next(contents, None) is not None):
        raise PgsrError(f"{path} holds other faces: name another --out, or remove it")
    return count, length


def _manifest_of_a_sample(job: Job) -> dict[str, Any]:
    """Returns what a sample's JSON says beside the note that is in the picture, too."""
    quality = {} if job.encoding.quality is None else {"quality": job.encoding.quality}
    return {"format": job.encoding.format, **quality}


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
    """Returns whether the folder holds this manifest.

    Raises PgsrError if it holds another, or none but files with the names of faces.
    """
    path = folder / MANIFEST
    try:
        claim = json.loads(path.read_text())
    except FileNotFoundError:
        _refuse_strangers(folder)
        return False
    except (OSError, ValueError) as error:
        raise PgsrError(f"{path} cannot be read: name another --out, or remove it and its faces") from error
    if not isinstance(claim, dict) or claim.get("schema") != SCHEMA:
        raise PgsrError(f"{path} is not of a folder of faces: name another --out")
    claim = {"truncation": 1.0, **claim}  # folders from before there was one
    differing = [name for name in manifest if claim.get(name) != manifest[name]]
    if differing:
        differences = ", ".join(
            f"{name} {_short(claim.get(name))}, not {_short(manifest[name])}" for name in differing
        )
        raise PgsrError(f"{folder} holds faces made with {differences}: name another --out")
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
    rows_of_pictures = []
    for positions, pictures in synthesizer.rendered(range(count), source.latents):
        rows_of_pictures.append(pictures)
        report(positions[-1] + 1)
    make_folder(grid.path.parent)
    write_bytes(grid.path, Encoding("png").encode(sheet(np.concatenate(rows_of_pictures), grid.columns), {}))
    return count
