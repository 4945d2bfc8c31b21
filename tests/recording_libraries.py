"""Stand-ins of libraries that need a GPU, over the recording driver (recording.py): TensorRT 10, 11 and RTX,
pycuda, and ONNX Runtime with CUDA and TensorRT. What they compute is computed by ONNX Runtime on the CPU.

They have the names and signatures of the real ones (tests/test_contracts.py holds them to it), return and
raise what those do, and use the driver by the rules that those have: a context is current wherever they touch
the device, their objects are freed before what they use, a profile stands before a shape.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import re
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from recording import Driver

DYNAMIC = "N/A due to dynamic shapes"


def cpu_session(model: bytes | str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def freed_in_context(driver: Driver, owner: Any, what: str) -> None:
    """Notes it when the object is freed with no live context current."""
    driver.use(owner, what, 0)
    weakref.finalize(owner, driver.check_current, f"freeing {what}").atexit = False


# ----------------------------------------------------------------------------
# TensorRT.


class Flag(int):
    def __new__(cls, value: int, name: str = "") -> Flag:
        made = super().__new__(cls, value)
        made.name = name  # type: ignore[attr-defined]
        return made


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self) -> None: ...

    def log(self, severity: Any, msg: str) -> None: ...


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT8 = "int8"
    UINT8 = "uint8"
    INT64 = "int64"
    INT32 = "int32"
    BOOL = "bool"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class BuilderFlag(enum.Enum):
    FP16 = 0
    TF32 = 7


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class ComputeCapability(enum.Enum):
    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class IHostMemory:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class ILayer:
    def __init__(self, outputs: list[ITensor]) -> None:
        self._outputs = outputs
        self.num_outputs = len(outputs)

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class INetworkDefinition:
    """Filled by the parser."""

    num_inputs = num_layers = 0

    def read(self, data: bytes) -> None:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self.tensors = {value.name: _tensor(value) for value in values}
        self.tensors |= {
            t.name: ITensor(t.name, tuple(t.dims), _type(t.data_type)) for t in model.graph.initializer
        }
        self.inputs = [self.tensors[value.name] for value in model.graph.input]
        self.outputs = [self.tensors[value.name] for value in model.graph.output]
        self.layers = [ILayer([self.tensors[name] for name in node.output]) for node in model.graph.node]
        self.num_inputs, self.num_layers = len(self.inputs), len(self.layers)
        self.model = data

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]


def _type(number: int) -> DataType:
    return DataType(str(np.dtype(helper.tensor_dtype_to_np_dtype(number)).name))


def _tensor(value: Any) -> ITensor:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
    return ITensor(value.name, shape, _type(value.type.tensor_type.elem_type))


class ParserError:
    def desc(self) -> str:
        return "it is no ONNX model"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError(f"Shape provided for tensor {input} is not valid")
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data or b"timings"

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data)


class IBuilderConfig:
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None

    def clear_flag(self, flag: BuilderFlag) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        return 0 <= index < self.num_compute_capabilities

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self.cache is not None
        return self.cache


class IRuntimeCache:
    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, blob: bytes) -> bool:
        self.data = blob
        return True

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"kernels")


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
    cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def __init__(self) -> None:
        self.cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self.cache = cache
        return True


def tensorrt(driver: Driver, version: str, rtx: bool = False, **faults: bool) -> ModuleType:
    """The module tensorrt or tensorrt_rtx. `faults` lets it fail as the real one can: no_start (an old
    driver), no_profile, no_context (the second), no_capture, dynamic (its inspector tells no type of what
    depends on the batch, even with shapes)."""

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            _start(logger)

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            typed = bool(flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            if not typed and (rtx or int(version.split(".")[0]) < 11):
                driver.wrong("a network is not strongly typed")
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> IHostMemory | None:
            if not rtx:
                driver.check_current("building an engine")
            about = {"profiles": [p.shapes for p in config.profiles], "rtx": rtx, "version": version}
            return IHostMemory(json.dumps(about).encode() + b"\0" + network.model)

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            self._network = network

        def parse(self, model: bytes, path: str | None = None) -> bool:
            with suppress(Exception):
                self._network.read(model)
                return True
            self.num_errors = 1
            return False

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            _start(logger)
            if driver.check_current("a TensorRT runtime"):
                freed_in_context(driver, self, "a TensorRT runtime")

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            about, _, model = serialized_engine.partition(b"\0")
            told = json.loads(about)
            if told["version"] != version or told["rtx"] != rtx:
                return None
            return ICudaEngine(self, model, told["profiles"][0])

    class ICudaEngine:
        def __init__(self, runtime: Runtime, model: bytes, profile: dict[str, list[list[int]]]) -> None:
            self._runtime = runtime  # the real one's bindings hold it, too
            self.network = INetworkDefinition()
            self.network.read(model)
            self.profile = profile
            self.session = cpu_session(model)
            self.contexts = 0
            self.num_io_tensors = len(self._ports)
            driver.check_current("loading an engine")
            freed_in_context(driver, self, "a TensorRT engine")

        @property
        def _ports(self) -> list[ITensor]:
            return [*self.network.inputs, *self.network.outputs]

        def get_tensor_name(self, index: int) -> str:
            return self._ports[index].name

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            given = name in {port.name for port in self.network.inputs}
            return TensorIOMode.INPUT if given else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return self.network.tensors[name].dtype

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self.profile[name]]

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self)

        def create_runtime_config(self) -> IRuntimeConfig:
            if not rtx:
                driver.wrong("a runtime configuration is TensorRT-RTX's")
            return IRuntimeConfig()

        def create_execution_context(self, strategy: Any = None) -> IExecutionContext | None:
            self.contexts += 1
            if faults.get("no_context") and self.contexts > 1:
                return None
            return IExecutionContext(self, strategy)

    class EngineInspector:
        execution_context: Any = None

        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine

        def get_engine_information(self, format: LayerInformationFormat) -> str:
            shaped = self.execution_context is not None and self.execution_context.shape
            names = {"float32": "Float", "float16": "Half", "uint8": "UInt8", "int8": "Int8"}
            layers = []
            for layer in self._engine.network.layers:
                outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
                known = [names.get(o.dtype.value, "Int64") for o in outputs]
                told = known if shaped and not faults.get("dynamic") else [DYNAMIC] * len(known)
                layers.append({"Outputs": [{"Format/Datatype": name} for name in told]})
            return json.dumps({"Layers": layers})

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, strategy: Any) -> None:
            self._engine = engine
            self._memory = strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
            self._profile = 0 if engine.contexts == 1 else -1
            self.shape: tuple[int, ...] = ()
            self._addresses: dict[str, int] = {}
            self._streams: set[int] = set()
            if driver.check_current("an execution context"):
                freed_in_context(driver, self, "a TensorRT execution context")

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            driver.check_current("setting a profile")
            if faults.get("no_profile"):
                raise RuntimeError("Error in set optimization profile async.")
            self._profile = profile_index
            return True

        def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
            if self._profile != 0:
                driver.wrong("a shape is set before a profile")
                return False
            low, _, high = self._engine.profile[name]
            fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            self.shape = tuple(shape) if fits else ()
            return fits

        def set_tensor_address(self, name: str, memory: int) -> bool:
            port = self._engine.network.tensors[name]
            size = int(np.prod((self.shape[0], *port.shape[1:]))) * np.dtype(port.dtype.value).itemsize
            driver.memory(memory, size)  # raises where there is less
            driver.use(self, "a TensorRT execution context", memory)
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            (given,), (made,) = self._engine.network.inputs, self._engine.network.outputs
            if not self.shape or {given.name, made.name} != set(self._addresses):
                driver.wrong("a batch is run before its shape and addresses are set")
                return False
            if not self._memory:
                driver.wrong("a batch is run in a context that has no memory")
                return False
            session, shape = self._engine.session, self.shape
            source, target = self._addresses[given.name], self._addresses[made.name]
            if faults.get("no_capture") and driver.is_recorded(stream_handle):
                return False
            if stream_handle not in self._streams:
                self._streams.add(stream_handle)
                driver.use(self, "a TensorRT execution context", stream_handle)
            return driver.put(
                stream_handle,
                "a batch of TensorRT",
                lambda: compute(driver, session, shape, source, target),
                [source, target],
            )

    def _start(logger: ILogger) -> None:
        if faults.get("no_start"):
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def nptype(trt_type: DataType) -> Any:
        return np.dtype(trt_type.value).type

    module = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    own = {name: value for name, value in locals().items() if isinstance(value, type)}
    shared = {n: v for n, v in globals().items() if isinstance(v, type) and v.__module__ == __name__}
    module.__dict__.update(shared | own | {"__version__": version, "nptype": nptype, "ILogger": ILogger})
    return module


def compute(driver: Driver, session: Any, shape: tuple[int, ...], source: int, target: int) -> None:
    """What the network makes of the device's memory, into the device's memory."""
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    values = driver.memory(source, int(np.prod(shape)) * 4).view(np.float32).reshape(shape)
    (result,) = session.run([made.name], {given.name: values.copy()})
    driver.memory(target, result.nbytes)[:] = np.ascontiguousarray(result).view(np.uint8).reshape(-1)


# ----------------------------------------------------------------------------
# pycuda, as src/cpp/cuda.hpp and src/wrapper/wrap_cudadrv.cpp of 2024.1 to 2026.1 have it.


def pycuda(driver: Driver, library: Path) -> ModuleType:
    """The module pycuda.driver, over the same C library. Contexts are on a stack of pycuda's own, one a
    thread, beside the driver's; what is freed switches to its context, or leaks on another thread."""
    native = ctypes.CDLL(str(library))
    local = threading.local()

    class Error(Exception): ...

    class LogicError(Error): ...

    def call(name: str, *arguments: Any) -> None:
        code = getattr(native, name)(*arguments)
        if code:
            raise LogicError(f"{name} failed: error {code}")

    def word(value: int = 0) -> Any:
        return ctypes.c_uint64(value)

    def stack() -> list[Context]:
        if not hasattr(local, "stack"):
            local.stack = []
        found: list[Context] = local.stack
        return found

    def switch_away() -> None:
        if stack():
            call("cuCtxPopCurrent_v2", ctypes.byref(word()))

    def active() -> Context | None:
        while stack() and not stack()[-1].valid:
            stack().pop()
        return stack()[-1] if stack() else None

    class Context:
        def __init__(self, handle_: int, device: int) -> None:
            self.handle, self._device, self.valid = handle_, device, True
            self._thread = threading.get_ident()

        def push(self) -> None:
            switch_away()
            call("cuCtxPushCurrent_v2", word(self.handle))
            stack().append(self)

        @staticmethod
        def pop() -> None:
            switch_away()
            if not stack():
                raise LogicError("context::pop failed: cannot pop non-current context")
            stack().pop()
            below = active()
            if below is not None:
                call("cuCtxPushCurrent_v2", word(below.handle))

        def detach(self) -> None:
            if not self.valid:
                raise LogicError("context::detach failed: cannot detach from invalid context")
            was_active = active() is self
            if was_active:
                call("cuDevicePrimaryCtxRelease_v2", word(self._device))
            elif self._thread == threading.get_ident():
                call("cuCtxPushCurrent_v2", word(self.handle))
                call("cuDevicePrimaryCtxRelease_v2", word(self._device))
            self.valid = False
            below = active() if was_active else None
            if below is not None:
                call("cuCtxPushCurrent_v2", word(below.handle))

    class Device:
        def __init__(self, number: int) -> None:
            self._number = number

        def retain_primary_context(self) -> Context:
            found = word()
            call("cuDevicePrimaryCtxRetain", ctypes.byref(found), word(self._number))
            return Context(found.value, self._number)

    class Owned:
        """Made in the context that is active, and freed in it."""

        def __init__(self) -> None:
            context = active()
            if context is None:
                raise LogicError("explicit_context_dependent failed: no currently active context?")
            self._context: Context | None = context

        def _free(self, name: str, handle: int) -> None:
            context, self._context = self._context, None
            if context is None:
                return
            if not context.valid or (active() is not context and context._thread != threading.get_ident()):
                return  # pycuda warns that it leaks
            switched = active() is not context
            if switched:
                context.push()
            call(name, word(handle))
            if switched:
                Context.pop()

    class Stream(Owned):
        def __init__(self, flags: int = 0) -> None:
            super().__init__()
            found = word()
            call("cuStreamCreate", ctypes.byref(found), word(flags))
            self.handle = found.value

        def synchronize(self) -> None:
            call("cuStreamSynchronize", word(self.handle))

        def __del__(self) -> None:
            if hasattr(self, "handle"):
                self._free("cuStreamDestroy_v2", self.handle)

    class DeviceAllocation(Owned):
        def __init__(self, size: int) -> None:
            super().__init__()
            found = word()
            call("cuMemAlloc_v2", ctypes.byref(found), word(size))
            self._address = found.value

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            if self._context is None:
                raise LogicError("device_allocation::free failed: double free")
            self._free("cuMemFree_v2", self._address)

        def __del__(self) -> None:
            if hasattr(self, "_address"):
                self._free("cuMemFree_v2", self._address)

    class PagelockedHostAllocation(Owned):
        def __init__(self, size: int, flags: int) -> None:
            super().__init__()
            found = word()
            call("cuMemHostAlloc", ctypes.byref(found), word(size), word(flags))
            self._address, self._size = found.value, size
            memory = (ctypes.c_uint8 * size).from_address(self._address)
            self.__array_interface__ = np.ctypeslib.as_array(memory).__array_interface__

        def free(self) -> None:
            self._free("cuMemFreeHost", self._address)

        def __del__(self) -> None:
            if hasattr(self, "_address"):
                self._free("cuMemFreeHost", self._address)

    class Pagelocked(np.ndarray):
        """Its base is the allocation, as with the real one."""

        owner: Any = None

        @property
        def base(self) -> Any:
            return self.owner

    def init(flags: int = 0) -> None:
        call("cuInit", word(flags))

    def mem_alloc(bytes: int) -> DeviceAllocation:
        return DeviceAllocation(bytes)

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        owner = PagelockedHostAllocation(size, mem_flags)
        made = np.asarray(owner).view(dtype).reshape(shape).view(Pagelocked)
        made.owner = owner
        return made

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream | None = None) -> None:
        address = word(src.__array_interface__["data"][0])
        call("cuMemcpyHtoDAsync_v2", word(int(dest)), address, word(src.nbytes), word(_handle(stream)))

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream | None = None) -> None:
        address = word(dest.__array_interface__["data"][0])
        call("cuMemcpyDtoHAsync_v2", address, word(int(src)), word(dest.nbytes), word(_handle(stream)))

    def _handle(stream: Stream | None) -> int:
        return stream.handle if stream is not None else 0

    module = ModuleType("pycuda.driver")
    module.__dict__.update({n: v for n, v in locals().items() if isinstance(v, type) or callable(v)})
    return module


