"""What files hold, in four bytes each: the CRC-32 that a zip keeps of its members, for files anywhere.

    crc32_of_files(Path("photos"), names)["a.jpg"].crc

A file is read once. Its sum is kept in the cache beside what the file system says of it: size, inode, times
of its contents and of its entry. Where one of these has changed, it is read again. A time too near to the
reading is not believed, since a later write might bear the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgsr.cli import progress_bar
from pgsr.errors import PgsrError
from pgsr.files import regular_handle, writable_cache, write_bytes
from pgsr.machine import usable_cores
from pgsr.schema import parsed_json

CHUNK = 2**20  # bytes read at a time
SETTLED_NS = 2_000_000_000  # the coarsest times that file systems keep

State = tuple[int, int, int, int]  # size, inode, and when contents and entry changed, in nanoseconds


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    size: int
    modified_ns: int
    crc: int


def crc32_of_files(folder: Path, names: Sequence[str]) -> dict[str, Content]:
    """The contents of files below a folder. One that cannot be read counts as empty; it is named when its
    picture is asked for."""
    return remembered(folder, names, _crc32)


def remembered(folder: Path, names: Sequence[str], measure: Callable[[Path], int]) -> dict[str, Content]:
    """What `measure` says of each file, asked only where the file is not known as it is now."""
    store = _store(folder, measure.__name__)
    known = _load(store)
    states = {name: _state(folder / name) for name in names}
    now = time.time_ns()
    unknown = [name for name in names if known.get(name, ())[:-1] != states[name]]
    bar = progress_bar(len(unknown), "looking at contents")
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool, bar:
        for name, crc in zip(unknown, pool.map(lambda n: measure(folder / n), unknown), strict=True):
            known[name] = (*states[name], crc)
            bar.update(1)
    if unknown:
        _save(store, {name: known[name] for name in names if _settled(states[name], now)})
    return {name: Content(states[name][0], states[name][2], known[name][-1]) for name in names}


def _state(path: Path) -> State:
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    return state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns


def _settled(state: State, now: int) -> bool:
    return state[1] != 0 and state[3] + SETTLED_NS < now


def _crc32(path: Path) -> int:
    crc = 0
    try:
        with open(regular_handle(path), "rb", buffering=0) as file:
            while data := file.read(CHUNK):
                crc = zlib.crc32(data, crc)
    except OSError:
        return 0
    return crc


# ----------------------------------------------------------------------------
# In the cache: a JSON file for each folder.


def _store(folder: Path, what: str) -> Path:
    place = f"{what} {os.path.realpath(folder)}"
    return writable_cache("contents") / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"


def _load(path: Path) -> dict[str, tuple[int, ...]]:
    """What is known of files by name; nothing if the cache is absent or damaged."""
    try:
        content: Mapping[str, Any] = parsed_json(path.read_bytes())
        return {name: _row(values) for name, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _row(values: Any) -> tuple[int, ...]:
    row = tuple(values)
    if len(row) != 5 or any(type(value) is not int for value in row):
        raise ValueError("not what is written here")
    return row


def _save(path: Path, known: Mapping[str, tuple[int, ...]]) -> None:
    with suppress(PgsrError):  # a full disk: the files are read again next time
        write_bytes(path, json.dumps(known).encode(), durable=False)
