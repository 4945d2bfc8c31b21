"""pgsr-bench soak: memory, handles, threads and temporary files of a process over time, while it works.

    pgsr-bench soak --what serve --minutes 60 --out soak

`serve` is a pgsr-serve under clients that ask for everything it has, leave in the middle and make it read its
bundle again; `generate` makes faces to folders, archives and streams and opens the bundle anew now and then;
`resume` trains a tiny run that is stopped and resumed some hundred times a minute. What each does to its
memory is judged by pgsr.benchmarks.soak.judge.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pgsr.errors import PgsrError
from pgsr.machine import installed_versions, processor_name, usable_cores

from .clients import Clients
from .judge import slope_of

Say = Callable[[str], None]

WHAT = ("serve", "generate", "resume")
SAMPLES = 720  # of a whole time
RELOAD_SECONDS = 60.0  # between two SIGHUPs to the server
PACKAGES = ("torch", "onnxruntime", "openvino", "numpy", "pillow", "fastapi", "uvicorn")

# What is sampled -> the growth an hour that counts: a share of its median, and at least so much.
LIMITS = {
    "anonymous_bytes": (0.01, 2.0 * 2**20),
    "resident_bytes": (0.01, 2.0 * 2**20),
    "handles": (0.0, 0.5),
    "threads": (0.0, 0.5),
    "temporary_files": (0.0, 0.5),
    "temporary_bytes": (0.0, 4096.0),
}


@dataclass(frozen=True)
class Settings:
    """What is watched. Raises PgsrError for values out of range."""

    what: str
    minutes: float = 60.0
    model: Path | None = None  # a bundle; None is the one that comes with the package
    clients: int = 6  # of the server
    pause: float = 0.02  # seconds a client waits between an answer and its next request

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise PgsrError(f"--what {self.what} is not one of {', '.join(WHAT)}")
        for name in ("minutes", "clients"):
            if not getattr(self, name) > 0:
                raise PgsrError(f"--{name} {getattr(self, name)} is not above 0")


class Worker(Protocol):
    """A process that is watched."""

    process: int

    def done(self) -> int:
        """Pieces of work up to now. Raises PgsrError if it failed."""


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Watches for so long. Raises PgsrError if the process ends before, or something is not as it was."""
    with tempfile.TemporaryDirectory(prefix="pgsr-soak-") as folder:
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        with WORKERS[settings.what](settings, Path(folder), temporary) as worker:
            samples = list(_samples(worker, temporary, settings.minutes, say))
            told = worker.told() if isinstance(worker, _Served) else {}
    return {
        "what": settings.what,
        "minutes": settings.minutes,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": processor_name(),
            "cores": usable_cores(),
            "python": sys.version.split()[0],
            "packages": installed_versions(*PACKAGES),
        },
        "done": samples[-1]["done"],
        "told": told,
        "slopes": slopes_of(samples),
        "samples": samples,
    }


def slopes_of(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The slope of everything sampled, with its verdict; nothing where there are too few samples."""
    times = [sample["seconds"] for sample in samples]
    found = {
        name: slope_of(times, [sample[name] for sample in samples], share, least)
        for name, (share, least) in LIMITS.items()
    }
    return {name: slope.as_dict() for name, slope in found.items() if slope is not None}


def _samples(worker: Worker, temporary: Path, minutes: float, say: Say) -> Iterator[dict[str, float]]:
    began, every = time.monotonic(), max(0.05, 60.0 * minutes / SAMPLES)
    told = 0.0
    while (now := time.monotonic() - began) <= 60.0 * minutes:
        sample = {"seconds": round(now, 2), "done": worker.done(), **state_of(worker.process, temporary)}
        yield sample
        if now - told >= 60.0:
            told = now
            memory = sample["resident_bytes"] / 2**20
            say(f"{now / 60:.0f} min: {sample['done']} done, {memory:.0f} MiB, {sample['handles']} handles")
        time.sleep(every)


def state_of(process: int, temporary: Path) -> dict[str, int]:
    """Memory, handles and threads of a process (proc(5)), and the files and folders in a folder."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        handles = len(os.listdir(f"/proc/{process}/fd"))
    except OSError as error:
        raise PgsrError("the process that is watched has ended") from error
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in status.splitlines())}
    if "VmRSS" not in fields:
        raise PgsrError("the process that is watched has ended")
    sizes = [size for size in map(_size, temporary.rglob("*")) if size is not None]
    return {
        "resident_bytes": 1024 * int(fields["VmRSS"][0]),
        "anonymous_bytes": 1024 * int(fields["RssAnon"][0]),
        "handles": handles,
        "threads": int(fields["Threads"][0]),
        "temporary_files": len(sizes),
        "temporary_bytes": sum(sizes),
    }


