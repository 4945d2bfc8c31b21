"""--backend auto: the fastest backend that is present, measured once for a graph on this machine.

What was measured is remembered in the user's cache directory, keyed by machine, GPU, versions, graph and
kinds of devices (runtime/measured.py), so that only the first opening pays for it: a second or two. Batch
and threads are left out of the key, since pixels must not depend on them, and backends differ a little.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError
from pgsr.gpu import Gpu, find_gpu

from .. import measured
from . import BACKENDS, Runner, Settings, backend_versions, open_backend

ROUNDS = 3  # at most, in turns
SECONDS = 1.0  # after which no further round begins
MOST_ROWS = 16  # images at a time while measuring,
LEAST_ROWS, PIXELS = 2, 2**20  # fewer of large ones: as many as these pixels
CLEARLY = 1.1  # how many times as fast a backend must be to be taken before one that BACKENDS prefers
SIDE = 64  # of pictures, to measure an upscaler of any size with


log = logging.getLogger(__name__)


def open_fastest(bundle: Bundle, graph: Graph, settings: Settings) -> Runner:
    """Raises PgsrError if nothing is installed that runs on the device, or nothing can be opened."""
    present = candidates(settings)
    if not present:
        raise PgsrError(
            f"nothing that runs the networks on --device {settings.device} is installed: pip install "
            "'pgsr[cpu]', or 'pgsr[gpu]' for an NVIDIA GPU (pgsr-generate --backends tells more)"
        )
    if len(present) == 1:
        return open_backend(present[0], bundle, graph, settings)
    key = _key(graph, settings)
    name = measured.recall("backend", key)
    if name in present:
        with contextlib.suppress(PgsrError):  # measured when it could be opened; now it cannot
            return _try_open(name, bundle, graph, settings)
    return _measured(present, bundle, graph, settings, key)


def candidates(settings: Settings) -> list[str]:
    """The backends that are installed and have the device, the preferred ones first."""
    kinds = _devices(settings)
    return [
        name
        for name, entry in BACKENDS.items()
        if kinds.intersection(entry.devices) and is_installed(entry.library)
    ]


def is_installed(library: str) -> bool:
    """Returns whether a module can be found; it is not imported."""
    try:
        return sys.modules[library] is not None if library in sys.modules else find_spec(library) is not None
    except ValueError:  # a module without a spec, such as a test's
        return True


def gpu_present(index: int = 0) -> Gpu | None:
    """Returns the GPU of that number, or None if there is none that can be used."""
    try:
        return find_gpu(index)
    except PgsrError:
        return None


def _devices(settings: Settings) -> set[str]:
    if settings.device_kind != "auto":
        return {settings.device_kind}
    return {"cpu", "cuda"} if gpu_present() else {"cpu"}


def _key(graph: Graph, settings: Settings) -> dict[str, Any]:
    gpu = gpu_present(settings.device_index) if settings.device_kind != "cpu" else None
    return {
        "machine": measured.machine(),
        "gpu": [gpu.name, gpu.driver] if gpu else None,
        "versions": backend_versions(),
        "graph": graph.sha256,
        "devices": sorted(_devices(settings)),
    }


# ----------------------------------------------------------------------------
# Measuring.


def _measured(
    names: list[str], bundle: Bundle, graph: Graph, settings: Settings, key: Mapping[str, Any]
) -> Runner:
    """Opens all, keeps the fastest, closes the others."""
    log.warning("trying which of %s is the fastest here; that is remembered", ", ".join(names))  # on stderr
    runners: dict[str, Runner] = {}
    refusals: dict[str, PgsrError] = {}
    best = None
    try:
        for name in names:
            try:
                runners[name] = _try_open(name, bundle, graph, settings)
            except PgsrError as error:
                refusals[name] = error
        if not runners:
            raise PgsrError("; ".join(f"{name}: {error}" for name, error in refusals.items()))
        for name, refusal in refusals.items():
            log.warning("%s is not used: %s", name, refusal)  # shown on stderr
        speeds = measure(runners, example(graph, rows(bundle, settings)))
        log.info("images/s: %s", ", ".join(f"{n} {speed:.1f}" for n, speed in speeds.items()))
        best = fastest(speeds)
    finally:
        for name, runner in runners.items():
            if name != best:
                runner.__exit__(None, None, None)
    measured.remember("backend", key, best)
    return runners[best]


def _try_open(name: str, bundle: Bundle, graph: Graph, settings: Settings) -> Runner:
    """`open_backend`, but whatever a library raises is a PgsrError: one that is broken in a way that nobody
    foresaw must not keep the others from being tried."""
    try:
        return open_backend(name, bundle, graph, settings)
    except PgsrError:
        raise
    except Exception as error:
        log.debug("%s", name, exc_info=True)
        raise PgsrError(f"{type(error).__name__}: {error}") from error


def rows(bundle: Bundle, settings: Settings) -> int:
    """The images at a time that backends are measured with."""
    return min(settings.batch, MOST_ROWS, max(LEAST_ROWS, PIXELS // max(1, bundle.size) ** 2))


def example(graph: Graph, rows: int) -> NDArray[np.float32]:
    """An input of a graph: normal numbers, pictures of SIDE where any size will do."""
    rest = [SIDE if isinstance(side, str) else side for side in graph.inputs[0].shape[1:]]
    numbers = draws.latents(0, range(rows), int(np.prod(rest)))
    return np.ascontiguousarray(numbers.reshape(rows, *rest), dtype=np.float32)


def measure(runners: Mapping[str, Runner], values: NDArray[np.float32]) -> dict[str, float]:
    """Images a second of each, the best of up to ROUNDS in turns. A runner that fails is left out; raises
    PgsrError if all do."""
    seconds: dict[str, float] = {}
    refusals = []
    for name, runner in runners.items():
        try:
            runner.run(values)  # what is set up with the first batch is not counted
            seconds[name] = float("inf")
        except PgsrError as error:
            log.warning("%s is not used: %s", name, error)  # shown on stderr
            refusals.append(error)
    if not seconds:
        raise refusals[0]
    began = time.perf_counter()
    for round_number in range(ROUNDS):
        if round_number and time.perf_counter() - began > SECONDS:
            break
        for name in seconds:
            start = time.perf_counter()
            runners[name].run(values)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: len(values) / took for name, took in seconds.items()}


def fastest(speeds: Mapping[str, float]) -> str:
    """The first, unless another is clearly faster: a tie must not be decided by chance."""
    best = next(iter(speeds))
    for name, speed in speeds.items():
        if speed > CLEARLY * speeds[best]:
            best = name
    return best
