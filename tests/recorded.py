"""Runs the GPU adapters under the recording driver, and with faults put back. Prints what came of it as JSON.

    python tests/recorded.py FOLDER

In a process of its own, since nothing else in it may load libcuda. tests/test_recorded.py runs it and looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import bundles as tiny
import recording_libraries as libraries
from pgsr import bundle as contract
from pgsr.errors import PgsrError
from recording import Driver, build

BATCH = 4
VERSIONS = {"tensorrt": ("10.16.1", "11.4.0"), "tensorrt-rtx": ("1.7.1",)}
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Machine:
    """What a scenario runs on."""

    driver: Driver
    library: Path
    bundle: Any
    warnings: list[str]

    def open(self, backend: str, device: str = "cuda", batch: int = BATCH) -> Any:
        return backends().open_runner(self.bundle, device, "fp32", backend, batch=batch)

    def expected(self, values: np.ndarray) -> np.ndarray:
        """What the CPU runner makes of them."""
        with (
            modules(onnxruntime=libraries.onnxruntime),
            backends().open_runner(self.bundle, "cpu", "fp32", "onnxruntime", threads=1) as runner,
        ):
            return np.asarray(runner.run(values))


def backends() -> Any:
    return importlib.import_module("pgsr.runtime.backends")


@contextlib.contextmanager
def modules(**given: Any) -> Iterator[None]:
    """These modules in place of what is installed."""
    names = {name.replace("__", "."): module for name, module in given.items()}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def with_tensorrt(machine: Machine, backend: str, version: str, **faults: bool) -> Iterator[None]:
    rtx = backend == "tensorrt-rtx"
    made = libraries.tensorrt(machine.driver, version, rtx, **faults)
    with modules(**{"tensorrt_rtx" if rtx else "tensorrt": made}):
        yield


@contextlib.contextmanager
def with_binding(machine: Machine, name: str) -> Iterator[None]:
    """cuda-python itself; pycuda itself where it is installed, else its stand-in."""
    os.environ["PGSR_CUDA"] = name
    try:
        if name == "pycuda" and importlib.util.find_spec("pycuda") is None:
            package = ModuleType("pycuda")
            package.driver = libraries.pycuda(machine.driver, machine.library)  # type: ignore[attr-defined]
            with modules(pycuda=package, pycuda__driver=package.driver):  # type: ignore[attr-defined]
                yield
        else:
            yield
    finally:
        del os.environ["PGSR_CUDA"]


def latents(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, tiny.LATENT)).astype(np.float32)


def check_runs(machine: Machine, runner: Any) -> None:
    """Batches of every size, twice, and from several threads at once, are what the CPU makes."""
    for count in (1, 3, 4, 5, 11, 4):
        values = latents(count, count)
        assert np.array_equal(runner.run(values), machine.expected(values)), f"{count} images differ"
    jobs = [latents(4 + i % 3, 100 + i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(runner.run, jobs, timeout=60))
    for values, made in zip(jobs, together, strict=True):
        assert np.array_equal(made, machine.expected(values)), "images from threads differ"


def raises(what: Callable[[], Any], words: str) -> str:
    try:
        what()
    except PgsrError as error:
        told = str(error)
    else:
        raise AssertionError(f"{words!r} is not raised")
    assert words in told, f"{words!r} is not in {told!r}"
    assert "\n" not in told
    return told


# ----------------------------------------------------------------------------
# Scenarios.

BINDINGS = ("cuda-python", "pycuda")
Scenario = Callable[[Machine], None]
SCENARIOS: dict[str, Scenario] = {}


def tensorrt_runs(backend: str, version: str, binding: str) -> Scenario:
    def scenario(machine: Machine) -> None:
        with with_tensorrt(machine, backend, version), with_binding(machine, binding):
            with machine.open(backend) as runner:
                assert binding in runner.provider
                check_runs(machine, runner)
            launched = machine.driver.calls.count("cuGraphLaunch")
            assert (launched > 0) == (binding == "cuda-python" and backend == "tensorrt"), launched

    return scenario


for backend, versions in VERSIONS.items():
    for version in versions:
        for binding in BINDINGS:
            SCENARIOS[f"{backend} {version} by {binding}"] = tensorrt_runs(backend, version, binding)


def onnxruntime_cuda(machine: Machine) -> None:
    """Bound to pinned memory and a stream, with a CUDA graph."""
    with (
        modules(onnxruntime=libraries.onnxruntime_gpu(machine.driver)),
        machine.open("onnxruntime") as runner,
    ):
        check_runs(machine, runner)
    assert machine.driver.calls.count("cuMemcpyHtoDAsync_v2") > 10
    assert not machine.warnings


def onnxruntime_without_graph(machine: Machine) -> None:
    """A session that cannot be captured runs all the same, whether that shows as it opens or as it runs."""
    for more in ({"graphs": False}, {"captures": False}):
        gpu = libraries.onnxruntime_gpu(machine.driver, **more)
        with modules(onnxruntime=gpu), machine.open("onnxruntime") as runner:
            check_runs(machine, runner)


def onnxruntime_on_part(machine: Machine) -> None:
    """What ONNX Runtime calls the user's own wish is told as what it is."""
    gpu = libraries.onnxruntime_gpu(machine.driver, whole=False)
    with modules(onnxruntime=gpu):
        told = raises(lambda: machine.open("onnxruntime"), "did not start, or does not take the whole graph")
        assert "disabled by the user" not in told


