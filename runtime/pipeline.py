"""Stages that overlap: what feeds the networks is made ahead, what they make is finished behind them.

    with Finisher(sink, threads=2) as finisher:
        for positions, latents in ahead(chunks, 2):     # on a thread of its own
            finisher.put(positions, runner.run(latents))   # encoded and written on others

Every queue is bounded, so that memory does not grow with the number of pictures; whoever is too fast waits.
An error of any stage ends them all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from pgsr.machine import usable_cores

T = TypeVar("T")
R = TypeVar("R")
PARTS_A_THREAD = 4  # of batches, waiting or in work
MOST_THREADS = 32
ABANDONED_AFTER = 0.5  # seconds, of a writer that may wait for a reader for ever


def encoding_threads(threads: int) -> int:
    """0 is one a core; more than there are cores, or a few, would only wait for each other."""
    return min(threads, max(MOST_THREADS, usable_cores())) or min(MOST_THREADS, usable_cores())


# ----------------------------------------------------------------------------
# Before the networks.


def prefetch(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yields the same items, made on a thread of their own, `count` and one of them before they are asked
    for.

    An error in making them is raised where they would have come. When the iterator is closed, the thread ends
    with the item at hand.
    """
    line: Queue[tuple[T | None, BaseException | None]] = Queue(count)
    stopped = threading.Event()
    maker = threading.Thread(target=_make, args=(items, line, stopped), name="pgsr-ahead", daemon=True)
    maker.start()
    try:
        while True:
            item, error = line.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None is an item if T has it
    finally:
        stopped.set()
        while maker.is_alive():  # it may wait for room
            _empty(line)
            maker.join(0.01)


def _make(
    items: Iterable[T], line: Queue[tuple[T | None, BaseException | None]], stopped: threading.Event
) -> None:
    try:
        for item in items:
            line.put((item, None))
            if stopped.is_set():
                return
        line.put((None, StopIteration()))
    except BaseException as error:  # raised again by the one who asks
        line.put((None, error))


def _empty(line: Queue[Any]) -> None:
    try:
        while True:
            line.get_nowait()
    except Empty:
        pass


# ----------------------------------------------------------------------------
# The networks.


def in_turn(function: Callable[[T], R], items: Iterable[T], calls: int) -> Generator[R, None, None]:
    """function(item) of each item, in their order; so many calls at a time, on threads, if more than one."""
    if calls < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(calls, thread_name_prefix="pgsr-network") as pool:
        line: deque[Future[R]] = deque()
        for item in items:
            line.append(pool.submit(function, item))
            if len(line) >= calls:
                yield line.popleft().result()
        while line:
            yield line.popleft().result()


# ----------------------------------------------------------------------------
# Behind the networks.


class Sink(Protocol):
    """Where pictures go."""

    ordered: bool  # whether they must be written one after the other, in their order

    def encode(self, position: int, picture: Any) -> Any:
        """uint8 [S, S, 3], usually -> what `write` takes. Runs on many threads."""
        ...

    def write(self, position: int, data: Any) -> None:
        """If `ordered`, on one thread; else on the one that encoded."""
        ...


class Finisher:
    """Encodes pictures on threads and writes them, with a bounded number of them in memory.

    A thread's error is raised by the next `put`, or at the end of the `with` block; pictures that wait are
    dropped then, and when the block is left by an error or Ctrl-C.
    """

    def __init__(self, sink: Sink, threads: int = 0, limit: int = 0, may_hang: bool = False) -> None:
        """`threads`: 0 is one a core; `limit`: parts of batches waiting or in work, 0 is four a thread.

        `may_hang`: whether the sink may wait for somebody for ever, so that nobody must wait for it after
        Ctrl-C.
        """
        self._may_hang = may_hang
        self._threads = encoding_threads(threads)
        self._sink = sink
        self._slots = threading.Semaphore(limit or PARTS_A_THREAD * self._threads)
        self._error: BaseException | None = None
        self._latest: Future[list[tuple[int, Any]]] | None = None
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="pgsr-encoder")
        self._line: Queue[Future[list[tuple[int, Any]]] | None] = Queue()  # as long as there are slots
        self._all_done = threading.Event()
        self._writer = threading.Thread(target=self._write_in_order, name="pgsr-writer", daemon=True)
        self._writer.start()

    def put(self, positions: Sequence[int], pictures: Any) -> None:
        """Takes a batch, uint8 [N, S, S, 3] or a list of what the sink takes; waits while there is no room.

        Raises PgsrError if a picture before it could not be written.
        """
        part = -(-len(positions) // (self._threads if self._is_behind() else 1))
        for start in range(0, len(positions), part):
            self._slots.acquire()
            try:
                self._raise_error()
                rows = slice(start, start + part)
                future = self._pool.submit(self._work, positions[rows], pictures[rows])
            except BaseException:
                self._slots.release()
                raise
            self._latest = future
            self._line.put(future)

    def _is_behind(self) -> bool:
        """Returns whether the networks are faster. Else one thread has a batch to itself: several would take
        time from each other, and from the networks, over Python's lock and the folder's."""
        return self._latest is not None and not self._latest.done()

    def _work(self, positions: Sequence[int], pictures: Any) -> list[tuple[int, Any]]:
        """Encodes a part of a batch, and writes it unless that has to be done in order."""
        results = []
        for position, picture in zip(positions, pictures, strict=True):
            if self._error is not None:
                break
            data = self._sink.encode(position, picture)
            if self._sink.ordered:
                results.append((position, data))
            else:
                self._sink.write(position, data)
        return results

    def _write_in_order(self) -> None:
        while (future := self._line.get()) is not None:
            try:
                for position, data in future.result():
                    if self._error is None:
                        self._sink.write(position, data)
            except CancelledError:
                pass
            except BaseException as error:  # raised again by whoever puts the next one
                self._error = self._error or error
            finally:
                self._slots.release()
        self._all_done.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(hurried=error is not None)
        except BaseException:  # a signal meanwhile
            self._wait(hurried=True)
            raise
        if error is None:
            self._raise_error()

    def _wait(self, hurried: bool) -> None:
        """Until what is in work is done; all that waits too, unless `hurried`.

        Not for the threads to end: Python 3.11 takes a thread for ended when a signal interrupts who joins it
        (bpo-45274), and would end with a picture half written.
        """
        self._pool.shutdown(wait=False, cancel_futures=hurried)
        self._line.put(None)
        if self._all_done.wait(ABANDONED_AFTER if hurried and self._may_hang else None):
            self._pool.shutdown(wait=True)
