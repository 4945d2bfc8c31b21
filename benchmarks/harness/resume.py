"""Rows of a long measurement, kept in a file as they come, so that a run that was killed goes on.

kept = Kept(out / "conv.rows.jsonl", settings)
row = kept.get(key) or kept.add(key, measured())
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import make_folder, write_text


class Kept:
    """A file of JSON lines: what they were measured with, then a key and its row each."""

    def __init__(self, path: Path | None, measured_with: Mapping[str, Any]) -> None:
        """Without a path nothing outlives the process. Raises PgsrError for a file of other settings."""
        self.path, self._rows = path, {}
        if path is None:
            return
        first = json.dumps(measured_with, sort_keys=True)
        lines = _whole_lines(path)
        if lines and lines[0] != first:
            raise PgsrError(
                f"{path} was measured with other settings or another machine: give those again, or name "
                "another --out"
            )
        self._rows = {entry["key"]: entry["row"] for entry in map(json.loads, lines[1:])}
        make_folder(path.parent)
        write_text(path, "".join(f"{line}\n" for line in lines or [first]))  # without half a line at the end

    def get(self, key: str) -> dict[str, Any] | None:
        """The row under a key, if it is there."""
        return self._rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        """Keeps a row and returns it. Raises PgsrError if it cannot be written."""
        self._rows[key] = row
        if self.path is not None:
            try:
                with open(self.path, "a") as file:
                    file.write(json.dumps({"key": key, "row": row}) + "\n")
            except OSError as error:
                raise PgsrError(f"cannot write {self.path}: {error.strerror}") from error
        return row


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file up to the first that is no JSON: the process may have been killed in the last."""
    if not path.is_file():
        return []
    result = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            json.loads(line)
        except ValueError:
            break
        result.append(line)
    return result
