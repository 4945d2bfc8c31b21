"""pgsr-bench serve at a tiny size: what it measures, and that its clients count rightly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.serve.load import Load
from pgsr.benchmarks.serve.measure import percentile
from serving import write_model


def test_percentiles_are_of_nearest_rank():
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0


async def _server(parts: list[bytes], asked: list[bytes]) -> asyncio.Server:
    """Answers every request with these bytes, in parts."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                writer.close()
                return
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.001)

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nconte", b"nt-length: 5\r\nx: y\r\n", b"\r\nhel", b"lo"],
        [b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"],
    ],
)
def test_clients_count_whole_answers(parts: list[bytes]):
    asked: list[bytes] = []

    async def run() -> Load:
        server = await _server(parts, asked)
        async with server:
            load = Load("127.0.0.1", server.sockets[0].getsockname()[1], "/{}.png")
            await load.run(clients=3, seconds=0.2, rate=0.0)
        return load

    load = asyncio.run(run())
    status = int(parts[0][9:12])
    assert load.statuses == {status: len(asked)}
    assert len(load.seconds) == (len(asked) if status == 200 else 0)
    assert load.bytes == len(asked) * sum(map(len, parts))
    assert len(set(asked)) == len(asked) > 3


def test_a_rate_is_kept():
    asked: list[bytes] = []

    async def run() -> None:
        server = await _server([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"], asked)
        async with server:
            load = Load("127.0.0.1", server.sockets[0].getsockname()[1], "/{}.png")
            await load.run(clients=4, seconds=0.5, rate=40.0)

    asyncio.run(run())
    assert len(asked) == 20


def test_the_report(command: Callable[..., Result], tmp_path: Path):
    model = write_model(tmp_path / "model")
    options = ("--seconds", 0.3, "--rounds", 1, "--clients", 4, "--batch", 4, "--backend", "onnxruntime")
    watch = ("--cores", 1, "--minutes", 0.02)
    result = command(main, "serve", "--model", model, *options, *watch, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "serve.json").read_text())
    (one,) = found["results"]
    assert one["cores"] == 1
    assert one["offline"]["images_per_second"] > 0
    for name in ("pgsr-serve", "plain"):
        for load in (one[name]["full"], one[name]["half"]):
            assert set(load["statuses"]) == {"200"}
            assert 0 < load["p50"] <= load["p95"] <= load["p99"]
        half = one[name]["half"]["images_per_second"]
        assert half < one[name]["full"]["images_per_second"]
    assert found["memory"]["last_bytes"] > 2**20
    page = (tmp_path / "out" / "serve.md").read_text()
    assert "| 1 | pgsr-serve |" in page
    assert "plain handler's throughput" in result.output


def test_what_is_out_of_range(command: Callable[..., Result]):
    for arguments, words in ((["--cores", "999"], "--cores 999"), (["--clients", "0"], "--clients 0")):
        result = command(main, "serve", *arguments)
        assert result.exit_code == 1
        assert words in result.stderr
