"""A real pgsr-serve as tests run it: a process on a free port, with a tiny bundle."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import bundles as tiny
from pgsr import bundle as contract

ROOT = Path(__file__).resolve().parents[1]
KEY = "0123456789abcdef0123"
CPU = ("--device", "cpu", "--backend", "onnxruntime", "--threads", "1", "--batch", "4")


def write_model(folder: Path, seed: int = 0) -> Path:
    """A bundle with all three graphs, whose faces are 8 x 8."""
    return tiny.add_upscaler(tiny.add_generator(tiny.write_bundle(folder, seed), seed))


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log
        self.port = int(url.rpartition(":")[2])
        self.http = httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.http.post(path, **options)

    def refused(
        self, path: str, status: int, words: str, method: str = "GET", **options: Any
    ) -> httpx.Response:
        """Asserts that the answer is one sentence with these words."""
        response = self.http.request(method, path, **options)
        assert response.status_code == status, response.text
        assert words in response.json()["error"], response.text
        assert "\n" not in response.json()["error"]
        return response

    def connection(self, address: str = "127.0.0.1", seconds: float = 120.0) -> socket.socket:
        """A bare connection, from one of the addresses of the loopback."""
        return socket.create_connection(("127.0.0.1", self.port), seconds, source_address=(address, 0))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of stderr; every one must be JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [line for line in self.log if line["level"] == "error"]

    def metric(self, name: str) -> float:
        """A counter's value."""
        (line,) = [x for x in self.get("/metrics").text.splitlines() if x.startswith(f"{name} ")]
        return float(line.rpartition(" ")[2])


@contextmanager
def serving(folder: Path, *arguments: Any, key: str = "", installed: Path | None = None) -> Iterator[Served]:
    """A server with these arguments; its log is in the folder. It must end by SIGTERM with 0.

    `installed`: a pgsr-serve that is started there, in place of the checkout's.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PGSR_API_KEY": key}
    start = [sys.executable, "-m", "pgsr.runtime.serve"]
    if installed is not None:
        start = [str(installed)]
        del environment["PYTHONPATH"]
    log = folder / f"serve-{len(list(folder.iterdir()))}.log"
    command = [*start, *CPU, "--port", "0", "--json", *map(str, arguments)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment, cwd=folder, **streams)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        served = Served(process, json.loads(line)["url"], log)
        yield served
        served.http.close()
        if process.poll() is None:
            served.signal(signal.SIGTERM)
        assert process.wait(300) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def graph_of(model: Path) -> str:
    """The sha256 of a bundle's chain."""
    return contract.read(model).graph("chain").sha256


def response_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
