"""Files are replaced whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgsr import files
from pgsr.errors import PgsrError
from pgsr.runtime import measured


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file.txt").write_text("old")
    return tmp_path / "file.txt"


def test_the_new_content_replaces_the_old(path: Path):
    files.write_text(path, "neu: ü")
    assert path.read_bytes() == "neu: ü".encode()
    assert list(path.parent.iterdir()) == [path]


def test_the_old_content_stands_until_the_block_ends(path: Path):
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


def write_half(path: Path, failure: BaseException) -> None:
    with files.replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise failure


@pytest.mark.parametrize("failure", [ValueError("any"), KeyboardInterrupt(), PgsrError("named")])
def test_a_failure_inside_leaves_the_old_file_and_nothing_else(path: Path, failure: BaseException):
    with pytest.raises(type(failure)):
        write_half(path, failure)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_a_sentence(path: Path):
    with pytest.raises(PgsrError, match=f"no space left for {path}"):
        write_half(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_data_reach_the_disk_before_the_name(path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    files.write_bytes(path, b"new")
    assert order == ["fsync", "replace", "fsync"]  # of the data, and of the folder that names them


def test_a_folder_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(PgsrError, match=f"cannot write {tmp_path / 'taken'}"):
        files.write_bytes(tmp_path / "taken", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_make_folder_makes_parents_and_does_not_mind_its_own(tmp_path: Path):
    assert files.make_folder(tmp_path / "a" / "b").is_dir()
    assert files.make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_make_folder_names_a_file_in_the_way(path: Path):
    with pytest.raises(PgsrError, match=f"{path} is a file, not a folder"):
        files.make_folder(path)
    with pytest.raises(PgsrError, match=f"cannot write {path / 'below'}"):
        files.make_folder(path / "below")


def test_sha256_is_hashlibs(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_sha256_of_nothing_is_named(tmp_path: Path):
    with pytest.raises(PgsrError, match=f"cannot read {tmp_path / 'x'}"):
        files.sha256(tmp_path / "x")


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127 + "a", "x" * 245 + ".png"])
def test_a_name_may_be_as_long_as_the_system_allows(name: str, tmp_path: Path):
    files.write_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"
    assert os.listdir(tmp_path) == [name]


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_only_what_killed_processes_left_is_removed(tmp_path: Path):
    dead, here = ended_process(), os.getpid()
    own = {".tmp_notes", ".tmpAbC123", ".draft.tmp", ".a.0.tmp", f".a.{here}.tmp", f"a.{dead}.tmp"}
    gone = {f".a.{dead}.tmp", f".b c\n.{dead}.tmp"}
    for name in own | gone:
        (tmp_path / name).write_text("x")
    (tmp_path / f".d.{dead}.tmp").mkdir()
    (tmp_path / f".d.{dead}.tmp" / "file").write_text("x")
    files.remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == own | {f".d.{dead}.tmp"}


def test_what_another_machine_writes_is_not_left_over(tmp_path: Path):
    """Its processes cannot be seen from here, but that it holds the file can."""
    path = tmp_path / f".pixels.npy.{ended_process()}.tmp"
    with open(path, "wb") as file:
        files.hold(file)
        files.remove_leftovers(tmp_path)
        assert path.exists()
    files.remove_leftovers(tmp_path)
    assert not path.exists()


def test_leftovers_of_a_zombie_go(tmp_path: Path):
    """A killed process keeps its number until its parent asks."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = tmp_path / f".a.{process.pid}.tmp"
    left.touch()
    files.remove_leftovers(tmp_path)
    assert left.exists()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked
    files.remove_leftovers(tmp_path)
    assert not left.exists()
    process.communicate()


