"""pgsr-bench serve: pgsr-serve under load, beside the offline pipeline and a plain handler.

Each round measures the three in turn, on the same cores, in the same batch and format: pgsr-generate to a
folder, then the two servers with the same clients on loopback. The clients run on the same cores too, which
counts against the servers.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.machine import installed_versions

from ..harness import machine

Say = Callable[[str], None]
PERCENTILES = (50, 95, 99)
PACKAGES = ("fastapi", "starlette", "uvicorn", "httptools", "uvloop")
SAMPLE = 5.0  # seconds between two looks at the memory


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    model: Path | None = None
    backend: str = "auto"
    precision: str = "fp32"
    format: str = "png"
    batch: int = 16
    clients: int = 32
    seconds: float = 10.0  # of each load
    rounds: int = 3
    cores: tuple[int, ...] = ()  # how many; may be several; none is all that may be used
    minutes: float = 0.0  # of load, over which memory is watched

    def __post_init__(self) -> None:
        usable = len(os.sched_getaffinity(0))
        object.__setattr__(self, "cores", self.cores or (usable,))
        for name in ("batch", "clients", "rounds", "seconds"):
            if getattr(self, name) <= 0:
                raise PgsrError(f"--{name} {getattr(self, name)} is not above 0")
        if not all(1 <= count <= usable for count in self.cores):
            raise PgsrError(f"--cores {','.join(map(str, self.cores))}: {usable} may be used here")

    @property
    def machine_options(self) -> list[str]:
        """Options of the commands that say what runs the networks."""
        model = [] if self.model is None else ["--model", str(self.model)]
        return [*model, "--backend", self.backend, "--precision", self.precision]


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Measures all, on each number of cores."""
    results = []
    for cores in settings.cores:
        with on_cores(cores):
            results.append({"cores": cores, **_measured(settings, cores, say)})
    memory = {}
    if settings.minutes:
        with on_cores(settings.cores[0]):
            memory = _memory(settings, settings.cores[0], say)
    described = machine.describe(settings.cores[0]).as_dict()
    described["packages"] |= installed_versions(*PACKAGES)
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()}
    return {"settings": told, "machine": described, "results": results, "memory": memory}


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Lets this process and those that it starts run on the first `count` of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ----------------------------------------------------------------------------


def _measured(settings: Settings, cores: int, say: Say) -> dict[str, Any]:
    offline: list[float] = []
    full: dict[str, list[dict[str, Any]]] = {"pgsr-serve": [], "plain": []}
    half: dict[str, list[dict[str, Any]]] = {"pgsr-serve": [], "plain": []}
    for number in range(settings.rounds):
        offline.append(_offline(settings, cores, settings.seconds))
        say(f"{cores} core(s), round {number + 1}: offline {offline[-1]:.1f} images/s")
        for name, server in (("pgsr-serve", served), ("plain", plain)):
            with server(settings, cores) as (port, _):
                path = _path(name, settings)
                _load(port, path, settings.clients, min(2.0, settings.seconds))  # what is set up once is now
                full[name].append(_load(port, path, settings.clients, settings.seconds))
                rate = full[name][-1]["images_per_second"] / 2
                half[name].append(_load(port, path, settings.clients, settings.seconds, rate))
            say(f"{cores} core(s), round {number + 1}: {name} {2 * rate:.1f} images/s")
    systems = {
        name: {"full": summary(full[name]), "half": summary(half[name])} for name in ("pgsr-serve", "plain")
    }
    speed = statistics.median(offline)
    return {"offline": {"images_per_second": speed, "rounds": offline}, **systems}


