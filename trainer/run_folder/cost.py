"""What a training step costs, counted on tensors without contents: multiply-adds, and bytes of memory.

A step is made once for each resolution on PyTorch's meta device, with a batch of 13. Every operation is seen
as it happens. So is every block of memory, from the operation that makes it until nothing refers to it: the
activations that autograd keeps, those of the gradient penalty's second derivatives among them, gradients,
moments, the average. A block whose size is a multiple of 13 is one image's share times the batch; no other
size in these networks is. So one step tells what any batch takes. Not seen is what a kernel takes and gives
back by itself.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..data.cache import Noise
from ..step.batches import batches_for
from ..step.parallel import ALONE
from ..step.recipe import Recipe
from ..step.schedule import Phase, Schedule
from ..step.state import state_tensors
from ..step.trainer import Trainer

PICTURES = 16  # of noise, in place of photographs
TRACED_BATCH = 13  # a prime that no number of maps, pixels or labels is a multiple of
LARGE_BATCH = 2**20  # where what images take is all that counts


@dataclass(frozen=True)
class Memory:
    """Bytes as a function of the batch: the most of some moments of a step."""

    moments: tuple[tuple[int, float], ...]  # (bytes anyhow, bytes an image)

    def bytes_at(self, batch: int) -> int:
        return round(max(fixed + image * batch for fixed, image in self.moments))

    def largest_batch(self, available: float) -> int:
        """The most images whose step fits; 0 if none does."""
        batches = [(available - fixed) / image for fixed, image in self.moments if image]
        return max(0, math.floor(min(batches, default=0.0)))


@dataclass(frozen=True)
class StepCost:
    """Of a step at one resolution."""

    critic: float  # multiply-adds an image of a mean update of the critics
    generator: float  # of the generator's
    memory: Memory  # in float32

    def multiply_adds(self, batch: int, critic_steps: int) -> float:
        """Of a whole step, forward and backward."""
        return batch * (critic_steps * self.critic + self.generator)


def step_costs(recipe: Recipe, schedule: Schedule) -> dict[int, StepCost]:
    """The cost of a mean step by resolution."""
    trainer = _traced_trainer(recipe, schedule)
    every, cache = recipe.objective.penalty_every, _Kernels()
    costs: dict[int, StepCost] = {}
    phases = last_of_each_resolution(schedule)
    _traced(trainer, phases[0], False, cache)  # what a first step makes is there in all others
    for phase in phases:
        kinds = [True, False] if every > 1 else [True]
        steps = [_traced(trainer, phase, penalised, cache) for penalised in kinds]
        critics = [step.of_critics / TRACED_BATCH for step in steps]
        mean = mean_step(critics[0], critics[-1], every)
        first = steps[0]
        generator = (first.multiply_adds - first.of_critics) / TRACED_BATCH
        costs[phase.resolution] = StepCost(mean, generator, Memory(first.moments(phase.batch)))
    return costs


def multiply_adds(recipe: Recipe, schedule: Schedule) -> dict[int, float]:
    """Multiply-adds of a mean step, forward and backward, by resolution."""
    batches = {phase.resolution: phase.batch for phase in last_of_each_resolution(schedule)}
    return {
        resolution: cost.multiply_adds(batches[resolution], recipe.objective.critic_steps)
        for resolution, cost in step_costs(recipe, schedule).items()
    }


def last_of_each_resolution(schedule: Schedule) -> list[Phase]:
    """Returns the last phase of each resolution, in order."""
    return list({phase.resolution: phase for phase in schedule.phases}.values())


def mean_step(with_penalty: float, without: float, penalty_every: int) -> float:
    """The mean of steps of which one in so many has a penalty."""
    return (with_penalty + (penalty_every - 1) * without) / penalty_every


def noise_trainer(recipe: Recipe, schedule: Schedule, device: torch.device) -> Trainer:
    """A trainer with noise for photographs, of one step of the critic for each of the generator."""
    objective = dataclasses.replace(recipe.objective, critic_steps=1)
    recipe = dataclasses.replace(recipe, objective=objective)
    noise = Noise(PICTURES, recipe.generator.get("labels", 0))
    return Trainer(recipe, schedule, batches_for(recipe, noise, device, ALONE), device, ALONE)


def stand_at(trainer: Trainer, resolution: int, batch: int, penalised: bool) -> None:
    """Puts a trainer before a step at a resolution, with the penalty or without."""
    phase = Phase(resolution, False, batch, 0, 2**40 * batch, 0, 0)
    trainer.schedule = Schedule((phase,), 1)
    trainer.state.images_shown = 0 if penalised else batch


# ----------------------------------------------------------------------------
# One step, traced.


@dataclass(frozen=True)
class Traced:
    """What one step with TRACED_BATCH images did."""

    multiply_adds: float
    of_critics: float  # among them
    live: tuple[tuple[int, int], ...]  # bytes anyhow and bytes of images, after each operation

    def moments(self, batch: int) -> tuple[tuple[int, float], ...]:
        """The moments when memory was fullest for one image, for `batch`, and for very many."""
        return tuple(
            max(
                ((fixed, images / TRACED_BATCH) for fixed, images in self.live),
                key=lambda moment: moment[0] + moment[1] * count,
            )
            for count in (1, batch, LARGE_BATCH)
        )


class _TracedTrainer(Trainer):
    """A trainer that notes what its critics' updates take of a step."""

    ledger: _Ledger
    of_critics = 0.0

    def _critic_updates(self, *arguments: Any) -> Any:
        before = self.ledger.flops
        result = super()._critic_updates(*arguments)
        self.of_critics = (self.ledger.flops - before) / 2.0
        return result


