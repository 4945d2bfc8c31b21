"""Answers that wait for the networks, and end when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Iterable
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..output.archives import tar_end, tar_entry
from ..output.writers import note_json, sample_names
from .batcher import Batcher
from .guard import ClientGone
from .models import Look, Order


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: asyncio.Future[Any]) -> Any:
    """The work's result. Raises ClientGone, and cancels the work, if the client goes before."""
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        watch.cancel()


class HeldResponse(StreamingResponse):
    """A stream that holds something, a model's lease say, until it has ended in whatever way."""

    def __init__(self, content: Any, held: ExitStack, **options: Any) -> None:
        super().__init__(content, **options)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                close = getattr(self.body_iterator, "aclose", None)
                if close is not None:  # of orders that nobody waits for any more
                    await close()


async def files(
    queue: Batcher[Order], orders: Iterable[Order], client: Hashable
) -> AsyncGenerator[tuple[Order, Any], None]:
    """Orders with their files, in their order. No more are in the queue at a time than two batches."""
    rest, line = iter(orders), deque[tuple[Order, asyncio.Future[Any]]]()
    try:
        for order in rest:
            line.append((order, queue.put(order, client)))
            if len(line) >= 2 * queue.batch:
                first, future = line.popleft()
                yield first, await future
        while line:
            first, future = line.popleft()
            yield first, await future
    finally:
        for _, future in line:
            future.cancel()


async def tar(
    queue: Batcher[Order],
    orders: Iterable[Order],  # whose notes say how they are encoded, too, as an archive's do
    look: Look,
    numbers: Iterable[int],
    digits: int,
    client: Hashable,
) -> AsyncIterator[bytes]:
    """The same bytes as an archive of pgsr-generate: 000000.png, 000000.json and so on."""
    length = 0
    rest = iter(numbers)
    async with aclosing(files(queue, orders, client)) as made:
        async for order, data in made:
            names = sample_names(look.encoding, next(rest), digits)
            part = tar_entry(names[0], data) + tar_entry(names[1], note_json(order.note))
            length += len(part)
            yield part
    yield tar_end(length)
