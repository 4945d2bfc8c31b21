"""The training loop. It knows neither architecture nor objective: batches, networks and loss terms
come from the recipe's tables.

Everything a step does is a function of (recipe, data, state, images shown), so a run that stops anywhere
and resumes makes the same weights as one that never stopped.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build

from .batches import BATCHES, Batch
from .config import AveragingConfig, OptimizerConfig, Recipe
from .objectives import critic_terms, generator_terms
from .schedule import Schedule, Stage


@dataclass
class State:
    """All that changes while training; what a checkpoint holds."""

    generator: nn.Module
    generator_ema: nn.Module
    discriminator: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    images_shown: int = 0


def new_state(recipe: Recipe, device: torch.device) -> State:
    """Networks and optimizers as they are before the first step."""

    def place(network: nn.Module) -> nn.Module:
        network.to(device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    generator = place(build(GENERATORS, recipe.generator, recipe.seed))
    critic = None
    if recipe.objective.adversarial != "none":
        critic = place(build(DISCRIMINATORS, recipe.discriminator, recipe.seed + 1))
    return State(
        generator=generator,
        generator_ema=copy.deepcopy(generator).requires_grad_(False).eval(),
        discriminator=critic,
        generator_optimizer=new_optimizer(generator, recipe.generator_optimizer),
        critic_optimizer=None if critic is None else new_optimizer(critic, recipe.critic_optimizer),
    )


def new_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam over all parameters; those not grown in yet have no gradient and stay untouched."""
    return torch.optim.Adam(
        network.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, images_shown: int) -> float:
    """The rate at a point: the last entry of `learning_rate_from` that has begun."""
    begun = {int(k): v for k, v in config.learning_rate_from.items() if int(k) <= images_shown}
    return begun[max(begun)] if begun else config.learning_rate


# ----------------------------------------------------------------------------
# Precision.


def chosen_precision(wish: str, device: torch.device) -> torch.dtype:
    """The recipe's wish made concrete: bfloat16 only where the machine multiplies it in hardware."""
    if wish == "auto":
        wish = "bfloat16" if device.type == "cuda" or _cpu_multiplies_bfloat16() else "float32"
    return getattr(torch, wish)


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[None]:
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


# ----------------------------------------------------------------------------
# One step.


class Trainer:
    """A recipe, its data and its state, and the step that advances them."""

    def __init__(self, recipe: Recipe, schedule: Schedule, batches: Any, device: torch.device) -> None:
        self.recipe, self.schedule, self.batches, self.device = recipe, schedule, batches, device
        self.precision = chosen_precision(recipe.run.precision, device)
        self.state = new_state(recipe, device)

    def stage(self) -> Stage:
        return self.schedule.at(self.state.images_shown)

    def step(self) -> dict[str, Tensor]:
        """One update of the generator after `critic_steps` of the critic; the loss terms, detached.

        Nothing here waits for the device.
        """
        stage, state = self.stage(), self.state
        self._prepare_optimizers(stage)
        generate = _grown(state.generator, stage)
        score = None if state.discriminator is None else _grown(state.discriminator, stage)
        terms: dict[str, Tensor] = {}
        shown, seen = stage.images_shown, None
        for _ in range(self.recipe.objective.critic_steps):
            if score is not None:
                seen = self.batches.for_critic(stage, shown)
                terms |= self._critic_update(generate, score, seen, stage, shown)
            shown += stage.batch
        batch = self.batches.generator_inputs(stage, shown - stage.batch, seen)
        terms |= self._generator_update(generate, score, batch)
        decay = average_decay(self.recipe.averaging, stage)
        update_average(state.generator_ema, state.generator, decay)
        state.images_shown = shown
        return {name: term.detach() for name, term in terms.items()}

    def _critic_update(
        self,
        generate: Callable[[Tensor], Tensor],
        score: Callable[[Tensor], Tensor],
        batch: Batch,
        stage: Stage,
        shown: int,
    ) -> dict[str, Tensor]:
        blend = draws.uniforms(self.recipe.seed, "penalty", shown, stage.batch).astype("float32")
        with autocast(self.device, self.precision):
            with torch.no_grad():
                fakes = generate(batch.inputs).float()
            terms = critic_terms(
                self.recipe.objective,
                score,
                batch.reals,
                fakes,
                torch.from_numpy(blend).to(self.device),
                stage.step,
            )
        assert self.state.critic_optimizer is not None
        _descend(self.state.critic_optimizer, terms)
        return terms

    def _generator_update(
        self, generate: Callable[[Tensor], Tensor], score: Callable[[Tensor], Tensor] | None, batch: Batch
    ) -> dict[str, Tensor]:
        critic = self.state.discriminator
        with _frozen(critic), autocast(self.device, self.precision):
            fakes = generate(batch.inputs)
            pairs = batch.reals if batch.paired else None
            terms = generator_terms(self.recipe.objective, score, fakes, pairs)
        _descend(self.state.generator_optimizer, terms)
        return terms

    def _prepare_optimizers(self, stage: Stage) -> None:
        pairs = [(self.state.generator_optimizer, self.recipe.generator_optimizer)]
        if self.state.critic_optimizer is not None:
            pairs.append((self.state.critic_optimizer, self.recipe.critic_optimizer))
        for optimizer, config in pairs:
            if stage.begins_phase and config.reset_on_growth:
                optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, stage.images_shown)

    def preview(self, count: int) -> Tensor:
        """The averaged generator's images of the fixed inputs, as it is grown now: [N, 3, H, W]."""
        stage = self.schedule.at(max(0, self.state.images_shown - 1))
        generate = _grown(self.state.generator_ema, stage)
        with torch.no_grad():
            return torch.cat([generate(part) for part in self.batches.preview(count).split(16)])


