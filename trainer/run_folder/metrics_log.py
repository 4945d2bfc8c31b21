"""metrics.jsonl: one JSON object a line, by images shown.

A crash may cut the last line in half, and users may write lines of their own: what is no record is passed
over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pgsr.files import open_regular, write_text


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, in order; none if it is not there."""
    if not path.exists():
        return []
    with open_regular(path) as file:
        return [record for record in map(_parsed, file) if record is not None]


NUMBERS = (
    "step",
    "resolution",
    "alpha",
    "batch",
    "learning_rate_scale",
    "images_per_second",
    "seconds",
    "swd_images",
)
NUMBER_PREFIXES = ("loss/", "learning_rate/", "watch/", "swd/", "stability/", "stability L2/")
STEP = ("step", "resolution", "alpha", "batch")  # what a line of a step has


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_record(record) else None


def _is_record(line: Mapping[str, Any]) -> bool:
    shown = line.get("images_shown")
    if type(shown) is not int or not 0 <= shown < 2**53 or not isinstance(line.get("rollback", ""), str):
        return False
    numbers = [v for k, v in line.items() if k in NUMBERS or k.startswith(NUMBER_PREFIXES)]
    complete = "step" not in line or all(name in line for name in STEP)
    return complete and all(type(value) in (int, float) for value in numbers)


def seconds_of_training(lines: Iterable[Mapping[str, Any]], images_shown: int | None = None) -> list[float]:
    """Returns how long training had taken at each line of a step; then, if `images_shown` is given, at so
    many images.

    Where nothing was clocked (runs of pgsr 0.1, and what came between the last line and a checkpoint), the
    time is that of the images at the speed of the line.
    """
    result: list[float] = []
    shown, seconds, speed = 0, 0.0, 0.0
    for line in lines:
        speed = _positive(line, "images_per_second") or speed
        clock = _positive(line, "seconds")
        seconds = clock or seconds + _seconds(line["images_shown"] - shown, speed)
        shown = line["images_shown"]
        result.append(seconds)
    if images_shown is not None:
        result.append(seconds + _seconds(images_shown - shown, speed))
    return result


def _positive(line: Mapping[str, Any], name: str) -> float:
    """A number of a line; 0 where there is none that a clock could show."""
    value = line.get(name, 0.0)
    return float(value) if 1e-9 < value < 1e12 else 0.0


def _seconds(images: int, speed: float) -> float:
    return max(0, images) / speed if speed else 0.0


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record as one line. Raises PgsrError if the disk is full."""
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")


def forget_after(path: Path, images_shown: int, learning_rate_scale: float) -> None:
    """Keeps what led to a state: lines up to its images, and rollbacks up to its scale.

    Raises PgsrError if the file cannot be written.
    """
    if not path.exists():
        return
    lines = [
        record
        for record in read(path)
        if record["images_shown"] <= images_shown
        and record.get("learning_rate_scale", 1.0) >= learning_rate_scale
    ]
    write_text(path, "".join(f"{json.dumps(record)}\n" for record in lines))