def onnxruntime_tensorrt(machine: Machine) -> None:
    gpu = libraries.onnxruntime_gpu(machine.driver)
    before = os.environ.get("NVIDIA_TF32_OVERRIDE")
    with modules(onnxruntime=gpu), machine.open("onnxruntime-tensorrt") as runner:
        assert runner.provider == "TensorrtExecutionProvider"
        assert os.environ.get("NVIDIA_TF32_OVERRIDE") == before
        check_runs(machine, runner)


def closed(machine: Machine) -> None:
    """A closed runner says so, whoever asks; closing it again does nothing."""
    gpu = libraries.onnxruntime_gpu(machine.driver)
    with with_tensorrt(machine, "tensorrt", "10.16.1"), modules(onnxruntime=gpu):
        for backend in ("tensorrt", "onnxruntime"):
            with machine.open(backend) as runner:
                runner.run(latents(3))
            for count in (3, 9):
                raises(partial(runner.run, latents(count)), "it is closed")
            runner.__exit__(None, None, None)


def closed_while_running(machine: Machine) -> None:
    """Closing waits for a call that has begun on another thread, and that call's images are right."""
    values = latents(9)
    inside, go_on = threading.Event(), threading.Event()
    made: list[Any] = []

    def held() -> None:
        if threading.current_thread() is caller:
            inside.set()
            go_on.wait(120)

    with with_tensorrt(machine, "tensorrt", "10.16.1"):
        runner = machine.open("tensorrt")
        caller = threading.Thread(target=lambda: made.append(runner.run(values)), daemon=True)
        closer = threading.Thread(target=lambda: runner.__exit__(None, None, None), daemon=True)
        machine.driver.before["cuStreamSynchronize"] = held
        caller.start()
        assert inside.wait(120)
        closer.start()
        closer.join(0.3)
        waited = closer.is_alive()
        go_on.set()
        caller.join(120)
        closer.join(120)
        assert waited, "closing did not wait"
        assert np.array_equal(made[0], machine.expected(values))
        raises(lambda: runner.run(values), "it is closed")