def _traced_trainer(recipe: Recipe, schedule: Schedule) -> _TracedTrainer:
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, precision="float32"))
    trainer = noise_trainer(recipe, schedule, torch.device("meta"))
    trainer.__class__ = _TracedTrainer
    assert isinstance(trainer, _TracedTrainer)
    return trainer


def _traced(trainer: _TracedTrainer, phase: Phase, penalised: bool, cache: _Kernels) -> Traced:
    stand_at(trainer, phase.resolution, TRACED_BATCH, penalised)
    trainer.ledger, trainer.of_critics = _Ledger(cache), 0.0
    for tensor in _standing(trainer):
        trainer.ledger.enter(tensor)
    with trainer.ledger:
        trainer.step()
    return Traced(trainer.ledger.flops / 2.0, trainer.of_critics, tuple(trainer.ledger.live))


def _standing(trainer: Trainer) -> Iterator[Tensor]:
    """The tensors that are there before a step."""
    yield from (tensor for tensor in state_tensors(trainer.state).values() if tensor.is_meta)
    for network in (trainer.state.generator, *(critic.network for critic in trainer.state.critics)):
        yield from (p.grad for p in network.parameters() if p.grad is not None)


class _Kernels:
    """What operations on meta tensors give, remembered: PyTorch takes a third of a millisecond for each."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}
        self.pure: dict[Any, bool] = {}

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        if not self._is_pure(function):
            return function(*args, **kwargs)
        key = (function, _key(args), _key(tuple(kwargs.items())))
        if key in self.known:
            return _empty(self.known[key])
        result = function(*args, **kwargs)
        if all(tensor.is_meta for tensor in _tensors(result)):
            self.known[key] = _shape(result)
        return result

    def _is_pure(self, function: Any) -> bool:
        """Returns whether results are new tensors, and arguments stay as they are."""
        if function not in self.pure:
            schema = function._schema
            values = (*schema.arguments, *schema.returns)
            self.pure[function] = all(v.alias_info is None for v in values) and all(
                str(v.type) == "Tensor" for v in schema.returns
            )
        return self.pure[function]


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device.type)
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return (type(value), value)


def _tensors(result: Any) -> list[Tensor]:
    """The tensors among what an operation gives."""
    values = result if isinstance(result, (list, tuple)) else (result,)
    return [value for value in values if isinstance(value, Tensor)]


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return [_shape(v) for v in value] if isinstance(value, (list, tuple)) else None


def _empty(shape: Any) -> Any:
    if isinstance(shape, list):
        return tuple(map(_empty, shape))
    if shape is None:
        return None
    size, stride, dtype = shape
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


class _Ledger(TorchDispatchMode):
    """Adds up what every operation costs, and the memory that is in use after it."""

    def __init__(self, cache: _Kernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache
        self.flops = 0.0
        self.fixed = self.images = 0
        self.live: list[tuple[int, int]] = []
        self.blocks: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self.cache.run(function, args, kwargs)
        cost = flop_registry.get(function.overloadpacket)
        if cost is not None:
            self.flops += cost(*args, **kwargs, out_val=result)
        for tensor in _tensors(result):
            if tensor.is_meta:
                self.enter(tensor)
        self.live.append((self.fixed, self.images))
        return result

    def enter(self, tensor: Tensor) -> None:
        """Counts a tensor's block until it is freed."""
        block = tensor.untyped_storage()
        key = block._cdata
        if key in self.blocks:
            return
        self.blocks.add(key)
        size = block.nbytes()
        of_images = size % TRACED_BATCH == 0
        self._change(size, of_images)
        weakref.finalize(block, self._leave, key, size, of_images)

    def _leave(self, key: int, size: int, of_images: bool) -> None:
        self.blocks.discard(key)
        self._change(-size, of_images)

    def _change(self, size: int, of_images: bool) -> None:
        if of_images:
            self.images += size
        else:
            self.fixed += size
