"""All that changes while training, and its names in a checkpoint (contract 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build

from .config import AveragingConfig, OptimizerConfig, Recipe
from .objectives import OBJECTIVES
from .schedule import Stage


@dataclass
class State:
    """What a checkpoint holds."""

    generator: nn.Module
    generator_ema: nn.Module
    discriminator: nn.Module | None
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    memory: dict[str, Tensor] = field(default_factory=dict)  # of the objective: scalars
    images_shown: int = 0
    learning_rate_scale: float = 1.0  # below 1 after a rollback


def new_state(recipe: Recipe, device: torch.device, precision: torch.dtype = torch.float32) -> State:
    """Networks and optimizers as they are before the first step."""
    wide = torch.float64 if precision == torch.float64 else torch.float32

    def place(network: nn.Module) -> nn.Module:
        network.to(device, wide)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    generator = place(build(GENERATORS, recipe.generator, recipe.seed))
    critic, memory = None, {}
    if recipe.objective.adversarial != "none":
        critic = place(build(DISCRIMINATORS, recipe.discriminator, recipe.seed + 1))
        first = OBJECTIVES[recipe.objective.adversarial].memory
        memory = {name: torch.tensor(value, device=device) for name, value in first.items()}
    return State(
        generator=generator,
        generator_ema=copy.deepcopy(generator).requires_grad_(False).eval(),
        discriminator=critic,
        generator_optimizer=new_optimizer(generator, recipe.generator_optimizer),
        critic_optimizer=None if critic is None else new_optimizer(critic, recipe.critic_optimizer),
        memory=memory,
    )


# ----------------------------------------------------------------------------
# Optimizers. Parameters not grown in yet have no gradient and stay untouched.


def _adam(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def _rmsprop(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=config.learning_rate, alpha=config.beta2, eps=config.epsilon)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], OptimizerConfig], torch.optim.Optimizer]] = {
    "adam": _adam,
    "rmsprop": _rmsprop,
}


def new_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    return OPTIMIZERS[config.kind](network.parameters(), config)


def learning_rate(config: OptimizerConfig, images_shown: int) -> float:
    """The rate at a point: the last entry of `learning_rate_from` that has begun."""
    begun = {int(k): v for k, v in config.learning_rate_from.items() if int(k) <= images_shown}
    return begun[max(begun)] if begun else config.learning_rate


def prepare_optimizers(state: State, recipe: Recipe, stage: Stage) -> None:
    """Sets the rates of a step, and forgets the moments where the recipe says so."""
    pairs = [(state.generator_optimizer, recipe.generator_optimizer)]
    if state.critic_optimizer is not None:
        pairs.append((state.critic_optimizer, recipe.critic_optimizer))
    for optimizer, config in pairs:
        if stage.begins_phase and config.reset_on_growth:
            optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, stage.images_shown) * state.learning_rate_scale


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
# State <-> named tensors.


def state_tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a state under the names of contract 1."""
    tensors = {f"generator.{k}": v for k, v in state.generator.state_dict().items()}
    tensors |= {f"generator_ema.{k}": v for k, v in state.generator_ema.state_dict().items()}
    tensors |= _optimizer_tensors("generator", state.generator, state.generator_optimizer)
    if state.discriminator is not None and state.critic_optimizer is not None:
        tensors |= {f"discriminator.{k}": v for k, v in state.discriminator.state_dict().items()}
        tensors |= _optimizer_tensors("discriminator", state.discriminator, state.critic_optimizer)
    return tensors | {f"objective.{k}": v for k, v in state.memory.items()}


def _optimizer_tensors(name: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{name}.{parameter_name}/{key}": value
        for parameter_name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore(
    state: State, tensors: Mapping[str, Tensor], images_shown: int, learning_rate_scale: float = 1.0
) -> None:
    """Fills a state from `state_tensors`. Raises PgsrError if names or shapes do not fit."""
    networks = {"generator": state.generator, "generator_ema": state.generator_ema}
    if state.discriminator is not None:
        networks["discriminator"] = state.discriminator
    for name, network in networks.items():
        load_weights(network, tensors, name)
    _restore_optimizer("generator", state.generator, state.generator_optimizer, tensors)
    if state.discriminator is not None and state.critic_optimizer is not None:
        _restore_optimizer("discriminator", state.discriminator, state.critic_optimizer, tensors)
    for name, value in state.memory.items():
        if f"objective.{name}" not in tensors:
            raise PgsrError(f"the checkpoint has no {name} of the objective: it was trained with another")
        state.memory[name] = tensors[f"objective.{name}"].to(value.device)
    state.images_shown, state.learning_rate_scale = images_shown, learning_rate_scale


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
