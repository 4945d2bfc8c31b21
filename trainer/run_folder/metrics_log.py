"""metrics.jsonl: one JSON object a line, by images shown. A crash may cut the last line in half."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgsr.files import write_text


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, in order; none if it is not there."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [record for record in map(_parsed, lines) if record is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "images_shown" in record else None


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
