"""Real processes of pgsr's commands that start in no time: a server that has imported everything forks them.

Run as a script, this file is the server: a JSON line on stdin starts a process, its id comes back, and
when it has ended its exit code.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn


class Process:
    """One command."""

    def __init__(self, server: subprocess.Popen[bytes], output: Path, job: Mapping[str, Any]) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.answers, self.output = server.stdout, output
        server.stdin.write((json.dumps(job) + "\n").encode())
        self.id = int(self.answers.readline())
        self.code: int | None = None

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does within some seconds."""
        return self.code is not None or bool(select.select([self.answers], [], [], seconds)[0])

    def send(self, number: int) -> None:
        if not self.ended():
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.id, number)

    def wait(self, seconds: float = 600.0) -> int:
        """Its exit code; minus the signal that killed it."""
        if not self.ended(seconds):
            os.kill(self.id, 9)
            raise AssertionError(f"not done after {seconds} s: {self.stderr}")
        if self.code is None:
            self.code = int(self.answers.readline())
        return self.code

    @property
    def stdout(self) -> str:
        return self._said(".out")

    @property
    def stderr(self) -> str:
        return self._said(".err")

    def _said(self, suffix: str) -> str:
        path = self.output.with_suffix(suffix)
        return path.read_text() if path.exists() else ""  # killed before it had opened it


class Server:
    """Starts processes, one at a time."""

    def __init__(self, folder: Path, server: subprocess.Popen[bytes]) -> None:
        self.folder, self.server, self.count = folder, server, 0
        self.last: Process | None = None

    def start(
        self,
        *arguments: Any,
        command: str = "pgsr.trainer.cli",  # the module of its `main`
        file_bytes: int = 0,  # no file may be longer
        memory_bytes: int = 0,  # no more addresses than the server has and so many
        handles: int = 0,  # no more files open than the server has and so many
        privileged: bool = True,  # if not, without root's privilege where permissions forbid
        stdout: str = "",  # where its standard output goes; the server reads it if it is not said
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """A command with these arguments."""
        if self.last is not None:  # of a test that failed
            self.last.send(9)
            self.last.wait()
        self.count += 1
        output = self.folder / f"{self.count:04d}"
        job = {
            "command": command,
            "arguments": [str(a) for a in arguments],
            "output": str(output),
            "stdout": stdout or f"{output}.out",
            "file_bytes": file_bytes,
            "memory_bytes": memory_bytes,
            "handles": handles,
            "privileged": privileged,
            "environment": dict(environment or {}),
        }
        self.last = Process(self.server, output, job)
        return self.last


TRAINING = ("torch._dynamo", "pgsr.trainer.start")


@contextmanager
def serving(folder: Path, modules: Sequence[str] = TRAINING) -> Iterator[Server]:
    """A server, which imports these modules so that no process has to; what they print goes to files in a
    folder."""
    command = [sys.executable, str(Path(__file__).resolve()), *modules]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n"
        yield Server(folder, server)
    finally:
        server.stdin.close()
        server.wait(timeout=600)


# ----------------------------------------------------------------------------
# Clocks.

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")  # apt-get install faketime


def faked_time(clock: Path) -> dict[str, str]:
    """The environment of processes whose time of day is as a file says, as in +400d; `jump` writes it."""
    clock.write_text("+0")
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def jump(clock: Path, number: int) -> None:
    """Over a year forth, and at the next number back."""
    clock.write_text(("+400d", "-400d")[number % 2])


# ----------------------------------------------------------------------------
# What runs leave.

EVERY_STEP = """
about = "for tests: 4 x 4, a fade of ten steps, 8 x 8; after every step a line and a checkpoint"
[generator]
kind = "progan"
resolution = 8
latent_size = 4
feature_max = 4
[discriminator]
kind = "progan"
resolution = 8
feature_max = 4
[schedule]
resolution = 8
batch = 4
fade_images = 40
stable_images = 24
[objective]
gradient_penalty = 10.0
drift = 0.001
[averaging]
half_life_images = 50.0
[run]
log_images = 1
sample_images = 16
checkpoint_images = 1
sample_grid = 4
"""


def finish(process: Process) -> int:
    code = process.wait()
    assert code == 0, process.stderr
    assert "Traceback" not in process.stderr
    return code


CLOCKED = ("images_per_second", "seconds")  # what two runs of the same bits differ in


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def assert_same_run(run: Path, reference: Path) -> None:
    """Checkpoints to the bit, samples to the byte, every logged number; nothing left over."""
    import torch

    from pgsr.checkpoint import load

    files, expected = (
        sorted(p.relative_to(f) for p in f.rglob("*") if "tensorboard" not in p.parts)
        for f in (run, reference)
    )
    assert files == expected
    for path in files:
        if path.suffix == ".safetensors":
            a, b = load(run / path), load(reference / path)
            assert (a.config, a.progress, a.provenance) == (b.config, b.progress, b.provenance)
            assert a.tensors.keys() == b.tensors.keys()
            assert not [k for k in a.tensors if not torch.equal(a.tensors[k], b.tensors[k])]
        elif path.suffix == ".png":
            assert (run / path).read_bytes() == (reference / path).read_bytes()
    assert metrics(run) == metrics(reference)


# ----------------------------------------------------------------------------
# In the server.


def _serve() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        process = os.fork()
        if process == 0:
            _become_a_run(json.loads(line))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


ENDING = (signal.SIGINT, signal.SIGTERM)  # which wait while a process is not yet the command


def _become_a_run(job: Mapping[str, Any]) -> NoReturn:
    main = importlib.import_module(job["command"]).main
    for number, path in ((1, job["stdout"]), (2, job["output"] + ".err")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.environ.update(job["environment"])
    _limit(job)
    if not job["privileged"] and os.geteuid() == 0:
        _obey_permissions()
    sys.argv = [NAMES.get(job["command"], job["command"]), *job["arguments"]]
    try:
        code = _run(main, job["arguments"])
    except KeyboardInterrupt:  # before the command has begun, or when it is over: a Python would show where
        code = 130
    threading._shutdown()  # type: ignore[attr-defined]  # as Python ends: the threads of pools are waited for
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(main: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    """The exit code."""
    code: Any = 70
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        main(arguments)
    except SystemExit as stop:
        code = stop.code or 0
    except Exception:
        traceback.print_exc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


NAMES = {"pgsr.trainer.cli": "pgsr-train"}  # as the command to go on with is called


def _limit(job: Mapping[str, Any]) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_AS: job["memory_bytes"] and job["memory_bytes"] + pages * resource.getpagesize(),
        resource.RLIMIT_NOFILE: job["handles"] and job["handles"] + len(os.listdir("/proc/self/fd")),
    }
    for limit, value in limits.items():
        if value:
            resource.setrlimit(limit, (value, value))


def _obey_permissions() -> None:
    """Gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)); Python has no function for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower 32 of each, the upper
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for i in (0, 1):
        sets[i] &= ~(1 << 1 | 1 << 2)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    _serve()
