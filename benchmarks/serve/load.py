"""Clients of an HTTP server, as cheap as they can be: they share the processor with it.

    python -m pgsr.benchmarks.serve.load 127.0.0.1 8000 '/v1/images/1/{}.png' --clients 32 --seconds 10

Each keeps a connection and asks for one face after the other, as soon as the last has come, or with --rate at
its time, though the one before be late: then the wait counts. Prints JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator

import click
import uvloop

END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"content-length: "


class Connection(asyncio.Protocol):
    """One connection; one answer at a time, of a length that its head tells."""

    def __init__(self) -> None:
        self._head = b""
        self._left = -1  # bytes of the body; -1: the head is not whole
        self._status = 0
        self._answer: asyncio.Future[int] | None = None
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """The status of the answer, when all of it has come."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        if self._left < 0:
            self._head += data
            end = self._head.find(END_OF_HEAD)
            if end < 0:
                return
            head = self._head[:end].lower()
            self._status = int(head[9:12])
            place = head.index(LENGTH) + len(LENGTH)
            length = int(head[place : place + 20].split(b"\r\n")[0])
            self._left = length + end + len(END_OF_HEAD) - len(self._head)
            self._head = b""
        else:
            self._left -= len(data)
        if self._left == 0:
            self._left = -1
            assert self._answer is not None
            self._answer.set_result(self._status)


class Load:
    """What the clients have seen."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._address, self._path = (host, port), path
        self._numbers = itertools.count()
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []  # of good answers
        self.bytes = 0

    def _request(self) -> bytes:
        path = self._path.format(next(self._numbers))
        return f"GET {path} HTTP/1.1\r\nhost: {self._address[0]}\r\n\r\n".encode()

    async def run(self, clients: int, seconds: float, rate: float) -> float:
        """Lets them ask for so long; gives back how long it took until the last answer."""
        began = time.perf_counter()
        paces = (_pace(began, seconds, clients / rate if rate else 0.0, i / clients) for i in range(clients))
        await asyncio.gather(*(self._client(pace) for pace in paces))
        return time.perf_counter() - began

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, *self._address))[1]

    async def _client(self, times: Iterator[float]) -> None:
        connection = await self._connected()
        for due in times:
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if connection.transport.is_closing():  # servers close what is idle for long
                self.bytes += connection.bytes
                connection = await self._connected()
            status = await connection.ask(self._request())
            self.statuses[status] += 1
            if status == 200:
                self.seconds.append(time.perf_counter() - due)
        connection.transport.close()
        self.bytes += connection.bytes


def _pace(began: float, seconds: float, every: float, phase: float) -> Iterator[float]:
    """When a client asks: at once, again and again, or at its times."""
    if not every:
        while (now := time.perf_counter()) < began + seconds:
            yield now
        return
    for step in itertools.count():
        due = began + (step + phase) * every
        if due >= began + seconds:
            return
        yield due


@click.command()
@click.argument("host")
@click.argument("port", type=int)
@click.argument("path")
@click.option("--clients", type=int, default=32)
@click.option("--seconds", type=float, default=10.0)
@click.option("--rate", type=float, default=0.0, help="Requests a second of all together; 0: all they can.")
def main(host: str, port: int, path: str, clients: int, seconds: float, rate: float) -> None:
    """Ask for PATH, in which {} is a number that rises, and print what came."""
    load = Load(host, port, path)
    took = uvloop.run(load.run(clients, seconds, rate))
    used = os.times()
    report = {
        "images_per_second": load.statuses[200] / took,
        "milliseconds": sorted(round(1000 * value, 3) for value in load.seconds),
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "bytes": load.bytes,
        "seconds": took,
        "client_cpu_seconds": used.user + used.system,
    }
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
