"""Images a second of every stage: the naive chain, ours of the same widths, and the model that ships.

One run times everything, side by side, on the CPU or a GPU: see benchmarks/harness/timing.py. The contenders
of a stage take turns, so that their ratios hold although the machine's speed wanders. Every backend that is
installed is one.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..gpu.peaks import device_name
from ..harness.machine import describe
from .bench import Bench, Report
from .chains import chains, shipped_outputs
from .encoding import files
from .networks import shipped_stages, stage
from .settings import ENCODED, GENERATOR, UPSCALER, Settings
from .systems import CONVOLUTIONS, System, Widths, predicted

NOTES = (
    "Weights of vanilla and separable are random: the networks' speed does not depend on them. PNG files of "
    "what they draw take another time to encode than faces do.",
    "Naive is benchmarks/references/inference.py, a pipeline as one would first write it: eager PyTorch in "
    "float32, NCHW, one step after the other, Pillow's default PNG. Eager separable is the training network "
    "in its place.",
    "Network is latents to pixels in memory; end to end is latents to PNG files in a folder, pgsr-generate's "
    "own path. Both are timed in the same rounds, on the same images; their ratio is the last column. "
    "Other outputs are of the fastest way.",
    "Ratios are medians of the rounds' ratios, not ratios of medians.",
    "Multiply-adds are those of the network as written; GFLOP/s and shares of the peak count what is really "
    "computed, after the rewrites, two operations a multiply-add. The peak is a "
    "matrix product of 2048 x 2048 on as many threads: numpy's in float32, PyTorch's in bfloat16 and int8.",
    f"Encode and write are of {ENCODED} pictures on one thread.",
)


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data.

    Raises PgsrError if a graph does not compute what its network does, or the model cannot be opened.
    """
    report("timing the peak")
    machine = describe(settings.threads)
    with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as scratch, torch_threads(settings.threads):
        bench = Bench(settings, machine, Path(scratch), report)
        systems = [bench.system(convolution) for convolution in CONVOLUTIONS]
        rows = [row for name in (GENERATOR, UPSCALER) for row in stage(bench, systems, name)]
        rows += chains(bench, systems)
        rows += shipped_stages(bench)
        rows += shipped_outputs(bench, rows)
        rows += files(bench)
    return {
        "benchmark": "throughput",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**machine.as_dict(), "device": device_name(settings.device)},
        "peaks": bench.peaks,
        "bandwidth_gbs": bench.bandwidth,
        "settings": settings.as_dict(),
        "rows": rows,
        "equation_3": _equation_3(settings.widths, systems),
        "notes": [*NOTES, *bench.notes, *slow_int8(rows)],
    }


def slow_int8(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on each library whose 8-bit graphs are slower than its float32 ones wherever both ran."""
    speeds = {(row["way"], row["system"], row["stage"]): row["images_per_second"] for row in rows}
    notes = []
    for backend in dict.fromkeys(way.removesuffix(" int8") for way, *_ in speeds if way.endswith(" int8")):
        ratios = [
            speed / speeds[f"{backend} fp32", system, stage]
            for (way, system, stage), speed in speeds.items()
            if way == f"{backend} int8" and (f"{backend} fp32", system, stage) in speeds
        ]
        if ratios and max(ratios) < 1:
            notes.append(
                f"{backend} int8 is slower than its fp32 everywhere here ({min(ratios):.2f} to "
                f"{max(ratios):.2f} times as fast): take fp32 with it."
            )
    return notes


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