def _size(path: Path) -> int | None:
    """Bytes of a file, 0 of a folder, None of what has gone meanwhile."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return 0 if stat.S_ISDIR(state.st_mode) else state.st_size


# ----------------------------------------------------------------------------
# Faces and resumes.


class _Working:
    """A process of pgsr.benchmarks.soak.work; a thread reads its counts."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self._popen = process.pid, process
        self._last = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._last = line.strip()

    def done(self) -> int:
        if self._popen.poll() is not None:
            self._reader.join()
            raise PgsrError(f"the work ended: {self._last or self._popen.returncode}")
        return int(self._last or 0)

    def wait_for_the_first(self) -> None:
        while not self._last:
            self.done()
            time.sleep(0.05)


@contextmanager
def _working(settings: Settings, folder: Path, temporary: Path) -> Iterator[_Working]:
    (folder / "work").mkdir()
    command = [sys.executable, "-m", "pgsr.benchmarks.soak.work", settings.what, str(folder / "work")]
    if settings.model is not None:
        command += ["--model", str(settings.model)]
    with open(folder / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(folder, temporary),
        )
    try:
        worker = _Working(process)
        worker.wait_for_the_first()
        yield worker
        assert process.stdin is not None
        process.stdin.close()
        if process.wait(600):
            raise PgsrError(f"the work failed: {(folder / 'errors.txt').read_text()[-300:]}")
    finally:
        process.kill()
        process.wait()


def _environment(folder: Path, temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), "PGSR_CACHE": str(folder / "cache")}


# ----------------------------------------------------------------------------
# A server.


class _Served:
    """A pgsr-serve with its clients."""

    def __init__(self, process: subprocess.Popen[str], clients: Clients) -> None:
        self.process, self._popen, self._clients = process.pid, process, clients
        self._reloaded, self._reloads = time.monotonic(), 0

    def done(self) -> int:
        if self._popen.poll() is not None:
            raise PgsrError(f"the server ended with {self._popen.returncode}")
        if time.monotonic() - self._reloaded > RELOAD_SECONDS:
            self._popen.send_signal(signal.SIGHUP)
            self._reloaded, self._reloads = time.monotonic(), self._reloads + 1
        return self._clients.done

    def told(self) -> dict[str, Any]:
        return {
            "answers": dict(self._clients.statuses),
            "failures": self._clients.failures,
            "reloads": self._reloads,
        }


@contextmanager
def _serving(settings: Settings, folder: Path, temporary: Path) -> Iterator[_Served]:
    command = [sys.executable, "-m", "pgsr.runtime.serve", "--device", "cpu", "--port", "0", "--json"]
    command += ["--log", "warning"]
    if settings.model is not None:
        command += ["--model", str(settings.model)]
    with open(folder / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(folder, temporary),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PgsrError(f"pgsr-serve did not start: {(folder / 'errors.txt').read_text()[-300:]}")
        clients = Clients(int(json.loads(line)["url"].rpartition(":")[2]), settings.clients, settings.pause)
        yield _Served(process, clients)
        clients.stop()
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise PgsrError(f"pgsr-serve ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


WORKERS: dict[str, Callable[[Settings, Path, Path], Any]] = {
    "serve": _serving,
    "generate": _working,
    "resume": _working,
}
