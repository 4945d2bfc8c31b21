"""ONNX Runtime's CUDA sessions of a fixed batch: bound to memory and a stream of their own.

A batch goes from pinned memory to the GPU, through the session and back into pinned memory, all in one
stream, and the session's kernels are launched as one CUDA graph, which needs addresses that stay.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError

from .buffers import Buffer
from .cuda import Cuda, made_on
from .lanes import Lanes


class BoundLane:
    """A session, one batch at a time."""

    def __init__(
        self, cuda: Cuda, stream: int, session: Any, buffers: tuple[Buffer, Buffer], device: int
    ) -> None:
        self._cuda, self._stream, self._session = cuda, stream, session
        self._input, self._output = (cuda.pinned(b.shape, b.dtype) for b in buffers)
        self._addresses = [cuda.device(b.size) for b in buffers]
        self._binding = session.io_binding()
        for bind, buffer, address in zip(
            (self._binding.bind_input, self._binding.bind_output), buffers, self._addresses, strict=True
        ):
            bind(buffer.name, "cuda", device, np.dtype(buffer.dtype).type, buffer.shape, address)
        self._input[:] = 0
        self._enqueue()  # records the CUDA graph, too; what cannot be recorded is known now
        self._cuda.wait(self._stream)

    def _enqueue(self) -> None:
        self._cuda.upload(self._addresses[0], self._input, self._stream)
        reason = self._compute()
        if reason:
            raise PgsrError(reason)
        self._cuda.download(self._output, self._addresses[1], self._stream)

    def _compute(self) -> str:
        """Returns why it failed, "" if it did not: the error itself would hold the session, by its traceback,
        until after the device is closed."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this one
            return str(error).strip().partition("\n")[0] or repr(error)
        return ""

    def start(self, values: NDArray[np.float32]) -> None:
        """Begins a batch; of fewer images, the rest stays what it was: rows do not see one another."""
        self._input[: len(values)] = values
        self._enqueue()

    def finish(self) -> NDArray[Any]:
        """Waits for it; the result is overwritten by the next batch."""
        self._cuda.wait(self._stream)
        return self._output

    def close(self) -> None:
        """Gives up the session, which uses the stream and the memory."""
        self._binding = None
        self._session = None


class BoundRunner:
    """A lane, used by one thread after the other."""

    calls = 1  # the session has one stream

    def __init__(self, cuda: Cuda, lane: BoundLane, rows: int, provider: str) -> None:
        self.provider = provider
        self._cuda, self._rows = cuda, rows
        self._lanes = Lanes([lane], around=cuda.current)

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """[N, ...] -> [N, ...]. Raises PgsrError if it is closed or the GPU fails, for want of memory say."""
        try:
            return self._lanes.run(values, self._rows)
        except PgsrError as error:
            raise PgsrError(
                f"ONNX Runtime could not run a batch of {len(values)}; try a smaller --batch ({error})"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lanes = self._lanes.close()
        if not lanes:  # closed before
            return
        try:
            with self._cuda.current():
                for lane in lanes:
                    lane.close()
        finally:
            self._cuda.close()


def open_bound(
    cuda: Cuda,
    open_session: Callable[[dict[str, str]], Any],  # with these options of the CUDA provider
    buffers: tuple[Buffer, Buffer],
    device: int,
    provider: str,
) -> BoundRunner:
    """Takes over the device; it is closed if there is no session. Raises what `open_session` does."""

    def open_lane() -> BoundLane:
        stream = cuda.stream()
        session = open_session({"user_compute_stream": str(stream), "enable_cuda_graph": "1"})
        return BoundLane(cuda, stream, session, buffers, device)

    lane = made_on(cuda, open_lane)
    return BoundRunner(cuda, lane, buffers[0].shape[0], provider)
