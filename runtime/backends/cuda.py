"""CUDA for the TensorRT runners, by pycuda where it is installed, else by cuda-python: the same few calls.

    cuda = open_cuda(0)
    with cuda.current():           # on every thread that calls it
        stream = cuda.stream()

Both work in the device's primary context, the one that torch and TensorRT use, and only while `current` says
so: nothing is made at import, and a thread's own context is as it was afterwards. Raises PgsrError for
whatever CUDA refuses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.gpu import find_gpu

Array = NDArray[Any]


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

    def close(self) -> None: ...


def open_cuda(index: int) -> Cuda:
    """Raises ImportError without either package, PgsrError without a driver or such a GPU."""
    find_gpu(index)  # says what is missing in one sentence; both packages would raise in their own ways
    try:
        return PyCuda(index)
    except ImportError:
        return CudaPython(index)


class CudaPython:
    """cuda-python: NVIDIA's own bindings of the driver."""

    name = "cuda-python"

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._freed_by: list[Callable[[], Any]] = []
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of the driver, which gives back (code, results ...)."""
        code, *results = getattr(self._driver, name)(*arguments)
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
        self._freed_by.append(lambda: self._call("cuMemFree", address))
        return int(address)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._call("cuMemAllocHost", size)
        self._freed_by.append(lambda: self._call("cuMemFreeHost", address))
        memory = (ctypes.c_uint8 * size).from_address(int(address))
        array: Array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        return array

    def stream(self) -> int:
        flag = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING  # does not wait for torch's default stream
        stream = self._call("cuStreamCreate", flag)
        self._freed_by.append(lambda: self._call("cuStreamDestroy", stream))
        return int(stream)

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
        finally:  # a stream must not stay in this state
            graph = self._call("cuStreamEndCapture", stream)
        executable = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        self._freed_by.append(lambda: self._call("cuGraphExecDestroy", executable))
        return lambda: self._call("cuGraphLaunch", executable, stream)

    def close(self) -> None:
        """Frees everything in the opposite order of making; a second time does nothing."""
        if self._context is None:
            return
        with self.current():
            while self._freed_by:
                self._freed_by.pop()()
        self._call("cuDevicePrimaryCtxRelease", self._device)
        self._context = None


class PyCuda:
    """pycuda: built from source against a CUDA toolkit."""

    name = "pycuda"

    def __init__(self, index: int) -> None:
        import pycuda.driver

        self._driver = pycuda.driver
        self._driver.init()
        self._context = self._driver.Device(index).retain_primary_context()
        self._streams: dict[int, Any] = {}
        self._owners: list[Any] = []  # pycuda frees what nobody holds

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
            self._driver.Context.pop()

    def device(self, size: int) -> int:
        with self._named_errors():
            allocation = self._driver.mem_alloc(size)
        self._owners.append(allocation)
        return int(allocation)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self._named_errors():
            array: Array = self._driver.pagelocked_empty(shape, np.dtype(dtype))
        return array

    def stream(self) -> int:
        with self._named_errors():
            stream = self._driver.Stream()
        self._streams[stream.handle] = stream
        return int(stream.handle)

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
        on = self._streams[stream]
        if not hasattr(on, "begin_capture"):  # before 2022.2
            return None
        with self._named_errors():
            on.begin_capture(self._driver.capture_mode.THREAD_LOCAL)
            try:
                enqueue()
            finally:
                graph = on.end_capture()
            executable = graph.instantiate()
        self._owners += [graph, executable]
        return lambda: executable.launch(on)

    def close(self) -> None:
        if self._context is None:
            return
        with self.current():
            self._owners.clear()
            self._streams.clear()
        self._context.detach()
        self._context = None
