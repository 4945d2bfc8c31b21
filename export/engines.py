"""A bundle's graphs -> TensorRT engines beside them. Those that are fresh stay; stale ones are built again.

    add_engines(bundle.read(folder), "tensorrt-rtx", Profile(1, 16, 64), ("8.6", "8.9", "12.0"))

TensorRT builds for the GPU that is present; TensorRT-RTX for any list of GPUs, on a machine without one.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError, check_choice, missing_package
from pgsr.files import cache_root
from pgsr.gpu import find_gpu
from pgsr.tensorrt.building import build
from pgsr.tensorrt.data_types import SOURCES, histogram
from pgsr.tensorrt.engines import LIBRARIES, Engine, Key, Profile, sm, usual_profile
from pgsr.tensorrt.sidecars import read_sidecar, sidecar, why_stale, write_engine

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}


@dataclass(frozen=True)
class EngineResult:
    """An engine that now stands beside its graph."""

    graph: Graph
    engine: Engine
    seconds: float  # that building took; 0 of one that was fresh
    reason: str  # why it was built; "" of one that was fresh

    def line(self) -> str:
        """The engine in one line, for a person to read."""
        what = f"built in {self.seconds:.1f} s, {self.reason}" if self.reason else "fresh, left as it is"
        return (
            f"{self.engine.path.name}: {what}; layers put out {histogram(self.engine.layers)} "
            f"({SOURCES.get(self.engine.read_back, self.engine.read_back)})"
        )

    def summary(self) -> dict[str, Any]:
        """The engine as JSON data, for --json."""
        key = self.engine.key
        return {
            "engine": str(self.engine.path),
            "precision": key.precision,
            "library": key.library,
            "version": key.version,
            "compute_capabilities": list(key.compute_capabilities),
            "batch": str(key.profile),
            "layers": dict(self.engine.layers),
            "read_back": self.engine.read_back,
            "built": bool(self.reason),
            "seconds": round(self.seconds, 3),
        }


def add_engines(
    bundle: Bundle,
    library: str,  # one of pgsr.tensorrt.engines.LIBRARIES
    profile: Profile | None = None,  # None: by the pictures' size
    compute_capabilities: Sequence[str] = (),  # for TensorRT-RTX; empty: Ampere and newer
    report: Callable[[str], None] = lambda line: None,  # called before what takes time
) -> list[EngineResult]:
    """Raises PgsrError if the library or the GPU is missing, or an engine is not what was asked for."""
    check_choice("--engine", library, LIBRARIES)
    trt = load(library)
    capabilities, driver = targets(trt, library, tuple(compute_capabilities))
    results = []
    for graph in engine_graphs(bundle):
        key = Key(
            onnx_sha256=graph.sha256,
            library=library,
            version=str(trt.__version__),
            compute_capabilities=capabilities,
            driver=driver,
            precision=graph.precision,
            profile=profile or usual_profile(bundle, graph),
        )
        results.append(_add(trt, bundle, graph, key, report))
    return results


@dataclass(frozen=True)
class EngineRequest:
    """What --engine and its two options ask for, checked before anything is exported."""

    library: str
    profile: Profile | None
    compute_capabilities: tuple[str, ...]

    def build_beside(self, bundle: Bundle, report: Callable[[str], None]) -> list[EngineResult]:
        """Builds what is missing or stale. Raises PgsrError as `add_engines` does."""
        return add_engines(bundle, self.library, self.profile, self.compute_capabilities, report)


def engine_request(
    library: str | None, batch: str | None, compute_capability: str | None
) -> EngineRequest | None:
    """Checks --engine and its options; None without --engine. Raises PgsrError if one is wrong, or library or
    GPU missing."""
    if library is None:
        for option, value in (("--batch", batch), ("--compute-capability", compute_capability)):
            if value is not None:
                raise PgsrError(f"{option} is for an --engine: name one, or leave it out")
        return None
    check_choice("--engine", library, LIBRARIES)
    request = EngineRequest(library, _profile(batch) if batch else None, _capabilities(compute_capability))
    targets(load(library), library, request.compute_capabilities)
    return request


def _profile(text: str) -> Profile:
    """1,16,64, or one number for all three. Raises PgsrError."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r" *\d{1,6} *", part) for part in parts):
        raise PgsrError(f"--batch {text!r} is not MIN,OPT,MAX such as 1,16,64, or one number")
    low, best, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    return Profile(low, best, high)


def _capabilities(text: str | None) -> tuple[str, ...]:
    """8.6,8.9, in the order of the numbers, once each. Raises PgsrError."""
    names = {part.strip() for part in text.split(",")} if text else set()
    return tuple(sorted(names, key=lambda capability: int(sm(capability)[2:])))


def _add(trt: Any, bundle: Bundle, graph: Graph, key: Key, report: Callable[[str], None]) -> EngineResult:
    path = bundle.folder / f"{key.stem(graph.file)}.engine"
    existing = read_sidecar(sidecar(path))
    reason = why_stale(existing, key) if existing else "there was none"
    if existing and reason is None:
        return EngineResult(graph, existing, 0.0, "")
    assert reason is not None
    report(f"building {path.name}")
    began = time.perf_counter()
    built = build(trt, bundle.path(graph).read_bytes(), key, cache_root() / "engines")
    return EngineResult(graph, write_engine(path, key, built), time.perf_counter() - began, reason)


def engine_graphs(bundle: Bundle) -> list[Graph]:
    """Returns what is worth an engine: the chain in every precision, or the only graph of a bundle without
    one.

    Raises PgsrError if the bundle holds only an upscaler of pictures of any size.
    """
    names = [graph.name for graph in bundle.graphs]
    name = next(name for name in ("chain", "generator", "upscaler") if name in names)
    graphs = [graph for graph in bundle.graphs if graph.name == name]
    if any(isinstance(side, str) for side in graphs[0].inputs[0].shape[1:]):
        raise PgsrError(f"{bundle.folder} holds an upscaler of any size, and an engine needs one size")
    return graphs


def load(library: str) -> Any:
    """The module. Raises PgsrError with the sentence that installs it."""
    try:
        return importlib.import_module(MODULES[library])
    except (ImportError, OSError) as error:  # OSError: a library of the driver's is missing
        absent = error if isinstance(error, ImportError) else ImportError(str(error))
        raise missing_package(f"--engine {library}", EXTRAS[library], absent) from error


def targets(trt: Any, library: str, capabilities: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """The compute capabilities to build for, and the driver if the engine will depend on it.

    Raises PgsrError if TensorRT has no GPU, or is asked for another than the one present.
    """
    if library == "tensorrt-rtx":
        return (capabilities or _ampere_and_newer(trt)), None
    try:
        gpu = find_gpu()
    except PgsrError as error:
        raise PgsrError(
            f"--engine tensorrt builds for the GPU that is present, and {error}; "
            "--engine tensorrt-rtx needs none"
        ) from error
    if capabilities not in ((), (gpu.compute_capability,)):
        raise PgsrError(
            f"--engine tensorrt builds for the GPU that is present, which is {gpu.compute_capability}: leave "
            "--compute-capability out, or use --engine tensorrt-rtx"
        )
    return (gpu.compute_capability,), gpu.driver


def _ampere_and_newer(trt: Any) -> tuple[str, ...]:
    """All that this TensorRT-RTX builds for, but for Turing, which multiplies no float32 matrices there."""
    names = [name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in names if int(name) >= 80)


def engines_summary(results: Sequence[EngineResult]) -> dict[str, Any]:
    """Returns what the command reports."""
    return {"engines": [one.summary() for one in results]}


def progress(line: str) -> None:
    """Prints a line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)
