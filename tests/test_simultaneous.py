"""Updates of both networks from one pass of the critic (objective.updates = "simultaneous")."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pgsr.errors import PgsrError
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import schedule
from pgsr.trainer.step.batches import Batch
from pgsr.trainer.step.trainer import GeneratorLoss, Trainer, make_trainer

SETTINGS = (
    "generator.latent_size=8",
    *(f"{net}.{k}" for net in ("generator", "discriminator") for k in ("feature_base=64", "feature_max=8")),
    *(f"{net}.resolution=8" for net in ("generator", "discriminator")),
    "schedule.resolution=8",
    "schedule.batch=8",
    "schedule.fade_images=64",
    "schedule.stable_images=32",
    "run.precision=float64",
)


def trainer_of(toy: Path, *settings: str) -> Trainer:
    recipe = config.load("progan-64-separable", (*SETTINGS, *settings))
    built = schedule.build(recipe.schedule, recipe.objective.critic_steps)
    return make_trainer(recipe, built, toy, torch.device("cpu"))


def gradients(network: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    assert network is not None
    return {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}


def apart(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert mine
    assert mine.keys() == theirs.keys()
    return max((mine[k] - theirs[k]).abs().max().item() for k in mine)


def test_both_gradients_are_those_of_the_two_losses(toy: Path, monkeypatch: pytest.MonkeyPatch):
    """In a fade, where the generator's loss is evaluated by itself, through the critic as it was."""
    trainer = trainer_of(toy, "objective.updates=simultaneous")
    for optimizer in (trainer.state.generator_optimizer, trainer.state.critic_optimizer):
        assert optimizer is not None
        monkeypatch.setattr(optimizer, "step", lambda: None)  # the networks stay as they are
    trainer.state.images_shown = 32 + 24
    stage = trainer.stage()
    assert 0 < stage.alpha < 1
    batch: Batch = trainer.batches.for_critic(stage, stage.images_shown)
    loss = GeneratorLoss(trainer.recipe, trainer.state)(batch, stage, lambda images: images)[0]["generator"]
    loss.backward()
    wanted = gradients(trainer.state.generator)
    critic, fakes = trainer.state.critics[0], trainer._fakes(batch, stage, stage.images_shown)
    critic_losses, _ = trainer._critic_losses(critic, batch, batch.reals, fakes, stage, stage.images_shown)
    trainer._backward(critic.optimizer, critic_losses, batch, stage)
    wanted_of_critic = gradients(trainer.state.discriminator)

    terms = trainer.step()
    assert apart(gradients(trainer.state.generator), wanted) < 1e-14
    assert apart(gradients(trainer.state.discriminator), wanted_of_critic) < 1e-14
    assert terms["generator"].item() == pytest.approx(loss.item(), rel=1e-12)
    assert trainer.state.images_shown == stage.images_shown + stage.batch


def test_both_networks_move_and_the_critic_is_asked_three_times(toy: Path, monkeypatch: pytest.MonkeyPatch):
    """Reals, fakes, and between them; alternating updates ask it a fourth time."""
    asked = {}
    for updates in ("alternating", "simultaneous"):
        trainer = trainer_of(toy, f"objective.updates={updates}")
        critic, generator = trainer.state.discriminator, trainer.state.generator
        assert critic is not None
        before = [p.detach().clone() for p in (critic.last_block.dense.weight, generator.to_rgb[0].weight)]
        calls: list[int] = []
        critic.last_block.dense.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.step()
        after = [critic.last_block.dense.weight, generator.to_rgb[0].weight]
        assert all((a != b).any() for a, b in zip(after, before, strict=True))
        asked[updates] = len(calls)
    assert asked == {"alternating": 4, "simultaneous": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"adversarial": "logistic"},
        {"critic_steps": 5},
        {"clip": 0.01},
        {"pixel": "l1"},
        {"adversarial_weight": 0.5},
    ],
    ids=str,
)
def test_a_game_that_is_not_zero_sum_is_refused(wrong: dict[str, Any]):
    with pytest.raises(PgsrError, match="needs a zero-sum objective alone") as caught:
        dataclasses.replace(config.load("progan-64-separable").objective, updates="simultaneous", **wrong)
    assert "\n" not in str(caught.value)


def test_labels_are_refused():
    with pytest.raises(PgsrError, match="labels"):
        config.load("progan-cifar10-labels", ("objective.updates=simultaneous",))
