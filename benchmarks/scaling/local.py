"""Real runs at a small size, which the simulation is held to: processes over shards, some of them killed.

    run = run_shards(Work(shards=8, faces=500), workers=2, kills=((6.0, 0),))

A worker is a process that makes a tar of each shard, under another name until it is whole. When it is killed
(SIGKILL), its shard goes back to the others, and a new process takes its place.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from pgsr.errors import PgsrError


@dataclass(frozen=True)
class Work:
    """What is to be made."""

    shards: int
    faces: int  # of a shard
    model: Path | None = None
    precision: str = "fp32"
    backend: str = "auto"


@dataclass
class Run:
    """What came of it."""

    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)  # seconds until a worker was ready
    shards: list[float] = field(default_factory=list)  # seconds of each that became whole
    repeated: int = 0  # shards that were begun again
    kills: int = 0


class _Driver:
    def __init__(self, work: Work, folder: Path) -> None:
        self.work, self.folder, self.run = work, folder, Run()
        self.lock = threading.Condition()
        self.todo, self.left = deque(range(work.shards)), work.shards
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.failure = ""

    def take(self) -> int | None:
        """The next shard, once there is one; None when all are whole."""
        with self.lock:
            self.lock.wait_for(lambda: self.todo or not self.left or self.failure)
            return self.todo.popleft() if self.todo and not self.failure else None

    def lead(self, worker: int) -> None:
        """Keeps one worker at work, and starts another in its place when it has died."""
        command = [sys.executable, "-m", "pgsr.benchmarks.scaling.worker"]
        arguments = [str(self.work.model or ""), self.work.precision, self.work.backend]
        while self.left and not self.failure:
            began = time.perf_counter()
            with subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                self.processes[worker] = process
                assert process.stdout is not None
                assert process.stdin is not None
                assert process.stderr is not None
                ready = process.stdout.readline()
                if ready:
                    self.run.starts.append(time.perf_counter() - began)
                    self.feed(process)
                with contextlib.suppress(BrokenPipeError):  # what a dead one was still to be told
                    process.stdin.close()
                if process.wait() > 0:  # it gave up; a signal would be below 0
                    with self.lock:
                        self.failure = process.stderr.read().strip()[-300:]
                        self.lock.notify_all()

    def feed(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        while (shard := self.take()) is not None:
            partial = self.folder / f"{shard}-{process.pid}.tar"
            began, seconds = time.perf_counter(), ""
            try:
                print(shard * self.work.faces, self.work.faces, partial, file=process.stdin, flush=True)
                seconds = process.stdout.readline()
            except BrokenPipeError:
                pass
            with self.lock:
                if seconds:
                    partial.replace(self.folder / f"{shard:06d}.tar")
                    self.run.shards.append(time.perf_counter() - began)
                    self.left -= 1
                else:
                    self.run.repeated += 1
                    self.todo.appendleft(shard)
                self.lock.notify_all()
            if not seconds:
                return

    def kill(self, worker: int) -> None:
        if worker in self.processes and self.processes[worker].poll() is None:
            self.run.kills += 1
            self.processes[worker].kill()


def run_shards(
    work: Work, workers: int, kills: tuple[tuple[float, int], ...] = (), out: Path | None = None
) -> Run:
    """Makes all shards with so many workers; each kill is a time and a worker.

    Raises PgsrError if a worker gives up by itself.
    """
    with tempfile.TemporaryDirectory(prefix="pgsr-scaling-") as folder:
        driver = _Driver(work, out or Path(folder))
        began = time.perf_counter()
        timers = [threading.Timer(after, driver.kill, [worker]) for after, worker in kills]
        threads = [threading.Thread(target=driver.lead, args=[worker]) for worker in range(workers)]
        for thread in [*timers, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        for timer in timers:
            timer.cancel()
        driver.run.seconds = time.perf_counter() - began
    if driver.failure:
        raise PgsrError(f"a worker gave up: {driver.failure}")
    return driver.run
