"""Batches of what many requests want: full, in turn, withdrawn, refused, with errors where they belong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pgsr.runtime.serve.batcher import Batcher, Busy


class Painter:
    """Notes every batch; waits in it while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, orders: list[Any]) -> list[Any]:
        self.batches.append(orders)
        assert self.gate.wait(120)
        if "bad batch" in orders:
            raise MemoryError("no")
        return orders


def finish(order: Any, picture: Any) -> Any:
    if order == "bad picture":
        raise ValueError("no")
    return ("made", picture)


def run(work: Callable[[Painter, Batcher[Any]], Coroutine[Any, Any, None]], **options: Any) -> Painter:
    painter = Painter()

    async def main() -> None:
        settings = {"batch": 4, "calls": 1, "max_wait": 0.02, "capacity": 10, "threads": 1, **options}
        batcher: Batcher[Any] = Batcher(painter, finish, **settings)
        try:
            await asyncio.wait_for(work(painter, batcher), 120)
        finally:
            painter.gate.set()
            await batcher.close()
        assert batcher.waiting == 0

    asyncio.run(main())
    return painter


async def busy(painter: Painter, batcher: Batcher[Any]) -> asyncio.Future[Any]:
    """Lets the networks work on something until the gate opens."""
    painter.gate.clear()
    first = batcher.put("first")
    while not painter.batches:
        await asyncio.sleep(0.001)
    return first


def test_a_full_batch_does_not_wait():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        began = time.perf_counter()
        made = await asyncio.gather(*(batcher.put(i) for i in range(4)))
        assert made == [("made", i) for i in range(4)]
        assert time.perf_counter() - began < 60

    assert run(work, max_wait=100.0).batches == [[0, 1, 2, 3]]


def test_one_face_waits_for_company_only_so_long():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        began = time.perf_counter()
        first = batcher.put("a")
        await asyncio.sleep(0.05)
        assert painter.batches == []
        assert await asyncio.gather(first, batcher.put("b")) == [("made", "a"), ("made", "b")]
        assert time.perf_counter() - began >= 1.0

    assert run(work, max_wait=1.0).batches == [["a", "b"]]


def test_what_gathers_while_another_batch_is_computed_goes_together():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        first = await busy(painter, batcher)
        rest = [batcher.put(i) for i in range(6)]
        painter.gate.set()
        await asyncio.gather(first, *rest)

    assert run(work).batches == [["first"], [0, 1, 2, 3], [4, 5]]


def test_clients_are_served_in_turn():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        first = await busy(painter, batcher)
        greedy = [batcher.put(("greedy", i), "greedy") for i in range(6)]
        others = [batcher.put(("modest", 0), "modest"), batcher.put(("third", 0), "third")]
        painter.gate.set()
        await asyncio.gather(first, *greedy, *others)

    batches = run(work).batches
    assert batches[1] == [("greedy", 0), ("modest", 0), ("third", 0), ("greedy", 1)]
    assert batches[2] == [("greedy", i) for i in range(2, 6)]


def test_what_is_withdrawn_is_not_computed():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        first = await busy(painter, batcher)
        futures = [batcher.put(i) for i in range(4)]
        futures[1].cancel()
        futures[2].cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        painter.gate.set()
        await asyncio.gather(first, futures[0], futures[3])

    assert run(work).batches == [["first"], [0, 3]]


def test_past_the_capacity_it_is_busy():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        first = await busy(painter, batcher)
        futures = [batcher.put(i) for i in range(8)]
        batcher.check_room(2)
        with pytest.raises(Busy) as caught:
            batcher.check_room(3)
        assert caught.value.seconds >= 1
        futures[0].cancel()
        await asyncio.sleep(0)
        batcher.check_room(3)
        painter.gate.set()
        await asyncio.gather(first, *futures[1:])

    run(work)


def test_a_batch_that_fails_fails_alone():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        with pytest.raises(MemoryError):
            await batcher.put("bad batch")
        assert await batcher.put("good") == ("made", "good")

    run(work)


def test_a_picture_that_cannot_be_encoded_fails_alone():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        bad, good = batcher.put("bad picture"), batcher.put("good")
        assert await good == ("made", "good")
        with pytest.raises(ValueError, match="no"):
            await bad

    assert len(run(work).batches) == 1


def test_several_calls_overlap_when_there_is_enough_for_both():
    async def work(painter: Painter, batcher: Batcher[Any]) -> None:
        painter.gate.clear()
        futures = [batcher.put(i) for i in range(8)]
        while len(painter.batches) < 2:
            await asyncio.sleep(0.001)
        painter.gate.set()
        await asyncio.gather(*futures)

    assert len(run(work, calls=2).batches) == 2
