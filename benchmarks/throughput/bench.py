"""A throughput measurement under way: what the stages share, and timings as rows."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr import bundle
from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError
from pgsr.export.engines import add_engines
from pgsr.export.parity import compare, pictures, require
from pgsr.files import make_folder
from pgsr.runtime import Synthesizer
from pgsr.runtime.backends import Settings as RunnerSettings
from pgsr.runtime.backends import open_runner
from pgsr.runtime.backends.choice import candidates
from pgsr.tensorrt.engines import LIBRARIES, Profile

from ..gpu.peaks import gpu_bandwidth_gbs, gpu_peak_gflops
from ..harness.arithmetic import traffic
from ..harness.machine import FAST, Machine, low_peak_gflops
from ..harness.timing import Contender, Timing, measure
from .settings import (
    EAGER,
    END_TO_END,
    GPU_TYPES,
    GRAPHS,
    LARGEST_BATCH,
    NAIVE,
    NETWORK,
    OUTPUTS,
    RELATIVE_LIMIT,
    STEPS_LIMIT,
    Settings,
)
from .systems import System, exported_system, new_system

Report = Callable[[str], None]  # gets a line on what is going on


@dataclass(frozen=True)
class Execution:
    """How an exported graph is run."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


NO_KERNELS = Execution("onnxruntime", "bf16")  # on a CPU


@dataclass(frozen=True)
class Entry:
    """A contender and what its row says."""

    system: str  # vanilla, separable or the model's name
    way: str
    stage: str
    images: int  # a call
    call: Callable[[], object]
    multiply_adds: int = 0  # of an image, by the network as written
    graph_adds: int = 0  # after the rewrites, where that is what runs
    traffic: float = 0.0  # bytes an image that its layers read and write, where that was counted

    @property
    def key(self) -> str:
        return f"{self.system}, {self.way}, {self.stage}"


