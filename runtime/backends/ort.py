"""ONNX Runtime on the CPU, CUDA or TensorRT. The only file that imports onnxruntime."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError, check_onnxruntime
from pgsr.files import cache_root, make_folder
from pgsr.gpu import find_gpu
from pgsr.machine import threads_for_onnxruntime

from . import INSTALL_ORT_CUDA, INSTALL_ORT_TENSORRT, Runner, Settings, checked
from .buffers import is_fixed, plan
from .cuda import open_cuda
from .ort_bound import open_bound

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

FATAL_ONLY = 4  # ONNX Runtime's log severity: errors are raised, too
TF32 = "NVIDIA_TF32_OVERRIDE"  # NVIDIA's libraries go without TF32 where it is 0
NO_FALLBACK = "explicitly disabled by the user"  # in its message where a node would be left to the CPU

log = logging.getLogger(__name__)


class OrtRunner:
    """A session whose provider is known, and whose pixels do not depend on how images are batched.

    An image's arithmetic is the same in every batch of two or more on the CPU, but not in a batch of one,
    where ONNX Runtime takes a matrix-vector product that sums in another order; CUDA libraries choose
    their algorithms by the batch's size. So a batch is filled up to `rows_at_least`.
    """

    calls = 1  # a session's threads are all busy with one

    def __init__(self, session: Any, graph: Graph, provider: str, rows_at_least: int) -> None:
        self.provider = provider
        self._session = session
        self._input = graph.inputs[0].name
        self._output = graph.outputs[0]
        self._rows_at_least = rows_at_least

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """[N, ...] -> [N, ...]. Raises PgsrError if the graph cannot be run, for want of memory say."""
        n = len(values)
        filling = max(0, self._rows_at_least - n)
        if filling:
            values = np.concatenate([values, np.repeat(values[-1:], filling, axis=0)])
        try:
            (result,) = self._session.run([self._output.name], {self._input: values})
        except Exception as error:  # its exceptions have no common base but this one
            advice = "; try a smaller --batch" if n > 1 else ""
            raise PgsrError(
                f"ONNX Runtime could not run a batch of {n}{advice} ({_first_line(error)})"
            ) from error
        return checked(result, self._output, len(values))[:n]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def open_graph(bundle: Bundle, graph: Graph, settings: Settings) -> Runner:
    """Raises ImportError without onnxruntime, PgsrError if the file or the device cannot be used."""
    onnxruntime = _library()
    path = str(bundle.path(graph))
    if settings.device == "cpu":
        return _open_cpu(onnxruntime, path, graph, settings)
    if CUDA in onnxruntime.get_available_providers():
        try:
            return _open_cuda(onnxruntime, path, graph, settings)
        except PgsrError as error:
            if settings.device != "auto":
                raise
            log.warning("CUDA is not used: %s", error)  # shown on stderr
    if settings.device == "auto":
        return _open_cpu(onnxruntime, path, graph, settings)
    raise PgsrError(
        f"--device {settings.device}: this ONNX Runtime has no CUDA; {INSTALL_ORT_CUDA}, or use --device cpu"
    )


def _open_cpu(onnxruntime: Any, path: str, graph: Graph, settings: Settings) -> OrtRunner:
    options = _options(onnxruntime)
    options.intra_op_num_threads = threads_for_onnxruntime(settings.threads)
    # Threads that wait for work by spinning would take the cores from those that encode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = _session(onnxruntime, path, options, [CPU])
    # An upscaler alone is run a tile at a time, always, and computing it twice would be half as fast.
    return OrtRunner(session, graph, CPU, rows_at_least=1 if graph.name == "upscaler" else 2)


def _open_cuda(onnxruntime: Any, path: str, graph: Graph, settings: Settings) -> Runner:
    """Bound to memory of its own where shapes are fixed and a CUDA binding is installed; else as on a CPU."""
    find_gpu(settings.device_index)
    load_libraries(onnxruntime, "cuda")

    def open_session(more: Mapping[str, str]) -> Any:
        options = _options(onnxruntime)
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(CUDA, {**cuda_options(settings), **more})]
        return _session(onnxruntime, path, options, providers)

    if is_fixed(graph):
        try:
            cuda = open_cuda(settings.device_index)
        except ImportError as error:
            log.info("no CUDA graph: pip install 'pgsr[gpu]' (%s)", error)
        else:
            buffers = plan(graph, settings.batch)
            try:
                return open_bound(cuda, open_session, buffers, settings.device_index, CUDA)
            except PgsrError as error:  # slower by some microseconds a kernel, and as right
                log.info("no CUDA graph: %s", error)
    return OrtRunner(open_session({}), graph, CUDA, rows_at_least=settings.batch)


def cuda_options(settings: Settings) -> dict[str, str]:
    """Returns the options of ONNX Runtime's CUDA provider."""
    return {
        "device_id": str(settings.device_index),
        "cudnn_conv_algo_search": "HEURISTIC",  # timing them would choose another one in another run
        "use_tf32": "0",  # fp32 means fp32; who wants speed asks for fp16
    }


