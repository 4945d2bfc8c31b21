"""Backends: what runs a bundle's graph. One file each, and only that file imports its library.

    with open_runner(bundle.read(folder), device="auto") as runner:
        pixels = runner.run(latents)   # float32 [N, L] -> uint8 [N, S, S, 3]

To add one: a module with `open_graph(bundle, graph, settings) -> Runner` that lets the ImportError of its
library through and raises PgsrError for all else, and a line in BACKENDS.
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

from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError, check_choice, missing_package


class Runner(Protocol):
    """An opened graph."""

    provider: str  # what it really runs on, in the backend's own words

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """The graph's output: of "chain", latents float32 [N, L] -> pixels uint8 [N, S, S, 3]."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How a graph is to be run."""

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 0  # of the arithmetic on a CPU; 0 leaves it to the backend
    batch: int = 16  # images at a time, at most

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", self.device):
            raise PgsrError(f"--device {self.device!r} is not auto, cpu, cuda or cuda:N")
        if self.threads < 0:
            raise PgsrError(
                f"--threads {self.threads} is below 0: give 1 or more, or 0 for as many as are good"
            )
        if self.batch < 1:
            raise PgsrError(f"--batch {self.batch} is below 1: give the number of images to make at a time")

    @property
    def device_index(self) -> int:
        """N of cuda:N."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Backend:
    module: str  # in this package
    extra: str  # what to install for it


# In the order in which "auto" looks for one that is installed.
BACKENDS = {
    "onnxruntime": Backend(".ort", "cpu"),
}

Opener = Callable[[Bundle, Graph, Settings], Runner]


def open_runner(
    bundle: Bundle,
    device: str = "auto",  # auto, cpu, cuda or cuda:N
    precision: str = "fp32",  # one of pgsr.bundle.PRECISIONS
    backend: str = "auto",  # one of BACKENDS, or the first that is installed
    graph: str = "chain",  # one of pgsr.bundle.GRAPHS
    threads: int = 0,
    batch: int = 16,
) -> Runner:
    """Raises PgsrError if no backend is installed, or the graph or the device cannot be used."""
    settings = Settings(device, threads, batch)
    chosen = bundle.graph(graph, precision)
    if backend != "auto":
        check_choice("backend", backend, ("auto", *BACKENDS))
        try:
            return _opener(BACKENDS[backend])(bundle, chosen, settings)
        except ImportError as error:
            raise missing_package(f"the {backend} backend", BACKENDS[backend].extra, error) from error
    absent = []
    for entry in BACKENDS.values():
        try:
            return _opener(entry)(bundle, chosen, settings)
        except ImportError as error:
            absent.append(str(error))
    raise PgsrError(
        "nothing to run the networks with is installed: pip install 'pgsr[cpu]', or 'pgsr[gpu]' for "
        f"an NVIDIA GPU ({'; '.join(absent)})"
    )


def _opener(backend: Backend) -> Opener:
    opener: Opener = importlib.import_module(backend.module, __name__).open_graph
    return opener