def other_contexts_stay(machine: Machine) -> None:
    """A thread's own context (torch's on another device) is current again after each call."""
    native = ctypes.CDLL(str(machine.library))
    own, found, other = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64(1)

    def check() -> None:
        native.cuCtxGetCurrent(ctypes.byref(found))
        assert found.value == own.value, "another context is current"

    native.cuDevicePrimaryCtxRetain(ctypes.byref(own), other)
    native.cuCtxPushCurrent_v2(own)
    for binding in BINDINGS:
        with with_tensorrt(machine, "tensorrt", "10.16.1"), with_binding(machine, binding):
            runner = machine.open("tensorrt", "cuda:0")
            check()
            runner.run(latents(9))
            check()
            runner.__exit__(None, None, None)
            check()
    native.cuCtxPopCurrent_v2(ctypes.byref(found))
    native.cuDevicePrimaryCtxRelease_v2(other)


def old_driver(machine: Machine) -> None:
    """A TensorRT that does not start is named, and `auto` goes on to the next backend."""
    gpu = libraries.onnxruntime_gpu(machine.driver)
    absent = modules(onnxruntime=gpu, tensorrt_rtx=None)
    with with_tensorrt(machine, "tensorrt", "10.16.1", no_start=True), absent:
        told = raises(lambda: machine.open("tensorrt"), "tensorrt 10.16.1 cannot start: CUDA initialization")
        assert "driver" in told
        with machine.open("auto") as runner:
            assert runner.provider in (libraries.CUDA, libraries.TENSORRT), runner.provider
            runner.run(latents(2))
        assert any("tensorrt is not used: tensorrt 10.16.1 cannot start" in line for line in machine.warnings)


def refusals(machine: Machine) -> None:
    """Whatever fails while an engine is opened leaves nothing behind."""
    for fault, words in (
        ("no_profile", "Error in set optimization profile"),
        ("no_context", "could not set up"),
    ):
        for binding in BINDINGS:
            with (
                with_tensorrt(machine, "tensorrt", "10.16.1", **{fault: True}),
                with_binding(machine, binding),
            ):
                raises(lambda: machine.open("tensorrt"), words)
    for binding, pinned in (("cuda-python", "cuMemAllocHost_v2"), ("pycuda", "cuMemHostAlloc")):
        for name in ("cuMemAlloc_v2", pinned, "cuStreamCreate"):
            machine.driver.refuses = {name: 2}
            with with_tensorrt(machine, "tensorrt", "10.16.1"), with_binding(machine, binding):
                raises(lambda: machine.open("tensorrt"), "the GPU refuses")
    machine.driver.refuses = {}


def breaks_while_running(machine: Machine) -> None:
    """A GPU that refuses a batch is a named error; later batches and closing still work."""
    gpu = libraries.onnxruntime_gpu(machine.driver)
    for binding in BINDINGS:
        with (
            with_tensorrt(machine, "tensorrt", "10.16.1"),
            modules(onnxruntime=gpu),
            with_binding(machine, binding),
        ):
            for backend in ("tensorrt", "onnxruntime"):
                with machine.open(backend) as runner:
                    machine.driver.refuses = {"cuMemcpyHtoDAsync_v2": 2, "cuGraphLaunch": 2}
                    raises(partial(runner.run, latents(9)), "the GPU refuses")
                    machine.driver.refuses = {}
                    check_runs(machine, runner)
                raises(partial(ends_by_an_error, machine, backend), "could not run a batch of 9")


def ends_by_an_error(machine: Machine, backend: str) -> None:
    """A runner is closed while an error of its own is on its way."""
    with machine.open(backend) as runner:
        machine.driver.refuses = {"batch": 1, "cuGraphLaunch": 1}
        try:
            runner.run(latents(9))
        finally:
            machine.driver.refuses = {}


def no_capture(machine: Machine) -> None:
    """Without a CUDA graph a batch is enqueued call by call."""
    for name in ("cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"):
        machine.driver.refuses = {name: 801}
        with with_tensorrt(machine, "tensorrt", "10.16.1"), machine.open("tensorrt") as runner:
            check_runs(machine, runner)
    machine.driver.refuses = {}
    failing = with_tensorrt(machine, "tensorrt", "10.16.1", no_capture=True)
    with failing, machine.open("tensorrt") as runner:
        check_runs(machine, runner)
    assert not machine.driver.calls.count("cuGraphLaunch")


