"""The TensorRT runners. Without a GPU: buffers, engines found and built (really, by TensorRT-RTX), lanes and
threads over a device that is this machine's memory. With one (pytest -m gpu): the faces themselves."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bundles as tiny
from pgsr import bundle as contract
from pgsr import draws
from pgsr.bundle import Bundle
from pgsr.errors import PgsrError
from pgsr.export.engines import add_engines
from pgsr.gpu import Gpu
from pgsr.runtime.backends import cuda, open_runner, trt
from pgsr.tensorrt.engines import Profile
from pgsr.tensorrt.sidecars import read_sidecar, sidecar

try:
    import tensorrt_rtx as rtx
except ImportError:
    rtx = None

needs_rtx = pytest.mark.skipif(rtx is None, reason="pip install 'pgsr[trt-rtx]'")

GPU = Gpu(0, "a GPU", "8.9", "580.65.06")


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return contract.read(tiny.write_bundle(tmp_path / "model"))


# ----------------------------------------------------------------------------
# Buffers.


def test_buffers_of_a_chain(small: Bundle) -> None:
    given, made = trt.plan(small.graph("chain"), 5)
    assert given == trt.Buffer("latents", (5, tiny.LATENT), "float32")
    assert made == trt.Buffer("pixels", (5, tiny.SIZE, tiny.SIZE, 3), "uint8")
    assert given.size == 5 * tiny.LATENT * 4
    assert made.size == 5 * tiny.SIZE * tiny.SIZE * 3


def test_pictures_of_any_size_have_no_buffers() -> None:
    bundle = contract.read(contract.shipped())
    with pytest.raises(PgsrError, match="one picture size"):
        trt.plan(bundle.graph("upscaler"), 5)


# ----------------------------------------------------------------------------
# Engines.


@needs_rtx
def test_an_engine_is_built_once_and_found_again(
    small: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = small.graph("chain")
    data = trt.find_engine(rtx, "tensorrt-rtx", small, graph, GPU, 4)
    assert len(data) > 10_000
    assert "building a tensorrt-rtx engine of chain.onnx for a GPU: there is none" in caplog.text
    (path,) = (own_cache / "engines").glob("*.engine")
    assert path.name == f"{graph.sha256[:16]}.tensorrt-rtx.sm89.batch64.engine"
    monkeypatch.setattr(trt, "build", lambda *_: pytest.fail("built again"))
    for batch in (1, 4, 64):
        assert trt.find_engine(rtx, "tensorrt-rtx", small, graph, GPU, batch) == data


@needs_rtx
def test_a_stale_engine_is_never_loaded(
    small: Bundle, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = small.graph("chain")
    trt.find_engine(rtx, "tensorrt-rtx", small, graph, GPU, 4)
    (path,) = (own_cache / "engines").glob("*.engine")
    told = sidecar(path).read_text()
    sidecar(path).write_text(told.replace(rtx.__version__, "1.0.0"))
    path.write_bytes(b"of another version")
    again = trt.find_engine(rtx, "tensorrt-rtx", small, graph, GPU, 4)
    assert again != b"of another version"
    assert "it was built by tensorrt-rtx 1.0.0" in caplog.text
    held = read_sidecar(sidecar(path))
    assert held is not None
    assert held.load() == again
    assert held.key.version == rtx.__version__


@needs_rtx
def test_engines_beside_the_bundle_are_used(
    small: Bundle, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = add_engines(small, "tensorrt-rtx", Profile(1, 2, 4), ("8.6", "8.9"))
    graph = small.graph("chain")
    build = trt.build
    monkeypatch.setattr(trt, "build", lambda *_: pytest.fail("built again"))
    assert trt.find_engine(rtx, "tensorrt-rtx", small, graph, GPU, 4) == made.engine.path.read_bytes()
    monkeypatch.setattr(trt, "build", build)
    for batch, gpu in ((5, GPU), (4, Gpu(0, "another", "12.0", "1"))):  # too large, not built for
        assert trt.find_engine(rtx, "tensorrt-rtx", small, graph, gpu, batch) != made.engine.load()


@needs_rtx
def test_a_cache_that_cannot_be_written_is_no_error(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PGSR_CACHE", str(tmp_path / "file" / "cache"))
    assert trt.find_engine(rtx, "tensorrt-rtx", small, small.graph("chain"), GPU, 4)


# ----------------------------------------------------------------------------
# Lanes, over a device that is this machine's memory.


class HostCuda:
    """What cuda.Cuda promises, without a GPU: a stream is a list of calls, done when someone waits."""

    name = "host"

    def __init__(self, graphs: bool = True) -> None:
        self.graphs = graphs
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.launched = 0
        self.depth = threading.local()
        self.closed = False

    @contextmanager
    def current(self) -> Iterator[None]:
        self.depth.n = getattr(self.depth, "n", 0) + 1
        yield
        self.depth.n -= 1

    def check(self) -> None:
        assert getattr(self.depth, "n", 0) > 0, "outside of current()"

    def device(self, size: int) -> int:
        self.check()
        block = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        self.check()
        return np.empty(shape, dtype)

    def stream(self) -> int:
        self.check()
        self.streams[len(self.streams) + 1] = []
        return len(self.streams)

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        self.check()
        self.streams[stream].append(lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))  # type: ignore[arg-type]

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        self.check()
        self.streams[stream].append(lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))  # type: ignore[arg-type]

    def wait(self, stream: int) -> None:
        self.check()
        calls, self.streams[stream] = self.streams[stream], []
        for call in calls:
            call()

    def record(self, stream: int, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        self.check()
        if not self.graphs:
            return None
        enqueue()
        calls, self.streams[stream] = self.streams[stream], []

        def launch() -> None:
            self.launched += 1
            self.streams[stream].extend(calls)

        return launch

    def close(self) -> None:
        self.closed = True


class HostContext:
    """An execution context whose network doubles a number and adds one, in some milliseconds."""

    def __init__(self, device: HostCuda, rows: int, fails: Callable[[], bool] = lambda: False) -> None:
        self.device, self.rows, self.fails = device, rows, fails
        self.addresses: dict[str, int] = {}
        self.profile = -1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.profile == 0 and shape[0] <= self.rows

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        def compute() -> None:
            time.sleep(0.001)
            given, made = (
                np.ctypeslib.as_array(self.device.memory[self.addresses[n]]) for n in ("in", "out")
            )
            made[:] = given.view(np.float32).astype(np.uint8) * 2 + 1

        self.device.streams[stream].append(compute)
        return not self.fails()


def open_host(rows: int = 4, lanes: int = 2, **options: Any) -> tuple[HostCuda, trt.TensorRtRunner]:
    device = HostCuda(options.pop("graphs", True))
    buffers = (trt.Buffer("in", (rows, 3), "float32"), trt.Buffer("out", (rows, 3), "uint8"))
    with device.current():
        made = [
            trt.Lane(device, HostContext(device, rows, **options), buffers, graphs=device.graphs)
            for _ in range(lanes)
        ]
    return device, trt.TensorRtRunner(device, made, buffers[1], "host")


def numbers(count: int, start: int = 0) -> np.ndarray:
    return (np.arange(start, start + count * 3) % 100).astype(np.float32).reshape(count, 3)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 23])
def test_batches_of_any_size(graphs: bool, lanes: int, count: int) -> None:
    device, runner = open_host(lanes=lanes, graphs=graphs)
    values = numbers(count)
    with runner:
        made = runner.run(values)
    assert made.dtype == np.uint8
    assert np.array_equal(made, values * 2 + 1)
    assert device.launched == (-(-count // 4) if graphs else 0)
    assert device.closed


def test_results_are_the_callers_own() -> None:
    _, runner = open_host(lanes=1)
    first = runner.run(numbers(4))
    kept = first.copy()
    runner.run(numbers(4, 50))
    assert np.array_equal(first, kept)


def test_threads_share_the_lanes() -> None:
    """More callers than lanes, each with more batches than lanes: nobody waits for ever, nothing is mixed."""
    _, runner = open_host(lanes=2)
    jobs = [numbers(4 * (1 + i % 3) + i % 2, i) for i in range(40)]
    with runner, ThreadPoolExecutor(6) as pool:
        made = list(pool.map(runner.run, jobs, timeout=600))
    for values, result in zip(jobs, made, strict=True):
        assert np.array_equal(result, values * 2 + 1)


def test_a_batch_that_fails_leaves_the_lanes_free() -> None:
    failing = threading.Event()
    _, runner = open_host(lanes=2, graphs=False, fails=failing.is_set)
    failing.set()
    for _ in range(3):
        with pytest.raises(PgsrError, match="smaller --batch"):
            runner.run(numbers(9))
    failing.clear()
    assert np.array_equal(runner.run(numbers(9)), numbers(9) * 2 + 1)


def test_a_graph_that_cannot_be_recorded_is_done_without() -> None:
    class Refusing(HostCuda):
        def record(self, stream: int, enqueue: Callable[[], None]) -> None:
            raise PgsrError("the GPU refuses cuStreamBeginCapture")

    device = Refusing()
    buffers = (trt.Buffer("in", (4, 3), "float32"), trt.Buffer("out", (4, 3), "uint8"))
    with device.current():
        lane = trt.Lane(device, HostContext(device, 4), buffers, graphs=True)
    runner = trt.TensorRtRunner(device, [lane], buffers[1], "host")
    assert np.array_equal(runner.run(numbers(5)), numbers(5) * 2 + 1)


def test_an_engine_for_smaller_batches_is_refused() -> None:
    device = HostCuda()
    buffers = (trt.Buffer("in", (8, 3), "float32"), trt.Buffer("out", (8, 3), "uint8"))
    with device.current(), pytest.raises(PgsrError, match="does not take a batch of 8"):
        trt.Lane(device, HostContext(device, 4), buffers, graphs=True)


# ----------------------------------------------------------------------------
# cuda-python and pycuda: what can be missing. What they do is in tests/test_recorded.py.


def test_without_a_driver(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, whichever packages are there."""

    def none(index: int) -> Gpu:
        raise PgsrError("no NVIDIA driver is installed (libcuda.so.1 is not found)")

    monkeypatch.setattr(trt, "find_gpu", none)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.0"))
    with pytest.raises(PgsrError, match="--backend tensorrt needs an NVIDIA GPU: no NVIDIA driver"):
        open_runner(small, backend="tensorrt")
    monkeypatch.setattr(cuda, "find_gpu", none)
    with pytest.raises(PgsrError, match="no NVIDIA driver"):
        cuda.open_cuda(0)