# ----------------------------------------------------------------------------
# ONNX Runtime with CUDA and TensorRT.

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CUDA_OPTIONS = {
    "device_id": r"\d+",
    "user_compute_stream": r"\d+",
    "cudnn_conv_algo_search": "EXHAUSTIVE|HEURISTIC|DEFAULT",
    "use_tf32": "0|1|[Tt]rue|[Ff]alse",
    "enable_cuda_graph": "0|1|[Tt]rue|[Ff]alse",
}
SWITCHES = "(.*_enable|trt_dump_.*|trt_force_.*)"


def onnxruntime_gpu(
    driver: Driver, whole: bool = True, graphs: bool = True, captures: bool = True
) -> ModuleType:
    """The module onnxruntime as onnxruntime-gpu brings it. Not `whole`: a node is left to the CPU; not
    `graphs`: a session with them does not open; not `captures`: its first run fails."""

    class InferenceSession:
        def __init__(
            self,
            path_or_bytes: str | bytes,
            sess_options: Any = None,
            providers: Sequence[Any] | None = None,
            provider_options: Any = None,
            **kwargs: Any,
        ) -> None:
            asked = [(p, {}) if isinstance(p, str) else p for p in providers or [(CPU, {})]]
            self._providers = [name for name, _ in asked]
            self._options = dict(asked)
            check_options(self._options)
            if self._providers[0] == TENSORRT and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
                driver.wrong("an engine of a graph in fp32 is built with TF32")
            self._session = cpu_session(path_or_bytes)
            self._stream = int(self._options.get(CUDA, {}).get("user_compute_stream", 0))
            self._graphs = self._options.get(CUDA, {}).get("enable_cuda_graph") == "1"
            self._captured: list[Any] = []
            if self._providers[0] != CPU and not whole:
                raise RuntimeError(
                    "This session contains graph nodes that are assigned to the default CPU EP, but fallback "
                    "to CPU EP has been explicitly disabled by the user."
                )
            if self._graphs and not graphs:
                raise RuntimeError(
                    "This session cannot use the graph capture feature as requested by the user"
                )
            if self._stream:
                driver.check_current("a session of CUDA")
                freed_in_context(driver, self, "a session of ONNX Runtime")
                driver.use(self, "a session of ONNX Runtime", self._stream)

        def get_providers(self) -> list[str]:
            return [*self._providers, CPU]

        def disable_fallback(self) -> None: ...

        def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
            return self._session.run(output_names, input_feed)

        def io_binding(self) -> IOBinding:
            return IOBinding(self)

        def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
            if not self._stream:
                driver.wrong("a session computes in a stream of its own, which the copies do not wait for")
            if self._graphs and not captures:
                raise RuntimeError(
                    "CUDA failure 901: operation failed due to a previous error during capture"
                )
            if self._graphs:  # the addresses of the first run stay
                self._captured = self._captured or [*iobinding.bound]
            (_, shape, source), (_, _, target) = self._captured or iobinding.bound
            session = self._session

            def do() -> None:
                compute(driver, session, shape, source, target)

            if not driver.put(self._stream, "a batch of ONNX Runtime", do, [source, target]):
                raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    class IOBinding:
        def __init__(self, session: InferenceSession) -> None:
            self._session = session
            self.bound: list[tuple[str, tuple[int, ...], int]] = []

        def bind_input(
            self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
        ) -> None:
            self._bind(name, device_type, element_type, shape, buffer_ptr)

        def bind_output(
            self,
            name: str,
            device_type: str = "cpu",
            device_id: int = 0,
            element_type: Any = None,
            shape: Any = None,
            buffer_ptr: int | None = None,
        ) -> None:
            self._bind(name, device_type, element_type, shape, buffer_ptr or 0)

        def _bind(self, name: str, device_type: str, element_type: Any, shape: Any, address: int) -> None:
            if device_type != "cuda":
                driver.wrong(f"{name} is bound to {device_type}, and not to the GPU")
            driver.memory(address, int(np.prod(shape)) * np.dtype(element_type).itemsize)
            driver.use(self, "a binding of ONNX Runtime", address)
            self.bound.append((name, tuple(shape), address))

    module = ModuleType("onnxruntime")
    module.__dict__.update(
        InferenceSession=InferenceSession,
        IOBinding=IOBinding,
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: [TENSORRT, CUDA, CPU],
        __version__=onnxruntime.__version__,
        __file__=__file__,
    )
    return module


def check_options(options: dict[str, dict[str, str]]) -> None:
    """Raises as ONNX Runtime does for an unknown option or value."""
    for name, value in options.get(CUDA, {}).items():
        if name not in CUDA_OPTIONS:
            raise RuntimeError(f'Unknown provider option: "{name}".')
        if not re.fullmatch(CUDA_OPTIONS[name], value):
            raise RuntimeError(f'Failed to parse provider option "{name}"')
    for name, value in options.get(TENSORRT, {}).items():
        if re.fullmatch(SWITCHES, name) and value not in ("True", "true", "False", "false"):
            raise RuntimeError(
                f"[ERROR] [TensorRT] The value for the key '{name}' should be 'True' or 'False'. "
                "Default value is 'False'.\n"
            )
