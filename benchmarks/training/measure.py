"""pgsr-bench training: a step of pgsr-train beside a plain reference's, resolution by resolution.

Every contender is a process that holds its networks; they take turns, round by round, so that what
disturbs the machine disturbs all alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pgsr.errors import PgsrError, check_choice
from pgsr.machine import usable_cores
from pgsr.networks.progan import resolutions_up_to
from pgsr.trainer.data.cli import prepare
from pgsr.trainer.data.recoding import Settings as Preparation
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config

from ..gpu.peaks import device_name, gpu_peak_gflops
from ..harness.machine import THREAD_VARIABLES, Machine, describe
from ..harness.timing import Contender, Timing, measure
from .contender import Job, recipe_name

Report = Callable[[str], None]  # gets a line on what is going on

CONVOLUTIONS = ("vanilla", "separable")
PICTURES = 64  # in the drawn data set


@dataclass(frozen=True)
class Variant:
    """What a row of ours does differently."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # of the recipe
    keep_memory: bool = True  # trainer/step/allocator.py


VARIANTS: dict[str, Variant] = {
    "plain-malloc": Variant(keep_memory=False),
    "lazy-penalty": Variant({"objective.penalty_every": 4}),
    "simultaneous": Variant({"objective.updates": "simultaneous"}),
    "float32": Variant({"run.precision": "float32"}),
}
DEFAULT_VARIANTS = ("simultaneous", "lazy-penalty", "plain-malloc")

NOTES = (
    "A step is one update of the critic and one of the generator with all that belongs to them: gathering "
    "photographs, drawing latents, both optimizers, the running average. The data set is drawn.",
    "Reference is benchmarks/references/training.py, written from paper 2: eager PyTorch, float32, NCHW, "
    "networks of that resolution alone. A test checks that its loss terms and gradients are those of "
    "pgsr-train.",
    "Ours is the recipe progan-64-vanilla or -separable as pgsr-train runs it, at the beginning of the "
    "resolution's stable phase; its networks hold the layers up to the largest resolution measured.",
    "simultaneous: objective.updates, both updates from one pass of the critic over one batch of fakes; "
    "lazy-penalty: the gradient penalty in every 4th step, four times as strong, timed over whole periods; "
    "plain-malloc: without trainer/step/allocator.py.",
    "Ratios are medians of the rounds' ratios, not ratios of medians.",
    "Memory is the peak of a contender's process less what it held after its imports; on CUDA, the most that "
    "PyTorch had allocated there.",
    "Multiply-adds are counted in a running step, second derivatives included; GFLOP/s count two operations "
    "for each.",
)


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    resolutions: tuple[int, ...] = (4, 8, 16, 32, 64)
    batch: int = 16
    batch_at: Mapping[int, int] = field(default_factory=lambda: {64: 4})  # by resolution
    rounds: int = 5
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    latent_size: int = 512
    feature_base: int = 16384
    feature_max: int = 512
    call_seconds: float = 1.0  # the least that a timed call should take
    overrides: tuple[str, ...] = ()  # "key=value", of the recipe, for all of ours
    device: str = "cpu"
    threads: int = 0  # 0: one a usable core

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise PgsrError("--resolutions names none")
        for resolution in (*self.resolutions, *self.batch_at):
            resolutions_up_to(resolution)
        for name, batch in {
            "batch": self.batch,
            **{f"batch-at {k}": v for k, v in self.batch_at.items()},
        }.items():
            if batch < 1 or batch % min(4, batch):
                raise PgsrError(f"--{name} is {batch}, but must be 1, 2, 3 or a multiple of 4")
        for name in self.variants:
            check_choice("--variant", name, VARIANTS)
        if self.rounds < 1:
            raise PgsrError(f"--rounds is {self.rounds}, but must be at least 1")
        if self.threads < 0:
            raise PgsrError(f"--threads is {self.threads}, but must be at least 0")
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def batch_of(self, resolution: int) -> int:
        return self.batch_at.get(resolution, self.batch)

    @property
    def widths(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("latent_size", "feature_base", "feature_max")}


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data.

    Raises PgsrError if the device is not there, or a contender fails.
    """
    device = str(chosen_device(settings.device))
    with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as name:
        archive = Path(name) / "pictures.zip"
        todo = [jobs(settings, resolution, device, archive) for resolution in settings.resolutions]
        report("timing the peak")
        machine = describe(settings.threads)
        if device != "cpu":
            machine = replace(machine, peak_gflops=gpu_peak_gflops(device, torch.bfloat16))
        draw_pictures(archive, settings.resolutions)
        rows = [row for part in todo for row in measure_resolution(part, settings.rounds, machine, report)]
    return {
        "benchmark": "training",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**machine.as_dict(), "device": device_name(device), "peak_of": peak_name(device)},
        "settings": {**asdict(settings), "device": device},
        "rows": rows,
        "notes": list(NOTES),
    }


def peak_name(device: str) -> str:
    """Returns what the peak of a device is called in reports."""
    return "float32 matrix product" if device == "cpu" else "bfloat16 matrix product"


def draw_pictures(archive: Path, resolutions: tuple[int, ...]) -> None:
    """A data set with pictures at every resolution, so that none has to be reduced by the reference."""
    sizes = tuple(sorted(set(resolutions)))
    prepare([], archive, Preparation(sizes, "box", "png", 95), drawn=PICTURES)


# ----------------------------------------------------------------------------
# The contenders.


def jobs(settings: Settings, resolution: int, device: str, archive: Path) -> list[Job]:
    """Both references, then ours: as the recipe is, and each variant.

    Raises PgsrError for a setting that the recipe does not have.
    """
    common = Job(
        name="",
        convolution="",
        resolution=resolution,
        batch=settings.batch_of(resolution),
        widths=settings.widths,
        archive=str(archive),
        device=device,
        threads=settings.threads,
        call_seconds=settings.call_seconds,
    )
    result = [
        replace(common, name=reference_name(kind), convolution=kind, reference=True) for kind in CONVOLUTIONS
    ]
    for variant in ("", *settings.variants):
        difference = VARIANTS.get(variant, Variant())
        for kind in CONVOLUTIONS:
            own = replace(
                common,
                name=f"ours {kind}" + (f", {variant}" if variant else ""),
                convolution=kind,
                settings=recipe_settings(settings, resolution, difference),
                keep_memory=difference.keep_memory,
            )
            result.append(checked(own))
    return result


def reference_name(convolution: str) -> str:
    """Returns what the reference with a convolution is called."""
    return f"reference {convolution}"


def recipe_settings(settings: Settings, resolution: int, variant: Variant) -> tuple[str, ...]:
    """The recipe's settings that make it train what the reference does, then those of variant and user."""
    largest = max(settings.resolutions)
    both = {"resolution": largest, **{k: v for k, v in settings.widths.items() if k != "latent_size"}}
    changes: dict[str, Any] = {
        f"{net}.{k}": v for net in ("generator", "discriminator") for k, v in both.items()
    }
    changes |= {
        "generator.latent_size": settings.latent_size,
        "schedule.resolution": largest,
        f"schedule.at.{resolution}.batch": settings.batch_of(resolution),
        "objective.penalty_every": 1,
        **variant.settings,
    }
    return (*(f"{name}={json.dumps(value)}" for name, value in changes.items()), *settings.overrides)


