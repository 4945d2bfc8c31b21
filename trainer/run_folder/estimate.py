"""How long a schedule takes (pgsr-train --dry-run): steps of few images are made and timed, the rest follows
from their multiply-adds, counted on tensors without contents (cost.py)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..step.allocator import keep_freed_memory
from ..step.recipe import Recipe
from ..step.schedule import Phase, Schedule
from ..step.trainer import Trainer
from .cost import StepCost, last_of_each_resolution, mean_step, noise_trainer, stand_at, step_costs

BUDGET_SECONDS = 4.0  # for timing, about
FEWEST = 2  # images of a step that is timed: batch normalisation wants two
SLOWEST = 6.0  # how many times slower than a matrix product a step is taken to be, before one is timed


@dataclass(frozen=True)
class Estimate:
    """What a schedule costs on this machine; a fade costs what its resolution does."""

    costs: dict[int, StepCost]  # by resolution
    seconds_a_step: dict[int, float]
    how: str  # in words

    def seconds(self, schedule: Schedule, phase: Phase) -> float:
        return self.seconds_a_step[phase.resolution] * schedule.steps(phase)


@dataclass(frozen=True)
class Timing:
    """A step that was made, of one update of each network, and what one of the recipe then takes."""

    resolution: int
    batch: int
    seconds: float
    whole: float  # seconds of the recipe's own step there


@dataclass(frozen=True)
class Line:
    """Seconds of a step as a straight line over its multiply-adds: what a step costs anyhow, and a rate."""

    fixed: float
    rate: float

    def seconds(self, count: float) -> float:
        return self.fixed + count / self.rate


def estimate(recipe: Recipe, schedule: Schedule, device: torch.device) -> Estimate:
    """Times what fits the budget, from the smallest resolution up, and extends it to the others."""
    keep_freed_memory()
    costs, critic_steps = step_costs(recipe, schedule), recipe.objective.critic_steps
    phases = last_of_each_resolution(schedule)
    work = {p.resolution: costs[p.resolution].multiply_adds(p.batch, critic_steps) for p in phases}
    product = _product_rate(device)
    timings: list[Timing] = []
    trainer = noise_trainer(recipe, schedule, device)
    line, deadline = Line(0.0, product / SLOWEST), time.monotonic() + BUDGET_SECONDS
    for phase in phases:
        cost = costs[phase.resolution]
        batch = _batch_to_time(cost, phase, line, deadline - time.monotonic())
        if not batch:
            break
        seconds = _seconds_a_step(trainer, phase.resolution, batch)
        share = work[phase.resolution] / cost.multiply_adds(batch, 1)
        timings.append(Timing(phase.resolution, batch, seconds, seconds * share))
        line = _line([(work[t.resolution], t.whole) for t in timings], product)
    own = {timing.resolution: timing.whole for timing in timings}
    line = line if timings else _line([], product)
    seconds_a_step = {size: own.get(size, line.seconds(count)) for size, count in work.items()}
    return Estimate(costs, seconds_a_step, _in_words(trainer, timings, phases, line))


def _batch_to_time(cost: StepCost, phase: Phase, line: Line, seconds_left: float) -> int:
    """The images of a step that fits a third of the time left, so that it may be made again; 0 if none."""
    batch = phase.batch
    while batch > FEWEST and line.seconds(cost.multiply_adds(batch, 1)) > seconds_left / 3.0:
        batch = max(FEWEST, batch // 2)
    return batch if line.seconds(cost.multiply_adds(batch, 1)) <= seconds_left else 0


def _line(points: list[tuple[float, float]], product_rate: float) -> Line:
    """Through the last two points; through one with half the rate of a matrix product, the most there is."""
    rate = product_rate / 2.0
    if len(points) > 1:
        (count, seconds), (more, longer) = points[-2:]
        if more > count and longer > seconds:
            rate = min(product_rate, (more - count) / (longer - seconds))
    if not points:
        return Line(0.0, rate)
    count, seconds = points[-1]
    return Line(max(0.0, seconds - count / rate), rate)


def _product_rate(device: torch.device) -> float:
    """Multiply-adds a second of a matrix product, at the best of many, since others use the machine too."""
    a = torch.ones(512, 512, device=device)
    rates = []
    for _ in range(40):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        rates.append(time.perf_counter() - began)
    return 512.0**3 / min(rates)


def _in_words(trainer: Trainer, timings: list[Timing], phases: list[Phase], line: Line) -> str:
    where = f"{trainer.device} in {str(trainer.precision).removeprefix('torch.')}"
    if trainer.device.type == "cpu":
        where += f" with {torch.get_num_threads()} thread(s)"
    if not timings:
        return (
            f"Times: no step was made, since two images take too long on {where}; their counted "
            f"multiply-adds at {line.rate / 1e9:.1f} G a second, half of what a matrix product reaches."
        )
    last = timings[-1]
    text = (
        f"Times: steps up to {last.resolution} x {last.resolution} were made on {where}, with noise for "
        f"photographs, the last of {last.batch} images"
    )
    if len(timings) < len(phases):
        source = "as the last two have" if len(timings) > 1 else "half of what a matrix product reaches"
        text += (
            f"; the others are {line.fixed:.2g} s and their counted multiply-adds at "
            f"{line.rate / 1e9:.1f} G a second, {source}"
        )
    return text + ". Logging, samples and checkpoints come on top."


# ----------------------------------------------------------------------------
# Timing.


def _seconds_a_step(trainer: Trainer, resolution: int, batch: int) -> float:
    every = trainer.recipe.objective.penalty_every
    first = _seconds(trainer, resolution, batch, True)  # it finds its kernels and its memory, too
    if first > BUDGET_SECONDS / 4.0 and every == 1:
        return first
    without = _seconds(trainer, resolution, batch, False) if every > 1 else 0.0
    return mean_step(_seconds(trainer, resolution, batch, True), without, every)


def _seconds(trainer: Trainer, resolution: int, batch: int, penalised: bool) -> float:
    """Seconds of a step; where it is quick, the median of five."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 0.2):
        stand_at(trainer, resolution, batch, penalised)
        began = time.perf_counter()
        terms = trainer.step()
        torch.stack([term.reshape(()).float() for term in terms.values()]).tolist()  # waits for the device
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
