"""Ours against an afternoon's work: the same networks, the same OpenVINO, in turns.

For each convolution, precision and stage two contenders: pgsr's graph in pgsr's runtime, and a plain export
in references/afternoon.py. A third is the second once more: their ratio says how far this machine lets ratios
be trusted in this run.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr.bundle import Bundle
from pgsr.errors import PgsrError, check_choice
from pgsr.export.parity import compare, pictures
from pgsr.files import make_folder
from pgsr.machine import usable_cores
from pgsr.runtime import Synthesizer
from pgsr.runtime.backends import open_runner
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.write import generate

from ..harness.machine import FAST, describe
from ..harness.timing import Contender, measure
from ..references import afternoon
from ..throughput.systems import CONVOLUTIONS, System, Widths, inputs, new_system

OURS, THEIRS, AGAIN = "ours", "theirs", "theirs again"
BACKEND = "openvino"  # of both
END_TO_END = "end to end"
STAGES = ("generator", "upscaler", END_TO_END)
PRECISIONS = ("fp32", "bf16", "int8")
COMPARED = 4  # images that PSNRs are of

Report = Callable[[str], None]
Call = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What is compared. Raises PgsrError for values out of range."""

    widths: Widths = field(default_factory=Widths)
    convolutions: tuple[str, ...] = CONVOLUTIONS
    precisions: tuple[str, ...] = ()  # none: fp32, and what the processor has instructions for
    stages: tuple[str, ...] = STAGES
    images: int = 16  # a call
    batch: int = 4  # of ours in the stages; end to end finds its own, as pgsr-generate does
    rounds: int = 5
    threads: int = 0  # 0: one a usable core

    def __post_init__(self) -> None:
        for name in ("images", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise PgsrError(f"--{name} is {getattr(self, name)}, but must be at least 1")
        for precision in self.precisions:
            check_choice("--precision", precision, PRECISIONS)
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The comparison as JSON data. Raises PgsrError if a package is missing or a graph cannot be run."""
    machine = describe(settings.threads)
    fast = tuple(precision for precision in FAST if machine.is_fast_in(precision))
    precisions = settings.precisions or ("fp32", *fast)
    rows = []
    with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as scratch:
        for convolution in settings.convolutions:
            report(f"exporting the {convolution} networks")
            folder = Path(scratch) / convolution
            system = new_system(settings.widths, convolution, folder, precisions, target=BACKEND)
            for precision in precisions:
                for stage in settings.stages:
                    report(f"{convolution} {precision}, {stage}")
                    rows.append(_row(settings, system, precision, stage, folder))
    return {
        "benchmark": "opponent",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "settings": asdict(settings) | {"precisions": precisions},
        "rows": rows,
    }


def _row(settings: Settings, system: System, precision: str, stage: str, folder: Path) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        theirs, their_batch, their_images = _theirs(settings, system, precision, stage, folder)
        ours, our_images = _ours(settings, stack, system, precision, stage, folder)
        expected = system.eager(_stage(stage), inputs(settings.widths, _stage(stage), COMPARED))
        calls = {OURS: ours, THEIRS: theirs, AGAIN: theirs}
        contenders = [Contender(name, settings.images, call) for name, call in calls.items()]
        timings = measure(contenders, settings.rounds)
        return {
            "convolution": system.convolution,
            "precision": precision,
            "stage": stage,
            "ratio": timings[OURS].ratio_to(timings[THEIRS]),
            "control": timings[AGAIN].ratio_to(timings[THEIRS]),
            "batches": {THEIRS: their_batch},
            "psnr_db": {
                name: compare(pictures(expected), pictures(made())).psnr_db
                for name, made in ((OURS, our_images), (THEIRS, their_images))
            },
            "timings": {name: timing.as_dict() for name, timing in timings.items()},
        }


def _stage(stage: str) -> str:
    return "chain" if stage == END_TO_END else stage


def _inputs(settings: Settings, stage: str, count: int) -> NDArray[np.float32]:
    return np.asarray(inputs(settings.widths, _stage(stage), count).numpy())


def _theirs(
    settings: Settings, system: System, precision: str, stage: str, folder: Path
) -> tuple[Call, int, Callable[[], NDArray[Any]]]:
    """A call, the batch that it has chosen, and a call that returns images."""
    networks = {
        "generator": system.generator,
        "upscaler": system.upscaler,
        END_TO_END: afternoon.PixelChain(system.generator, system.upscaler),
    }
    path = folder / f"afternoon {stage}.onnx"
    if not path.is_file():
        afternoon.export(networks[stage], inputs(settings.widths, _stage(stage), 2), path)
    samples = _inputs(settings, stage, afternoon.CALIBRATION)
    engine = afternoon.Engine(path, precision, settings.threads, samples)
    values = samples[np.arange(settings.images) % len(samples)]

    def files() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return afternoon.write_images(engine, values, Path(out))

    call = files if stage == END_TO_END else lambda: engine.outputs(values)
    return call, engine.batch, lambda: engine.outputs(samples[:COMPARED])


def _ours(
    settings: Settings,
    stack: contextlib.ExitStack,
    system: System,
    precision: str,
    stage: str,
    folder: Path,
) -> tuple[Call, Callable[[], NDArray[Any]]]:
    """A call, and one that returns images."""
    samples = _inputs(settings, stage, COMPARED)
    if stage == END_TO_END:
        return _our_files(settings, stack, system.bundle, precision, folder, samples)
    batch = settings.batch
    runner = stack.enter_context(
        open_runner(system.bundle, "cpu", precision, BACKEND, stage, settings.threads, batch)
    )
    values = _inputs(settings, stage, settings.images)
    parts = [values[i : i + batch] for i in range(0, len(values), batch)]
    pool = stack.enter_context(ThreadPoolExecutor(runner.calls))
    return lambda: list(pool.map(runner.run, parts)), lambda: runner.run(samples)


def _our_files(
    settings: Settings,
    stack: contextlib.ExitStack,
    model: Bundle,
    precision: str,
    folder: Path,
    samples: NDArray[np.float32],
) -> tuple[Call, Callable[[], NDArray[Any]]]:
    synthesizer = Synthesizer(model.folder, "cpu", precision, BACKEND, 0, settings.threads, 1.0)
    synthesizer.tune()
    stack.enter_context(synthesizer)

    def files() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = make_folder(Path(scratch) / "faces")
            return generate(synthesizer, Job(out, settings.images, threads=settings.threads)).made

    return files, lambda: synthesizer.render(samples)