def read_back(machine: Machine) -> None:
    """An engine with a dynamic batch is read back in the profile's shape; where the inspector does not tell
    even then, that the types are the network's is said."""
    engines = importlib.import_module("pgsr.export.engines")
    engine = importlib.import_module("pgsr.tensorrt.engines")
    for faults, source, words in (
        ({}, "inspector", "read back from the engine by its inspector"),
        ({"dynamic": True}, "network", "not read back: the network asks for these"),
    ):
        with with_tensorrt(machine, "tensorrt", "10.16.1", **faults), contextlib.ExitStack() as stack:
            cuda = importlib.import_module("pgsr.runtime.backends.cuda").open_cuda(0)
            stack.callback(cuda.close)
            stack.enter_context(cuda.current())
            (made,) = engines.add_engines(machine.bundle, "tensorrt", engine.Profile(1, 2, 4))
            assert made.engine.read_back == source, made.engine.read_back
            assert words in made.line(), made.line()
            made.engine.path.unlink()


OTHERS: tuple[Scenario, ...] = (
    onnxruntime_cuda, onnxruntime_without_graph, onnxruntime_on_part, onnxruntime_tensorrt, closed,
    closed_while_running, other_contexts_stay, old_driver, refusals, breaks_while_running, no_capture,
    read_back,
)  # fmt: skip
SCENARIOS |= {scenario.__name__.replace("_", " "): scenario for scenario in OTHERS}


