"""Faces to a folder, an archive or a stream: what is missing is made, what is there stays.

    with Synthesizer() as synthesizer:
        result = generate(synthesizer, Job(out=Path("faces"), count=1000))

A folder holds 000000.png and so on, named by index, manifest.json, which says what they were made with, and a
contact sheet of the first of them. faces.tar and faces.zip hold 000000.png and 000000.json and so on, in
WebDataset's form; `-` is raw pixels on stdout. Memory does not grow with the count.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import RawIOBase
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.files import make_folder, remove_leftovers, replacing

from ..output.archives import ArchiveFile, members, partial
from ..output.writers import (
    LEAST_DIGITS,
    MOST_DIGITS,
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
from .claim import claim, claimed_digits, manifest
from .job import Job, Report, Result
from .latents import Source
from .sheet import Cells

CHECKED_AT_ONCE = 64  # files


WORTH_TUNING = 512  # images: measuring the fastest batch takes seconds


def generate(
    synthesizer: Synthesizer,
    job: Job,
    report: Report = lambda count: None,
    stream: BinaryIO | RawIOBase | None = None,  # where a job to STDOUT writes; without a buffer, see RawSink
) -> Result:
    """Makes the images of `job` that are not there, and a folder's contact sheet.

    Raises PgsrError if there is something else in their place or it cannot be written.
    """
    job.faces.check(synthesizer.bundle.latent_size)
    if len(job.positions) >= WORTH_TUNING:
        synthesizer.tune()
    began = time.perf_counter()
    if job.is_archive:
        count = _to_archive(synthesizer, job, report)
    elif job.is_folder:
        count = _to_folder(synthesizer, job, report)
    else:
        assert stream is not None
        count = make(synthesizer, job, job.positions, RawSink(stream), report)
    report(len(job.positions))
    return Result(count, len(job.positions) - count, time.perf_counter() - began)


def make(
    synthesizer: Synthesizer,
    job: Job,
    positions_to_make: Iterator[int] | range,
    sink: Sink,
    report: Report,
    look: Callable[[int, NDArray[np.uint8]], None] = lambda position, picture: None,  # is shown every picture
) -> int:
    """The pipeline: makes the pictures at these positions; gives back how many."""
    count, first, step = 0, job.positions.start, job.positions.step
    with Finisher(sink, job.threads, may_hang=isinstance(sink, RawSink)) as finisher:
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
        return {**note_of(job.faces, position, synthesizer.note), **more}

    return Faces(job.faces.number, note, job.digits)


def note_of(source: Source, position: int, made_with: dict[str, Any]) -> dict[str, Any]:
    """What the file of the face at a position of a source says of its making."""
    own = source.note(position)
    return {**own, **made_with, "index": own.get("index", source.number(position))}


def encoding_note(encoding: Encoding) -> dict[str, Any]:
    """What the JSON of an archive's sample says beside the note that is in the picture, too."""
    quality = {} if encoding.quality is None else {"quality": encoding.quality}
    return {"format": encoding.format, **quality}


def survey(synthesizer: Synthesizer, job: Job) -> int:
    """Returns how many images `generate` would make; changes nothing. Raises PgsrError as it does.

    It takes as long as there are files, whatever the count.
    """
    job.faces.check(synthesizer.bundle.latent_size)
    count = len(job.positions)
    if job.is_archive:
        return count - _present(synthesizer, _like_the_archive(job))[0]
    if not job.is_folder or not job.out.is_dir():
        return count
    digits = claimed_digits(job.out, manifest(synthesizer, job))
    return count - _whole(replace(job, digits=digits or job.digits), synthesizer.size)


def _whole(job: Job, size: int) -> int:
    """Returns how many of a job's files are in its folder, whole."""
    names = (entry.name for entry in os.scandir(job.out))
    paths = (job.out / name for name in names if job.position(name) is not None)
    count = 0
    with ThreadPoolExecutor(encoding_threads(job.threads)) as pool:
        while chunk := list(islice(paths, CHECKED_AT_ONCE)):
            count += sum(pool.map(lambda path: job.encoding.is_whole(path, size), chunk))
    return count


# ----------------------------------------------------------------------------
# A folder.


def _to_folder(synthesizer: Synthesizer, job: Job, report: Report) -> int:
    job.encoding.codec  # noqa: B018 (raises PgsrError before the folder is made)
    job = replace(job, digits=claim(make_folder(job.out), manifest(synthesizer, job)))
    sink = FolderSink(job.out, job.encoding, faces_of(synthesizer, job, {}))
    remove_leftovers(job.out)
    cells = Cells(job)
    count = make(synthesizer, job, missing(job, synthesizer.size), sink, report, cells.look)
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


# ----------------------------------------------------------------------------
# An archive: its samples stand in the order of their positions, so what is there is its beginning.


def _like_the_archive(job: Job) -> Job:
    """The job with as many digits as the archive's first name has, so that an archive goes on as it began."""
    path = job.out if job.out.exists() else partial(job.out)
    if not path.exists():
        return job
    for member, _ in islice(members(path), 1):
        digits = member.name.partition(".")[0]
        if digits.isascii() and digits.isdecimal() and LEAST_DIGITS <= len(digits) <= MOST_DIGITS:
            return replace(job, digits=len(digits))
    return job


def _to_archive(synthesizer: Synthesizer, job: Job, report: Report) -> int:
    job = _like_the_archive(job)
    if job.out.exists():
        _present(synthesizer, job)
        return 0
    make_folder(job.out.parent)
    with ArchiveFile(job.out) as archive:
        count, length = _present(synthesizer, job)
        archive.keep(length)
        sink = ArchiveSink(archive, job.encoding, faces_of(synthesizer, job, encoding_note(job.encoding)))
        return make(synthesizer, job, job.positions[count:], sink, report)


def _present(synthesizer: Synthesizer, job: Job) -> tuple[int, int]:
    """Returns how many samples an archive or the beginning of one holds, and where they end.

    Raises PgsrError if it is of other faces, or whole but of fewer or more.
    """
    path = job.out if job.out.exists() else partial(job.out)
    if not path.exists():
        return 0, 0
    faces = faces_of(synthesizer, job, encoding_note(job.encoding))
    count, length = 0, 0
    contents = members(path)
    for position, picture, note in zip(job.positions, contents, contents, strict=False):
        names = sample_names(job.encoding, faces.number(position), faces.digits)
        if (picture[0].name, note[0].name) != names or note[1] != note_json(faces.note(position)):
            raise PgsrError(f"{path} holds other faces: name another --out, or remove it")
        if not job.encoding.is_whole_data(picture[1], synthesizer.size):
            break
        count, length = count + 1, note[0].end
    if path == job.out and (count < len(job.positions) or next(contents, None) is not None):
        raise PgsrError(f"{path} holds other faces: name another --out, or remove it")
    return count, length


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


write_faces = generate  # as pgsr.runtime calls it
