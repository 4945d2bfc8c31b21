"""Clients of pgsr-serve that ask for everything it has, and behave badly as well: for pgsr-bench soak."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image

SECONDS = 60.0  # without a byte, until a client gives up
ANSWERED = (200, 404, 422, 429, 503)  # what these requests may be answered with

Ask = Callable[[http.client.HTTPConnection, int], int]  # a request with its number -> the status


def _got(connection: http.client.HTTPConnection, path: str, method: str = "GET", body: bytes = b"") -> int:
    headers = {"content-type": "application/json"} if body[:1] == b"{" else {}
    connection.request(method, path, body or None, headers)
    response = connection.getresponse()
    response.read()
    return response.status


def _face(connection: http.client.HTTPConnection, number: int) -> int:
    suffix = ("png", "jpg", "webp")[number % 3]
    return _got(connection, f"/v1/images/{number % 5}/{number}.{suffix}")


def _set(connection: http.client.HTTPConnection, number: int) -> int:
    return _got(connection, f"/v1/images?seed={number}&count=24")


def _latents(connection: http.client.HTTPConnection, number: int) -> int:
    faces = [{"seed": number, "index": 0}, {"seed": number, "index": 1}]
    return _got(connection, "/v1/latents", "POST", json.dumps({"faces": faces, "frames": 6}).encode())


def _video(connection: http.client.HTTPConnection, number: int) -> int:
    return _got(connection, f"/v1/video?seed={number}&seconds=0.2&fps=20&format=webp")


def _upscale(connection: http.client.HTTPConnection, number: int) -> int:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return _got(connection, "/v1/upscale", "POST", file.getvalue())


def _pages(connection: http.client.HTTPConnection, number: int) -> int:
    return _got(connection, ("/", "/v1/models", "/metrics", "/healthz")[number % 4])


def _wrong(connection: http.client.HTTPConnection, number: int) -> int:
    return _got(
        connection, (f"/v1/images/0/{number}.bmp", "/v1/images?count=0", f"/none/{number}")[number % 3]
    )


def _cut(connection: http.client.HTTPConnection, number: int) -> int:
    """Leaves in the middle of an answer."""
    connection.request("GET", f"/v1/images?seed={number}&count=64")
    response = connection.getresponse()
    response.read(4096)
    response.close()
    connection.close()
    return response.status


def _half(connection: http.client.HTTPConnection, number: int) -> int:
    """Leaves in the middle of a request."""
    with socket.create_connection((connection.host, connection.port), SECONDS) as bare:
        bare.sendall(b"POST /v1/upscale HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n\x89PNG")
    return 200


# Each client goes round in this list: mostly faces, as people ask.
ROUND: tuple[Ask, ...] = (
    *(_face, _face, _face, _set, _face, _face, _upscale, _face, _face, _latents),
    *(_face, _face, _pages, _face, _wrong, _face, _cut, _face, _half, _face, _face, _video),
)


class Clients:
    """So many clients, each with a thread, who ask until they are stopped."""

    def __init__(self, port: int, count: int, pause: float) -> None:
        self._port, self._pause = port, pause  # seconds between an answer and the next request
        self._stopped = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.statuses: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> int:
        """Requests that were answered, or broken off on purpose."""
        with self._lock:
            return sum(self.statuses.values())

    @property
    def failures(self) -> dict[str, int]:
        """What should not have happened, and how often."""
        expected = {str(status) for status in ANSWERED}
        with self._lock:
            return {name: count for name, count in self.statuses.items() if name not in expected}

    def stop(self) -> None:
        """Waits until every client has its last answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)

    def _ask(self, place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        for ask in itertools.islice(itertools.cycle(ROUND), place, None):
            if self._stopped.is_set():
                break
            try:
                answer = str(ask(connection, next(self._numbers)))
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                answer = type(error).__name__
            with self._lock:
                self.statuses[answer] += 1
            time.sleep(self._pause)
        connection.close()
