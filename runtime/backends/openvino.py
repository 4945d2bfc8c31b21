"""OpenVINO on the CPU. The only file that imports openvino.

A batch is cut into parts of a fixed size, so that an image's arithmetic never depends on what is computed
with it; parts run one after the other with all cores (LATENCY), or several at once with some cores each
(THROUGHPUT and asynchronous requests), whichever is faster here. That is measured once and remembered.
"""

from __future__ import annotations

import functools
import logging
import math
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle, Graph, Port
from pgsr.errors import PgsrError
from pgsr.privacy import silent_openvino

from .. import measured
from . import Settings, checked
from .choice import CLEARLY, example
from .lanes import Lane, Lanes
from .tail import Tail, split


@dataclass(frozen=True)
class Mode:
    """A way in which OpenVINO runs a compiled graph."""

    hint: str  # OpenVINO's PERFORMANCE_HINT
    rows: int  # images in a part


MODES = {"latency": Mode("LATENCY", 8), "asynchronous": Mode("THROUGHPUT", 2)}
PART_PIXELS = 2**19  # of what a part makes at most: eight pictures of 256 x 256 keep all cores busy

# What is computed in, by the graph's precision; fp16 only where the CPU has it.
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


class Request:
    """A compiled model's request. It is waited for in turn, without OpenVINO's queue and its callbacks: those
    have been seen to wait for Python's lock while the queue was freed under it."""

    def __init__(self, request: Any, rows: int) -> None:
        self._request, self._rows = request, rows

    def start(self, values: NDArray[np.float32]) -> None:
        self._request.start_async([_filled(values, self._rows)])

    def finish(self) -> NDArray[Any]:
        self._request.wait()
        result: NDArray[Any] = self._request.get_output_tensor(0).data
        return result

    def close(self) -> None:
        """OpenVINO frees a request that nobody holds."""
        self._request = None


class TailedRequest:
    """A compiled trunk's request and our tail behind it, on a thread of its own: OpenVINO computes the next
    part meanwhile."""

    def __init__(self, request: Request, tail: Tail) -> None:
        self._request, self._tail = request, tail
        self._buffers = tail.buffers()
        self._thread = ThreadPoolExecutor(1, "pgsr-tail")
        self._result: Future[NDArray[Any]] | None = None

    def start(self, values: NDArray[np.float32]) -> None:
        self._result = self._thread.submit(self._computed, values)

    def _computed(self, values: NDArray[np.float32]) -> NDArray[Any]:
        self._request.start(values)
        return self._tail.run(self._request.finish(), self._buffers)

    def finish(self) -> NDArray[Any]:
        assert self._result is not None
        return self._result.result()

    def close(self) -> None:
        self._thread.shutdown()
        self._request.close()