def summary(loads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds; percentiles of each round's answers."""
    percentiles = {
        f"p{p}": statistics.median(percentile(load["milliseconds"], p) for load in loads) for p in PERCENTILES
    }
    statuses: dict[str, int] = {}
    for load in loads:
        for status, count in load["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    speeds = [load["images_per_second"] for load in loads]
    shares = [load["client_cpu_seconds"] / load["seconds"] for load in loads]
    return {
        "images_per_second": statistics.median(speeds),
        "rounds": speeds,
        **percentiles,
        "statuses": statuses,
        "client_cores": statistics.median(shares),
    }


def percentile(ordered: Sequence[float], share: int) -> float:
    """The smallest value that is not below `share` per cent of all (nearest rank); NaN of none."""
    if not ordered:
        return float("nan")
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def _path(name: str, settings: Settings) -> str:
    if name == "plain":
        return "/faces/1/{}.png"
    return f"/v1/images/1/{{}}.{'jpg' if settings.format == 'jpeg' else settings.format}?truncation=1"


def _offline(settings: Settings, cores: int, seconds: float) -> float:
    """Images a second of pgsr-generate to a folder, of as many as take about so long."""
    count, speed = 4 * settings.batch, 0.0
    for _ in range(2):  # the first tells how many that are
        with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as folder:
            options = ["--count", str(count), "--out", folder, "--no-sheet", "--format", settings.format]
            machinery = ["--device", "cpu", "--batch", str(settings.batch), "--threads", str(cores)]
            command = ["pgsr.runtime", *options, *machinery, *settings.machine_options, "--json"]
            speed = json.loads(_run(command))["images_per_second"]
        count = max(count, int(speed * seconds))
    return float(speed)


def _load(port: int, path: str, clients: int, seconds: float, rate: float = 0.0) -> dict[str, Any]:
    options = ["--clients", str(clients), "--seconds", str(seconds), "--rate", str(rate)]
    command = ["pgsr.benchmarks.serve.load", "127.0.0.1", str(port), path, *options]
    found: dict[str, Any] = json.loads(_run(command))
    return found


def _run(command: list[str]) -> str:
    """What a module prints. Raises PgsrError if it fails."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PgsrError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


@contextmanager
def served(settings: Settings, cores: int) -> Iterator[tuple[int, int]]:
    """A pgsr-serve: its port and process."""
    machinery = ["--device", "cpu", "--batch", str(settings.batch), "--threads", str(cores), "--port", "0"]
    command = ["pgsr.runtime.serve", *machinery, *settings.machine_options, "--log", "warning", "--json"]
    with _process(command) as (process, line):
        yield int(json.loads(line)["url"].rpartition(":")[2]), process.pid


@contextmanager
def plain(settings: Settings, cores: int) -> Iterator[tuple[int, int]]:
    """The plain handler: its port and process."""
    command = ["pgsr.benchmarks.serve.plain", "--threads", str(cores), *settings.machine_options]
    with _process(command) as (process, line):
        yield int(line.rpartition(":")[2]), process.pid


@contextmanager
def _process(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that prints a line when it is ready. Raises PgsrError if it ends before."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-m", *command], **options)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise PgsrError(f"{command[0]} did not start: run python -m {' '.join(command)}")
        yield process, line
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()


# ----------------------------------------------------------------------------
# Memory.


def _memory(settings: Settings, cores: int, say: Say) -> dict[str, Any]:
    """Resident memory under full load, and how it grows from the first quarter of the time to the last."""
    samples: list[int] = []
    with served(settings, cores) as (port, process):
        path = _path("pgsr-serve", settings)
        _load(port, path, settings.clients, min(10.0, 10 * settings.minutes))
        command = [sys.executable, "-m", "pgsr.benchmarks.serve.load", "127.0.0.1", str(port), path]
        options = ["--clients", str(settings.clients), "--seconds", str(60 * settings.minutes)]
        with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as load:
            while load.poll() is None:
                samples.append(_resident(process))
                time.sleep(min(SAMPLE, 6 * settings.minutes))
    quarter = max(1, len(samples) // 4)
    first, last = statistics.median(samples[:quarter]), statistics.median(samples[-quarter:])
    say(f"memory after {settings.minutes:g} min: {last / 2**20:.1f} MiB, {(last - first) / 2**20:+.1f} MiB")
    return {"minutes": settings.minutes, "first_bytes": first, "last_bytes": last, "samples": samples}


def _resident(process: int) -> int:
    """Bytes of a process in memory (proc(5), statm)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
