"""A stand-in for NVIDIA's driver that keeps the rules, and records who breaks them.

    driver = Driver(build(folder))    # from here on libcuda.so.1 is it, in this process
    ...                               # run an adapter under the real cuda-python, pycuda or ctypes
    assert driver.report() == []

The library is C, a list of names (recording.c); what they do is here. The rules: every call needs the context
that its objects were made in, current on the calling thread; handles are live; nothing is freed that a stream
or a library still uses; asynchronous copies are to and from pinned memory; what is put into a stream happens
when somebody waits for it, and not before; while a stream is recorded, nothing else is asked of the device.
Device addresses are numbers that point nowhere, so that a pointer mistaken for the host's cannot work.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_CONTEXT = 0, 1, 2, 3, 201
INVALID_HANDLE, NOT_FOUND, UNSUPPORTED_IN_CAPTURE, UNKNOWN = 400, 500, 900, 999

DEVICE_BASE = 0x10_0000_0000_0000  # device addresses begin here: no host address does
WORD = 2**64

HANDLER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, *[ctypes.c_uint64] * 6)


# ----------------------------------------------------------------------------
# The library.


def has_compiler() -> bool:
    return shutil.which("cc") is not None


def build(folder: Path, more: tuple[str, ...] = ()) -> Path:
    """Compiles libcuda.so.1 with every function of Driver, and `more` that only have to exist."""
    names = names_of_driver(more)
    listed = " ".join(f"NAME({number}, {name})" for number, name in enumerate(names))
    path = folder / "libcuda.so.1"
    source = Path(__file__).with_name("recording.c")
    command = ["cc", "-shared", "-fPIC", "-O1", f"-DNAMES={listed}", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", str(path), str(source)], check=True, timeout=60)
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to(path.name)
    return path


def names_of_driver(more: tuple[str, ...] = ()) -> list[str]:
    own = sorted(name for name in vars(Driver) if name.startswith("cu"))
    return own + sorted(set(more) - set(own))


# ----------------------------------------------------------------------------
# What there is.


@dataclass
class Block:
    """Memory: on the device, or of the host and pinned."""

    address: int
    size: int
    context: int
    data: np.ndarray  # uint8


@dataclass
class Operation:
    """Something that a stream will do, and the blocks and objects that it needs then."""

    what: str
    do: Callable[[], None]
    needs: list[int]


@dataclass
class Stream:
    context: int
    queue: list[Operation] = field(default_factory=list)
    recorded: list[Operation] | None = None  # what a capture has got so far
    recorder: int = 0  # thread


class Driver:
    """The functions that the C library hands over, by their exported names, and the rules' state."""

    def __init__(self, library: Path, more: tuple[str, ...] = (), devices: int = 2) -> None:
        self.violations: list[str] = []
        self.calls: list[str] = []
        self.devices = devices
        self.refuses: dict[str, int] = {}  # function -> the code it answers with
        self.before: dict[
            str, Callable[[], None]
        ] = {}  # function -> what happens first, on the caller's thread
        self._references: dict[int, int] = {}  # of primary contexts
        self._device_blocks: dict[int, Block] = {}
        self._host_blocks: dict[int, Block] = {}
        self._streams: dict[int, Stream] = {}
        self._graphs: dict[int, list[Operation]] = {}
        self._executables: dict[int, list[Operation]] = {}
        self._users: dict[
            int, list[tuple[weakref.ref[Any], str]]
        ] = {}  # of handles and addresses, by libraries
        self._next = 0x5000
        self._next_address = DEVICE_BASE
        self._lock = threading.RLock()
        self._local = threading.local()
        self._stacks: list[tuple[weakref.ref[threading.Thread], list[int]]] = []
        self._names = names_of_driver(more)
        self._library = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        self._handler = HANDLER(self._handle)
        self._library.recording_install(self._handler)

    def _handle(self, number: int, *arguments: int) -> int:
        name = self._names[number]
        try:
            self.before.get(name, int)()
            with self._lock:
                if name != "cuGetProcAddress_v2":
                    self.calls.append(name)
                if name in self.refuses:
                    return self.refuses[name]
                function = getattr(self, name, None)
                if function is None:
                    return self._wrong(f"{name}: the stand-in has no such function", UNKNOWN)
                count = function.__code__.co_argcount - 1
                return int(function(*arguments[:count]) or SUCCESS)
        except Exception:
            return self._wrong(f"{name}: {traceback.format_exc()}", UNKNOWN)

    # ------------------------------------------------------------------------
    # For tests and for stand-ins of libraries.

    def report(self) -> list[str]:
        """Every rule that was broken, and what is left."""
        left = [
            *(f"device memory {block.address:#x} is not freed" for block in self._device_blocks.values()),
            *("pinned memory is not freed" for _ in self._host_blocks),
            *("a stream is not destroyed" for _ in self._streams),
            *("a graph is not destroyed" for _ in self._graphs),
            *("an executable graph is not destroyed" for _ in self._executables),
            *(f"primary context {c:#x} is retained {n} times" for c, n in self._references.items() if n),
        ]
        for thread, stack in self._stacks:
            alive = thread()
            if stack and alive is not None and alive.is_alive():
                left.append(f"{alive.name} is left with {len(stack)} contexts on its stack")
        for users in self._users.values():
            left.extend(f"{what} is not freed" for user, what in users if user() is not None)
        return [*self.violations, *left]

    def wrong(self, what: str) -> None:
        """For libraries' stand-ins: a rule was broken."""
        self._wrong(what, UNKNOWN)

    def check_current(self, what: str) -> int:
        """The context of the calling thread, which must be alive; 0 if there is none, and that is noted."""
        context = self._current()
        if not context or not self._references.get(context):
            self._wrong(f"{what} without a live context on this thread", INVALID_CONTEXT)
            return 0
        return context

    def use(self, user: Any, what: str, *handles: int) -> None:
        """Notes that a library's object uses memory or streams, which must not be freed before it."""
        for handle in handles:
            self._users.setdefault(handle, []).append((weakref.ref(user), what))

    def put(self, stream: int, what: str, do: Callable[[], None], needs: list[int]) -> bool:
        """Puts a library's work into a stream."""
        if self.refuses.get("batch"):
            return False
        return self._put(stream, Operation(what, do, needs)) == SUCCESS

    def is_recorded(self, stream: int) -> bool:
        return stream in self._streams and self._streams[stream].recorded is not None

    def memory(self, address: int, size: int) -> np.ndarray:
        """The bytes behind a device address. Raises LookupError unless they are one live block's."""
        block = self._block(self._device_blocks, address, size)
        if block is None:
            raise LookupError(f"{size} bytes at {address:#x} are not memory of the device")
        return block.data[address - block.address :][:size]

    # ------------------------------------------------------------------------
    # The driver's functions.

    def cuInit(self, flags: int) -> int:
        self._local.__dict__.setdefault("ready", True)
        return SUCCESS

    def cuDriverGetVersion(self, version: int) -> int:
        return self._give(version, 13_000, ctypes.c_int)

    def cuGetErrorName(self, code: int, text: int) -> int:
        return self._give_text(text, f"ERROR_{code}")

    def cuGetErrorString(self, code: int, text: int) -> int:
        return self._give_text(text, f"error {code} of the stand-in")

    def cuGetProcAddress_v2(self, symbol: int, function: int, version: int, flags: int, status: int) -> int:
        wanted = (ctypes.string_at(symbol) or b"").decode()
        best = "cuGraphInstantiateWithFlags" if wanted == "cuGraphInstantiate" else wanted
        names = [name for name in (f"{best}_v2", best) if name in self._names]
        if status:
            self._give(status, 0 if names else 1, ctypes.c_int)
        if not names:
            return self._give(function, 0) or NOT_FOUND
        address = ctypes.cast(getattr(self._library, names[0]), ctypes.c_void_p).value
        return self._give(function, address or 0)

    def cuDeviceGetCount(self, count: int) -> int:
        return self._give(count, self.devices, ctypes.c_int)

    def cuDeviceGet(self, device: int, ordinal: int) -> int:
        return self._give(device, ordinal & 0xFFFFFFFF, ctypes.c_int)

    def cuDeviceGetName(self, text: int, size: int, device: int) -> int:
        ctypes.memmove(text, b"A recording GPU\0", 16)
        return SUCCESS

    def cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> int:
        known = {75: 8, 76: 9}  # compute capability 8.9
        return self._give(value, known.get(attribute & 0xFFFFFFFF, 0), ctypes.c_int)

    def cuDevicePrimaryCtxRetain(self, context: int, device: int) -> int:
        handle = 0x1000 + (device & 0xFFFFFFFF)
        self._references[handle] = self._references.get(handle, 0) + 1
        return self._give(context, handle)

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        handle = 0x1000 + (device & 0xFFFFFFFF)
        if not self._references.get(handle):
            return self._wrong("a primary context is released that nobody retains", INVALID_CONTEXT)
        self._references[handle] -= 1
        if not self._references[handle]:
            for what, blocks in (("memory", self._device_blocks), ("pinned memory", self._host_blocks)):
                if any(block.context == handle for block in blocks.values()):
                    self._wrong(f"a context is destroyed before its {what}", SUCCESS)
            if any(stream.context == handle for stream in self._streams.values()):
                self._wrong("a context is destroyed before its streams", SUCCESS)
            for users in self._users.values():
                for user, what in users:
                    if user() is not None:
                        self._wrong(f"a context is destroyed before {what}", SUCCESS)
        return SUCCESS

    def cuCtxPushCurrent_v2(self, context: int) -> int:
        if not self._references.get(context):
            return self._wrong("a context is pushed that is not alive", INVALID_CONTEXT)
        self._stack().append(context)
        return SUCCESS

    def cuCtxPopCurrent_v2(self, context: int) -> int:
        stack = self._stack()
        if not stack:
            return self._wrong("a context is popped where none is current", INVALID_CONTEXT)
        popped = stack.pop()
        return self._give(context, popped) if context else SUCCESS

    def cuCtxSetCurrent(self, context: int) -> int:
        stack = self._stack()
        if stack:
            stack.pop()
        if context:
            stack.append(context)
        return SUCCESS

    def cuCtxGetCurrent(self, context: int) -> int:
        return self._give(context, self._current())

    def cuCtxGetDevice(self, device: int) -> int:
        return self._give(device, max(0, self._current() - 0x1000), ctypes.c_int)

    def cuMemAlloc_v2(self, address: int, size: int) -> int:
        context = self.check_current("cuMemAlloc")
        if not context:
            return INVALID_CONTEXT
        if self._recording_here():
            return self._wrong("memory is allocated while this thread records", UNSUPPORTED_IN_CAPTURE)
        made = Block(self._next_address, size, context, np.full(size, 0xCD, np.uint8))  # not zeros
        self._next_address += -(-size // 256) * 256 + 256
        self._device_blocks[made.address] = made
        return self._give(address, made.address)

    def cuMemFree_v2(self, address: int) -> int:
        return self._free(self._device_blocks, address, "device memory")

    def cuMemHostAlloc(self, address: int, size: int, flags: int) -> int:
        return self.cuMemAllocHost_v2(address, size)

    def cuMemAllocHost_v2(self, address: int, size: int) -> int:
        context = self.check_current("cuMemAllocHost")
        if not context:
            return INVALID_CONTEXT
        data = np.full(size, 0xCD, np.uint8)
        self._host_blocks[data.ctypes.data] = Block(data.ctypes.data, size, context, data)
        return self._give(address, data.ctypes.data)

    def cuMemFreeHost(self, address: int) -> int:
        return self._free(self._host_blocks, address, "pinned memory")

    def cuMemcpyHtoDAsync_v2(self, to: int, given: int, size: int, stream: int) -> int:
        return self._copy(to, given, size, stream, up=True)

    def cuMemcpyDtoHAsync_v2(self, to: int, given: int, size: int, stream: int) -> int:
        return self._copy(given, to, size, stream, up=False)

    def cuStreamCreate(self, stream: int, flags: int) -> int:
        context = self.check_current("cuStreamCreate")
        if not context:
            return INVALID_CONTEXT
        if flags & 0xFFFFFFFF != 1:
            self._wrong("a stream waits for the default stream, which is torch's", SUCCESS)
        handle = self._handle_number()
        self._streams[handle] = Stream(context)
        return self._give(stream, handle)

    def cuStreamDestroy_v2(self, stream: int) -> int:
        found = self._stream(stream, "cuStreamDestroy")
        if found is None:
            return INVALID_HANDLE
        if found.queue:
            self._wrong("a stream is destroyed before its work is done", SUCCESS)
        self._unused(stream, "a stream")
        del self._streams[stream]
        return SUCCESS

    def cuStreamSynchronize(self, stream: int) -> int:
        found = self._stream(stream, "cuStreamSynchronize")
        if found is None:
            return INVALID_HANDLE
        if found.recorded is not None:
            return self._wrong("somebody waits for a stream that is recorded", UNSUPPORTED_IN_CAPTURE)
        queue, found.queue = found.queue, []
        for operation in queue:
            operation.do()
        return SUCCESS

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        found = self._stream(stream, "cuStreamBeginCapture")
        if found is None:
            return INVALID_HANDLE
        if found.queue:
            self._wrong("a stream is recorded before its work is done", SUCCESS)
        found.recorded, found.recorder = [], threading.get_ident()
        return SUCCESS

    def cuStreamEndCapture(self, stream: int, graph: int) -> int:
        found = self._stream(stream, "cuStreamEndCapture")
        if found is None or found.recorded is None:
            return self._wrong("a recording ends that had not begun", INVALID_VALUE)
        handle = self._handle_number()
        self._graphs[handle], found.recorded = found.recorded, None
        return self._give(graph, handle)

    def cuGraphInstantiateWithFlags(self, executable: int, graph: int, flags: int) -> int:
        if graph not in self._graphs:
            return self._wrong("a graph is instantiated that is not alive", INVALID_HANDLE)
        handle = self._handle_number()
        self._executables[handle] = list(self._graphs[graph])
        return self._give(executable, handle)

    def cuGraphLaunch(self, executable: int, stream: int) -> int:
        if executable not in self._executables:
            return self._wrong("a graph is launched that is not alive", INVALID_HANDLE)
        for operation in self._executables[executable]:
            code = self._put(stream, operation)
            if code:
                return code
        return SUCCESS

    def cuGraphDestroy(self, graph: int) -> int:
        return SUCCESS if self._graphs.pop(graph, None) is not None else self._gone("a graph")

    def cuGraphExecDestroy(self, executable: int) -> int:
        if not self.check_current("cuGraphExecDestroy"):
            return INVALID_CONTEXT
        return SUCCESS if self._executables.pop(executable, None) is not None else self._gone("a graph")

    # ------------------------------------------------------------------------

    def _wrong(self, what: str, code: int) -> int:
        self.violations.append(what)
        return code

    def _gone(self, what: str) -> int:
        return self._wrong(f"{what} is destroyed that is not alive", INVALID_HANDLE)

    def _give(self, address: int, value: int, type_: Any = ctypes.c_uint64) -> int:
        if not address:
            return self._wrong("nowhere to give a result", INVALID_VALUE)
        type_.from_address(address).value = value
        return SUCCESS

    def _give_text(self, address: int, text: str) -> int:
        kept = ctypes.create_string_buffer(text.encode())
        self.__dict__.setdefault("_texts", []).append(kept)
        return self._give(address, ctypes.addressof(kept))

    def _handle_number(self) -> int:
        self._next += 16
        return self._next

    def _stack(self) -> list[int]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
            self._stacks.append((weakref.ref(threading.current_thread()), self._local.stack))
        stack: list[int] = self._local.stack
        return stack

    def _current(self) -> int:
        return self._stack()[-1] if self._stack() else 0

    def _recording_here(self) -> bool:
        here = threading.get_ident()
        return any(s.recorded is not None and s.recorder == here for s in self._streams.values())

    def _stream(self, handle: int, what: str) -> Stream | None:
        context = self.check_current(what)
        found = self._streams.get(handle)
        if found is None:
            self._wrong(f"{what} of a stream that is not alive", INVALID_HANDLE)
        elif context != found.context:
            self._wrong(f"{what} of a stream of another context", INVALID_HANDLE)
            return None
        return found

    def _block(self, blocks: dict[int, Block], address: int, size: int) -> Block | None:
        for block in blocks.values():
            if block.address <= address and address + size <= block.address + block.size:
                return block
        return None

    def _free(self, blocks: dict[int, Block], address: int, what: str) -> int:
        context = self.check_current(f"freeing {what}")
        block = blocks.get(address)
        if block is None:
            return self._wrong(f"{what} is freed that is not alive", INVALID_VALUE)
        if block.context != context:
            return self._wrong(f"{what} is freed in another context", INVALID_CONTEXT)
        if any(address in operation.needs for s in self._streams.values() for operation in s.queue):
            self._wrong(f"{what} is freed while a stream still uses it", SUCCESS)
        self._unused(address, what)
        del blocks[address]
        return SUCCESS

    def _unused(self, handle: int, what: str) -> None:
        for user, name in self._users.pop(handle, []):
            if user() is not None:
                self._wrong(f"{what} is freed before {name}, which uses it", SUCCESS)

    def _copy(self, device: int, host: int, size: int, stream: int, up: bool) -> int:
        on_device = self._block(self._device_blocks, device, size)
        if on_device is None:
            return self._wrong("a copy goes beyond the device's memory", INVALID_VALUE)
        on_host = self._block(self._host_blocks, host, size)
        if on_host is None:
            return self._wrong("an asynchronous copy from or to memory that is not pinned", INVALID_VALUE)
        there = on_device.data[device - on_device.address :][:size]
        here = on_host.data[host - on_host.address :][:size]

        def do() -> None:
            if up:
                there[:] = here
            else:
                here[:] = there

        return self._put(stream, Operation("copy", do, [on_device.address, on_host.address]))

    def _put(self, stream: int, operation: Operation) -> int:
        found = self._stream(stream, operation.what)
        if found is None:
            return INVALID_HANDLE
        (found.queue if found.recorded is None else found.recorded).append(operation)
        return SUCCESS
