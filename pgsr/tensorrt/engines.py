"""TensorRT engines: built from a bundle's graphs, each beside a sidecar that says what it depends on.

    chain.fp16.tensorrt-rtx.sm86-sm89.engine        what TensorRT loads
    chain.fp16.tensorrt-rtx.sm86-sm89.engine.json   its sidecar

An engine whose sidecar names anything but what is wanted (another graph, TensorRT, GPU, driver or profile) is
stale: it is never loaded, and built again. The library is handed in by whoever may import it; TensorRT 10,
TensorRT 11 and TensorRT-RTX differ in the few places where `rtx` or `major` is asked below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pgsr.batches import images_on_gpu
from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError
from pgsr.files import sha256

LIBRARIES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Profile:
    """The batch sizes an engine takes; it is tuned for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise PgsrError(
                f"--batch {self.min},{self.opt},{self.max} is not MIN,OPT,MAX in this order, from 1"
            )

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


def usual_profile(bundle: Bundle, graph: Graph) -> Profile:
    """The batches of engines where nobody names any, so that one serves all usual ones: 1,16,64, or fewer of
    large pictures. TensorRT sets memory aside for the largest, on every stream."""
    largest = images_on_gpu(bundle, graph)
    return Profile(1, min(16, largest), largest)


@dataclass(frozen=True)
class Key:
    """All that an engine depends on."""

    onnx_sha256: str
    library: str  # one of LIBRARIES
    version: str  # the library's
    compute_capabilities: tuple[str, ...]  # "8.6", ...
    driver: str | None  # of TensorRT; TensorRT-RTX compiles its kernels on the user's machine and fits any
    precision: str
    profile: Profile

    def stem(self, graph_file: str) -> str:
        """The engine's name: chain.fp16.onnx -> chain.fp16.tensorrt.sm89."""
        return f"{Path(graph_file).stem}.{self.library}.{'-'.join(map(sm, self.compute_capabilities))}"


@dataclass(frozen=True)
class Engine:
    """An engine's file and what its sidecar says."""

    path: Path
    key: Key
    sha256: str
    layers: Mapping[str, int]  # data types of what the layers put out: {"fp16": 48, "fp32": 9, "uint8": 1}
    read_back: str  # how they were found: "inspector", "build log" or "network"

    def load(self) -> bytes:
        """Raises PgsrError if the file is absent or is not what was built."""
        if not self.path.is_file() or sha256(self.path) != self.sha256:
            raise PgsrError(f"{self.path} is missing or damaged: build the engine again")
        return self.path.read_bytes()


def sm(compute_capability: str) -> str:
    """8.6 -> sm86. Raises PgsrError for anything but such a number."""
    if not re.fullmatch(r"\d{1,2}\.\d", compute_capability):
        raise PgsrError(f"--compute-capability {compute_capability!r} is not a number such as 8.9")
    return f"sm{compute_capability.replace('.', '')}"
