"""Faces that many requests want, put into batches.

    batcher = Batcher(paint, finish, batch=16, calls=1, max_wait=0.005, capacity=512)
    data = await batcher.put(order, client)      # on the event loop; cancel the future to withdraw it

While a batch is computed, others gather; the next one takes them in turn from every client, so that who asks
for thousands does not keep the others waiting. When nothing is computed, a face waits for company at most
`max_wait` seconds. Networks run on one thread a call, encoders on others (pgsr.runtime.pipeline): the event
loop only passes things on. A face is the same in any batch (docs/backends.md), so nobody sees any of it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..pipeline import Finisher

Order = TypeVar("Order")
Observe = Callable[[int, float], None]  # gets images and seconds of every batch


class Busy(Exception):
    """There is no room in the queue. `seconds` is when there is likely to be."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the server is busy: try again in {seconds:.0f} s")
        self.seconds = seconds


@dataclass(eq=False, slots=True)
class _Ticket(Generic[Order]):
    number: int
    order: Order
    future: asyncio.Future[Any]
    since: float
    waits: bool = True


class Batcher(Generic[Order]):
    """A queue before one opened graph. Its methods are for the event loop's thread."""

    def __init__(
        self,
        paint: Callable[[list[Order]], Sequence[Any]],  # orders -> their pictures; on a thread
        finish: Callable[[Order, Any], Any],  # order and picture -> what its future gets; on a thread
        batch: int,
        calls: int,  # of `paint` at once
        max_wait: float,
        capacity: int,  # orders that may wait
        threads: int = 0,  # that finish; 0 is one a core
        observe: Observe = lambda images, seconds: None,
    ) -> None:
        self.batch, self.capacity = batch, capacity
        self.waiting = 0  # orders that nobody has begun
        self._paint, self._finish, self._observe = paint, finish, observe
        self._calls, self._max_wait = calls, max_wait
        self._loop = asyncio.get_running_loop()
        self._lines: OrderedDict[Hashable, deque[_Ticket[Order]]] = OrderedDict()
        self._numbers = itertools.count()
        self._begun: dict[int, _Ticket[Order]] = {}  # those that the finisher has, by number
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._speed = 0.0  # images a second, of late
        self._pool = ThreadPoolExecutor(calls, thread_name_prefix="pgsr-serve")
        self._finisher = Finisher(self, threads)

    # ------------------------------------------------------------------------
    # On the event loop.

    def check_room(self, count: int) -> None:
        """Raises Busy if so many more orders find no room."""
        if self.waiting and self.waiting + count > self.capacity:
            raise Busy(self.seconds_to_wait)

    @property
    def seconds_to_wait(self) -> float:
        """How long what waits now will take, as far as anybody knows; at least one second."""
        return max(1.0, self.waiting / self._speed if self._speed else 1.0)

    def put(self, order: Order, client: Hashable = None) -> asyncio.Future[Any]:
        """Takes an order. The future gets what `finish` makes of it, or what was raised."""
        ticket = _Ticket(next(self._numbers), order, self._loop.create_future(), self._loop.time())
        ticket.future.add_done_callback(lambda future: self._forget(ticket))
        self._lines.setdefault(client, deque()).append(ticket)
        self.waiting += 1
        self._pump()
        return ticket.future

    def _forget(self, ticket: _Ticket[Order]) -> None:
        """Lets a withdrawn order count no more; its place in line is passed over later."""
        if ticket.waits:
            ticket.waits = False
            self.waiting -= 1

    def _pump(self) -> None:
        while self.waiting and self._running < self._calls:
            if self.waiting < self.batch and (self._running or not self._is_due()):
                return
            tickets = self._next()
            self._running += 1
            self._pool.submit(self._work, tickets)

    def _is_due(self) -> bool:
        """Returns whether somebody has waited long enough; else sees to it that this is asked again."""
        first = min(line[0].since for line in self._lines.values())
        left = first + self._max_wait - self._loop.time()
        if left <= 0:
            return True
        if self._timer is None:
            self._timer = self._loop.call_later(left, self._ring)
        return False

    def _ring(self) -> None:
        self._timer = None
        self._pump()

    def _next(self) -> list[_Ticket[Order]]:
        """A batch: one order of each client in turn."""
        tickets: list[_Ticket[Order]] = []
        while self._lines and len(tickets) < self.batch:
            client, line = self._lines.popitem(last=False)
            ticket = line.popleft()
            if line:
                self._lines[client] = line
            if ticket.waits:
                self._forget(ticket)
                tickets.append(ticket)
        return tickets

    def _done(self, images: int, seconds: float) -> None:
        self._running -= 1
        if seconds > 0:
            speed = images / seconds * self._calls
            self._speed = speed if not self._speed else 0.8 * self._speed + 0.2 * speed
        self._observe(images, seconds)
        self._pump()

    async def close(self) -> None:
        """Waits for what has begun, and ends the threads."""
        if self._timer is not None:
            self._timer.cancel()
        await self._loop.run_in_executor(None, self._close)

    def _close(self) -> None:
        self._pool.shutdown(wait=True)
        self._finisher.__exit__(None, None, None)

    # ------------------------------------------------------------------------
    # On the threads of the networks.

    def _work(self, tickets: list[_Ticket[Order]]) -> None:
        began, seconds = time.perf_counter(), 0.0
        tickets = [ticket for ticket in tickets if not ticket.future.cancelled()]
        try:
            if tickets:
                pictures = self._paint([ticket.order for ticket in tickets])
                seconds = time.perf_counter() - began
                self._begun.update((ticket.number, ticket) for ticket in tickets)
                self._finisher.put([ticket.number for ticket in tickets], pictures)
        except BaseException as error:  # of the graph, or of memory: the requests tell of it
            for ticket in tickets:
                self._begun.pop(ticket.number, None)
                self._loop.call_soon_threadsafe(_settle, ticket.future, error)
        finally:
            self._loop.call_soon_threadsafe(self._done, len(tickets), seconds)

    # ------------------------------------------------------------------------
    # On the threads of the encoders: the sink of the pipeline.

    ordered = False

    def encode(self, position: int, picture: Any) -> Any:
        ticket = self._begun[position]
        if ticket.future.cancelled():
            return None
        try:
            return self._finish(ticket.order, picture)
        except BaseException as error:  # of one picture; the others go on
            return error

    def write(self, position: int, data: Any) -> None:
        self._loop.call_soon_threadsafe(_settle, self._begun.pop(position).future, data)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
