"""All that changes while training, and its names in a checkpoint (contract 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.networks.interfaces import Discriminator, Generator

from .objectives import OBJECTIVES, ObjectiveConfig
from .precision import LossScale
from .recipe import Recipe
from .schedule import Stage
from .tables import AveragingConfig, OptimizerConfig

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Critic:
    """A critic while it trains."""

    name: str  # "" is the recipe's discriminator; others are called by their kind
    network: Discriminator
    objective: ObjectiveConfig
    optimizer: torch.optim.Optimizer
    from_resolution: int = 0  # the first that it looks at
    objective_state: dict[str, Tensor] = field(default_factory=dict)  # scalars

    @property
    def prefix(self) -> str:
        """The prefix of the critic's tensors in a checkpoint."""
        return f"critics.{self.name}" if self.name else "discriminator"

    @property
    def state_prefix(self) -> str:
        return f"objective.{self.name}." if self.name else "objective."

    def labelled(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Terms and scores under names that tell critics apart."""
        return {f"{key} {self.name}".rstrip(): value for key, value in values.items()}


@dataclass
class State:
    """What a checkpoint holds."""

    generator: Generator
    generator_ema: Generator
    generator_optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    critics: list[Critic] = field(default_factory=list)  # the recipe's discriminator first
    augmentation: dict[str, Tensor] = field(default_factory=dict)  # scalars
    images_shown: int = 0
    learning_rate_scale: float = 1.0  # below 1 after a rollback

    @property
    def discriminator(self) -> Discriminator | None:
        """The first critic's network, where there is an adversarial loss."""
        return self.critics[0].network if self.critics else None

    @property
    def critic_optimizer(self) -> torch.optim.Optimizer | None:
        """The first critic's."""
        return self.critics[0].optimizer if self.critics else None

    def critics_at(self, resolution: int) -> list[Critic]:
        """Returns the critics that look at images of a resolution."""
        return [critic for critic in self.critics if resolution >= critic.from_resolution]


def new_state(recipe: Recipe, device: torch.device, precision: torch.dtype = torch.float32) -> State:
    """Networks and optimizers as they are before the first step."""
    wide = torch.float64 if precision == torch.float64 else torch.float32

    def place(network: Network) -> Network:
        network.to(device, wide)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    generator = place(build(GENERATORS, recipe.generator, recipe.seed))

    def scalars(values: Mapping[str, float]) -> dict[str, Tensor]:
        return {name: torch.tensor(value, device=device) for name, value in values.items()}

    def critic(number: int, name: str, options: Mapping[str, Any], objective: ObjectiveConfig) -> Critic:
        network = place(build(DISCRIMINATORS, options, recipe.seed + 1 + number))
        optimizer = new_optimizer(network, recipe.critic_optimizer)
        state = scalars(OBJECTIVES[objective.adversarial].initial_state)
        return Critic(name, network, objective, optimizer, objective_state=state)

    critics = []
    if recipe.objective.adversarial != "none":
        critics.append(critic(0, "", recipe.discriminator, recipe.objective))
    for number, (name, config) in enumerate(recipe.named_critics().items(), start=1):
        critics.append(critic(number, name, config.network, config.objective()))
        critics[-1].from_resolution = config.from_resolution
    return State(
        generator=generator,
        generator_ema=copy.deepcopy(generator).requires_grad_(False).eval(),
        generator_optimizer=new_optimizer(generator, recipe.generator_optimizer),
        loss_scale=LossScale(device, precision),
        critics=critics,
        augmentation=scalars(recipe.augment.initial_state()),
    )


# ----------------------------------------------------------------------------
# Optimizers. Parameters not grown in yet have no gradient and stay untouched.


def _adam(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = list(parameters)
    return torch.optim.Adam(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=not parameters[0].is_meta,  # tensors without contents have no such kernel
    )


def _rmsprop(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=config.learning_rate, alpha=config.beta2, eps=config.epsilon)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], OptimizerConfig], torch.optim.Optimizer]] = {
    "adam": _adam,
    "rmsprop": _rmsprop,
}


SQUARES = {torch.optim.Adam: "exp_avg_sq", torch.optim.RMSprop: "square_avg"}  # that each cannot do without


def new_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Makes the optimizer of a network's parameters."""
    return OPTIMIZERS[config.kind](network.parameters(), config)