class Bench:
    """A measurement under way."""

    def __init__(self, settings: Settings, machine: Machine, scratch: Path, report: Report) -> None:
        self.settings, self.machine, self.scratch, self.report = settings, machine, scratch, report
        self.notes: list[str] = []
        self.device = settings.device
        self.bandwidth: float | None = None  # GB/s, of a GPU
        if self.device == "cpu":
            fast = tuple(precision for precision in FAST if machine.is_fast_in(precision))
            self.precisions = settings.precisions or ("fp32", *fast)
            self.peaks = {"fp32": machine.peak_gflops}
            for precision in FAST:
                if precision in self.precisions:
                    self.peaks[precision] = low_peak_gflops(precision, settings.threads)
        else:
            self.precisions = settings.precisions or ("fp32", "fp16")
            self.peaks = {p: gpu_peak_gflops(self.device, GPU_TYPES[p]) for p in GPU_TYPES}
            self.bandwidth = gpu_bandwidth_gbs(self.device)
        names = settings.backends or candidates(RunnerSettings(self.device))
        self.ways = [Execution(backend, precision) for backend in names for precision in self.precisions]
        if self.device == "cpu" and NO_KERNELS in self.ways:
            self.ways.remove(NO_KERNELS)
            self.notes.append("ONNX Runtime's CPU has no bf16 kernels, so its bf16 is not measured.")
        self._folders = 0

    def system(self, convolution: str) -> System:
        self.report(f"exporting the {convolution} networks")
        widths, precisions = self.settings.widths, tuple(self.precisions)
        if self.device == "cpu":
            return exported_system(widths, convolution, precisions)
        result = new_system(widths, convolution, self.scratch / convolution, precisions, self.device)
        self.add_engines_to(result.bundle)
        return result

    def add_engines_to(self, model: Bundle) -> None:
        """Builds engines for each TensorRT that can run here."""
        for library in LIBRARIES:
            if any(way.backend == library for way in self.ways):
                usual = self.settings.large_batch
                add_engines(model, library, Profile(1, usual, max(usual, LARGEST_BATCH)), (), self.report)

    @cached_property
    def model(self) -> Bundle | None:
        """The one named, or that which comes with the package, if any does; copied, to have engines beside
        it."""
        folder = self.settings.model or bundle.shipped()
        if self.settings.model is None and not (folder / bundle.MANIFEST).is_file():
            return None
        bundle.read(folder)
        copied = bundle.read(Path(shutil.copytree(folder, self.scratch / "model")))
        self.add_engines_to(copied)
        return copied

    # ------------------------------------------------------------------------
    # Graphs opened, and held to their networks.

    def runner_call(
        self,
        stack: contextlib.ExitStack,
        model: Bundle,
        way: Execution,
        stage: str,
        batch: int,
        values: NDArray[np.float32],
    ) -> Callable[[], Any] | None:
        """A call of the graph, or None, noted, where the backend cannot run it."""
        try:
            runner = stack.enter_context(
                open_runner(
                    model,
                    self.device,
                    way.precision,
                    way.backend,
                    GRAPHS[stage],
                    self.settings.threads,
                    batch,
                )
            )
            runner.run(values)
        except PgsrError as error:
            self.note(way, error)
            return None
        return bound(runner.run, values)

    def open_synthesizer(
        self, stack: contextlib.ExitStack, model: Bundle, way: Execution, batch: int
    ) -> Synthesizer | None:
        """Opens the chain; None, with a note, where the backend cannot run it. A batch of 0 is found by
        measuring."""
        try:
            synthesizer = Synthesizer(
                model.folder, self.device, way.precision, way.backend, batch, self.settings.threads, 1.0
            )
            synthesizer.tune()
        except PgsrError as error:
            self.note(way, error)
            return None
        return stack.enter_context(synthesizer)

    def check(
        self, stage: str, system: System, way: Execution, eager: NDArray[Any], graph: NDArray[Any]
    ) -> None:
        """Raises PgsrError if a graph does other work than its network."""
        if way.precision == "fp32":
            checked_difference(stage, system, eager, graph)
            return
        parity = compare(pictures(eager), pictures(graph))
        require(parity, way.precision, f"{system.convolution} {stage}")
        self.notes.append(f"{way.name}, {system.convolution} {stage}: {parity.psnr_db:.1f} dB of eager's.")

    def note(self, way: Execution, error: PgsrError) -> None:
        note = f"{way.name} is not measured: {error}"
        if note not in self.notes:
            self.notes.append(note)
            self.report(note)

    def traffic_of(self, model: Bundle, graph: Graph, batch: int) -> float:
        """Bytes an image; on a CPU caches hold too much of it for the number to say anything."""
        return traffic(model.path(graph).read_bytes(), batch) if self.bandwidth else 0.0

    def new_folder(self) -> Path:
        """A new one for every call, so that nothing in it is there already."""
        self._folders += 1
        return make_folder(self.scratch / "files" / str(self._folders))

    # ------------------------------------------------------------------------
    # Timings -> rows.

    def measured(self, entries: Sequence[Entry], what: str) -> list[dict[str, Any]]:
        rounds = self.settings.rounds
        contenders = [Contender(entry.key, entry.images, entry.call) for entry in entries]
        timings = measure(
            contenders,
            rounds,
            report=lambda round_number: self.report(f"{what}: round {round_number} of {rounds}"),
        )
        return [self._row(entry, entries, timings) for entry in entries]

    def _row(self, entry: Entry, entries: Sequence[Entry], timings: Mapping[str, Timing]) -> dict[str, Any]:
        timing = timings[entry.key]

        def ratio(other: Entry | None) -> float | None:
            return None if other is None else timing.ratio_to(timings[other.key])

        naive = _find(entries, way=NAIVE, stage=entry.stage)
        network = _find(entries, system=entry.system, way=entry.way, stage=NETWORK)
        return {
            "stage": entry.stage,
            "system": entry.system,
            "way": entry.way,
            "multiply_adds": entry.multiply_adds,
            "graph_multiply_adds": entry.graph_adds or entry.multiply_adds,
            **self._speed(timing, entry),
            "ratio_to_naive": ratio(naive),
            "share_of_network": ratio(network) if entry.stage in (END_TO_END, *OUTPUTS) else None,
        }

    def _speed(self, timing: Timing, entry: Entry) -> dict[str, Any]:
        """A timing with the arithmetic it stands for."""
        gflops = 2e-9 * (entry.graph_adds or entry.multiply_adds) * timing.images_per_second
        peak = self.peaks.get(entry.way.rpartition(" ")[2], self.peaks["fp32"])
        share = gflops / peak if entry.multiply_adds else None
        gigabytes_per_second = entry.traffic * timing.images_per_second / 1e9
        of_bandwidth = gigabytes_per_second / self.bandwidth if self.bandwidth and entry.traffic else None
        return {
            **timing.as_dict(),
            "gflops": gflops,
            "share_of_peak": share,
            "share_of_bandwidth": of_bandwidth,
        }


def _find(entries: Sequence[Entry], **criteria: str) -> Entry | None:
    """The first entry with these values."""
    matches = (e for e in entries if all(getattr(e, name) == value for name, value in criteria.items()))
    return next(matches, None)


def bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call with its arguments, which a lambda in a loop would look up too late."""
    return lambda: function(*arguments)


def eager_way(system: System) -> str:
    """Returns what a system in eager PyTorch is called."""
    return NAIVE if system.convolution == "vanilla" else EAGER


def checked_difference(stage: str, system: System, eager: NDArray[Any], graph: NDArray[Any]) -> float:
    """The largest difference between network and graph. Raises PgsrError if they do not compute the same."""
    a, b = eager.astype(np.float64), graph.astype(np.float64)
    difference = float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
    limit = STEPS_LIMIT if eager.dtype == np.uint8 else RELATIVE_LIMIT * max(1.0, float(np.abs(a).max()))
    if not difference <= limit:
        raise PgsrError(
            f"the {system.convolution} {stage} graph is {difference:.2g} away from its network, more than "
            f"{limit:.2g}: nothing was measured"
        )
    return difference
