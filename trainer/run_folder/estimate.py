"""How long a schedule takes (pgsr-train --dry-run): steps at small resolutions are made and timed, the
others follow from their multiply-adds, counted on tensors without contents."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..data.cache import Noise
from ..step.allocator import keep_freed_memory
from ..step.batches import batches_for
from ..step.parallel import ALONE
from ..step.recipe import OptimizerConfig, Recipe
from ..step.schedule import Phase, Schedule
from ..step.trainer import Trainer

BUDGET_SECONDS = 10.0  # for timing, about
PICTURES = 16  # of noise, in place of photographs


@dataclass(frozen=True)
class Estimate:
    """What a schedule costs on this machine; a fade costs what its resolution does."""

    multiply_adds: dict[int, float]  # of a step, by resolution
    seconds_a_step: dict[int, float]
    how: str  # in words

    def seconds(self, schedule: Schedule, phase: Phase) -> float:
        return self.seconds_a_step[phase.resolution] * schedule.steps(phase)


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
    work = multiply_adds(recipe, schedule)
    trainer = _noise_trainer(recipe, schedule, device)
    product = _product_rate(device)
    timings: dict[int, float] = {}
    line, deadline = Line(0.0, product), time.monotonic() + BUDGET_SECONDS
    for phase in last_of_each_resolution(schedule):
        if timings and time.monotonic() + 3.0 * line.seconds(work[phase.resolution]) > deadline:
            break
        timings[phase.resolution] = _seconds_a_step(trainer, phase)
        line = _line([(work[size], seconds) for size, seconds in timings.items()], product)
    seconds = {size: timings.get(size, line.seconds(count)) for size, count in work.items()}
    return Estimate(work, seconds, _in_words(trainer, timings, work, line))


def _line(points: list[tuple[float, float]], product_rate: float) -> Line:
    """Through the last two points; through one with half the rate of a matrix product, the most there is."""
    rate = product_rate / 2.0
    if len(points) > 1:
        (count, seconds), (more, longer) = points[-2:]
        if more > count and longer > seconds:
            rate = min(product_rate, (more - count) / (longer - seconds))
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


def _in_words(trainer: Trainer, timings: dict[int, float], work: dict[int, float], line: Line) -> str:
    where = f"{trainer.device} in {str(trainer.precision).removeprefix('torch.')}"
    if trainer.device.type == "cpu":
        where += f" with {torch.get_num_threads()} thread(s)"
    text = (
        f"Times: steps up to {max(timings)} x {max(timings)} were made on {where}, with noise for photographs"
    )
    if len(timings) < len(work):
        source = "as the last two have" if len(timings) > 1 else "half of what a matrix product reaches"
        text += (
            f"; the others are {line.fixed:.2g} s and their counted multiply-adds at "
            f"{line.rate / 1e9:.1f} G a second, {source}"
        )
    return text + ". Logging, samples and checkpoints come on top."


def last_of_each_resolution(schedule: Schedule) -> list[Phase]:
    """Returns the last phase of each resolution, in order."""
    return list({phase.resolution: phase for phase in schedule.phases}.values())


def _noise_trainer(recipe: Recipe, schedule: Schedule, device: torch.device) -> Trainer:
    noise = Noise(PICTURES, recipe.generator.get("labels", 0))
    return Trainer(recipe, schedule, batches_for(recipe, noise, device, ALONE), device, ALONE)


def _stand_at(trainer: Trainer, phase: Phase, penalised: bool) -> None:
    """Puts the trainer before a step of a phase with the penalty, or without."""
    every = trainer.recipe.objective.penalty_every
    step = -(-phase.steps_before // every) * every + (not penalised)
    shown_a_step = phase.batch * trainer.schedule.images_per_step
    trainer.state.images_shown = phase.start + (step - phase.steps_before) * shown_a_step


def _mean_step(with_penalty: float, without: float, penalty_every: int) -> float:
    return (with_penalty + (penalty_every - 1) * without) / penalty_every


# ----------------------------------------------------------------------------
# Counting.


def multiply_adds(recipe: Recipe, schedule: Schedule) -> dict[int, float]:
    """Multiply-adds of a mean step, forward and backward, by resolution."""
    rmsprop = OptimizerConfig(kind="rmsprop")  # fused Adam refuses such tensors; neither is counted
    plain = dataclasses.replace(
        recipe,
        generator_optimizer=rmsprop,
        critic_optimizer=rmsprop,
        run=dataclasses.replace(recipe.run, precision="float32"),
    )
    trainer = _noise_trainer(plain, schedule, torch.device("meta"))
    every = recipe.objective.penalty_every
    return {
        phase.resolution: _mean_step(
            _count(trainer, phase, True), _count(trainer, phase, False) if every > 1 else 0.0, every
        )
        for phase in last_of_each_resolution(schedule)
    }


def _count(trainer: Trainer, phase: Phase, penalised: bool) -> float:
    _stand_at(trainer, phase, penalised)
    counter = _Counter()
    with counter:
        trainer.step()
    return counter.flops / 2.0


class _Counter(TorchDispatchMode):
    """Adds up what every operation costs; torch's own counter does not go with the gradient penalty."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        cost = flop_registry.get(function.overloadpacket)
        if cost is not None:
            self.flops += cost(*args, **(kwargs or {}), out_val=result)
        return result


# ----------------------------------------------------------------------------
# Timing.


def _seconds_a_step(trainer: Trainer, phase: Phase) -> float:
    every = trainer.recipe.objective.penalty_every
    first = _seconds(trainer, phase, True)  # it finds its kernels and its memory, too
    if first > BUDGET_SECONDS / 3.0 and every == 1:
        return first
    return _mean_step(
        _seconds(trainer, phase, True), _seconds(trainer, phase, False) if every > 1 else 0.0, every
    )


def _seconds(trainer: Trainer, phase: Phase, penalised: bool) -> float:
    """Seconds of a step; where it is quick, the median of five."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 0.2):
        _stand_at(trainer, phase, penalised)
        began = time.perf_counter()
        terms = trainer.step()
        torch.stack([term.reshape(()).float() for term in terms.values()]).tolist()  # waits for the device
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