def learning_rate(config: OptimizerConfig, images_shown: int) -> float:
    """The rate at a point: the last entry of `learning_rate_from` that has begun, times the fall by a half
    cosine (Loshchilov and Hutter 2017) between `cosine_from` and `cosine_to`."""
    entries = {int(k): v for k, v in config.learning_rate_from.items() if int(k) <= images_shown}
    rate = entries[max(entries)] if entries else config.learning_rate
    if not config.cosine_to or images_shown <= config.cosine_from:
        return rate
    share = min(1.0, (images_shown - config.cosine_from) / (config.cosine_to - config.cosine_from))
    return rate * (
        config.cosine_floor + (1.0 - config.cosine_floor) * 0.5 * (1.0 + math.cos(math.pi * share))
    )


def prepare_optimizers(state: State, recipe: Recipe, stage: Stage) -> None:
    """Sets the rates of a step, and forgets the moments where the recipe says so."""
    pairs = [(state.generator_optimizer, recipe.generator_optimizer)]
    pairs += [(critic.optimizer, recipe.critic_optimizer) for critic in state.critics]
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
    """Sets average = decay * average + (1 - decay) * network, for weights; buffers are copied."""
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
    for critic in state.critics:
        tensors |= {f"{critic.prefix}.{k}": v for k, v in critic.network.state_dict().items()}
        tensors |= _optimizer_tensors(critic.prefix, critic.network, critic.optimizer)
        tensors |= {f"{critic.state_prefix}{k}": v for k, v in critic.objective_state.items()}
    tensors |= {f"loss_scale.{k}": v for k, v in state.loss_scale.tensors().items()}
    return tensors | {f"augment.{k}": v for k, v in state.augmentation.items()}


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
    for name, network in {"generator": state.generator, "generator_ema": state.generator_ema}.items():
        load_weights(network, tensors, name)
    _restore_optimizer("generator", state.generator, state.generator_optimizer, tensors)
    for critic in state.critics:
        _restore_critic(critic, tensors)
    for name, value in state.augmentation.items():
        state.augmentation[name] = _fitting(tensors.get(f"augment.{name}", value), value, f"augment.{name}")
    prefix = "loss_scale."
    state.loss_scale.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state.images_shown, state.learning_rate_scale = images_shown, learning_rate_scale


def _restore_critic(critic: Critic, tensors: Mapping[str, Tensor]) -> None:
    """A critic that was added to the recipe since the checkpoint stays as it is new."""
    if critic.name and not any(name.startswith(f"{critic.prefix}.") for name in tensors):
        critic.optimizer.state.clear()
        return
    load_weights(critic.network, tensors, critic.prefix)
    _restore_optimizer(critic.prefix, critic.network, critic.optimizer, tensors)
    for name, value in critic.objective_state.items():
        full = f"{critic.state_prefix}{name}"
        if full not in tensors:
            raise PgsrError(f"the checkpoint has no {name} of the objective: it was trained with another")
        critic.objective_state[name] = _fitting(tensors[full], value, full)


def _fitting(found: Tensor, own: Tensor, name: str) -> Tensor:
    """A checkpoint's tensor in the place of one's own. Raises PgsrError if it does not fit there."""
    if found.shape != own.shape or not found.dtype.is_floating_point:
        raise PgsrError(
            f"the checkpoint's {name} is {found.dtype} {list(found.shape)}, which does not fit this recipe"
        )
    return found.to(own.device)


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
    """A smaller copy of a checkpoint may lack Adam's first moments and hold the second in another type.

    Raises PgsrError if moments do not fit the network, or others are missing.
    """
    optimizer.state.clear()
    parameters = dict(network.named_parameters())
    prefix = f"optimizer.{name}."
    for full, value in tensors.items():
        if full.startswith(prefix):
            parameter_name, _, key = full.removeprefix(prefix).rpartition("/")
            parameter = parameters.get(parameter_name)
            if parameter is None or value.shape != (() if key == "step" else parameter.shape):
                raise PgsrError(f"the checkpoint's {full} {list(value.shape)} does not fit this recipe")
            dtype = torch.float32 if key == "step" else parameter.dtype
            tensor = value.to(parameter.device, dtype, copy=True)
            if key != "step" and parameter.dim() == 4:
                tensor = tensor.to(memory_format=torch.channels_last)
            optimizer.state[parameter][key] = tensor
    for own, moments in optimizer.state.items():
        if not {"step", SQUARES[type(optimizer)]} <= moments.keys():
            raise PgsrError(f"the checkpoint's optimizer of {name} is none of this recipe's kind")
        if "exp_avg_sq" in moments:
            moments.setdefault("exp_avg", torch.zeros_like(own))