def test_leftovers_of_one_path_alone(tmp_path: Path):
    """Beside a user's other files only those of the path that is written."""
    dead = ended_process()
    for name in ("d", "e"):
        (tmp_path / f".{name}.{dead}.tmp").mkdir()
        (tmp_path / f".{name}.{dead}.tmp" / "file").write_text("x")
    (tmp_path / f".f.{dead}.tmp").symlink_to(f".e.{dead}.tmp")
    files.remove_leftovers(tmp_path, of=tmp_path / "d")
    files.remove_leftovers(tmp_path, of=tmp_path / "f")
    assert os.listdir(tmp_path) == [f".e.{dead}.tmp"]
    assert os.listdir(tmp_path / f".e.{dead}.tmp") == ["file"]


def test_no_handle_stays_open(path: Path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        files.write_bytes(path, b"new")
        files.sha256(path)
        files.read_regular(path, 10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_need_not_last_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch):
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    files.write_bytes(path, b"new", durable=False)
    assert path.read_bytes() == b"new"
    assert waited == []


def test_temporary_names(tmp_path: Path):
    """.NAME.PROCESS.tmp; a name for which that is too long is hashed: 255 bytes are the most."""
    end = f".{os.getpid()}.tmp"
    for length in (255 - len(end) - 2, 255 - len(end) - 1):
        found = files.temporary_beside(tmp_path / ("n" * length))
        assert found.parent == tmp_path
        assert found.name == f".{'n' * length}{end}"
    long = "n" * (255 - len(end))
    found = files.temporary_beside(tmp_path / long)
    assert found.name == f".{hashlib.sha256(long.encode()).hexdigest()}{end}"
    assert files.is_temporary(found.name)
    assert files.is_temporary(".a.1.tmp")
    for name in (".a.0.tmp", ".a.01.tmp", ".a.tmp", "..1.tmp", "a.1.tmp", ".a.1.tmpx", ".a.x.tmp"):
        assert not files.is_temporary(name)


def test_a_process_with_a_number_that_none_has(tmp_path: Path):
    (tmp_path / f".a.{10**30}.tmp").touch()
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_process_of_another_user_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(process: int, number: int) -> None:
        assert number == 0
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / f".a.{os.getpid()}.tmp").touch()
    files.remove_leftovers(tmp_path)
    assert len(os.listdir(tmp_path)) == 1


# ----------------------------------------------------------------------------
# Signals.


