"""Which pictures pgsr-upscale enlarges, and where what is made of them goes."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgsr import pictures
from pgsr.errors import PgsrError

from .notes import is_own

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FORMATS = {
    **{".png": "png", ".webp": "webp"},
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "jpeg"),
}
NO_FOLDERS = {*pictures.SUFFIXES, *(".jxl", ".heic", ".heif", ".psd", ".pdf", ".svg", ".exr", ".zip", ".tar")}
STDIN = "-"

OWN = "results of pgsr-upscale"  # reasons why files are left alone
NO_PICTURE = "no pictures by their names"


@dataclass(frozen=True)
class UpscaleTask:
    """A picture to enlarge, and where its result goes."""

    source: Path  # or STDIN
    place: Path  # relative to the output folder, with the source's suffix

    @property
    def format(self) -> str:
        """The format by the name's ending; PNG unless it is one that is written."""
        return FORMATS.get(self.source.suffix.lower(), "png")


@dataclass
class Found:
    """What was looked at."""

    tasks: list[UpscaleTask] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # sentences about what cannot be opened
    left_alone: Counter[str] = field(default_factory=Counter)  # files by the reason


def find(arguments: Iterable[str]) -> Found:
    """Files, folders (with all pictures under them) and patterns. A file that is named twice counts once.

    Results of pgsr-upscale are left alone in folders and patterns, and so are other files in folders.
    Raises PgsrError for an argument that names nothing.
    """
    found = Found()
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN or os.path.isfile(path):
            found.tasks.append(UpscaleTask(path, Path(path.name)))
        elif os.path.isdir(path):
            _in_folder(path, found)
        elif re.search(r"[*?\[]", argument):
            _by_pattern(argument, found)
        elif os.path.exists(path):
            raise PgsrError(f"{argument} is neither a file nor a folder")
        else:
            raise PgsrError(f"{argument} is not there")
    found.tasks = _once_each(found.tasks)
    return found


def _once_each(tasks: list[UpscaleTask]) -> list[UpscaleTask]:
    return list({os.path.realpath(task.source): task for task in reversed(tasks)}.values())[::-1]


def _by_pattern(pattern: str, found: Found) -> None:
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise PgsrError(f"no file matches {pattern}")
    for path in matches:
        if os.path.isfile(path) and is_own(path):
            found.left_alone[OWN] += 1
        elif os.path.isfile(path):
            found.tasks.append(UpscaleTask(path, Path(path.name)))
        elif os.path.islink(path) and not os.path.exists(path):
            found.refused.append(f"{path} is a link to nothing")


def _in_folder(folder: Path, found: Found) -> None:
    """Every picture below a folder, but for hidden ones. Links are followed, each folder is read once."""
    before = len(found.tasks), len(found.refused)
    own = found.left_alone[OWN]
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        found.refused.append(f"{error.filename} cannot be opened: {error.strerror}")

    for name, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        place = os.path.realpath(name)
        visible = [] if place in seen else sorted(f for f in folders if not f.startswith("."))
        folders[:] = visible
        for file in sorted(files) if place not in seen else ():
            _sort_file(Path(name) / file, folder, found)
        seen.add(place)
    if before == (len(found.tasks), len(found.refused)):
        others = f" but {OWN}" if found.left_alone[OWN] > own else ""
        raise PgsrError(f"{folder} holds no pictures{others}")


def _sort_file(path: Path, folder: Path, found: Found) -> None:
    if path.name.startswith("."):
        return
    if path.suffix.lower() not in pictures.SUFFIXES:
        found.left_alone[NO_PICTURE] += 1
    elif not os.path.exists(path):
        found.refused.append(f"{path} is a link to nothing")
    elif not os.path.isfile(path):
        found.left_alone["no regular files"] += 1
    elif is_own(path):
        found.left_alone[OWN] += 1
    else:
        found.tasks.append(UpscaleTask(path, path.relative_to(folder)))


# ----------------------------------------------------------------------------
# Where results go.


def check_out(out: Path, count: int, format: str | None) -> str | None:
    """Returns the format of the one file that `out` is; None for a folder.

    Raises PgsrError if it is neither a folder nor a name for a picture that is written.
    """
    suffix = out.suffix.lower()
    if out.is_dir():
        return None
    if suffix not in FORMATS:
        if suffix in NO_FOLDERS:
            raise PgsrError(f"--out {out}: pictures are written as {', '.join(SUFFIXES.values())}")
        if out.exists():
            raise PgsrError(f"--out {out} is a file: name a folder, or a picture that ends in .png")
        return None
    if count != 1:
        raise PgsrError(f"--out {out} is one file for {count} pictures: name a folder")
    if format not in (None, FORMATS[suffix]):
        raise PgsrError(f"--out {out} is no {format}: leave --format out")
    return FORMATS[suffix]


def targets(tasks: Sequence[UpscaleTask], out: Path, format: str | None) -> list[Path]:
    """Where each picture goes below a folder. Of a.jpg and a.jpeg, both of which would be a.jpg, the second
    becomes a.jpeg.jpg."""
    suffixes = [SUFFIXES[format or task.format] for task in tasks]
    short = [task.place.with_suffix(suffix) for task, suffix in zip(tasks, suffixes, strict=True)]
    wanted: dict[Path, set[Path]] = {}
    for task, place in zip(tasks, short, strict=True):
        wanted.setdefault(place, set()).add(task.place)
    result = []
    for task, place, suffix in zip(tasks, short, suffixes, strict=True):
        alone = len(wanted[place]) == 1 or task.place == place
        result.append(out / (place if alone else task.place.with_name(task.place.name + suffix)))
    return result