# ----------------------------------------------------------------------------
# Faults: what was once wrong, or could be, put back into a module's source.


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a file, and the scenario tells what the pattern `caught` finds."""

    file: str
    old: str
    new: str
    scenario: str
    caught: str


TRT_CUDA, TRT_PYCUDA = "tensorrt 10.16.1 by cuda-python", "tensorrt 10.16.1 by pycuda"
FAULTS = {
    "TensorRT's provider gets 1 for True": Fault(
        "runtime/backends/ort.py",
        '"trt_engine_cache_enable": "True"',
        '"trt_engine_cache_enable": "1"',
        "onnxruntime tensorrt",
        "should be 'True' or 'False'",
    ),
    "fp32 that is TF32": Fault(
        "runtime/backends/ort.py",
        'os.environ[TF32] = "0"',
        'os.environ[TF32] = "1"',
        "onnxruntime tensorrt",
        "with TF32",
    ),
    "an option that no provider has": Fault(
        "runtime/backends/ort.py",
        '"use_tf32"',
        '"tf32"',
        "onnxruntime cuda",
        'Unknown provider option: "tf32"',
    ),
    "the TypeError of a library that does not start": Fault(
        "pgsr/tensorrt/library.py", "except TypeError as", "except KeyError as", "old driver", "TypeError"
    ),
    "contexts outlive the GPU's": Fault(
        "runtime/backends/trt.py",
        "        for lane in self._lanes:\n            lane.close()\n        self._lanes.clear()\n",
        "",
        TRT_CUDA,
        "before a TensorRT execution context",
    ),
    "a lane holds itself": Fault(
        "runtime/backends/trt.py",
        "        self._graph = None\n        self._context = None\n",
        "        self._itself = self\n",
        TRT_CUDA,
        "before a TensorRT execution context",
    ),
    "an error's traceback holds what was opened": Fault(
        "runtime/backends/cuda.py",
        "reason = str(error)",
        "reason = error",
        "refusals",
        "before a TensorRT",
    ),
    "freed outside of the context": Fault(
        "runtime/backends/trt.py",
        "            with self._cuda.current():\n                self._close()\n",
        "            self._close()\n",
        TRT_CUDA,
        "freeing a TensorRT execution context without a live context",
    ),
    "run after close": Fault(
        "runtime/backends/lanes.py",
        '            if not self._open:\n                raise PgsrError("it is closed")\n',
        "",
        "closed",
        "'it is closed' is not in",
    ),
    "closing does not wait": Fault(
        "runtime/backends/lanes.py",
        "            self._changed.wait_for(lambda: not self._calls)\n",
        "",
        "closed while running",
        "closing did not wait",
    ),
    "no context on the calling thread": Fault(
        "runtime/backends/trt.py",
        "Lanes(lanes, around=cuda.current)",
        "Lanes(lanes)",
        TRT_CUDA,
        "without a live context on this thread",
    ),
    "a context pushed and never popped": Fault(
        "runtime/backends/cuda.py",
        '            self._call("cuCtxPopCurrent")\n',
        "            pass\n",
        TRT_CUDA,
        "contexts on its stack",
    ),
    "pycuda's detach on the caller's thread": Fault(
        "runtime/backends/cuda.py",
        "self._owner.submit(context.detach).result()",
        "context.detach()",
        TRT_PYCUDA,
        "is retained 1 times",
    ),
    "pycuda's context retained and detached on the caller's thread": Fault(
        "runtime/backends/cuda.py",
        'ThreadPoolExecutor(1, "pgsr-pycuda")',
        "type('Here', (), {'submit': lambda s, f: (v := f(), type('R', (), {'result': lambda s: v})())[1], "
        "'shutdown': lambda s: None})()",
        TRT_PYCUDA,
        "contexts on its stack",
    ),
    "a copy from memory that is not pinned": Fault(
        "runtime/backends/trt.py",
        "(cuda.pinned(b.shape, b.dtype) for b in buffers)",
        "(np.empty(b.shape, b.dtype) for b in buffers)",
        TRT_CUDA,
        "memory that is not pinned",
    ),
    "a result that nobody waited for": Fault(
        "runtime/backends/trt.py",
        "        self._cuda.wait(self._stream)\n        return self._output\n",
        "        return self._output\n",
        TRT_CUDA,
        "images differ",
    ),
    "a stream that waits for torch's": Fault(
        "runtime/backends/cuda.py",
        'self._call("cuStreamCreate", NON_BLOCKING)',
        'self._call("cuStreamCreate", 0)',
        TRT_CUDA,
        "waits for the default stream",
    ),
    "memory allocated while a stream is recorded": Fault(
        "runtime/backends/trt.py",
        "    def _enqueue(self) -> None:\n",
        "    def _enqueue(self) -> None:\n        self._cuda.device(16)\n",
        TRT_CUDA,
        "while this thread records",
    ),
    "a recording that failed and was not ended": Fault(
        "runtime/backends/cuda.py",
        "            self._abandon_capture(stream)\n",
        "",
        "no capture",
        "while this thread records",
    ),
    "a graph that is not destroyed": Fault(
        "runtime/backends/cuda.py",
        '            self._call("cuGraphDestroy", graph)\n',
        "            pass\n",
        TRT_CUDA,
        "a graph is not destroyed",
    ),
    "memory freed before the session": Fault(
        "runtime/backends/ort_bound.py",
        "        self._binding = None\n        self._session = None\n",
        "",
        "onnxruntime cuda",
        "before a",
    ),
    "a session in a stream of its own": Fault(
        "runtime/backends/ort_bound.py",
        '"user_compute_stream": str(stream), ',
        "",
        "onnxruntime cuda",
        "which the copies do not wait for",
    ),
    "a refused profile": Fault(
        "pgsr/tensorrt/library.py",
        "except (RuntimeError, ValueError) as",
        "except KeyError as",
        "refusals",
        "RuntimeError",
    ),
    "a shape before its profile": Fault(
        "runtime/backends/trt.py",
        "        context.set_optimization_profile_async(0, self._stream)\n",
        "",
        TRT_CUDA,
        "does not take a batch of 4",
    ),
    "types that the engine does not tell": Fault(
        "pgsr/tensorrt/data_types.py",
        "            if UNRESOLVED in type_name:\n                return {}\n",
        '            type_name = type_name.replace(UNRESOLVED, "Float")\n',
        "read back",
        "AssertionError: inspector",
    ),
    "an error that holds the session": Fault(
        "runtime/backends/ort_bound.py",
        "return str(error)",
        "raise PgsrError(str(error)) from error\n            return str(error)",
        "breaks while running",
        "is freed before a session of ONNX Runtime",
    ),
    "memory freed under a stream's work": Fault(
        "runtime/backends/cuda.py",
        "calls = [*self._freed_by, *self._waits]",
        "calls = self._freed_by",
        "onnxruntime without graph",
        "while a stream still uses it",
    ),
    "a graph that fails as it is recorded": Fault(
        "runtime/backends/ort_bound.py",
        "        self._enqueue()  # records the CUDA graph, too; what cannot be recorded is known now\n",
        "",
        "onnxruntime without graph",
        "could not run a batch of 1; .*CUDA failure 901",
    ),
    "what ONNX Runtime blames on the user": Fault(
        "runtime/backends/ort.py",
        "if NO_FALLBACK in reason:",
        "if False:",
        "onnxruntime on part",
        "is not in",
    ),
}


def put_back(fault: Fault) -> None:
    """The adapters anew, with the fault in them."""
    forget()
    path = ROOT / fault.file
    source = path.read_text()
    assert source.count(fault.old) >= 1, f"{fault.file} has no {fault.old!r} any more"
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "pgsr" else ("pgsr", *parts))
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source.replace(fault.old, fault.new), str(path), "exec"), module.__dict__)
    parent, _, child = name.rpartition(".")
    setattr(importlib.import_module(parent), child, module)


def forget() -> None:
    """Lets the adapters be imported again."""
    for name in [n for n in sys.modules if n.startswith(("pgsr.runtime", "pgsr.tensorrt", "pgsr.export"))]:
        del sys.modules[name]


# ----------------------------------------------------------------------------


@cache
def needed_by_pycuda() -> tuple[str, ...]:
    """The driver's functions that pycuda itself links, called or not, where it is installed."""
    spec = importlib.util.find_spec("pycuda")
    if spec is None or spec.origin is None:
        return ()
    (library,) = Path(spec.origin).parent.glob("_driver.*.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    return tuple(re.findall(r" (cu[A-Z]\w+)$", listed.stdout, re.MULTILINE))


def perform(scenario: Scenario, folder: Path, library: Path, bundle: Any) -> list[str]:
    """What went wrong: an exception, and what the driver reports."""
    os.environ["PGSR_CACHE"] = str(folder)
    machine = Machine(Driver(library, needed_by_pycuda()), library, bundle, [])
    handler = logging.Handler()
    handler.emit = lambda record: machine.warnings.append(record.getMessage())  # type: ignore[method-assign]
    handler.setLevel(logging.WARNING)
    logging.getLogger("pgsr").addHandler(handler)
    errors = []
    try:
        scenario(machine)
    except Exception as error:
        errors.append("".join(traceback.format_exception_only(error)))
        traceback.clear_frames(error.__traceback__)
    logging.getLogger("pgsr").removeHandler(handler)
    report = machine.driver.report()
    return [*errors, *list(dict.fromkeys(report))[:6]]


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(150, exit=True)
    gc.disable()  # what is freed by chance only is not freed
    logging.getLogger("pgsr").propagate = False
    library = build(folder, needed_by_pycuda())
    bundle = contract.read(tiny.write_bundle(folder / "bundle"))
    told: dict[str, dict[str, list[str]]] = {"scenarios": {}, "faults": {}}
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        told["scenarios"][name] = perform(scenario, folder / f"cache{number}", library, bundle)
    for number, (name, fault) in enumerate(FAULTS.items()):
        try:
            put_back(fault)
        except AssertionError as error:
            told["faults"][name] = [str(error)]
            continue
        told["faults"][name] = perform(SCENARIOS[fault.scenario], folder / f"fault{number}", library, bundle)
    print("RESULT", json.dumps(told), flush=True)
    os._exit(0)  # a fault may have left threads that wait for ever


if __name__ == "__main__":
    main(Path(sys.argv[1]))
