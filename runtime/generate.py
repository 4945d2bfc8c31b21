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

from .synthesizer import Synthesizer, check_window
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

    def __post_init__(self) -> None:
        check_window(self.seed, self.count, self.start)
        if self.out.exists() and not self.out.is_dir():
            raise PgsrError(f"{self.out} is a file, not a folder: name another --out")
        if self.sheet is not None and self.sheet.is_dir():
            raise PgsrError(f"{self.sheet} is a folder: give --sheet a file's name")

    @property
    def indices(self) -> range:
        return range(self.start, self.start + self.count)


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
    note = synthesizer.note(job.seed)
    made = 0
    with FolderWriter(job.out, job.encoding, note, job.threads) as writer:
        for indices, pictures in synthesizer.batches(job.seed, missing(job, synthesizer.size)):
            for index, picture in zip(indices, pictures, strict=True):
                writer.put(index, picture)
            made += len(indices)
            # Every index up to the last one of a batch is made or was there.
            report(indices[-1] - job.start + 1)
    report(job.count)
    if job.sheet is not None:
        _write_sheet(job, job.sheet)
    return Result(made, job.count - made, time.perf_counter() - began)


def survey(synthesizer: Synthesizer, job: Job) -> int:
    """How many images `generate` would make; changes nothing. Raises PgsrError as it does."""
    if job.out.is_dir():
        _check_claim(job.out, _manifest(synthesizer, job))
    return sum(1 for _ in missing(job, synthesizer.size))


def missing(job: Job, size: int) -> Iterator[int]:
    """The indices whose file is absent or damaged, in order, found as they are asked for."""
    rest = iter(job.indices)
    with ThreadPoolExecutor(job.threads or None) as pool:
        while chunk := list(islice(rest, CHECKED_AT_ONCE)):
            paths = [job.encoding.path(job.out, index) for index in chunk]
            whole = pool.map(job.encoding.is_whole, paths, [size] * len(paths))
            yield from (index for index, there in zip(chunk, whole, strict=True) if not there)


# ----------------------------------------------------------------------------
# The folder's manifest: all that a picture depends on, but for its index.


def _manifest(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "seed": job.seed,
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
    cells = [_cell(job.encoding.path(job.out, index)) for index in job.indices[:SHEET_IMAGES]]
    make_folder(path.parent)
    with replacing(path) as temporary:
        Image.fromarray(sheet(np.stack(cells), SHEET_COLUMNS)).save(temporary, format="PNG", compress_level=1)


def _cell(path: Path) -> NDArray[np.uint8]:
    """A picture, reduced by a whole number to SHEET_CELL or less: uint8 [S, S, 3]."""
    with Image.open(path) as picture:
        factor = -(-picture.width // SHEET_CELL)
        return np.asarray(picture.convert("RGB").reduce(factor), dtype=np.uint8)