SIGNALLED = """
import signal, sys
from pathlib import Path
from pgsr import files
number = int(sys.argv[1])
signal.signal(number, signal.SIG_DFL)
try:
    with files.ending_cleanly(), files.replacing(Path(sys.argv[2])) as temporary:
        temporary.write_text("half")
        signal.raise_signal(number)
finally:
    if signal.getsignal(number) == signal.SIG_DFL:
        print("default again")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_as_an_exception_does(number: signal.Signals, path: Path):
    """In a process of its own: a library that was here before may have left handlers without a stack."""
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "default again\n", "")
    assert list(path.parent.iterdir()) == [path]


def test_handlers_of_others_are_left_alone():
    def mine(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, mine), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with files.ending_cleanly():
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_other_threads_set_no_handlers():
    """Python lets none but the first."""
    seen: list[object] = []

    def work() -> None:
        with files.ending_cleanly():
            seen.append("inside")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["inside"]


# ----------------------------------------------------------------------------
# Reading.


def test_a_file_may_be_as_long_as_is_said(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read_regular(tmp_path / "x", 5) == files.read_regular(tmp_path / "x", 6) == b"12345"
    with pytest.raises(PgsrError, match=f"{tmp_path / 'x'} is longer than 4 bytes"):
        files.read_regular(tmp_path / "x", 4)


def test_what_is_no_file_is_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PgsrError, match=f"{tmp_path} is a folder, not a file"):
        files.open_regular(tmp_path)
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(PgsrError, match=f"{path} is a pipe or a device"):
            files.open_regular(path)
    with pytest.raises(PgsrError, match="No such file or directory"):
        files.open_regular(tmp_path / "absent")
    with pytest.raises(PgsrError, match=r"cannot read .*: embedded null"):
        files.open_regular(tmp_path / "a\0b")


def test_a_pipe_that_was_a_file_when_it_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    file = os.stat(__file__)
    monkeypatch.setattr(files.os, "stat", lambda path: file)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="not a regular file"):
        files.regular_handle(tmp_path / "pipe")
    assert os.listdir("/proc/self/fd") == before


def test_files_are_not_inherited(tmp_path: Path):
    (tmp_path / "x").touch()
    with files.open_regular(tmp_path / "x") as file:
        assert not os.get_inheritable(file.fileno())


def test_errors_of_the_system_are_sentences(tmp_path: Path):
    path = tmp_path / "x"
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert str(files.cannot_write(path, denied)) == f"cannot write {path}: Permission denied"
    assert str(files.cannot_read(path, denied)) == f"cannot read {path}: Permission denied"
    assert str(files.cannot_write(path, OSError("odd"))) == f"cannot write {path}: odd"
    full = str(files.cannot_write(path, OSError(errno.ENOSPC, "full")))
    assert full == f"no space left for {path}: free some disk space and run the same command again"


# ----------------------------------------------------------------------------
# The cache.


@pytest.fixture
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name in ("PGSR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    files._kept_in.cache_clear()
    yield folder
    files._kept_in.cache_clear()


def test_the_cache_is_where_the_environment_says(temporary_folders: Path, monkeypatch: pytest.MonkeyPatch):
    home = temporary_folders.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    assert files.cache_root() == home / ".cache" / "pgsr"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert files.cache_root() == home / "xdg" / "pgsr"
    monkeypatch.setenv("PGSR_CACHE", "~/mine")
    assert files.cache_root() == home / "mine"
    assert files.writable_cache("data") == home / "mine" / "data"
    assert (home / "mine" / "data").is_dir()


def test_a_user_without_a_home_has_a_cache(
    temporary_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    expected = temporary_folders / f"pgsr-{os.getuid()}"
    assert files.cache_root() == files.cache_root() == expected
    assert files.writable_cache("data") == expected / "data"
    assert stat.S_IMODE(expected.stat().st_mode) == 0o700
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"note: no cache (this user has no home); it is in {expected} instead: PGSR_CACHE names another"
    ]


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_a_home_where_nothing_can_be_made(
    home: str, temporary_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HOME", home)
    assert files.cache_root() == temporary_folders / f"pgsr-{os.getuid()}"
    assert capsys.readouterr().err.startswith(f"note: no cache ({home}")


def test_a_cache_that_may_only_be_read_is_read(temporary_folders: Path, monkeypatch: pytest.MonkeyPatch):
    """Images of containers may hold one; what must be written goes elsewhere."""
    monkeypatch.setenv("HOME", str(temporary_folders.parent))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert files.cache_root() == temporary_folders.parent / ".cache" / "pgsr"
    assert files.writable_cache("data") == temporary_folders / f"pgsr-{os.getuid()}" / "data"


def test_where_nothing_can_be_made_nothing_is_remembered(
    temporary_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """All may be read only: measurements are made each time then, decoded pictures need a place."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    measured.remember("batch", {"a": 1}, 8)
    assert measured.recall("batch", {"a": 1}) is None
    with pytest.raises(PgsrError, match="let PGSR_CACHE name one that can"):
        files.writable_cache("data")
    assert capsys.readouterr().err == ""


def test_a_temporary_cache_of_somebody_else_is_not_used(
    temporary_folders: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither a folder in which others may write nor a link they have put there."""
    monkeypatch.setenv("HOME", "/proc/none")
    theirs = temporary_folders / f"pgsr-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    mine = files.cache_root()
    assert mine != theirs
    assert mine.parent == temporary_folders
    files._kept_in.cache_clear()
    theirs.rmdir()
    theirs.symlink_to(temporary_folders.parent)
    assert files.cache_root() not in (theirs, temporary_folders.parent)
