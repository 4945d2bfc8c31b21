"""What a target is, and what may come of a case.

A reader takes it or raises PgsrError, within `SECONDS` of the processor and `BYTES` of memory; anything else
is a defect, and its bytes are kept. A folder in memory takes the files that readers read.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import mmap
import os
import resource
import shutil
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy

from pgsr.cli import in_one_line
from pgsr.errors import PgsrError

LIBC = ctypes.CDLL(None)
SECONDS = 2.0  # of the processor, that a case may take
BYTES = 500 * 2**20  # of memory, that a case may take
AGAIN = 2  # times that a case which took more is tried once more: the least counts
LONGEST_LINE = 2000  # letters of an error
SEEDS = Path(__file__).parent / "seeds"  # a folder a target: what once was a defect


@dataclass(frozen=True)
class Target:
    """A reader, and what it is fed with."""

    name: str
    read: Callable[[bytes], None]  # as a command would; raises PgsrError for what is refused
    valid: Callable[[], Iterable[bytes]]  # some that are read, small ones
    built: Callable[[], SearchStrategy[bytes]] | None = None  # sound outside, and odd inside

    @property
    def kept(self) -> list[Path]:
        """Inputs that once were answered wrongly."""
        return sorted((SEEDS / self.name).glob("*"))

    def seeds(self) -> list[bytes]:
        """Valid inputs and kept ones."""
        return [*self.valid(), *(path.read_bytes() for path in self.kept)]


class Defect(Exception):
    """A case that was answered wrongly."""


def check(target: Target, data: bytes) -> bool:
    """Whether a target takes the bytes; False where it refuses them. Raises Defect for anything else.

    The first case loads libraries, and a busy machine takes longer: what is too much once is tried again.
    """
    taken, seconds, grown = _tried(target, data)
    for _ in range(AGAIN):
        if seconds > SECONDS or grown > BYTES:
            _give_back()
            taken, seconds_again, grown_again = _tried(target, data)
            seconds, grown = min(seconds, seconds_again), min(grown, grown_again)
    if seconds > SECONDS:
        raise Defect(f"{seconds:.1f} seconds")
    if grown > BYTES:
        raise Defect(f"{grown / 2**20:.0f} MB")
    return taken


def _tried(target: Target, data: bytes) -> tuple[bool, float, int]:
    """Whether a target takes the bytes, seconds of the processor, and bytes of memory."""
    _forget_peak()
    before, began = _peak(), time.process_time()
    try:
        target.read(data)
        taken = True
    except PgsrError as error:
        taken = False
        check_line(str(error))
    except Exception as error:
        raise Defect(where(error)) from error
    return taken, time.process_time() - began, _peak() - before


def _peak() -> int:
    """The most bytes that the process has held at once since `_forget_peak`."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_peak() -> None:
    os.pwrite(_peak_file(), b"5", 0)


def _give_back() -> None:
    """Frees what malloc keeps for later: memory that was taken once would be there, and not grow, again."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


@functools.cache
def _peak_file() -> int:
    return os.open("/proc/self/clear_refs", os.O_WRONLY)  # proc(5): 5 sets the peak to what is held now


def check_line(text: str) -> None:
    """Raises Defect unless an error, as commands print it, is a sentence."""
    text = in_one_line(text)
    if not 0 < len(text) <= LONGEST_LINE or not text.isprintable():
        raise Defect(f"an error of {len(text)} letters: {text[:80]!r}")


def where(error: Exception) -> str:
    """The kind of an exception and the innermost line of pgsr that it went through: one defect's name."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(Path(__file__).parents[2])
    ours = [f for f in frames if f.filename.startswith(root) and "/tests/" not in f.filename] or frames
    place = f"{os.path.relpath(ours[-1].filename, root)}:{ours[-1].lineno}"
    return f"{type(error).__name__} at {place}: {str(error)[:200]}"


# ----------------------------------------------------------------------------
# Files.


@functools.cache
def work() -> Path:
    """An empty folder of this process, in memory where there is such."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="pgsr-fuzz-", dir=memory))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def put(name: str, data: bytes) -> Path:
    """A file of these bytes in the folder."""
    path = work() / name
    with open(path, "wb") as file:
        file.write(data)
    return path


def folder(name: str) -> Path:
    """A new folder in the folder."""
    path = work() / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


# ----------------------------------------------------------------------------
# Counts, which outlive a process that ends at once.

COUNTS = struct.Struct("<4q")  # read, refused, defects, different defects


class Tally:
    """Counts of a run, in a file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(COUNTS.pack(0, 0, 0, 0))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), COUNTS.size)
        self.counts = list(COUNTS.unpack(self._map[:]))

    def add(self, which: int) -> None:
        self.counts[which] += 1
        self._map[:] = COUNTS.pack(*self.counts)


class Case:
    """Runs cases of a target and keeps what is answered wrongly: one input of each defect, with its name."""

    def __init__(self, target: Target, tally: Tally, found: Path) -> None:
        self._target, self._tally, self._found = target, tally, found
        self._known: set[str] = set()

    def __call__(self, data: bytes) -> None:
        try:
            taken = check(self._target, data)
        except Defect as defect:
            self._keep(data, str(defect))
        else:
            self._tally.add(0 if taken else 1)

    def _keep(self, data: bytes, name: str) -> None:
        self._tally.add(2)
        kind = name.partition(": ")[0]
        if kind in self._known or len(self._known) > 50:
            return
        self._known.add(kind)
        self._tally.add(3)
        folder = self._found / self._target.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        with open(self._found / "defects.txt", "a") as file:
            file.write(f"{self._target.name} {path.name} {name}\n")
