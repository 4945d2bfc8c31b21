"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from pgsr.errors import PgsrError


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there becomes `path` in one step.

    The data reach the disk before the name does, unless `durable` is false: then a crash of the machine,
    though not of the program, may leave a file that is cut short. If the block fails, the temporary file
    is removed and `path` is as it was. Raises PgsrError for a full disk or a folder that cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except BaseException as error:
        with suppress(OSError):  # it may not be there yet, or the folder not to be written any more
            temporary.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def flush(path: Path) -> None:
    """Lets a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


LONGEST_NAME = 255  # bytes of a file's name, on Linux


def temporary_beside(path: Path) -> Path:
    """Returns the name under which this process writes what becomes `path`: .NAME.PROCESS.tmp beside it."""
    return _temporary(path, os.getpid())


def _temporary(path: Path, process: int) -> Path:
    name, end = path.name, f".{process}.tmp"
    if len(os.fsencode(name)) + len(end) >= LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}{end}")


def is_temporary(name: str) -> bool:
    """Returns whether a name is one that `temporary_beside` gives."""
    return _process_of(name) is not None


def remove_leftovers(folder: Path, of: Path | None = None) -> None:
    """Removes what processes that were killed left half written in a folder; of one path alone, if named.

    Only names that `temporary_beside` gives count, and only those of processes that no longer run and do not
    hold them (`hold`), on another machine perhaps. Folders go only where one path is named.
    """
    for path in sorted(folder.glob(".*.tmp")):
        process = _process_of(path.name)
        if process is None or _is_running(process) or _is_held(path):
            continue
        if of is not None and path.name != _temporary(of, process).name:
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif of is not None:
            shutil.rmtree(path, ignore_errors=True)


def _process_of(name: str) -> int | None:
    match = re.fullmatch(r"\..+\.([1-9]\d*)\.tmp", name, re.DOTALL)
    return int(match[1]) if match else None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return not _has_ended(process)


def _has_ended(process: int) -> bool:
    """Whether a process that still has its number is a zombie: killed, and its parent has not asked yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"Z", b"X")


def hold(file: IO[Any]) -> None:
    """Marks an open file as in use until it is closed, for the machines that share its folder: they do not
    see each other's processes."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the program inside the block as an exception does, so that what is half
    written is removed. Handlers that somebody else has set, and other threads, are left alone."""
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)  # as shells tell of a signal

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a whole file or nothing. Raises PgsrError as `replacing` does."""
    with replacing(path, durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file or nothing. Raises PgsrError as `replacing` does."""
    write_bytes(path, text.encode())


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents. Raises PgsrError if something else stands there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise PgsrError(f"{path} is a file, not a folder: name another folder") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: Path, error: OSError) -> PgsrError:
    """The sentence for a write that failed."""
    if error.errno == errno.ENOSPC:
        return PgsrError(f"no space left for {path}: free some disk space and run the same command again")
    return PgsrError(f"cannot write {path}: {error.strerror or error}")


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises PgsrError if it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error


class NotRegularError(OSError):
    """A file is none that can be read to its end."""


def regular_handle(path: Path) -> int:
    """A handle for reading a regular file. Raises OSError for another kind, which is not waited for."""
    _check_regular(os.stat(path).st_mode)  # before it is opened, which some devices notice
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(handle).st_mode)  # it may be another file by now
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise NotRegularError("not a regular file")


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file to read it. Pipes and devices, which may never end, are refused at once.

    Raises PgsrError if it is something else or cannot be opened.
    """
    try:
        return open(regular_handle(path), "rb")
    except IsADirectoryError as error:
        raise PgsrError(f"{path} is a folder, not a file") from error
    except NotRegularError as error:
        raise PgsrError(f"{path} is a pipe or a device: save what comes out of it as a file") from error
    except (OSError, ValueError) as error:  # ValueError: a null in the name
        raise cannot_read(path, error) from error


def read_regular(path: Path, longest: int) -> bytes:
    """Reads a regular file. Raises PgsrError as `open_regular` does, and for more than so many bytes."""
    with open_regular(path) as file:
        try:
            data = file.read(longest + 1)
        except OSError as error:
            raise cannot_read(path, error) from error
    if len(data) > longest:
        raise PgsrError(f"{path} is longer than {longest:,} bytes: that cannot be right")
    return data


def cannot_read(path: Path, error: OSError | ValueError) -> PgsrError:
    """The sentence for a read that failed."""
    return PgsrError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


def cache_root() -> Path:
    """Returns where what can be made again is kept: $PGSR_CACHE, or pgsr in the user's cache directory.

    A user without a home, or with one where nothing can be made, has a folder among the temporary ones.
    """
    base = os.environ.get("PGSR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pgsr"
    return _kept_in(str(base), must_write=False)


def writable_cache(name: str) -> Path:
    """Returns a folder of the cache in which files can be made; a temporary one where the cache is closed."""
    base = cache_root()
    return make_folder(_kept_in(str(base), must_write=True) / name)


@functools.lru_cache
def _kept_in(base: str, must_write: bool) -> Path:
    """A folder of the cache that can be used, or a temporary one, which is said once."""
    try:
        folder = Path(base).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if not must_write or os.access(folder, os.W_OK | os.X_OK):
            return folder
        why = f"{folder} cannot be written"
    except RuntimeError:
        why = "this user has no home"
    except OSError as error:
        why = f"{error.filename or base}: {error.strerror}"
    temporary = _temporary_cache()
    sentence = f"note: no cache ({why}); it is in {temporary} instead: PGSR_CACHE names another"
    print(sentence, file=sys.stderr)
    return temporary


def _temporary_cache() -> Path:
    """Returns pgsr-USER among the temporary folders, if it is this user's alone, or a new one.

    Raises PgsrError if nothing can be made anywhere.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"pgsr-{os.getuid()}"
    except OSError as error:
        raise PgsrError(
            "no folder for temporary files nor for a cache can be written: let PGSR_CACHE name one that can"
        ) from error
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="pgsr-"))