def checked(job: Job) -> Job:
    """The job, whose recipe can be read. Raises PgsrError if it cannot."""
    config.load(recipe_name(job.convolution), job.settings)
    return job


class Child:
    """A contender's process. Every method raises PgsrError if it fails."""

    def __init__(self, job: Job) -> None:
        self.job, self.memory_peak_bytes = job, 0
        self.steps, self.multiply_adds, self.precision = 0, 0, ""  # of a call; of a step
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        threads = dict.fromkeys(THREAD_VARIABLES, str(job.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pgsr.benchmarks.training.contender"],
            env={**os.environ, **threads, "PGSR_CACHE": str(Path(job.archive).parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def imported(self) -> None:
        """Waits until it can be given its job."""
        self._hear()

    def warm_up(self) -> None:
        """Gives it its job; it builds its networks and makes the first steps."""
        ready = self._ask(self.job.as_dict())
        self.steps, self.multiply_adds = ready["steps"], ready["multiply_adds"]
        self.precision = ready["precision"]

    def call(self) -> None:
        """Makes the steps of a call."""
        self.memory_peak_bytes = self._ask({"steps": self.steps})["memory_peak_bytes"]

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=self._process.stdin, flush=True)
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PgsrError(f"{self.job.name} at {self.job.resolution} {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PgsrError(f"{self.job.name} at {self.job.resolution}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"was ended by signal {-status} (9: perhaps memory ran out)" if status < 0 else "failed"
        return f"{how}: {said[-1]}" if said else how

    def close(self) -> None:
        """Ends the process, which goes when its input does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


# ----------------------------------------------------------------------------
# Timings -> rows.


def measure_resolution(
    todo: list[Job], rounds: int, machine: Machine, report: Report
) -> list[dict[str, Any]]:
    """The rows of one resolution; its processes live no longer."""
    place = f"{todo[0].resolution} x {todo[0].resolution}"
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(contextlib.closing(Child(job))) for job in todo]
        for child in children:
            child.imported()
        for child in children:
            report(f"{place}: warming up {child.job.name}")
            child.warm_up()
        contenders = [Contender(c.job.name, c.job.batch * c.steps, c.call) for c in children]
        timings = measure(contenders, rounds, report=lambda n: report(f"{place}: round {n} of {rounds}"))
    return [row(child, timings, machine) for child in children]


def row(child: Child, timings: Mapping[str, Timing], machine: Machine) -> dict[str, Any]:
    """Makes the table's row of one contender."""
    job, timing = child.job, timings[child.job.name]
    gflops = 2e-9 * child.multiply_adds * timing.images_per_second / job.batch
    return {
        "resolution": job.resolution,
        "contender": job.name,
        "convolution": job.convolution,
        "reference": job.reference,
        "precision": child.precision,
        "batch": job.batch,
        "steps_per_call": child.steps,
        **timing.as_dict(),
        **{f"ratio_to_{kind}": timing.ratio_to(timings[reference_name(kind)]) for kind in CONVOLUTIONS},
        "memory_peak_mib": child.memory_peak_bytes / 2**20,
        "multiply_adds": child.multiply_adds,  # a step
        "gflops": gflops,
        "share_of_peak": gflops / machine.peak_gflops,
    }