def test_neither_pycuda_nor_cuda_python(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trt, cuda):
        monkeypatch.setattr(module, "find_gpu", lambda index: GPU)
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.0"))
    with pytest.raises(PgsrError, match=r"the tensorrt backend .*pip install 'pgsr\[trt\]'"):
        open_runner(small, backend="tensorrt")


def test_a_binding_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_gpu", lambda index: GPU)
    asked = {name: (lambda index, name=name: name) for name in cuda.BINDINGS}
    monkeypatch.setattr(cuda, "BINDINGS", asked)
    for name in asked:
        monkeypatch.setenv("PGSR_CUDA", name)
        assert cuda.open_cuda(0) == name
    monkeypatch.setenv("PGSR_CUDA", "numba")
    with pytest.raises(PgsrError, match="PGSR_CUDA = 'numba' is not one of 'cuda-python', 'pycuda'"):
        cuda.open_cuda(0)


def test_cuda_python_comes_before_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """No release of pycuda records CUDA graphs."""
    monkeypatch.setattr(cuda, "find_gpu", lambda index: GPU)
    monkeypatch.delenv("PGSR_CUDA", raising=False)
    for name in ("CudaPython", "PyCuda"):
        monkeypatch.setattr(cuda, name, lambda index, name=name: name)
    assert cuda.open_cuda(0) == "CudaPython"

    def absent(index: int) -> None:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(cuda, "CudaPython", absent)
    assert cuda.open_cuda(0) == "PyCuda"


