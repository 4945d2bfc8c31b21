"""ONNX Runtime on the CPU, CUDA or TensorRT. The only file that imports onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError
from pgsr.files import cache_root, make_folder

from . import Settings, checked

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

FATAL_ONLY = 4  # ONNX Runtime's log severity: errors are raised, too


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


def open_graph(bundle: Bundle, graph: Graph, settings: Settings) -> OrtRunner:
    """Raises ImportError without onnxruntime, PgsrError if the file or the device cannot be used."""
    import onnxruntime

    path = str(bundle.path(graph))
    if settings.device == "cpu":
        return _open_cpu(onnxruntime, path, graph, settings)
    if CUDA in onnxruntime.get_available_providers():
        try:
            return _open_cuda(onnxruntime, path, graph, settings)
        except PgsrError as error:
            if settings.device != "auto":
                raise
            logging.getLogger(__name__).warning("CUDA is not used: %s", error)  # shown on stderr
    if settings.device == "auto":
        return _open_cpu(onnxruntime, path, graph, settings)
    raise PgsrError(
        f"--device {settings.device}: this ONNX Runtime has no CUDA; pip uninstall onnxruntime, then "
        "pip install 'pgsr[gpu]', or use --device cpu"
    )


def _open_cpu(onnxruntime: Any, path: str, graph: Graph, settings: Settings) -> OrtRunner:
    options = _options(onnxruntime)
    options.intra_op_num_threads = settings.cpu_threads
    # Threads that wait for work by spinning would take the cores from those that encode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = _session(onnxruntime, path, options, [CPU])
    # An upscaler alone is run a tile at a time, always, and computing it twice would be half as fast.
    return OrtRunner(session, graph, CPU, rows_at_least=1 if graph.name == "upscaler" else 2)


def _open_cuda(onnxruntime: Any, path: str, graph: Graph, settings: Settings) -> OrtRunner:
    _load_cuda_libraries(onnxruntime)
    options = _options(onnxruntime)
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = _session(onnxruntime, path, options, [(CUDA, cuda_options(settings))])
    return OrtRunner(session, graph, CUDA, rows_at_least=settings.batch)


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
    import onnxruntime

    path = str(bundle.path(graph))
    if TENSORRT not in onnxruntime.get_available_providers():
        raise PgsrError(
            "this ONNX Runtime has no TensorRT: pip uninstall onnxruntime, then pip install 'pgsr[gpu]' "
            "'tensorrt<11'"
        )
    _load_cuda_libraries(onnxruntime)
    options = _options(onnxruntime)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(TENSORRT, tensorrt_options(graph, settings)), (CUDA, cuda_options(settings))]
    session = _session(onnxruntime, path, options, providers)
    return OrtRunner(session, graph, TENSORRT, rows_at_least=settings.batch)


def tensorrt_options(graph: Graph, settings: Settings) -> dict[str, str]:
    """One batch size, in the graph's own precision: without trt_fp16_enable networks are strongly typed."""
    folder = str(make_folder(cache_root() / "engines" / f"onnxruntime-{graph.sha256[:16]}"))
    options = {
        "device_id": str(settings.device_index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }
    port = graph.inputs[0]
    if not any(isinstance(side, str) for side in port.shape[1:]):
        shape = f"{port.name}:{'x'.join(map(str, (settings.batch, *port.shape[1:])))}"
        options |= {f"trt_profile_{name}_shapes": shape for name in ("min", "opt", "max")}
    return options


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
        raise PgsrError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {path} with {provider}: {_first_line(error)}"
        ) from error
    if session.get_providers()[0] != provider:
        raise PgsrError(
            f"ONNX Runtime could not start {provider} and took {session.get_providers()[0]}: check the "
            "driver and the CUDA libraries, or use --device cpu"
        )
    session.disable_fallback()
    return session


def _load_cuda_libraries(onnxruntime: Any) -> None:
    """Finds the CUDA libraries of pip packages; what it cannot find, the session's own error tells."""
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21; it prints to stdout
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
