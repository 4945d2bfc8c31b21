"""TensorRT and TensorRT-RTX. The only file that imports them.

An engine is found beside the bundle's graph or in the cache; a stale one is never loaded, and one is built
when there is none (pgsr/tensorrt/engines.py). It runs in lanes: each has a stream, pinned buffers, an
execution context and a CUDA graph of its own, so that one batch is copied while another is computed, and two
threads may call at once. Every batch is filled up to the runner's, so that an image does not depend on the
others.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError
from pgsr.files import cache_root, make_folder, write_bytes
from pgsr.gpu import Gpu, find_gpu
from pgsr.tensorrt.building import build
from pgsr.tensorrt.engines import Key, Profile, sm, usual_profile
from pgsr.tensorrt.library import named_errors, quiet_log, start
from pgsr.tensorrt.sidecars import read_sidecar, sidecar, why_stale, write_engine

from . import Settings
from .buffers import Buffer, plan
from .cuda import Cuda, made_on, open_cuda
from .lanes import Lanes

LANES = 2

log = logging.getLogger(__name__)


# ----------------------------------------------------------------------------
# Engines: found, or built.


def find_engine(trt: Any, library: str, bundle: Bundle, graph: Graph, gpu: Gpu, batch: int) -> bytes:
    """A fresh engine of a graph. Raises PgsrError if there is none and none can be built."""
    usual = usual_profile(bundle, graph)
    key = Key(
        onnx_sha256=graph.sha256,
        library=library,
        version=str(trt.__version__),
        compute_capabilities=(gpu.compute_capability,),
        driver=gpu.driver if library == "tensorrt" else None,
        precision=graph.precision,
        profile=usual if batch <= usual.max else Profile(1, batch, batch),
    )
    path = cache_path(graph, key)
    reason = "there is none"
    for place in (*engines_beside(bundle, graph, library), sidecar(path)):
        engine = read_sidecar(place)
        if engine is not None:
            reason = why_stale(engine, key, batch) or ""
            if not reason:
                return engine.load()
    log.warning("building a %s engine of %s for %s: %s", library, graph.file, gpu.name, reason)  # on stderr
    built = build(trt, bundle.path(graph).read_bytes(), key, cache_root() / "engines")
    with contextlib.suppress(
        PgsrError
    ):  # a cache that cannot be written costs the next start this time again
        write_engine(path, key, built)
    return built.data


def engines_beside(bundle: Bundle, graph: Graph, library: str) -> Iterator[Path]:
    """The sidecars that pgsr-export put beside a graph."""
    yield from sorted(bundle.folder.glob(f"{Path(graph.file).stem}.{library}.*.engine.json"))


def cache_path(graph: Graph, key: Key) -> Path:
    """Returns where the runtime keeps an engine that it built."""
    gpu = sm(key.compute_capabilities[0])
    name = f"{graph.sha256[:16]}.{key.library}.{gpu}.batch{key.profile.max}.engine"
    return cache_root() / "engines" / name


# ----------------------------------------------------------------------------
# Running.


class Lane:
    """One batch at a time: copied to the GPU, computed, and its result copied back, all in one stream."""

    def __init__(self, cuda: Cuda, context: Any, buffers: tuple[Buffer, Buffer], graphs: bool) -> None:
        source = buffers[0]
        self._cuda, self._context = cuda, context
        self._stream = cuda.stream()
        self._input, self._output = (cuda.pinned(b.shape, b.dtype) for b in buffers)
        self._addresses = [cuda.device(b.size) for b in buffers]
        # Only an engine's first context has a profile by itself. Raises where it cannot be set.
        context.set_optimization_profile_async(0, self._stream)
        cuda.wait(self._stream)
        if not context.set_input_shape(source.name, source.shape):
            raise PgsrError(
                f"the engine does not take a batch of {source.shape[0]}: build it for this --batch"
            )
        for buffer, address in zip(buffers, self._addresses, strict=True):
            context.set_tensor_address(buffer.name, address)
        self._input[:] = 0
        self._enqueue()  # what TensorRT sets up with the first batch cannot be recorded
        cuda.wait(self._stream)
        self._graph = self._recorded() if graphs else None

    def _recorded(self) -> Callable[[], None] | None:
        try:
            return self._cuda.record(self._stream, self._enqueue)
        except PgsrError as error:  # slower by some microseconds a launch, and as right
            log.info("no CUDA graph: %s", error)
            return None

    def _enqueue(self) -> None:
        self._cuda.upload(self._addresses[0], self._input, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise PgsrError("it does not say why; try a smaller --batch")
        self._cuda.download(self._output, self._addresses[1], self._stream)

    def start(self, values: NDArray[np.float32]) -> None:
        """Begins a batch; of fewer images, the rest stays what it was: rows do not see one another."""
        self._input[: len(values)] = values
        (self._graph or self._enqueue)()

    def finish(self) -> NDArray[Any]:
        """Waits for it; the result is overwritten by the next batch."""
        self._cuda.wait(self._stream)
        return self._output

    def close(self) -> None:
        """Gives up the execution context, and the CUDA graph that was recorded of it."""
        self._graph = None
        self._context = None


class TensorRtRunner:
    """An engine in its lanes."""

    calls = LANES

    def __init__(
        self,
        cuda: Cuda,
        lanes: list[Lane],
        output: Buffer,
        provider: str,
        close: Callable[[], None] = lambda: None,  # called before the GPU's memory is freed
    ) -> None:
        self.provider = provider
        self._cuda, self._rows = cuda, output.shape[0]
        self._lanes = Lanes(lanes, around=cuda.current)
        self._close = close

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """[N, ...] -> [N, ...]. Raises PgsrError if it is closed or the GPU fails, for want of memory say."""
        try:
            return self._lanes.run(values, self._rows)
        except (PgsrError, RuntimeError) as error:  # RuntimeError is what TensorRT's bindings raise
            raise PgsrError(f"TensorRT could not run a batch of {len(values)}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lanes.close():  # closed before
            return
        try:
            with self._cuda.current():
                self._close()
        finally:
            self._cuda.close()


def open_graph(bundle: Bundle, graph: Graph, settings: Settings) -> TensorRtRunner:
    """TensorRT. Raises ImportError without its packages, PgsrError without a GPU or an engine for it."""
    with _library_errors():
        import tensorrt

    return _open(tensorrt, "tensorrt", bundle, graph, settings)


def open_rtx(bundle: Bundle, graph: Graph, settings: Settings) -> TensorRtRunner:
    """TensorRT-RTX. Raises as `open_graph`."""
    with _library_errors():
        import tensorrt_rtx

    return _open(tensorrt_rtx, "tensorrt-rtx", bundle, graph, settings)


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    """A shared library that does not load is an OSError here, and an ImportError everywhere else."""
    try:
        yield
    except OSError as error:
        raise ImportError(str(error)) from error


def _open(trt: Any, library: str, bundle: Bundle, graph: Graph, settings: Settings) -> TensorRtRunner:
    buffers = plan(graph, settings.batch)
    try:
        gpu = find_gpu(settings.device_index)
    except PgsrError as error:
        raise PgsrError(f"--backend {library} needs an NVIDIA GPU: {error}") from error
    cuda = open_cuda(settings.device_index)

    def load() -> tuple[LoadedEngine, list[Lane]]:
        with named_errors(f"{library} {trt.__version__}"):
            data = find_engine(trt, library, bundle, graph, gpu, settings.batch)
            loaded = LoadedEngine(trt, library, data, gpu, buffers)
            return loaded, [loaded.lane(cuda) for _ in range(LANES)]

    loaded, lanes = made_on(cuda, load)
    name = "TensorRT-RTX" if library == "tensorrt-rtx" else "TensorRT"
    provider = f"{name} {trt.__version__} on {gpu.name} by {cuda.name}"
    return TensorRtRunner(cuda, lanes, buffers[1], provider, loaded.close)


class LoadedEngine:
    """An engine on the GPU, with all that TensorRT holds for it: freed by `close`, in the order that TensorRT
    asks for, while the GPU's context still is."""

    def __init__(self, trt: Any, library: str, data: bytes, gpu: Gpu, buffers: tuple[Buffer, Buffer]) -> None:
        self._trt, self._library, self._buffers = trt, f"{library} {trt.__version__}", buffers
        self._log = quiet_log(trt)
        self._lanes: list[Lane] = []
        self._runtime = start(trt.Runtime, self._log, self._library)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise PgsrError(f"{self._library} cannot load its engine: {self._log.reason()}")
        self._check_types()
        self._kernels = KernelCache(trt, self._engine, data, gpu) if library == "tensorrt-rtx" else None

    def _check_types(self) -> None:
        for buffer in self._buffers:
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(buffer.name))).name
            if dtype != buffer.dtype:
                raise PgsrError(
                    f"the engine's {buffer.name} is {dtype}, not {buffer.dtype}: export the bundle again"
                )

    def lane(self, cuda: Cuda) -> Lane:
        """Another lane. Raises PgsrError if the GPU has no room for it."""
        if self._kernels:
            context = self._engine.create_execution_context(self._kernels.config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise PgsrError(
                f"{self._library} could not set up a batch; try a smaller --batch ({self._log.reason()})"
            )
        # TensorRT-RTX records a CUDA graph by itself.
        self._lanes.append(Lane(cuda, context, self._buffers, graphs=self._kernels is None))
        return self._lanes[-1]

    def close(self) -> None:
        """Contexts, then the engine, then the runtime; a second time does nothing."""
        if self._kernels:
            self._kernels.save()
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._kernels = None
        self._engine = None
        self._runtime = None


class KernelCache:
    """What TensorRT-RTX compiles on the user's GPU, kept from one start to the next."""

    def __init__(self, trt: Any, engine: Any, data: bytes, gpu: Gpu) -> None:
        name = f"{hashlib.sha256(data).hexdigest()[:16]}.{sm(gpu.compute_capability)}.{gpu.driver}.kernels"
        self._path = cache_root() / "engines" / name.replace(" ", "-")
        self.config = engine.create_runtime_config()
        # One batch size: compiled for it before the first run, and replayed as one CUDA graph.
        self.config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self.config.create_runtime_cache()
        if self._path.is_file():
            self._cache.deserialize(self._path.read_bytes())  # of another version: refused, and begun anew
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what has been compiled so far."""
        with contextlib.suppress(PgsrError):  # a cache that cannot be written is compiled again
            make_folder(self._path.parent)
            write_bytes(self._path, bytes(self._cache.serialize()))
