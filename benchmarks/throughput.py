"""Images a second of each stage, vanilla and separable, eager PyTorch beside the exported graphs.

One run times everything, side by side, on the CPU: see pgsr.benchmarks.timing. A stage's four contenders
take turns, so their ratios hold although the machine's speed wanders.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgsr import bundle, draws
from pgsr.bundle import Bundle
from pgsr.errors import PgsrError
from pgsr.files import make_folder
from pgsr.runtime import Synthesizer
from pgsr.runtime.backends import open_runner
from pgsr.runtime.generate import Job, generate

from . import plain
from .machine import Machine, describe, usable_cores
from .systems import CONVOLUTIONS, STAGES, System, Widths, inputs, new_system, predicted
from .timing import Contender, Timing, measure

Report = Callable[[str], None]  # is told what is going on

END_TO_END = "end to end"
EAGER, GRAPH = "eager", "onnxruntime"  # the latter is the runtime's backend, too

# Largest differences allowed between a system's two halves, which must do the same work.
RELATIVE_LIMIT = 1e-3  # of images, against their largest value
STEPS_LIMIT = 1  # of pixels

NOTES = (
    "Weights are random: the networks' speed does not depend on them. PNG files of what they draw take "
    "another time to encode than faces do.",
    "Eager vanilla is benchmarks/plain.py, a pipeline as one would first write it; eager separable is the "
    "training network. Both are PyTorch in float32, NCHW, without gradients.",
    "End to end is latents to PNG files in a folder: eager writes Pillow's default PNG after each batch; the "
    "graph is pgsr-generate's own path, which encodes on threads while the next batch is computed.",
    "Ratios are medians of the rounds' ratios, not ratios of medians.",
    "GFLOP/s count two operations a multiply-add; the peak is numpy's float32 matrix product of 2048 x 2048 "
    "on as many threads.",
)


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    widths: Widths = field(default_factory=Widths)
    batch: int = 8  # images a call of the generator
    large_batch: int = 4  # of the upscaler and of the chain
    images: int = 8  # an end-to-end call
    rounds: int = 5
    model: Path | None = None  # a bundle to measure as well; None: the shipped one
    threads: int = 0  # of arithmetic; 0: one a usable core

    def __post_init__(self) -> None:
        for name in ("batch", "large_batch"):  # the runtime fills smaller batches up
            if getattr(self, name) < 2:
                option = name.replace("_", "-")
                raise PgsrError(f"--{option} is {getattr(self, name)}, but must be at least 2")
        for name in ("images", "rounds"):
            if getattr(self, name) < 1:
                raise PgsrError(f"--{name} is {getattr(self, name)}, but must be at least 1")
        if self.threads < 0:
            raise PgsrError(f"--threads is {self.threads}, but must be at least 0")
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def batch_of(self, stage: str) -> int:
        return self.batch if stage == "generator" else self.large_batch

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        widths = values.pop("widths")
        return {**widths, **values, "model": None if self.model is None else self.model.name}


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data.

    Raises PgsrError if a graph does not compute what its network does, or the model cannot be opened.
    """
    report("timing the peak")
    machine = describe(settings.threads)
    with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as name, torch_threads(settings.threads):
        scratch = Path(name)
        systems = []
        for convolution in CONVOLUTIONS:
            report(f"exporting the {convolution} networks")
            systems.append(new_system(settings.widths, convolution, scratch / convolution))
        rows = [row for stage in STAGES for row in _stage_rows(settings, systems, stage, machine, report)]
        rows += _end_to_end_rows(settings, systems, scratch, machine, report)
        rows += _shipped_rows(settings, scratch, machine, report)
    return {
        "benchmark": "throughput",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "settings": settings.as_dict(),
        "rows": rows,
        "equation_3": _equation_3(settings.widths, systems),
        "notes": [*NOTES, *_shipped_note(settings)],
    }


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------
# The stages: the same inputs through both halves of both systems.


def _stage_rows(
    settings: Settings, systems: list[System], stage: str, machine: Machine, report: Report
) -> list[dict[str, Any]]:
    batch = settings.batch_of(stage)
    x = inputs(settings.widths, stage, batch)
    contenders: list[Contender] = []
    differences: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for system in systems:
            runner = stack.enter_context(
                open_runner(system.bundle, "cpu", "fp32", GRAPH, stage, settings.threads, batch)
            )
            eager, graph = _bound(system.eager, stage, x), _bound(runner.run, x.numpy())
            differences[system.convolution] = checked_difference(stage, system, eager(), graph())
            contenders += [
                Contender(f"{system.convolution} {EAGER}", batch, eager),
                Contender(f"{system.convolution} {GRAPH}", batch, graph),
            ]
        timings = measure(contenders, settings.rounds, report=_rounds(report, stage, settings.rounds))
    rows = [_row(stage, system, timings, machine) for system in systems]
    return [{**row, "largest_difference": differences[row["convolution"]]} for row in rows]


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call with its arguments, which a lambda in a loop would look up too late."""
    return lambda: function(*arguments)


def _rounds(report: Report, stage: str, rounds: int) -> Callable[[int], None]:
    return lambda done: report(f"{stage}: round {done} of {rounds}")


def checked_difference(stage: str, system: System, eager: NDArray[Any], graph: NDArray[Any]) -> float:
    """The largest difference between the halves. Raises PgsrError if they do not compute the same."""
    a, b = eager.astype(np.float64), graph.astype(np.float64)
    difference = float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
    limit = STEPS_LIMIT if eager.dtype == np.uint8 else RELATIVE_LIMIT * max(1.0, float(np.abs(a).max()))
    if not difference <= limit:
        raise PgsrError(
            f"the {system.convolution} {stage} graph is {difference:.2g} away from its network, more than "
            f"{limit:.2g}: nothing was measured"
        )
    return difference


# ----------------------------------------------------------------------------
# End to end: latents to files.


class Folders:
    """A new folder for every call, so that nothing in it is there already."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._count = scratch, 0

    def new(self) -> Path:
        self._count += 1
        return make_folder(self._scratch / "files" / str(self._count))