def open_tensorrt(bundle: Bundle, graph: Graph, settings: Settings) -> OrtRunner:
    """ONNX Runtime's TensorRT provider; CUDA takes what TensorRT does not. It keeps its engines in the cache.

    Raises ImportError without onnxruntime, PgsrError if the file or the device cannot be used.
    """
    onnxruntime = _library()
    path = str(bundle.path(graph))
    if TENSORRT not in onnxruntime.get_available_providers():
        raise PgsrError(f"this ONNX Runtime has no TensorRT: {INSTALL_ORT_TENSORRT}")
    find_gpu(settings.device_index)
    for provider in ("cuda", "tensorrt"):
        load_libraries(onnxruntime, provider)
    options = _options(onnxruntime)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(TENSORRT, tensorrt_options(graph, settings)), (CUDA, cuda_options(settings))]
    with _exact() if graph.precision == "fp32" else contextlib.nullcontext():
        session = _session(onnxruntime, path, options, providers)
    return OrtRunner(session, graph, TENSORRT, rows_at_least=settings.batch)


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """Lets engines be built without TF32, TensorRT's own choice, for which the provider has no option."""
    before = os.environ.get(TF32)
    os.environ[TF32] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TF32]
        else:
            os.environ[TF32] = before


def tensorrt_options(graph: Graph, settings: Settings) -> dict[str, str]:
    """One batch size, in the graph's own precision: without trt_fp16_enable networks are strongly typed.

    This provider's switches are "True" and "False"; the CUDA provider's "1" is an error here.
    """
    folder = str(make_folder(cache_root() / "engines" / f"onnxruntime-{graph.sha256[:16]}"))
    options = {
        "device_id": str(settings.device_index),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
    }
    if is_fixed(graph):
        port = graph.inputs[0]
        shape = f"{port.name}:{'x'.join(map(str, (settings.batch, *port.shape[1:])))}"
        options |= {f"trt_profile_{name}_shapes": shape for name in ("min", "opt", "max")}
    return options


def _library() -> Any:
    """Raises ImportError without onnxruntime, PgsrError if nothing but its folder is left."""
    import onnxruntime

    check_onnxruntime(onnxruntime)
    return onnxruntime


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    return options


def _session(onnxruntime: Any, path: str, options: Any, providers: list[Any]) -> Any:
    """Raises PgsrError if the model is damaged or unsupported, or the wanted provider did not come."""
    provider = providers[0] if isinstance(providers[0], str) else providers[0][0]
    try:
        # Its own fallback would print to stdout and go on with the CPU.
        session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # its exceptions have no common base but this one
        reason = _first_line(error)
        if NO_FALLBACK in reason:  # by pgsr, which promises the device that was asked for
            reason = "it did not start, or does not take the whole graph: check the driver (nvidia-smi)"
        raise PgsrError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {path} with {provider}: {reason}"
        ) from error
    if session.get_providers()[0] != provider:
        raise PgsrError(
            f"ONNX Runtime could not start {provider} and took {session.get_providers()[0]}: check the "
            "driver and the CUDA libraries, or use --device cpu"
        )
    session.disable_fallback()
    return session


def load_libraries(onnxruntime: Any, provider: str) -> None:
    """Loads a provider ("cuda" or "tensorrt") with the libraries of pip packages that it needs.

    Raises PgsrError that names the library that is not found: ONNX Runtime itself would only log it, take the
    CPU, and complain of that.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21; it prints to stdout
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError, OSError):  # it may be installed without its Python package
            importlib.import_module("tensorrt")  # loads its libraries
    folder = Path(onnxruntime.__file__).parent / "capi"
    file = folder / f"libonnxruntime_providers_{provider}.so"
    if not file.is_file():  # a build of its own kind
        return
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(file))
    except OSError as error:
        raise PgsrError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load its {provider} provider: {error}; "
            f"{_installs(str(error))}"
        ) from error


def _installs(message: str) -> str:
    """What mends what the loader's message says: it names a library, or a function that one lacks."""
    if re.search(r"undefined symbol: (cu|nv)[A-Z]", message):
        return "update the NVIDIA driver"
    name = message.partition(".so")[0].rpartition("/")[2]
    if name == "libcuda":
        return "install the NVIDIA driver"
    if name.startswith(("libnvinfer", "libnvonnxparser")):
        return "pip install 'tensorrt<11'"
    return "pip install 'pgsr[gpu]'"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