def test_a_library_that_does_not_load(small: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT's package raises OSError where its shared libraries are missing."""
    (tmp_path / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libnvinfer.so.10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(
        PgsrError, match=r"tensorrt backend needs .*pgsr\[trt\].*libnvinfer.so.10: cannot open"
    ):
        open_runner(small, backend="tensorrt")


# ----------------------------------------------------------------------------
# On a GPU: pytest -m gpu tests/test_backends_tensorrt.py


def on_gpu(backend: str, precision: str, batch: int = 4, count: int = 11) -> np.ndarray:
    bundle = contract.read(contract.shipped())
    with open_runner(bundle, "cuda", precision, backend, batch=batch) as runner:
        print(f"\n{runner.provider}")
        return runner.run(draws.latents(11, range(count), bundle.latent_size))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "onnxruntime", "onnxruntime-tensorrt"])
def test_the_faces_of_the_cpu(backend: str) -> None:
    pytest.importorskip({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}.get(backend, "onnxruntime"))
    bundle = contract.read(contract.shipped())
    with open_runner(bundle, "cpu", "fp32", "onnxruntime") as runner:
        expected = runner.run(draws.latents(11, range(11), bundle.latent_size)).astype(int)
    assert np.abs(on_gpu(backend, "fp32").astype(int) - expected).max() <= 2
    error = np.mean((on_gpu(backend, "fp16").astype(int) - expected) ** 2)
    assert 10 * np.log10(255**2 / error) >= 45


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_beside_torch_and_with_threads(backend: str) -> None:
    """torch's context, stream and current device are as they were; four threads at once change nothing."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("tensorrt" if backend == "tensorrt" else "tensorrt_rtx")
    bundle = contract.read(contract.shipped())
    latents = draws.latents(11, range(64), bundle.latent_size)
    weights = torch.randn(512, 512, device="cuda")
    expected = (weights @ weights).sum()
    with open_runner(bundle, "cuda", "fp16", backend, batch=8) as runner:
        alone = runner.run(latents)
        with ThreadPoolExecutor(4) as pool:
            together = pool.map(runner.run, [latents[i : i + 8] for i in range(0, 64, 8)])
            assert torch.equal((weights @ weights).sum(), expected)
            assert np.array_equal(np.concatenate(list(together)), alone)
    assert torch.equal((weights @ weights).sum(), expected)