def _grown(network: nn.Module, stage: Stage) -> Callable[[Tensor], Tensor]:
    """The network at a stage; one that does not grow is itself."""
    grown = getattr(network, "grown", None)
    return network if grown is None else grown(stage.resolution, stage.alpha)


@contextlib.contextmanager
def _frozen(network: nn.Module | None) -> Iterator[None]:
    """No gradients for a network's weights inside the block; they flow through it all the same."""
    if network is None:
        yield
        return
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _descend(optimizer: torch.optim.Optimizer, terms: Mapping[str, Tensor]) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()


# ----------------------------------------------------------------------------
# The running average.


def average_decay(config: AveragingConfig, stage: Stage) -> float:
    """The decay of one step; with a half-life it depends on the batch so that images count alike.

    The ramp lets a resolution that has just come in forget its untrained layers quickly: without it the
    average shows them for several half-lives (Karras et al. 2020, "ema_rampup").
    """
    if not config.half_life_images and not config.rampup:
        return config.decay
    half_life = config.half_life_images or stage.batch * math.log(0.5) / math.log(config.decay)
    if config.rampup:
        half_life = min(half_life, config.rampup * stage.images_at_resolution)
    return math.pow(0.5, stage.batch / half_life) if half_life else 0.0


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network, for weights; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


# ----------------------------------------------------------------------------
# State <-> named tensors (contract 1).


def state_tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a state under the names of contract 1."""
    tensors = {f"generator.{k}": v for k, v in state.generator.state_dict().items()}
    tensors |= {f"generator_ema.{k}": v for k, v in state.generator_ema.state_dict().items()}
    tensors |= _optimizer_tensors("generator", state.generator, state.generator_optimizer)
    if state.discriminator is not None and state.critic_optimizer is not None:
        tensors |= {f"discriminator.{k}": v for k, v in state.discriminator.state_dict().items()}
        tensors |= _optimizer_tensors("discriminator", state.discriminator, state.critic_optimizer)
    return tensors


def _optimizer_tensors(name: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{name}.{parameter_name}/{key}": value
        for parameter_name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore(state: State, tensors: Mapping[str, Tensor], images_shown: int) -> None:
    """Fills a new state from `state_tensors`. Raises PgsrError if names or shapes do not fit."""
    networks = {"generator": state.generator, "generator_ema": state.generator_ema}
    if state.discriminator is not None:
        networks["discriminator"] = state.discriminator
    for name, network in networks.items():
        load_weights(network, tensors, name)
    _restore_optimizer("generator", state.generator, state.generator_optimizer, tensors)
    if state.discriminator is not None and state.critic_optimizer is not None:
        _restore_optimizer("discriminator", state.discriminator, state.critic_optimizer, tensors)
    state.images_shown = images_shown


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copies the tensors under `name.` into a network. Raises PgsrError if they do not fit."""
    own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise PgsrError(f"the checkpoint's {name} does not fit this recipe: {error}") from error


def _restore_optimizer(
    name: str, network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    optimizer.state.clear()
    parameters = dict(network.named_parameters())
    prefix = f"optimizer.{name}."
    for full, value in tensors.items():
        if full.startswith(prefix):
            parameter_name, _, key = full.removeprefix(prefix).rpartition("/")
            parameter = parameters[parameter_name]
            placed = value.to(parameter.device, copy=True)
            if key != "step" and parameter.dim() == 4:
                placed = placed.to(memory_format=torch.channels_last)
            optimizer.state[parameter][key] = placed


def make_trainer(recipe: Recipe, schedule: Schedule, data: Any, device: torch.device) -> Trainer:
    """The trainer of a recipe on the data at a path."""
    batches = BATCHES[recipe.generator["kind"]](recipe, data, device)
    return Trainer(recipe, schedule, batches, device)
