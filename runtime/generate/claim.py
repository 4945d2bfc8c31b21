"""A folder's manifest: all that its pictures depend on but their indices, so that no two jobs mix in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import write_text

from ..output.writers import FORMATS
from ..synthesizer import Synthesizer
from .job import Job

MANIFEST = "manifest.json"


SCHEMA = "pgsr-faces-1"


# ----------------------------------------------------------------------------
# The folder's manifest: all that a picture depends on, but for its index.


def manifest(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
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
    }


def claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest into the folder, if it has none."""
    if not check_claim(folder, manifest):
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def check_claim(folder: Path, manifest: dict[str, Any]) -> bool:
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
