"""The training loop. It knows neither architecture nor objective: batches, networks and loss terms
come from the recipe's tables.

Everything a step does is a function of (recipe, data, state, images shown), so a run that stops anywhere
and resumes makes the same weights as one that never stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgsr import draws

from .batches import Batch, batches_for
from .config import Recipe
from .content import content_features
from .objectives import OBJECTIVES, Images, critic_terms, each, generator_terms, scales
from .parallel import ALONE, Ranks
from .schedule import Schedule, Stage
from .state import State, average_decay, new_state, prepare_optimizers, update_average

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
    if precision != torch.bfloat16:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


# ----------------------------------------------------------------------------
# What each network minimises, as a module: its forward is one loss, its parameters are one network's.
# (As a whole, because DDP must see one forward before each backward, and WGAN-GP has three inside.)


class CriticLoss(nn.Module):
    """A batch -> the critic's terms and mean scores."""

    def __init__(self, recipe: Recipe, state: State) -> None:
        super().__init__()
        assert state.discriminator is not None
        self.network = state.discriminator
        self.recipe, self.state = recipe, state

    def forward(
        self, batch: Batch, blend: Tensor, stage: Stage, fakes: Images | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`fakes` are the generator's images of the batch, if they are there already."""
        if fakes is None:
            with torch.no_grad():
                fakes = each(_wide, training_form(self.state.generator, stage)(batch.inputs))
        terms = critic_terms(
            self.recipe.objective,
            training_form(self.network, stage),
            pyramid(self.network, batch.reals),
            fakes,
            blend,
            stage.step,
            self.state.memory,
            batch.labels,
        )
        return terms.losses, terms.scores


class GeneratorLoss(nn.Module):
    """A batch -> the generator's terms and mean score."""

    def __init__(self, recipe: Recipe, state: State) -> None:
        super().__init__()
        self.network = state.generator
        self.recipe = recipe
        self.critic = (state.discriminator,)  # in a tuple: its parameters are not this module's
        self.features = content_features(recipe.objective, self.critic[0], self.network)

    def forward(self, batch: Batch, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        objective, (critic,) = self.recipe.objective, self.critic
        score: Callable[[Images], Tensor] | None = None
        reals: Images = batch.reals
        if critic is not None:
            score = training_form(critic, stage)
            reals = pyramid(critic, batch.reals)
        fakes = training_form(self.network, stage)(batch.inputs)
        compares = critic is not None and OBJECTIVES[objective.adversarial].compares
        terms = generator_terms(
            objective,
            score,
            fakes,
            reals if batch.paired or compares else None,
            batch.inputs if batch.paired else None,
            batch.labels,
            self.features if batch.paired else None,
        )
        return terms.losses, terms.scores


class GeneratorImages(nn.Module):
    """A batch -> the generator's images, where its gradient is the critic's (simultaneous updates)."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.network = state.generator

    def forward(self, batch: Batch, stage: Stage) -> Images:
        return each(_wide, training_form(self.network, stage)(batch.inputs))


def training_form(network: nn.Module, stage: Stage) -> Callable[[Any], Any]:
    """The network as it trains at a stage; one that does not grow is itself."""
    grown = getattr(network, "every_scale", None) or getattr(network, "grown", None)
    return network if grown is None else grown(stage.resolution, stage.alpha)


def single_form(network: nn.Module, stage: Stage) -> Callable[[Tensor], Tensor]:
    """The generator at a stage, as one that gives images of one size."""
    grown = getattr(network, "grown", None)
    return network if grown is None else grown(stage.resolution, stage.alpha)


def pyramid(critic: nn.Module, images: Tensor) -> Images:
    """Real images as the critic sees them: at every scale, if it looks at several."""
    reduce = getattr(critic, "pyramid", None)
    return images if reduce is None else reduce(images)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ----------------------------------------------------------------------------
# One step.


class Trainer:
    """A recipe, its data and its state, and the step that advances them."""

    def __init__(
        self, recipe: Recipe, schedule: Schedule, batches: Any, device: torch.device, ranks: Ranks
    ) -> None:
        self.recipe, self.schedule, self.batches, self.device = recipe, schedule, batches, device
        self.ranks = ranks
        self.precision = chosen_precision(recipe.run.precision, device)
        self.state = new_state(recipe, device, self.precision)
        self.simultaneous = recipe.objective.updates == "simultaneous"
        if self.simultaneous:
            self.generator_images = ranks.wrap(GeneratorImages(self.state))
        else:
            self.generator_loss = ranks.wrap(GeneratorLoss(recipe, self.state))
        self.critic_loss: nn.Module | None = None
        if self.state.discriminator is not None:
            setattr(self.state.discriminator, "memory", self.state.memory)  # noqa: B010 (not a module)
            self.critic_loss = ranks.wrap(CriticLoss(recipe, self.state))

    def stage(self) -> Stage:
        return self.schedule.at(self.state.images_shown)

    def step(self, watch: bool = False) -> dict[str, Tensor]:
        """One update of the generator after `critic_steps` of the critic.

        Returns the loss terms of this rank's share, detached; with `watch` also the mean scores and the
        gradients' norms, as "watch/...". Nothing here waits for the device.
        """
        stage, state = self.stage(), self.state
        prepare_optimizers(state, self.recipe, stage)
        self._seed_torch(stage)
        update = self._simultaneous_updates if self.simultaneous else self._alternating_updates
        terms, scores, shown = update(stage)
        self._remember(scores)
        update_average(state.generator_ema, state.generator, average_decay(self.recipe.averaging, stage))
        state.images_shown = shown
        watched = self._watched(scores) if watch else {}
        return {name: term.detach() for name, term in (terms | watched).items()}

    def _alternating_updates(self, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """The critic's, then the generator's through the new critic: terms, scores, images shown."""
        terms: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        shown, seen = stage.images_shown, None
        for _ in range(self.recipe.objective.critic_steps):
            if self.critic_loss is not None:
                seen = self.batches.for_critic(stage, shown)
                losses, means = self._critic_update(seen, stage, shown)
                terms |= losses
                scores |= means
            shown += stage.batch
        batch = self.batches.generator_inputs(stage, shown - stage.batch, seen)
        losses, means = self._generator_update(batch, stage)
        return terms | losses, scores | means, shown

    def _simultaneous_updates(self, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """Both from one pass of the critic over one batch of fakes.

        What the critic wants of them is what the generator wants, negated (a zero-sum game), so the critic's
        gradient at the fakes, turned round, is the generator's. Three passes of eighteen are saved.
        """
        assert self.state.critic_optimizer is not None
        batch = self.batches.for_critic(stage, stage.images_shown)
        with autocast(self.device, self.precision):
            made = self.generator_images(batch, stage)
        fakes = each(lambda x: x.detach().requires_grad_(), made)
        losses, scores = self._critic_losses(batch, stage, stage.images_shown, fakes)
        self._backward(self.state.critic_optimizer, losses, batch, stage)
        self.state.generator_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scales(made), [-x.grad for x in scales(fakes) if x.grad is not None])
        self.state.critic_optimizer.step()
        self.state.generator_optimizer.step()
        terms = losses | {"generator": -scores["fake"]}
        return terms, scores | {"made": scores["fake"]}, stage.images_shown + stage.batch

    def _critic_update(
        self, batch: Batch, stage: Stage, shown: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert self.critic_loss is not None
        assert self.state.critic_optimizer is not None
        losses, scores = self._critic_losses(batch, stage, shown)
        self._backward(self.state.critic_optimizer, losses, batch, stage)
        self.state.critic_optimizer.step()
        if self.recipe.objective.clip:
            weights = [p.data for p in self.critic_loss.parameters()]
            torch._foreach_clamp_min_(weights, -self.recipe.objective.clip)
            torch._foreach_clamp_max_(weights, self.recipe.objective.clip)
        return losses, scores

    def _critic_losses(
        self, batch: Batch, stage: Stage, shown: int, fakes: Images | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert self.critic_loss is not None
        own = slice(self.ranks.rank, None, self.ranks.count)
        blend = self.batches.tensor(draws.uniforms(self.recipe.seed, "penalty", shown, stage.batch)[own])
        with autocast(self.device, self.precision):
            result: tuple[dict[str, Tensor], dict[str, Tensor]] = self.critic_loss(batch, blend, stage, fakes)
        return result

    def _generator_update(self, batch: Batch, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with _frozen(self.state.discriminator), autocast(self.device, self.precision):
            losses, scores = self.generator_loss(batch, stage)
        self._backward(self.state.generator_optimizer, losses, batch, stage)
        self.state.generator_optimizer.step()
        return losses, scores

    def _backward(
        self, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor], batch: Batch, stage: Stage
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        if self.ranks.count > 1:
            total = total * self.ranks.weight(len(batch.reals), stage.batch)
        total.backward()

    def _seed_torch(self, stage: Stage) -> None:
        """For networks with noise or dropout inside: their draws too are a function of images shown."""
        draw = draws.raw(self.recipe.seed, "step", stage.images_shown, self.ranks.count)[self.ranks.rank]
        torch.manual_seed(int(draw) & (2**63 - 1))

    def _remember(self, scores: dict[str, Tensor]) -> None:
        name = self.recipe.objective.adversarial
        if name == "none" or not OBJECTIVES[name].memory:
            return
        means = torch.stack([scores[key].detach() for key in ("real", "fake", "made")])
        real, fake, made = (self.ranks.sum(means) / self.ranks.count).unbind()
        remember = OBJECTIVES[name].remember
        self.state.memory.update(remember(self.state.memory, self.recipe.objective, real, fake, made))

    def _watched(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean scores, their difference (WGAN's estimate of the distance) and the gradients' norms."""
        watched = {f"watch/score {name}": value for name, value in scores.items()}
        if "real" in scores:
            watched["watch/Wasserstein estimate"] = scores["real"] - scores["fake"]
        watched["watch/gradient norm generator"] = gradient_norm(self.state.generator)
        if self.state.discriminator is not None:
            watched["watch/gradient norm critic"] = gradient_norm(self.state.discriminator)
        return watched | {f"watch/{name}": value for name, value in self.state.memory.items()}

    def preview(self, count: int) -> Tensor:
        """The averaged generator's images of the fixed inputs, as it is grown now: [N, 3, H, W]."""
        stage = self.schedule.at(max(0, self.state.images_shown - 1))
        generate = single_form(self.state.generator_ema, stage)
        with torch.no_grad():
            return torch.cat([generate(part) for part in self.batches.preview(count).split(16)])


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


def gradient_norm(network: nn.Module) -> Tensor:
    """The 2-norm of all gradients of a network's last update: a scalar."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm()


def make_trainer(
    recipe: Recipe, schedule: Schedule, data: Path, device: torch.device, ranks: Ranks = ALONE
) -> Trainer:
    """The trainer of a recipe on the data at a path."""
    return Trainer(recipe, schedule, batches_for(recipe, data, device, ranks), device, ranks)
