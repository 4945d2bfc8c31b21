"""Lanes: what computes parts of batches side by side, such as a GPU's streams or a compiled model's requests.

    lanes = Lanes([Stream(...), Stream(...)])
    result = lanes.run(values, rows=8)   # in parts of 8, on whichever lanes are free

Callers on several threads share them, so that one's copying hides behind another's arithmetic.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError


class Lane(Protocol):
    """Computes one part at a time."""

    def start(self, values: NDArray[np.float32]) -> None:
        """Begins a part."""
        ...

    def finish(self) -> NDArray[Any]:
        """Waits for it; the result is overwritten by the next part. It may have more rows than were given."""
        ...

    def close(self) -> None:
        """Gives up what it holds."""
        ...


class Lanes:
    """Lanes that take parts of batches in turn; several threads may use them."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,  # of each call's work
    ) -> None:
        self._lanes = list(lanes)
        self._around = around
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._calls = 0  # in work
        self._open = True
        self._changed = threading.Condition()

    def run(self, values: NDArray[np.float32], rows: int) -> NDArray[Any]:
        """[N, ...] -> [N, ...], in parts of `rows`. Raises PgsrError if they are closed, and what a lane
        raises; all are free again then."""
        with self._in_work(), self._around():
            call = _Call(len(values))
            try:
                for start in range(0, len(values), rows):
                    lane = self._next(call)
                    call.busy.append((lane, start))
                    lane.start(values[start : start + rows])
                while call.busy:
                    self._free.put(call.finish_first())
            finally:  # after an error; what they compute is of no use
                for lane, _ in call.busy:
                    with contextlib.suppress(Exception):
                        lane.finish()
                    self._free.put(lane)
            return call.result

    def close(self) -> list[Lane]:
        """Refuses further calls, waits for those that have begun, and gives the lanes back, to be freed by
        the caller; none the second time."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._calls)
            lanes, self._lanes, self._free = self._lanes, [], SimpleQueue()
            return lanes

    @contextlib.contextmanager
    def _in_work(self) -> Iterator[None]:
        with self._changed:
            if not self._open:
                raise PgsrError("it is closed")
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _next(self, call: _Call) -> Lane:
        """A lane of nobody's, or the one this caller began first. Only who has none waits for others, so that
        no two callers wait for each other."""
        if not call.busy:
            return self._free.get()
        try:
            return self._free.get_nowait()
        except Empty:
            return call.finish_first()


class _Call:
    """The parts of one batch that are in work, the first one first, and what is made."""

    def __init__(self, count: int) -> None:
        self.busy: deque[tuple[Lane, int]] = deque()  # and where in the batch their parts begin
        self.result: NDArray[Any] = np.empty(0)  # until the first part tells its shape
        self._count = count

    def finish_first(self) -> Lane:
        """Waits for the first one and keeps its result; gives back its lane."""
        lane, start = self.busy[0]
        result = lane.finish()
        if not self.result.size:
            self.result = np.empty((self._count, *result.shape[1:]), dtype=result.dtype)
        place = self.result[start : start + len(result)]
        place[:] = result[: len(place)]
        self.busy.popleft()
        return lane
