"""The training loop. It knows neither architecture nor objective: batches, networks and loss terms
come from the recipe's tables.

Everything a step does is a function of (recipe, data, state, images shown), so a run that stops anywhere
and resumes makes the same weights as one that never stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.networks.interfaces import Images
from pgsr.networks.layers import MinibatchStddev
from pgsr.networks.precision import at_least_float32

from .augment import augment
from .batches import Batch, TrainingBatches, batches_for
from .content_loss import content_features
from .objectives import OBJECTIVES, adversarial_terms, critic_terms, map_scales, paired_losses, scales
from .parallel import ALONE, Ranks
from .precision import autocast, chosen_precision
from .recipe import Recipe
from .schedule import Schedule, Stage
from .state import Critic, State, average_decay, new_state, prepare_optimizers, update_average
from .unrolled import unrolled_scores

# ----------------------------------------------------------------------------
# What each network minimises, as a module: its forward is one loss, its parameters are one network's.
# (As a whole, because DDP must see one forward before each backward, and WGAN-GP has three inside.)


class CriticLoss(nn.Module):
    """Real and generated images -> one critic's terms and mean scores."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.network = critic.network
        self.critic = critic

    def forward(
        self, reals: Tensor, fakes: Images, blend: Tensor, stage: Stage, labels: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`fakes` are without a graph, but in simultaneous updates."""
        terms = critic_terms(
            self.critic.objective,
            self.network.at(stage.resolution, stage.alpha, self.critic.objective_state),
            self.network.views(reals),
            self.network.views(fakes),
            blend,
            stage.step,
            self.critic.objective_state,
            labels,
        )
        return self.critic.labelled(terms.losses), self.critic.labelled(terms.scores)


class GeneratorLoss(nn.Module):
    """A batch -> the generator's terms and mean scores, over all critics that look at the stage."""

    def __init__(self, recipe: Recipe, state: State) -> None:
        super().__init__()
        self.network = state.generator
        self.recipe = recipe
        self.state = state
        self.features = content_features(recipe.objective, state.discriminator, self.network)

    def forward(
        self, batch: Batch, stage: Stage, change: Callable[[Images], Images], blend: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`change` is what images go through before critics, `blend` is for penalties of unrolled steps."""
        losses: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        fakes = self.network.training_at(stage.resolution, stage.alpha)(batch.inputs)
        views = change(fakes)
        for critic in self.state.critics_at(stage.resolution):
            compares = OBJECTIVES[critic.objective.adversarial].compares
            terms = adversarial_terms(
                critic.objective,
                self._scores(critic, batch, stage, views, blend),
                critic.network.views(views),
                critic.network.views(batch.reals) if compares else None,
                batch.labels,
            )
            losses |= critic.labelled(terms.losses)
            scores |= critic.labelled(terms.scores)
        if batch.paired:
            pairs = (fakes, batch.reals, batch.inputs)
            losses |= paired_losses(self.recipe.objective, *pairs, self.features, batch.photographed)
        return losses, scores

    def _scores(
        self, critic: Critic, batch: Batch, stage: Stage, fakes: Images, blend: Tensor | None
    ) -> Callable[[Images], Tensor]:
        """The critic as it is, or as it would be after steps that the recipe looks ahead."""
        steps, network = critic.objective.unrolled_steps, critic.network
        if not steps:
            return network.at(stage.resolution, stage.alpha, critic.objective_state)
        assert blend is not None
        reals, views = network.views(batch.reals), network.views(fakes)
        return unrolled_scores(critic, stage, reals, views, blend, batch.labels, steps)


class GeneratorImages(nn.Module):
    """A batch -> the generator's images, where its gradient is the critic's (simultaneous updates)."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.network = state.generator

    def forward(self, batch: Batch, stage: Stage) -> Images:
        return map_scales(
            at_least_float32, self.network.training_at(stage.resolution, stage.alpha)(batch.inputs)
        )


# ----------------------------------------------------------------------------
# One step.


class Trainer:
    """A recipe, its data and its state, and the step that advances them."""

    def __init__(
        self,
        recipe: Recipe,
        schedule: Schedule,
        batches: TrainingBatches,
        device: torch.device,
        ranks: Ranks,
        precision: torch.dtype | None = None,  # in place of the recipe's wish
    ) -> None:
        self.recipe, self.schedule, self.batches, self.device = recipe, schedule, batches, device
        if ranks.count > 1 and recipe.objective.unrolled_steps:
            raise PgsrError(
                "objective.unrolled_steps is for one process: the critic's steps are of one batch"
            )
        self.ranks = ranks
        self.precision = precision or chosen_precision(recipe.run.precision, device)
        self.state = new_state(recipe, device, self.precision)
        self.simultaneous = recipe.objective.updates == "simultaneous"
        if self.simultaneous:
            self.generator_images = ranks.wrap(GeneratorImages(self.state))
        else:
            self.generator_loss = ranks.wrap(GeneratorLoss(recipe, self.state))
        self.statistics = [
            layer
            for c in self.state.critics
            for layer in c.network.modules()
            if isinstance(layer, MinibatchStddev)
        ]
        self.critic_losses = {c.name: ranks.wrap(CriticLoss(c)) for c in self.state.critics}

    @property
    def chosen(self) -> dict[str, str]:
        """What was chosen for this machine, where the recipe leaves it open."""
        return {
            "device": device_name(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "residency": self.batches.residency.place,
        }

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
        for layer in self.statistics:
            layer.share = self.ranks.share_of(stage.batch)
        update = self._simultaneous_updates if self.simultaneous else self._alternating_updates
        terms, scores, images_shown = update(stage)
        self._update_objective_states(scores, stage)
        update_average(state.generator_ema, state.generator, average_decay(self.recipe.averaging, stage))
        state.images_shown = images_shown
        extras = self._watched(scores, stage) if watch else {}
        return {name: term.detach() for name, term in (terms | extras).items()}

    def _alternating_updates(self, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """The critics', then the generator's through the new critics: terms, scores, images shown."""
        terms: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        images_shown, critic_batch = stage.images_shown, None
        for _ in range(self.recipe.objective.critic_steps):
            if self.state.critics:
                critic_batch = self.batches.for_critic(stage, images_shown)
                losses, means = self._critic_updates(critic_batch, stage, images_shown)
                terms |= losses
                scores |= means
            images_shown += stage.batch
        batch = self.batches.generator_inputs(stage, images_shown - stage.batch, critic_batch)
        losses, means = self._generator_update(batch, stage, images_shown - stage.batch)
        return terms | losses, scores | means, images_shown

    def _critic_updates(
        self, batch: Batch, stage: Stage, images_shown: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One update of every critic that looks at the stage, of the same images."""
        fakes = self._fakes(batch, stage, images_shown)
        reals = self._augmented(batch.reals, "augment real", images_shown, stage)
        terms: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        for critic in self.state.critics_at(stage.resolution):
            losses, means = self._critic_update(critic, batch, reals, fakes, stage, images_shown)
            terms |= losses
            scores |= means
        return terms, scores

    @torch.no_grad()
    def _fakes(self, batch: Batch, stage: Stage, images_shown: int) -> Images:
        """The generator's images of a critic's batch, as critics see them."""
        with autocast(self.device, self.precision):
            generate = self.state.generator.training_at(stage.resolution, stage.alpha)
            fakes = map_scales(at_least_float32, generate(batch.inputs))
        return map_scales(lambda x: self._augmented(x, "augment fake", images_shown, stage), fakes)

    def _augmented(self, images: Tensor, purpose: str, images_shown: int, stage: Stage) -> Tensor:
        """Augments this rank's share of a batch as the recipe says."""
        positions = self.ranks.share(images_shown, stage.batch)
        state = self.state.augmentation
        return augment(images, self.recipe.augment, state, self.recipe.seed, purpose, positions)

    def _simultaneous_updates(self, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """Both from one pass of the critic over one batch of fakes.

        What the critic wants of them is what the generator wants, negated (a zero-sum game), so the critic's
        gradient at the fakes, negated, is the generator's. Three passes of eighteen are saved.
        """
        assert self.state.critic_optimizer is not None
        batch = self.batches.for_critic(stage, stage.images_shown)
        with autocast(self.device, self.precision):
            images = self.generator_images(batch, stage)
        fakes = map_scales(lambda x: x.detach().requires_grad_(), images)
        critic = self.state.critics[0]
        losses, scores = self._critic_losses(critic, batch, batch.reals, fakes, stage, stage.images_shown)
        self._backward(critic.optimizer, losses, batch, stage)
        self.state.generator_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scales(images), [-x.grad for x in scales(fakes) if x.grad is not None])
        self.state.loss_scale.step(critic.optimizer, self.state.generator_optimizer)
        terms = losses | {"generator": -scores["fake"]}
        return terms, scores | {"made": scores["fake"]}, stage.images_shown + stage.batch

    def _critic_update(
        self, critic: Critic, batch: Batch, reals: Tensor, fakes: Images, stage: Stage, images_shown: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, scores = self._critic_losses(critic, batch, reals, fakes, stage, images_shown)
        self._backward(critic.optimizer, losses, batch, stage)
        self.state.loss_scale.step(critic.optimizer)
        if critic.objective.clip:
            weights = [p.data for p in critic.network.parameters()]
            torch._foreach_clamp_min_(weights, -critic.objective.clip)
            torch._foreach_clamp_max_(weights, critic.objective.clip)
        return losses, scores

    def _critic_losses(
        self, critic: Critic, batch: Batch, reals: Tensor, fakes: Images, stage: Stage, images_shown: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        blend = self._blend(stage, images_shown)
        loss = self.critic_losses[critic.name]
        with autocast(self.device, self.precision):
            result: tuple[dict[str, Tensor], dict[str, Tensor]] = loss(
                reals, fakes, blend, stage, batch.labels
            )
        return result

    def _blend(self, stage: Stage, images_shown: int) -> Tensor:
        """Where between real and generated images of this rank's share the penalty looks: [N]."""
        own = slice(self.ranks.rank, None, self.ranks.count)
        return self.batches.tensor(
            draws.uniforms(self.recipe.seed, "penalty", images_shown, stage.batch)[own]
        )

    def _generator_update(
        self, batch: Batch, stage: Stage, images_shown: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        def change(images: Images) -> Images:
            return map_scales(lambda x: self._augmented(x, "augment generator", images_shown, stage), images)

        networks = [critic.network for critic in self.state.critics]
        ahead = self.recipe.objective.unrolled_steps
        blend = self._blend(stage, images_shown) if ahead else None
        with _frozen(networks), autocast(self.device, self.precision):
            losses, scores = self.generator_loss(batch, stage, change, blend)
        self._backward(self.state.generator_optimizer, losses, batch, stage)
        self.state.loss_scale.step(self.state.generator_optimizer)
        return losses, scores

    def _backward(
        self, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor], batch: Batch, stage: Stage
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        if self.ranks.count > 1:
            total = total * self.ranks.weight(len(batch.reals), stage.batch)
        self.state.loss_scale.backward(total)

    def _seed_torch(self, stage: Stage) -> None:
        """Seeds torch by the images shown, for networks with noise or dropout inside."""
        draw = draws.raw(self.recipe.seed, "step", stage.images_shown, self.ranks.count)[self.ranks.rank]
        torch.manual_seed(int(draw) & (2**63 - 1))

    def _update_objective_states(self, scores: dict[str, Tensor], stage: Stage) -> None:
        """Updates what objectives and augmentation carry to the next step, from the scores of all ranks."""
        for critic in self.state.critics_at(stage.resolution):
            objective = OBJECTIVES[critic.objective.adversarial]
            if objective.initial_state:
                real, fake, generator_fake = self._rank_means(
                    [scores[f"{key} {critic.name}".rstrip()] for key in ("real", "fake", "made")]
                )
                state = critic.objective_state
                state.update(objective.next_state(state, critic.objective, real, fake, generator_fake))
        if self.state.augmentation:
            (sign,) = self._rank_means([scores["sign"]])
            state = self.state.augmentation
            state.update(self.recipe.augment.next_state(state, sign, stage.batch))

    def _rank_means(self, values: list[Tensor]) -> tuple[Tensor, ...]:
        """The means over ranks of scalars."""
        return (self.ranks.sum(torch.stack([v.detach() for v in values])) / self.ranks.count).unbind()

    def _watched(self, scores: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        """Mean scores, their difference (WGAN's estimate of the distance) and the gradients' norms."""
        values = {f"watch/score {k}": v for k, v in scores.items() if not k.startswith("sign")}
        if "real" in scores:
            values["watch/Wasserstein estimate"] = scores["real"] - scores["fake"]
        norm = self.state.loss_scale.watched
        values["watch/gradient norm generator"] = norm(gradient_norm(self.state.generator))
        for critic in self.state.critics_at(stage.resolution):
            name = f"watch/gradient norm critic {critic.name}".rstrip()
            values[name] = norm(gradient_norm(critic.network))
            values |= {f"watch/{k}": v for k, v in critic.labelled(critic.objective_state).items()}
        return values | {f"watch/augment {k}": v for k, v in self.state.augmentation.items()}

    def preview(self, count: int) -> Tensor:
        """The averaged generator's images of the fixed inputs, as it is grown now: [N, 3, H, W]."""
        stage = self.schedule.at(max(0, self.state.images_shown - 1))
        generate = self.state.generator_ema.at(stage.resolution, stage.alpha)
        with torch.no_grad():
            return torch.cat([generate(part) for part in self.batches.preview(count).split(16)])


@contextlib.contextmanager
def _frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
    """No gradients for the networks' weights inside the block; they flow through them all the same."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


def gradient_norm(network: nn.Module) -> Tensor:
    """The 2-norm of all gradients of a network's last update: a scalar."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm()


def device_name(device: torch.device) -> str:
    """cpu, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def make_trainer(
    recipe: Recipe, schedule: Schedule, data: Path, device: torch.device, ranks: Ranks = ALONE
) -> Trainer:
    """The trainer of a recipe on the data at a path."""
    return Trainer(recipe, schedule, batches_for(recipe, data, device, ranks), device, ranks)
