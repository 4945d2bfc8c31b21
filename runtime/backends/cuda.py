"""CUDA for the runners that place their own memory: by cuda-python, or by pycuda.

    cuda = open_cuda(0)
    with cuda.current():           # on every thread that calls it
        stream = cuda.stream()

cuda-python is taken where both are installed, since no release of pycuda can record CUDA graphs;
PGSR_CUDA=pycuda takes pycuda. Both work in the device's primary context, the one that torch, ONNX Runtime and
TensorRT use, and only while `current` says so: nothing is made at import, and a thread's own context is as it
was afterwards. Raises PgsrError for whatever CUDA refuses.
"""

from __future__ import annotations

import ctypes
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError, check_choice
from pgsr.gpu import find_gpu

Array = NDArray[Any]
T = TypeVar("T")

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a stream that does not wait for torch's default stream

log = logging.getLogger(__name__)


class Cuda(Protocol):
    """A device. Memory, streams and graphs live until `close`; all but `close` needs `current`."""

    name: str  # the package behind it

    def current(self) -> Any:
        """A context manager inside which this thread's calls are for this device."""
        ...

    def device(self, size: int) -> int:
        """The address of `size` new bytes on the device."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A host array that the device copies from and to by itself."""
        ...

    def stream(self) -> int:
        """The handle of a new stream, as TensorRT takes it."""
        ...

    def upload(self, address: int, array: Array, stream: int) -> None: ...

    def download(self, array: Array, address: int, stream: int) -> None: ...

    def wait(self, stream: int) -> None:
        """Waits until all that was put into the stream is done."""
        ...

    def record(self, stream: int, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Returns what `enqueue` puts into the stream as one CUDA graph, to launch; None where there are
        none."""
        ...

    def close(self) -> None:
        """Frees everything in the opposite order of making; a second time does nothing. Whatever uses the
        memory and the streams must be gone by then."""
        ...


def open_cuda(index: int) -> Cuda:
    """Raises ImportError without either package, PgsrError without a driver or such a GPU."""
    find_gpu(index)  # says what is missing in one sentence; both packages would raise in their own ways
    wanted = os.environ.get("PGSR_CUDA")
    if wanted:
        check_choice("PGSR_CUDA", wanted, BINDINGS)
        return BINDINGS[wanted](index)
    try:
        return CudaPython(index)
    except ImportError as absent:
        with suppress(ImportError):
            return PyCuda(index)
        raise absent  # cuda-python's: that is what the extras install


def made_on(cuda: Cuda, make: Callable[[], T]) -> T:
    """Returns `make()`, with the device current; if that fails, everything is freed and the device closed.

    A PgsrError is raised anew: its traceback would keep what the failed calls had made from being freed until
    after the device.
    """
    try:
        with cuda.current():
            try:
                return make()
            except PgsrError as error:
                log.debug("%s", traceback.format_exc())
                reason = str(error)
    except BaseException:
        cuda.close()
        raise
    cuda.close()
    raise PgsrError(reason)


class _Made:
    """What was made and must be freed: calls that free it, the last one first."""

    def __init__(self) -> None:
        self._waits: list[Callable[[], Any]] = []
        self._freed_by: list[Callable[[], Any]] = []

    def add(self, free: Callable[[], Any], wait: Callable[[], Any] | None = None) -> None:
        """Of a stream, `wait` waits for its work, which may use what was made after it."""
        self._freed_by.append(free)
        if wait is not None:
            self._waits.append(wait)

    def free(self) -> None:
        """Calls them all: one that a broken GPU refuses does not keep the others."""
        calls = [*self._freed_by, *self._waits]
        self._freed_by, self._waits = [], []
        while calls:
            try:
                calls.pop()()
            except Exception as error:  # the bindings' errors have no common base but this one
                log.info("not freed: %s", error)


class CudaPython:
    """cuda-python: NVIDIA's own bindings of the driver."""

    name = "cuda-python"

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._made = _Made()
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of the driver, which gives back (code, results ...)."""
        try:
            code, *results = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:  # these bindings are of a newer CUDA than the driver
            raise PgsrError(f"the NVIDIA driver has no {name}: update it ({error})") from error
        if int(code) != 0:
            raise PgsrError(f"the GPU refuses {name}: {getattr(code, 'name', code)}")
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def device(self, size: int) -> int:
        address = self._call("cuMemAlloc", size)
        self._made.add(lambda: self._call("cuMemFree", address))
        return int(address)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._call("cuMemAllocHost", size)
        self._made.add(lambda: self._call("cuMemFreeHost", address))
        memory = (ctypes.c_uint8 * size).from_address(int(address))
        array: Array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        return array

    def stream(self) -> int:
        stream = self._call("cuStreamCreate", NON_BLOCKING)
        handle = int(stream)
        self._made.add(lambda: self._call("cuStreamDestroy", stream), lambda: self.wait(handle))
        return handle

    def upload(self, address: int, array: Array, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: Array, address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def record(self, stream: int, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # others may allocate
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon_capture(stream)
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            executable = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        self._made.add(lambda: self._call("cuGraphExecDestroy", executable))
        return lambda: self._call("cuGraphLaunch", executable, stream)

    def _abandon_capture(self, stream: int) -> None:
        """Ends it, since the stream must not stay in this state."""
        with suppress(PgsrError):  # what failed may have ended it
            self._call("cuGraphDestroy", self._call("cuStreamEndCapture", stream))

    def close(self) -> None:
        if self._context is None:
            return
        try:
            with self.current():
                self._made.free()
        finally:
            self._context = None
            self._call("cuDevicePrimaryCtxRelease", self._device)


class PyCuda:
    """pycuda: built from source against a CUDA toolkit.

    A context belongs to the thread that retained it: released on another one it leaks, and released on its
    own one it stays at the top of that thread's stack. So a thread that does nothing else retains it,
    releases it and ends.
    """

    name = "pycuda"

    def __init__(self, index: int) -> None:
        import pycuda.driver

        self._driver = pycuda.driver
        self._made = _Made()
        self._streams: dict[int, Any] = {}
        self._owner = ThreadPoolExecutor(1, "pgsr-pycuda")
        with self._named_errors():
            self._driver.init()
            self._context = self._owner.submit(self._driver.Device(index).retain_primary_context).result()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise PgsrError(f"the GPU refuses a call: {error}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._named_errors():
            self._context.push()
        try:
            yield
        finally:
            with self._named_errors():
                self._driver.Context.pop()

    def device(self, size: int) -> int:
        with self._named_errors():
            allocation = self._driver.mem_alloc(size)
        self._made.add(allocation.free)
        return int(allocation)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self._named_errors():
            array: Array = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        owner: Any = array.base
        self._made.add(owner.free)
        return array

    def stream(self) -> int:
        with self._named_errors():
            stream = self._driver.Stream(NON_BLOCKING)
        handle = int(stream.handle)
        self._streams[handle] = stream
        # It is destroyed with its object.
        self._made.add(lambda: self._streams.pop(handle), lambda: self.wait(handle))
        return handle

    def upload(self, address: int, array: Array, stream: int) -> None:
        with self._named_errors():
            self._driver.memcpy_htod_async(address, array, self._streams[stream])

    def download(self, array: Array, address: int, stream: int) -> None:
        with self._named_errors():
            self._driver.memcpy_dtoh_async(array, address, self._streams[stream])

    def wait(self, stream: int) -> None:
        with self._named_errors():
            self._streams[stream].synchronize()

    def record(self, stream: int, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """None: no release of pycuda can record a stream."""
        return None

    def close(self) -> None:
        if self._context is None:
            return
        try:
            with self.current():
                self._made.free()
        finally:
            context, self._context = self._context, None
            with self._named_errors():
                self._owner.submit(context.detach).result()
            self._owner.shutdown()


BINDINGS: dict[str, Callable[[int], Cuda]] = {"cuda-python": CudaPython, "pycuda": PyCuda}