class OpenVinoRunner:
    """A compiled model and its requests."""

    calls = 3  # one is computed, one waits in OpenVINO's queue, one's result is fetched under Python's lock

    def __init__(self, requests: Sequence[Lane], output: Port, rows: int, provider: str) -> None:
        self.provider = provider
        self._output = output
        self._rows = rows  # images in a part; 0 where the graph takes any shape
        self._lanes = Lanes(requests)
        self.rows_at_once = len(requests) * rows

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """[N, ...] -> [N, ...]. Raises PgsrError if the graph cannot be run, for want of memory say."""
        n = len(values)
        try:
            result = self._lanes.run(values, self._rows or n)
        except Exception as error:  # its exceptions have no common base but this one
            advice = "; try a smaller --batch" if n > 1 else ""
            raise PgsrError(f"OpenVINO could not run a batch of {n}{advice} ({_last_line(error)})") from error
        return checked(result, self._output, n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes.close():
            lane.close()


def _filled(part: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The part with its last image repeated up to `rows`."""
    missing = rows - len(part)
    if missing > 0:
        part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
    return np.ascontiguousarray(part)


def _settle(openvino: Any) -> None:
    """Lets OpenVINO fill its tables of types while there is one thread.

    It fills them at the first look at a tensor's data. Two threads that look first at the same time wait for
    ever: one holds the table's lock and wants Python's, the other the other way round.
    """
    openvino.Tensor(np.zeros((1, 1), np.float32)).data[:] = 0.0


_core_lock = threading.Lock()


def one_core(openvino: Any) -> Any:
    """One for the process, which is never freed.

    Its CPU plugin gives the thread that loads it a stack for signal handlers (sigaltstack(2)), and frees that
    with itself: on another thread, or before a plugin that was loaded later, it leaves the first one with a
    stack that is gone, and the next signal, Ctrl-C say, ends the process with SIGSEGV.
    """
    with _core_lock:
        return _new_core(openvino)


@functools.cache
def _new_core(openvino: Any) -> Any:
    return openvino.Core()


def open_graph(bundle: Bundle, graph: Graph, settings: Settings) -> OpenVinoRunner:
    """Raises ImportError without openvino, PgsrError if the file or the precision cannot be used."""
    path = str(bundle.path(graph))
    with silent_openvino():
        import openvino.frontend
        import openvino.opset13
    _settle(openvino)

    core = one_core(openvino)
    hint = _precision(core, graph.precision)
    if _any_size(graph):
        return _open(openvino, core, path, graph, settings, hint, MODES["latency"])
    key = {
        "machine": measured.machine(),
        "version": str(openvino.__version__),
        "graph": graph.sha256,
        "threads": settings.cpu_threads,
    }
    name = measured.recall("openvino", key)
    if name in tuple(MODES):  # a damaged entry may be no name
        return _open(openvino, core, path, graph, settings, hint, MODES[name])
    runners = {n: _open(openvino, core, path, graph, settings, hint, mode) for n, mode in MODES.items()}
    rows = max(runner.rows_at_once for runner in runners.values())  # keeps either busy
    name = _faster(runners, example(graph, rows))
    measured.remember("openvino", key, name)
    return runners[name]


def _any_size(graph: Graph) -> bool:
    return any(isinstance(side, str) for side in graph.inputs[0].shape[1:])


def _precision(core: Any, precision: str) -> str:
    """OpenVINO's name of what to compute in.

    Raises PgsrError for bf16 on a CPU without it: it would be slower than fp32 and less exact.
    """
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise PgsrError("--precision bf16: this CPU computes in bf16 only by emulation; use --precision fp32")
    if precision == "fp16" and "FP16" not in capabilities:
        return "f32"  # half the weights to read, float32 inside
    return HINTS[precision]


def _open(
    openvino: Any, core: Any, path: str, graph: Graph, settings: Settings, hint: str, mode: Mode
) -> OpenVinoRunner:
    options: dict[str, Any] = {"PERFORMANCE_HINT": mode.hint, "INFERENCE_PRECISION_HINT": hint}
    if settings.cpu_threads:
        options["INFERENCE_NUM_THREADS"] = settings.cpu_threads
    try:
        model = read_model(openvino, core, path, hint)
        cut = split(openvino, model, hint == "bf16")
        model, tail = cut or (model, None)
        rows = 0 if _any_size(graph) else min(_rows(graph, mode, tail is not None), settings.batch)
        if rows:
            model.reshape([rows, *graph.inputs[0].shape[1:]])
        compiled = core.compile_model(model, "CPU", options)
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # One more than run at once waits in OpenVINO, so that no core does while Python fetches a result.
        room = max(1, settings.at_once // max(1, rows)) if settings.at_once else count + 1
        plain = [Request(compiled.create_infer_request(), rows) for _ in range(min(count + 1, room))]
        requests = [TailedRequest(request, tail) for request in plain] if tail else plain
    except Exception as error:  # its exceptions have no common base but this one
        raise PgsrError(f"OpenVINO {openvino.__version__} cannot open {path}: {_last_line(error)}") from error
    several = f", {count} requests at once" if count > 1 else ""
    last = ", last layers by our kernel" if tail else ""
    return OpenVinoRunner(requests, graph.outputs[0], rows, f"OpenVINO CPU {hint}{several}{last}")


def _rows(graph: Graph, mode: Mode, tailed: bool) -> int:
    """The images of a part: fewer of large ones, which fill the cores by themselves; one where many maps
    of it go to our kernel and should still be in the cache."""
    if tailed and mode.hint == "THROUGHPUT":
        return 1
    values = math.prod(side for side in graph.outputs[0].shape[1:] if isinstance(side, int))
    return min(mode.rows, max(1, 3 * PART_PIXELS // values))


# bf16 rounds every value to 8 bits, and all later layers build on what is lost at low resolutions. So values
# stay float32 there, for a few per cent of the arithmetic and a decibel. Python cannot mark layers in memory,
# only in the model as a file.
PRECISE_SIDE = 16  # pixels


def read_model(openvino: Any, core: Any, path: str, hint: str) -> Any:
    """The model; in bf16 with its layers at low resolutions marked to stay in float32."""
    if not openvino.frontend.FrontEndManager().load_by_framework("onnx").supported(path):
        raise PgsrError(f"{path} is no ONNX graph: export the bundle again")  # it would try other formats
    model = core.read_model(path)
    if hint != "bf16":
        return model
    with tempfile.TemporaryDirectory(prefix="pgsr-openvino-") as folder:
        file = f"{folder}/model.xml"
        openvino.serialize(model, file)
        tree = ElementTree.parse(file)
        for layer in tree.iter("layer"):
            if layer.get("type") not in ("Parameter", "Const", "Result") and 0 < _side(layer) <= PRECISE_SIDE:
                _mark(layer)
        tree.write(file)
        return core.read_model(file)


def _side(layer: ElementTree.Element) -> int:
    """Pixels of what a layer makes; 0 of other values than maps, -1 where any number is allowed."""
    sizes = [[int(d.text or 0) for d in port.iter("dim")] for port in layer.findall("output/port")]
    return max((size[2] for size in sizes if len(size) == 4), default=0)


def _mark(layer: ElementTree.Element) -> None:
    """Adds the attribute that keeps a layer's precision, behind the layer's own data."""
    marks = layer.find("rt_info")
    if marks is None:
        marks = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, marks)
    ElementTree.SubElement(marks, "attribute", name="precise", version="0", value="")


def _faster(runners: Mapping[str, OpenVinoRunner], values: NDArray[np.float32]) -> str:
    """The mode that makes more images a second; several parts at once, unless the other clearly does: they do
    not wait for one another when a core is busy with encoding."""
    for runner in runners.values():
        runner.run(values)  # what is set up with the first batch is not counted
    seconds = {name: min(_seconds(runner, values) for _ in range(2)) for name, runner in runners.items()}
    logging.getLogger(__name__).info("OpenVINO seconds: %s", seconds)
    return min(seconds, key=lambda name: seconds[name] * (CLEARLY if name == "latency" else 1))


def _seconds(runner: OpenVinoRunner, values: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    runner.run(values)
    return time.perf_counter() - began


def _last_line(error: Exception) -> str:
    """OpenVINO's messages begin with where in its sources they were raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
