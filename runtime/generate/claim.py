"""A folder's manifest: all that its pictures depend on but their indices, so that no two jobs mix in it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

from pgsr.bundle import Graph
from pgsr.errors import PgsrError
from pgsr.files import temporary_beside, write_text
from pgsr.schema import document, one_of, record, shortened, whole

from ..output.writers import FORMATS, LEAST_DIGITS, MOST_DIGITS
from .job import Job

MANIFEST = "manifest.json"
SCHEMA = "pgsr-faces-1"
FACES = record({"schema": one_of(SCHEMA)}, {"digits": whole(LEAST_DIGITS, MOST_DIGITS)})


class Maker(Protocol):
    """What of a synthesizer decides what it makes."""

    @property
    def graph(self) -> Graph: ...

    @property
    def truncation(self) -> float: ...

    @property
    def size(self) -> int: ...


def manifest(synthesizer: Maker, job: Job) -> dict[str, Any]:
    """Makes the manifest of a job's folder."""
    return {
        "schema": SCHEMA,
        **job.faces.identity,
        "model": synthesizer.graph.sha256,
        "precision": synthesizer.graph.precision,
        "truncation": synthesizer.truncation,
        "format": job.encoding.format,
        "quality": job.encoding.quality,
        "size": synthesizer.size,
        "digits": job.digits,
    }


def claim(folder: Path, manifest: dict[str, Any]) -> int:
    """Writes the manifest into the folder, if it has none. Returns the digits of its files' names: those of
    whoever came first, so that a folder goes on as it began."""
    path = folder / MANIFEST
    digits = claimed_digits(folder, manifest)
    if digits is None and _write_first(path, json.dumps(manifest, indent=1) + "\n"):
        return int(manifest["digits"])
    return digits or claimed_digits(folder, manifest) or int(manifest["digits"])


def _write_first(path: Path, text: str) -> bool:
    """Writes a file that is not there, whole; returns whether nobody else did so at the same time."""
    temporary = temporary_beside(path)
    write_text(temporary, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        write_text(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def claimed_digits(folder: Path, manifest: dict[str, Any]) -> int | None:
    """Returns the digits of a folder's files if it holds this manifest, and None if it holds none.

    Raises PgsrError if it holds another, or none but files with the names of faces.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        _refuse_strangers(folder)
        return None
    there = document(path, FACES, "manifest of a folder of faces", "name another --out")
    # Folders are older than truncation and digits.
    claim = {"truncation": 1.0, "digits": LEAST_DIGITS, **there}
    differing = [name for name in manifest if name != "digits" and claim.get(name) != manifest[name]]
    if differing:
        differences = ", ".join(
            f"{name} {_short(claim.get(name))}, not {_short(manifest[name])}" for name in differing
        )
        raise PgsrError(f"{folder} holds faces made with {differences}: name another --out")
    return int(claim["digits"])


def _short(value: Any) -> str:
    """A value for a sentence; hashes are cut."""
    return shortened(str(value), 20)


def _refuse_strangers(folder: Path) -> None:
    """Raises PgsrError if files stand where faces would go: they may be somebody's pictures."""
    suffixes = "|".join(re.escape(entry.suffix) for entry in FORMATS.values())
    face = re.compile(rf"\d{{6,}}({suffixes})")
    for path in folder.iterdir():
        if face.fullmatch(path.name):
            raise PgsrError(f"{folder} holds {path.name} but no {MANIFEST}: name another --out")
