"""Amdahl's account of the whole chain, from latents to files: where the saving in multiply-adds goes.

A chain of ratios of vanilla to separable, each over more of what an image costs: multiply-adds as written,
those that run, the least time under the roof, the layers' time, then with conversions, with everything that
is no layer, the network as called, and files on the disk. The quotient of two neighbours is what that step
took.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.files import make_folder
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.write import generate

from ..conv.measure import ratios
from ..harness.noise import Watch, spread
from ..harness.provenance import provenance
from ..harness.roof import Roof, survey
from ..harness.timing import Contender, Timing, measure
from ..references import inference as plain
from ..throughput.measure import torch_threads
from ..throughput.systems import CONVOLUTIONS, System, inputs, predicted
from .profile import profile_onnxruntime, profile_openvino, profile_pytorch
from .roofline import totals
from .settings import Settings, Way

Report = Callable[[str], None]

VANILLA, SEPARABLE = CONVOLUTIONS

# What each step of the account adds, in order: the key of a system's costs, and what a reader is told.
STEPS = (
    ("written", "multiply-adds, as written"),
    ("multiply_adds", "exact rewrites, which save vanilla more"),
    ("arithmetic_seconds", "precisions that layers really compute in"),
    ("roof_seconds", "memory traffic of the layers"),
    ("layer_seconds", "layers below the roof: small products, kernels"),
    ("with_conversions_seconds", "conversions of layouts and types"),
    ("all_seconds", "everything that is not convolution"),
    ("network_seconds", "around the operations: calls, Python"),
    ("files_seconds", "encoding and files"),
)

NOTES = (
    "Operations are profiled in the chain's graph (in eager PyTorch, as it is written); network and files "
    "are timed without a profiler, in turn, with the vanilla network once more as control. Where profiled "
    "times add up to more than the network takes without, all of them are shrunk by one factor.",
    "Graphs are run as pgsr-generate does; PyTorch is the naive chain of "
    "benchmarks/references/inference.py with Pillow's PNG. Pictures of random weights take another time to "
    "encode than faces do.",
)


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data."""
    began = provenance()
    report("timing the matrix product and the memory")
    machine, roof = survey(settings.threads)
    notes, accounts, controls = list(NOTES), [], []
    with (
        tempfile.TemporaryDirectory(prefix="pgsr-bench-") as scratch,
        torch_threads(settings.threads),
        Watch() as watch,
    ):
        folder = Path(scratch)
        report("exporting the networks")
        systems = {c: settings.system(c, machine) for c in CONVOLUTIONS}
        equation = predicted(settings.widths, systems[VANILLA])["chain"]
        for way in settings.ways(machine):
            if way.backend == "pytorch" and way.precision != "fp32":
                continue  # the naive chain is float32
            report(f"{way.name}: latents to files")
            try:
                costs, ratio, control = Chain(settings, way, systems, folder).costs(roof)
            except PgsrError as error:
                notes.append(f"{way.name} is not measured: {error}")
                continue
            controls += control
            accounts.append(
                {"backend": way.backend, "precision": way.precision, **steps(costs), "end": ratio}
            )
    return {
        "benchmark": "waterfall",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "provenance": began,
        "roof": roof.as_dict(),
        "settings": settings.as_dict(),
        "noise": watch.as_dict(controls),
        "equation_3": 1 / equation.ratio,
        "accounts": accounts,
        "labels": dict(STEPS),
        "notes": notes,
    }


class Chain:
    """The chain of both systems in one way."""

    def __init__(self, settings: Settings, way: Way, systems: Mapping[str, System], folder: Path) -> None:
        self.settings, self.way, self.systems, self.folder = settings, way, systems, folder
        self.latents: Tensor = inputs(settings.widths, "chain", settings.batch)
        self._folders = 0

    def costs(self, roof: Roof) -> tuple[dict[str, dict[str, float]], dict[str, float], list[float]]:
        """Each system's costs of an image, the spread of the last ratio, and the control's ratios."""
        timings = self._timed()
        result = {}
        for name, system in self.systems.items():
            operations = totals(self._profiled(system), roof)
            batch = self.settings.batch
            result[name] = fitted(
                {
                    "written": system.multiply_adds["chain"],
                    **{key: value / batch for key, value in operations.items()},
                    "with_conversions_seconds": (
                        operations["layer_seconds"] + operations["conversion_seconds"]
                    )
                    / batch,
                    "network_seconds": timings[f"{name} network"].median_seconds / batch,
                    "files_seconds": timings[f"{name} files"].median_seconds / batch,
                }
            )
        ratio = spread(ratios(timings[f"{SEPARABLE} files"], timings[f"{VANILLA} files"]))
        return result, ratio, ratios(timings["control"], timings[f"{VANILLA} network"])

    def _profiled(self, system: System) -> list[Any]:
        x, settings, precision = self.latents, self.settings, self.way.precision
        if self.way.backend == "pytorch":
            return profile_pytorch(lambda: system.eager("chain", x), settings.runs)
        path = system.bundle.path(system.bundle.graph("chain", precision))
        if self.way.backend == "openvino":
            return profile_openvino(path, x.numpy(), precision, settings.threads, settings.runs)
        return profile_onnxruntime(path, x.numpy(), settings.threads, settings.runs, self.folder)

    def _timed(self) -> dict[str, Timing]:
        """Networks and files of both systems in turn, and the vanilla network once more."""
        batch = self.settings.batch
        with contextlib.ExitStack() as stack:
            calls = {}
            for name, system in self.systems.items():
                calls[f"{name} network"], calls[f"{name} files"] = self._calls(stack, system)
            calls["control"] = calls[f"{VANILLA} network"]
            contenders = [Contender(name, batch, call) for name, call in calls.items()]
            return measure(contenders, self.settings.rounds)

    def _calls(
        self, stack: contextlib.ExitStack, system: System
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        settings, latents = self.settings, self.latents
        batch = settings.batch
        if self.way.backend == "pytorch":
            return (
                lambda: system.eager("chain", latents),
                lambda: plain.write_images(
                    system.generator, system.upscaler, latents, batch, self._new_folder()
                ),
            )
        synthesizer = Synthesizer(
            system.bundle.folder, "cpu", self.way.precision, self.way.backend, batch, settings.threads, 1.0
        )
        synthesizer.tune()
        stack.enter_context(synthesizer)

        def files() -> object:
            return generate(synthesizer, Job(self._new_folder(), batch, threads=settings.threads))

        return lambda: list(synthesizer.batches(0, range(batch))), files

    def _new_folder(self) -> Path:
        """An empty one for every call, so that nothing in it is there already."""
        self._folders += 1
        return make_folder(self.folder / "files" / f"{self.way.backend}-{self.way.precision}-{self._folders}")


PROFILED = ("layer_seconds", "conversion_seconds", "with_conversions_seconds", "all_seconds")


def fitted(costs: Mapping[str, float]) -> dict[str, float]:
    """A system's costs with profiled times that exceed the network's own shrunk to it, all by one factor.

    A profiler takes time itself, and other processes may have taken more of it in the profiled runs.
    """
    share = min(1.0, costs["network_seconds"] / costs["all_seconds"])
    return {key: value * share if key in PROFILED else value for key, value in costs.items()}


def steps(costs: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The ratios of vanilla to separable, step by step, and the costs that they are of."""
    ratios_by_step = {key: costs[VANILLA][key] / costs[SEPARABLE][key] for key, _ in STEPS}
    return {"ratios": ratios_by_step, "costs": {name: dict(values) for name, values in costs.items()}}
