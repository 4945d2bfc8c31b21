"""What was measured once on this machine: small JSON files in the user's cache directory.

    value = recall("batch", key)          # None if nobody measured that
    remember("batch", key, 8)

A key is a dictionary of all that could change the value: machine, versions, model. A cache that cannot be
read or written is as good as an empty one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import cache_root, make_folder, write_text
from pgsr.machine import processor_information, processor_name, usable_cores
from pgsr.schema import read_json

Key = Mapping[str, Any]


def folder() -> Path:
    """The folder of measurements in the user's cache directory."""
    return cache_root() / "measured"


def recall(kind: str, key: Key) -> Any:
    """Returns what was remembered under this key, or None."""
    try:
        entry = read_json(_path(kind, key))
    except (PgsrError, ValueError):
        return None
    fits = isinstance(entry, dict) and entry.get("key") == json.loads(json.dumps(key))
    return entry.get("value") if fits else None


def remember(kind: str, key: Key, value: Any) -> None:
    """Keeps a value that JSON can hold."""
    try:
        path = _path(kind, key)
        make_folder(path.parent)
        write_text(path, json.dumps({"key": key, "value": value}, indent=1, sort_keys=True) + "\n")
    except PgsrError:
        return  # measured again the next time


def _path(kind: str, key: Key) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder() / f"{kind}-{digest[:16]}.json"


@cache
def machine() -> dict[str, Any]:
    """Returns what of this machine decides how fast something is."""
    lines = processor_information().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "cpu": sorted(names) or [processor_name()],
        "cores": usable_cores(),
        "arithmetic threads": os.environ.get("OMP_NUM_THREADS"),
    }
