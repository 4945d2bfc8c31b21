"""Lanes: what computes parts of batches side by side, such as a GPU's streams or a compiled model's requests.

    lanes = Lanes([Stream(...), Stream(...)])
    result = lanes.run(values, rows=8)   # in parts of 8, on whichever lanes are free

Callers on several threads share them, so that one's copying hides behind another's arithmetic.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
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


class Lanes:
    """Lanes that take parts of batches in turn; several threads may use them."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        """Takes the lanes; None at all stands for a runner that was closed."""
        self._open = bool(lanes)
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def run(self, values: NDArray[np.float32], rows: int) -> NDArray[Any]:
        """[N, ...] -> [N, ...], in parts of `rows`. Raises what a lane raises; all are free again then."""
        if not self._open:  # nobody would ever put one back
            raise PgsrError("it is closed")
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
