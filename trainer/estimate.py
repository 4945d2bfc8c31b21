"""How long a schedule takes (pgsr-train --dry-run): the steps of small resolutions are timed, the others
follow from counted multiply-adds."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from .batches import batches_for
from .config import OptimizerConfig, Recipe
from .data import Noise
from .loop import Trainer
from .parallel import ALONE
from .schedule import Phase, Schedule

STEP_SECONDS = 1.0  # a phase is timed if its step is thought to take less
TOTAL_SECONDS = 10.0  # no phase is timed any more after this
PICTURES = 32  # of noise, in place of photographs


@dataclass(frozen=True)
class Estimate:
    """What a schedule costs on this machine."""

    seconds_a_step: dict[str, float]  # by the name of a phase
    timed: tuple[str, ...]  # the phases whose steps were really made
    how: str  # in words

    def seconds(self, schedule: Schedule, phase: Phase) -> float:
        return self.seconds_a_step[phase.name] * phase.images / (phase.batch * schedule.images_per_step)

    def total(self, schedule: Schedule) -> float:
        return sum(self.seconds(schedule, phase) for phase in schedule.phases)


def estimate(recipe: Recipe, schedule: Schedule, device: torch.device) -> Estimate:
    """Times what is quick and counts the rest."""
    counted = multiply_adds(recipe, schedule)
    trainer = _noise_trainer(recipe, schedule, device)
    seconds: dict[str, float] = {}
    rate, deadline = 0.0, time.monotonic() + TOTAL_SECONDS
    for phase in schedule.phases:
        expected = counted[phase.name] / rate if rate else 0.0
        if expected < STEP_SECONDS and time.monotonic() + 3.0 * expected < deadline:
            seconds[phase.name] = _seconds_a_step(trainer, phase)
            rate = counted[phase.name] / seconds[phase.name]
        else:
            break
    timed = tuple(seconds)
    for phase in schedule.phases[len(timed) :]:
        seconds[phase.name] = counted[phase.name] / rate
    return Estimate(seconds, timed, _in_words(trainer, schedule, timed, rate))


def _in_words(trainer: Trainer, schedule: Schedule, timed: tuple[str, ...], rate: float) -> str:
    where = f"{trainer.device} in {str(trainer.precision).removeprefix('torch.')}"
    if trainer.device.type == "cpu":
        where += f" with {torch.get_num_threads()} threads"
    text = f"times: steps up to {timed[-1]!r} were made on {where}, with noise for photographs"
    if len(timed) < len(schedule.phases):
        text += (
            f"; the others have their counted multiply-adds at the last one's {rate / 1e9:,.1f} G a second"
        )
    return text + "; logging, samples and checkpoints come on top"


# ----------------------------------------------------------------------------
# Counting.


def multiply_adds(recipe: Recipe, schedule: Schedule) -> dict[str, float]:
    """Multiply-adds of a mean step of every phase, forward and backward, by tensors without contents."""
    rmsprop = OptimizerConfig(kind="rmsprop")  # fused Adam refuses such tensors; neither is counted
    plain = dataclasses.replace(
        recipe,
        generator_optimizer=rmsprop,
        critic_optimizer=rmsprop,
        run=dataclasses.replace(recipe.run, precision="float32"),
    )
    trainer = _noise_trainer(plain, schedule, torch.device("meta"))
    every = recipe.objective.penalty_every
    return {phase.name: _mean_count(trainer, phase, every) for phase in schedule.phases}


def _mean_count(trainer: Trainer, phase: Phase, penalty_every: int) -> float:
    """Over a period of the penalty, of which one step has it."""
    first = -(-phase.steps_before // penalty_every) * penalty_every
    with_penalty = _count(trainer, phase, first)
    if penalty_every == 1:
        return with_penalty
    return (with_penalty + (penalty_every - 1) * _count(trainer, phase, first + 1)) / penalty_every


def _count(trainer: Trainer, phase: Phase, step: int) -> float:
    shown_a_step = phase.batch * trainer.schedule.images_per_step
    trainer.state.images_shown = phase.start + (step - phase.steps_before) * shown_a_step
    with FlopCounterMode(display=False) as counter:
        trainer.step()
    return counter.get_total_flops() / 2.0


# ----------------------------------------------------------------------------
# Timing.


def _seconds_a_step(trainer: Trainer, phase: Phase) -> float:
    """The mean of some steps from the beginning of a phase, over whole periods of the penalty."""
    trainer.state.images_shown = phase.start
    period = trainer.recipe.objective.penalty_every
    _steps(trainer, 1)
    first = _steps(trainer, period)
    again = max(1, min(4, int(0.5 / first)))
    return min(first, _steps(trainer, again * period) / again) / period


def _steps(trainer: Trainer, count: int) -> float:
    """Seconds of so many steps."""
    began = time.perf_counter()
    for _ in range(count):
        terms = trainer.step()
    torch.stack([term.reshape(()).float() for term in terms.values()]).tolist()  # waits for the device
    return time.perf_counter() - began


def _noise_trainer(recipe: Recipe, schedule: Schedule, device: torch.device) -> Trainer:
    noise = Noise(PICTURES, recipe.generator.get("labels", 0))
    return Trainer(recipe, schedule, batches_for(recipe, noise, device, ALONE), device, ALONE)
