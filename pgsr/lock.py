"""One process at a time trains in a run's folder. The lock is on the folder itself and goes with its process,
however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pgsr.errors import PgsrError


@contextlib.contextmanager
def holding_lock(folder: Path) -> Iterator[None]:
    """Locks a folder for this process; the lock goes when it does. Raises PgsrError if another holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _locked_by_another(handle, fcntl.LOCK_EX):
            raise PgsrError(f"another process is training in {folder}: stop it first")
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Returns whether a process on this machine trains in a folder."""
    if not folder.is_dir():
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        return _locked_by_another(handle, fcntl.LOCK_SH, attempts=1)
    finally:
        os.close(handle)


def _locked_by_another(handle: int, kind: int, attempts: int = 5) -> bool:
    """Takes the lock, unless it is taken. A look by `is_held` passes at once, so it is tried again."""
    for attempt in range(attempts):
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            time.sleep(0.05 * attempt)
        except OSError:
            return False  # a file system without locks
    return True
