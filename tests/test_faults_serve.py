"""A server under faults: what it has begun is finished or broken off, others are served, and it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import upscaling
from processes import FAKETIME, faked_time, jump
from serving import CPU, ROOT, Served, serving, write_model

FACE = "/v1/images/3/5.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def served(model: Path, temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With temporary files in a folder of its own."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(temporary))
            found = stack.enter_context(serving(tmp_path_factory.mktemp("logs"), "--model", model))
        yield found


class Limited:
    """A limit of a running process, which goes with the block."""

    def __init__(self, process: int, which: int, value: int) -> None:
        self.process, self.which, self.value = process, which, value

    def __enter__(self) -> None:
        self.before = resource.prlimit(self.process, self.which)
        resource.prlimit(self.process, self.which, (self.value, self.before[1]))

    def __exit__(self, *error: object) -> None:
        resource.prlimit(self.process, self.which, self.before)


def handles_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ----------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """OpenVINO's way is measured, and remembered among the temporary files."""
    monkeypatch.setenv("PGSR_CACHE", "/proc/none")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serving(tmp_path, "--model", model, "--backend", "openvino") as served:
        assert served.get(FACE).status_code == 200
    (log,) = tmp_path.glob("serve-*.log")
    assert "note: no cache (/proc/none" in log.read_text()
    assert list((tmp_path / f"pgsr-{os.getuid()}" / "measured").iterdir())


def test_few_handles(served: Served):
    """Connections beyond them wait or are closed; when others have gone there is room again."""
    expected, before = served.get(FACE).content, handles_of(served.process.pid)
    with Limited(served.process.pid, resource.RLIMIT_NOFILE, before + 6):
        connections = [socket.create_connection(("127.0.0.1", served.port), 10) for _ in range(40)]
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until(lambda: handles_of(served.process.pid) >= before + 5)
        for connection in connections:
            connection.close()
        until(lambda: handles_of(served.process.pid) <= before + 3)
        assert httpx.get(f"{served.url}{FACE}", timeout=20).content == expected
    assert served.process.poll() is None
    assert served.get(FACE).content == expected


def test_little_memory(served: Served):
    """What does not fit is refused; the server and what fits go on."""
    expected = served.get(FACE).content
    pages = int(Path(f"/proc/{served.process.pid}/statm").read_text().split()[0])
    large = upscaling.file_of(Image.new("RGB", (1500, 1500)))
    with Limited(served.process.pid, resource.RLIMIT_AS, (pages + 64) * resource.getpagesize()):
        answers = [
            served.post("/v1/upscale", content=large),
            served.get(FACE),
            served.get("/v1/images?count=20"),
        ]
    assert {answer.status_code for answer in answers} <= {200, 413, 500, 503}
    assert all("error" in answer.json() for answer in answers if answer.status_code != 200)
    assert "Traceback" not in "".join(answer.text for answer in answers if answer.status_code != 200)
    assert served.process.poll() is None
    assert served.get(FACE).content == expected


def test_no_room_for_temporary_files(served: Served, temporary: Path):
    """A result that is held in a file while it is made. The disk is full, by a limit to a file's length."""
    large = upscaling.file_of(Image.effect_noise((1000, 1000), 90).convert("RGB"))
    with Limited(served.process.pid, resource.RLIMIT_FSIZE, 4096):
        answer = served.post("/v1/upscale", content=large)
        assert answer.status_code in (200, 413, 500, 503, 507), answer.text
        assert answer.status_code == 200 or "error" in answer.json()
        assert served.get(FACE).status_code == 200
    assert served.post("/v1/upscale", content=large).status_code in (200, 413)
    assert list(temporary.iterdir()) == []


def test_a_bundle_that_is_removed(tmp_path: Path, model: Path):
    """It is opened: faces come as before. Told to open it again, the server keeps what it has."""
    own = Path(shutil.copytree(model, tmp_path / "own"))
    with serving(tmp_path, "--model", own) as served:
        expected = served.get(FACE).content
        shutil.rmtree(own)
        assert served.get(FACE).content == expected
        served.signal(signal.SIGHUP)
        until(lambda: served.errors)
        assert "is not reloaded" in served.errors[0]["event"]
        assert served.get(FACE, headers={"cache-control": "no-cache"}).content == expected


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_bundles_are_opened_again_and_again_while_faces_are_asked_for(
    backend: str, model: Path, tmp_path: Path
):
    """What was freed is not missed by the next signal: OpenVINO's CPU plugin took its stack along."""
    with serving(tmp_path, "--model", model, "--backend", backend) as served:
        expected = served.get(FACE).content
        for count in range(1, 5):
            served.signal(signal.SIGHUP)
            until(lambda: sum("is reloaded" in x["event"] for x in served.log) == count)  # noqa: B023
            assert served.get(FACE).content == expected
        until(lambda: served.get("/v1/images?count=3").status_code == 200)
        assert served.process.poll() is None  # and SIGTERM ends it with 0, as the others are


