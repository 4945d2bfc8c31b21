"""Backends: what runs a bundle's graph. One file each, and only that file imports its library.

    with open_runner(bundle.read(folder), device="auto") as runner:
        pixels = runner.run(latents)   # float32 [N, L] -> uint8 [N, S, S, 3]

To add one: a module with `open_graph(bundle, graph, settings) -> Runner` that lets the ImportError of its
library through and raises PgsrError for all else, and a line in BACKENDS. docs/backends.md has an example.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle, Graph, Port
from pgsr.errors import REMOVE_ONNXRUNTIMES, PgsrError, check_choice, missing_package
from pgsr.machine import installed_versions, threads_by_quota


class Runner(Protocol):
    """An opened graph. `run` may be called from several threads at once."""

    provider: str  # what it really runs on, in the backend's own words
    calls: int  # of `run` at once, on threads of their own, that keep it busy all the time

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """The graph's output: of "chain", latents float32 [N, L] -> pixels uint8 [N, S, S, 3]."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


MOST_THREADS = 1024  # more than any machine is faster by, and few enough to start at once
MOST_IMAGES = 2**16  # at a time


@dataclass(frozen=True)
class Settings:
    """How a graph is to be run."""

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 0  # of the arithmetic on a CPU; 0 leaves it to the backend
    batch: int = 16  # images at a time, at most
    at_once: int = (
        0  # images that there is memory for, in all that is computed at the same time; 0: any number
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", self.device):
            raise PgsrError(f"--device {self.device!r} is not auto, cpu, cuda or cuda:N")
        if self.threads < 0:
            raise PgsrError(
                f"--threads {self.threads} is below 0: give 1 or more, or 0 for as many as are good"
            )
        if self.threads > MOST_THREADS:
            raise PgsrError(
                f"--threads {self.threads} is above {MOST_THREADS}: give 0 for as many as are good"
            )
        if self.batch < 1:
            raise PgsrError(f"--batch {self.batch} is below 1: give the number of images to make at a time")
        if self.batch > MOST_IMAGES:
            raise PgsrError(f"--batch {self.batch} is above {MOST_IMAGES}: give fewer images at a time")

    @property
    def cpu_threads(self) -> int:
        """Threads for libraries that count cores by themselves: 0 leaves it to them, where they are right."""
        return self.threads or threads_by_quota()

    @property
    def device_index(self) -> int:
        """N of cuda:N."""
        return int(self.device.partition(":")[2] or 0)

    @property
    def device_kind(self) -> str:
        """auto, cpu or cuda."""
        return self.device.partition(":")[0]


def checked(result: Any, port: Port, count: int) -> NDArray[Any]:
    """What a graph made of `count` inputs, if it is what the manifest says of its output.

    Raises PgsrError else: files can be changed together with their hashes.
    """
    expected = (count, *port.shape[1:])
    shape = np.shape(result) if isinstance(result, np.ndarray) else ()  # a list is what sequences come as
    fits = len(shape) == len(expected) and all(
        isinstance(b, str) or a == b for a, b in zip(shape, expected, strict=True)
    )
    if not fits or result.dtype != port.dtype:
        kind = getattr(result, "dtype", type(result).__name__)
        raise PgsrError(
            f"the graph made {kind} {list(shape)}, not {port.dtype} {list(expected)} as its manifest says: "
            "export the bundle again"
        )
    array: NDArray[Any] = result
    return array


@dataclass(frozen=True)
class Backend:
    """What a backend is called, what installs it, and how it opens a graph."""

    module: str  # in this package
    library: str  # what it imports
    packages: tuple[str, ...]  # of PyPI, one of which brings the library
    extra: str  # what to install for it
    devices: tuple[str, ...]  # cpu, cuda
    opener: str = "open_graph"  # the module's function


ORT_PACKAGES = ("onnxruntime", "onnxruntime-gpu")

# What gives ONNX Runtime its providers for NVIDIA GPUs. TensorRT 11 is too new for it.
INSTALL_ORT_CUDA = f"{REMOVE_ONNXRUNTIMES}, then pip install 'pgsr[gpu]'"
INSTALL_ORT_TENSORRT = f"{INSTALL_ORT_CUDA} 'tensorrt<11'"

# In the order of preference where two are equally fast.
BACKENDS = {
    "onnxruntime": Backend(".ort", "onnxruntime", ORT_PACKAGES, "cpu", ("cpu", "cuda")),
    "openvino": Backend(".openvino", "openvino", ("openvino",), "openvino", ("cpu",)),
    "tensorrt": Backend(".trt", "tensorrt", ("tensorrt",), "trt", ("cuda",)),
    "tensorrt-rtx": Backend(".trt", "tensorrt_rtx", ("tensorrt-rtx",), "trt-rtx", ("cuda",), "open_rtx"),
    "onnxruntime-tensorrt": Backend(".ort", "onnxruntime", ORT_PACKAGES, "gpu", ("cuda",), "open_tensorrt"),
}


def backend_versions() -> dict[str, str]:
    """The versions of all packages of BACKENDS that are installed."""
    packages = (package for backend in BACKENDS.values() for package in backend.packages)
    return installed_versions(*dict.fromkeys(packages))


Opener = Callable[[Bundle, Graph, Settings], Runner]


def open_runner(
    bundle: Bundle,
    device: str = "auto",  # auto, cpu, cuda or cuda:N
    precision: str = "fp32",  # one of pgsr.bundle.PRECISIONS
    backend: str = "auto",  # one of BACKENDS, or the fastest that is present (choice.py)
    graph: str = "chain",  # one of pgsr.bundle.GRAPHS
    threads: int = 0,
    batch: int = 16,
    at_once: int = 0,  # images that there is memory for; 0: any number
) -> Runner:
    """Raises PgsrError if no backend is installed, or the graph or the device cannot be used."""
    settings = Settings(device, threads, batch, at_once)
    description = bundle.graph(graph, precision)
    if backend != "auto":
        check_choice("backend", backend, ("auto", *BACKENDS))
        return open_backend(backend, bundle, description, settings)
    from .choice import open_fastest

    return open_fastest(bundle, description, settings)


def open_backend(name: str, bundle: Bundle, graph: Graph, settings: Settings) -> Runner:
    """A graph on one backend of BACKENDS. Raises PgsrError if it is not installed or cannot be used."""
    entry = BACKENDS[name]
    if settings.device_kind not in ("auto", *entry.devices):
        raise PgsrError(
            f"--backend {name} runs on {' and '.join(entry.devices)}, not on --device {settings.device}"
        )
    try:
        opener: Opener = getattr(importlib.import_module(entry.module, __name__), entry.opener)
        return opener(bundle, graph, settings)
    except ImportError as error:
        raise missing_package(f"the {name} backend", entry.extra, error) from error