def _end_to_end_rows(
    settings: Settings, systems: list[System], scratch: Path, machine: Machine, report: Report
) -> list[dict[str, Any]]:
    folders = Folders(scratch)
    latents = inputs(settings.widths, "chain", settings.images)
    contenders: list[Contender] = []
    with contextlib.ExitStack() as stack:
        for system in systems:
            synthesizer = stack.enter_context(_opened(settings, system.bundle))
            eager = _plain_files(folders, system, latents, settings.large_batch)
            graph = _files(folders, synthesizer, settings)
            contenders += [
                Contender(f"{system.convolution} {EAGER}", settings.images, eager),
                Contender(f"{system.convolution} {GRAPH}", settings.images, graph),
            ]
        timings = measure(contenders, settings.rounds, report=_rounds(report, END_TO_END, settings.rounds))
    return [_row(END_TO_END, system, timings, machine) for system in systems]


def _plain_files(folders: Folders, system: System, latents: Tensor, batch: int) -> Callable[[], int]:
    return lambda: plain.write_images(system.generator, system.upscaler, latents, batch, folders.new())


def _files(folders: Folders, synthesizer: Synthesizer, settings: Settings) -> Callable[[], int]:
    def call() -> int:
        job = Job(folders.new(), settings.images, threads=settings.threads)
        return generate(synthesizer, job).made

    return call


def _opened(settings: Settings, model: Bundle) -> Synthesizer:
    return Synthesizer(model.folder, "cpu", "fp32", GRAPH, settings.large_batch, settings.threads)


# ----------------------------------------------------------------------------
# The model that comes with the package, or the one named: its graphs alone.


def _shipped_folder(settings: Settings) -> Path | None:
    if settings.model is not None:
        return settings.model
    folder = bundle.shipped()
    return folder if (folder / bundle.MANIFEST).is_file() else None


def _shipped_note(settings: Settings) -> list[str]:
    if _shipped_folder(settings) is None:
        return ["No model comes with this copy of the package, so none was measured: name one with --model."]
    return []


def _shipped_rows(
    settings: Settings, scratch: Path, machine: Machine, report: Report
) -> list[dict[str, Any]]:
    folder = _shipped_folder(settings)
    if folder is None:
        report("no shipped model: skipped")
        return []
    model = bundle.read(folder)
    chain, batch = model.graph("chain"), settings.large_batch
    latents = draws.latents(0, range(batch), model.latent_size)
    with (
        open_runner(model, "cpu", "fp32", GRAPH, "chain", settings.threads, batch) as runner,
        _opened(settings, model) as synthesizer,
    ):
        contenders = [
            Contender("chain", batch, lambda: runner.run(latents)),
            Contender(END_TO_END, settings.images, _files(Folders(scratch / "model"), synthesizer, settings)),
        ]
        timings = measure(contenders, settings.rounds, report=_rounds(report, model.name, settings.rounds))
    return [
        {
            "stage": f"{model.name} {stage}",
            "convolution": "as trained",
            "multiply_adds": chain.multiply_adds,
            "graph_multiply_adds": chain.multiply_adds,
            EAGER: None,
            GRAPH: speed(timings[stage], chain.multiply_adds, machine),
            "ratio": None,
            "ratio_to_plain": None,
        }
        for stage in ("chain", END_TO_END)
    ]


# ----------------------------------------------------------------------------
# Timings -> rows.


def speed(timing: Timing, multiply_adds: int, machine: Machine) -> dict[str, Any]:
    """A timing with the arithmetic it stands for."""
    gflops = 2e-9 * multiply_adds * timing.images_per_second
    return {**timing.as_dict(), "gflops": gflops, "share_of_peak": gflops / machine.peak_gflops}


def _row(stage: str, system: System, timings: Mapping[str, Timing], machine: Machine) -> dict[str, Any]:
    counted = "chain" if stage == END_TO_END else stage
    adds, graph_adds = system.multiply_adds[counted], system.bundle.graph(counted).multiply_adds
    eager, graph = (timings[f"{system.convolution} {way}"] for way in (EAGER, GRAPH))
    return {
        "stage": stage,
        "convolution": system.convolution,
        "multiply_adds": adds,  # of the network as written
        "graph_multiply_adds": graph_adds,  # after the rewrites
        EAGER: speed(eager, adds, machine),
        GRAPH: speed(graph, graph_adds, machine),
        "ratio": graph.ratio_to(eager),
        "ratio_to_plain": graph.ratio_to(timings[f"vanilla {EAGER}"]),
    }


def _equation_3(widths: Widths, systems: list[System]) -> dict[str, dict[str, float]]:
    """Separable multiply-adds over vanilla ones: counted, and by paper 1's equation 3."""
    vanilla, separable = systems
    return {
        stage: {
            "counted": separable.multiply_adds[stage] / vanilla.multiply_adds[stage],
            "predicted": saving.ratio,
        }
        for stage, saving in predicted(widths, vanilla).items()
    }