def test_a_client_that_leaves_in_the_middle_of_its_upload_is_no_error(served: Served):
    with served.connection() as bare:
        bare.sendall(b"POST /v1/upscale HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n\x89PNG")
    until(lambda: any(x.get("status") == 499 for x in served.log))
    assert not [x for x in served.errors if "ClientDisconnect" in x.get("error", "")]


# ----------------------------------------------------------------------------
# Clocks.


def year_of(served: Served) -> str:
    return str(served.get("/healthz").headers["date"].split()[3])


@pytest.mark.skipif(not FAKETIME.exists(), reason="apt-get install faketime")
def test_a_clock_that_jumps(model: Path, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Back and forth by more than a year between and within answers: the same faces, no limit has passed."""
    faces, film = "/v1/images?seed=3&count=300", "/v1/video?seed=1&seconds=0.5&fps=20&format=webp"
    expected = [served.get(path).content for path in (FACE, faces, film)]
    clock = tmp_path / "clock"
    for name, value in faked_time(clock).items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path, "--model", model, "--max-request-seconds", 60) as jumping:
        monkeypatch.delenv("LD_PRELOAD")
        for number in range(4):
            before = year_of(jumping)
            jump(clock, number)
            until(lambda before=before: year_of(jumping) != before)  # it makes its dates once a second
            assert jumping.get(FACE).content == expected[0]
        with jumping.http.stream("GET", faces) as response:
            parts = []
            for number, part in enumerate(response.iter_raw()):
                jump(clock, number)
                parts.append(part)
        assert b"".join(parts) == expected[1]
        assert jumping.get(film).content == expected[2]
        assert not jumping.errors, jumping.errors


# ----------------------------------------------------------------------------
# How it ends.


def started(model: Path, temporary: Path, port: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pgsr.runtime.serve", *CPU, "--model", str(model), "--json", "--port"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    return subprocess.Popen([*command, port], stdout=subprocess.PIPE, env=environment, text=True)


def address(process: subprocess.Popen[str]) -> str:
    """Empty, if it dies before it has one."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return str(json.loads(line)["url"]) if line.endswith("\n") else ""


def test_a_killed_server_starts_again_at_its_address(model: Path, tmp_path: Path):
    found, port = [], "0"
    for _ in range(2):
        process = started(model, tmp_path, port)
        assert process.stdout is not None
        url = address(process)
        port = url.rpartition(":")[2]
        found.append(httpx.get(f"{url}{FACE}", timeout=60).content)
        with httpx.stream("GET", f"{url}/v1/images?count=1000", timeout=60) as response:
            parts = response.iter_raw()
            next(parts)
            process.kill()
            with pytest.raises(httpx.TransportError):
                b"".join(parts)
        process.wait()
        process.stdout.close()
    assert found[0] == found[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_200_kills(model: Path, tmp_path: Path):
    """At random instants, from its start to some answers; PGSR_KILLS is another number."""
    kills, instants = int(os.environ.get("PGSR_KILLS", "200")), random.Random("kill serve")

    began = time.monotonic()
    with started(model, tmp_path, "0") as process:
        url = address(process)
        seconds, face = time.monotonic() - began, httpx.get(f"{url}{FACE}", timeout=60).content
        process.kill()
    answers = 0
    for _ in range(kills):
        with started(model, tmp_path, url.rpartition(":")[2]) as process:
            timer = threading.Timer(instants.uniform(0.0, 1.5 * seconds), process.kill)
            timer.start()
            if found := address(process):
                assert found == url
                with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
                    while True:
                        assert client.get(f"{url}{FACE}").content == face
                        answers += 1
        timer.join()
        assert process.returncode == -signal.SIGKILL
    with started(model, tmp_path, url.rpartition(":")[2]) as process:
        assert address(process) == url
        assert httpx.get(f"{url}{FACE}", timeout=60).content == face
        process.terminate()
    assert list(tmp_path.iterdir()) == []
    print(f"serve: {kills} kills, {answers} answers before them")


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_once_finishes_what_was_begun_and_twice_does_not(count: int, model: Path, tmp_path: Path):
    with serving(tmp_path, "--model", model, "--max-count", 1_000_000) as served:
        faces = 1500 if count == 1 else 1_000_000
        with served.http.stream("GET", f"/v1/images?count={faces}") as response:
            parts = response.iter_raw()
            data = next(parts)
            began = time.monotonic()
            for _ in range(count):
                served.signal(signal.SIGINT)
                time.sleep(0.1)
            try:
                data += b"".join(parts)
            except httpx.TransportError:
                assert count == 2
            else:
                assert count == 1
                assert data.endswith(bytes(1024))  # the end of a tar
        assert served.process.wait(20) == 0
        assert time.monotonic() - began < 20
        assert not served.errors, served.errors
