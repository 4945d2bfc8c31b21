"""uvicorn's HTTP/1.1 with bounds on headers: on their size, their number and their time.

uvicorn waits for ever for the first request of a connection and for the rest of a header, and its quick
parser keeps as many headers as come.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 2**15  # of the address and all headers
HEADERS = 100
UNPARSED_BYTES = HEAD_BYTES + 2**18  # of a head that does not end, with what came along in one read


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `header_seconds` is set by `bounded`."""

    header_seconds = 10.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False  # between a request's first byte and the end of its headers
        self._between = True  # before a request's headers have ended
        self._unparsed = self._bytes = self._count = 0
        self._refusal: tuple[int, str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._between and self._timer is None:
            self._start_timer()
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._unparsed += len(data)
            if self._unparsed > UNPARSED_BYTES:
                self._refuse(431, "Request Header Fields Too Large", "the headers are too long")

    def on_message_begin(self) -> None:
        self._in_head, self._unparsed, self._bytes, self._count = True, 0, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._bytes += len(url)
        self._check_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._bytes += len(name) + len(value)
        self._count += 1
        self._check_head()
        super().on_header(name, value)

    def _check_head(self) -> None:
        if self._bytes > HEAD_BYTES or self._count > HEADERS:
            text = f"more than {HEADERS} headers, or {HEAD_BYTES:,} bytes of them"
            self._refusal = (431, "Request Header Fields Too Large", text)
            raise ValueError(text)  # which ends the parser

    def on_headers_complete(self) -> None:
        self._in_head = self._between = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self._refusal or (400, "Bad Request", "this is not HTTP")))

    def _refuse(self, status: int, phrase: str, text: str) -> None:
        """Ends the connection, with an answer if none is on its way."""
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"error": text}).encode()
            head = (
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(408, "Request Timeout", f"the headers took more than {self.header_seconds:g} s")
        else:
            self.transport.close()


def bounded(header_seconds: float) -> type[BoundedProtocol]:
    """The protocol with this bound on the time of headers."""
    return type("Bounded", (BoundedProtocol,), {"header_seconds": header_seconds})
