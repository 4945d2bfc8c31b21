"""Losses. An entry of OBJECTIVES is a pair of pure functions of scores; penalties are added by weight.

Everything here is computed in float32 at least, whatever the networks' precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pgsr.errors import PgsrError, check_choice

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Adversarial:
    """What the critic minimises, given its scores, and what the generator does."""

    critic: Callable[[Tensor, Tensor], Tensor]  # (real scores, fake scores) [N] -> loss
    generator: Callable[[Tensor], Tensor]  # fake scores [N] -> loss


OBJECTIVES: dict[str, Adversarial] = {
    # Wasserstein (Gulrajani et al. 2017; paper 2 section A.1). The penalty is its own term below.
    "wgan-gp": Adversarial(
        critic=lambda real, fake: fake.mean() - real.mean(),
        generator=lambda fake: -fake.mean(),
    ),
    # Non-saturating logistic loss: -log D(x) - log(1 - D(G(z))), and -log D(G(z)) for G, D = sigmoid.
    "logistic": Adversarial(
        critic=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        generator=lambda fake: F.softplus(-fake).mean(),
    ),
}

PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which losses, and how much of each; the [objective] table of a recipe."""

    adversarial: str = "wgan-gp"  # a name in OBJECTIVES, or "none"
    adversarial_weight: float = 1.0  # in the generator's loss; 1e-3 in SRGAN
    critic_steps: int = 1  # n_critic (paper 2, section A.1)
    gradient_penalty: float = 0.0  # lambda of WGAN-GP, 10 in its paper
    gradient_target: float = 1.0  # gamma: the norm the penalty pulls to; 750 for CIFAR-10
    drift: float = 0.0  # epsilon_drift, 0.001 in paper 2
    r1: float = 0.0  # gamma of R1 (Mescheder et al. 2018)
    penalty_every: int = 1  # steps between penalties, each then as many times as strong
    pixel: str = "none"  # "mse" or "l1" between generated and paired real images
    pixel_weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice("objective.adversarial", self.adversarial, (*OBJECTIVES, "none"))
        check_choice("objective.pixel", self.pixel, (*PIXEL_LOSSES, "none"))
        for name in ("critic_steps", "penalty_every"):
            if getattr(self, name) < 1:
                raise PgsrError(f"objective.{name} is {getattr(self, name)}, but must be at least 1")


def critic_terms(
    config: ObjectiveConfig,
    score: Score,
    reals: Tensor,  # [N, 3, H, W]
    fakes: Tensor,  # [N, 3, H, W], detached
    blend: Tensor,  # [N] in [0, 1): where the gradient penalty looks
    step: int,
) -> dict[str, Tensor]:
    """The named terms whose sum the critic minimises."""
    lazily = config.penalty_every if step % config.penalty_every == 0 else 0
    needs_r1 = bool(config.r1 and lazily)
    reals = reals.detach().requires_grad_(needs_r1)
    real_scores, fake_scores = _wide(score(reals)), _wide(score(fakes))
    terms = {"critic": OBJECTIVES[config.adversarial].critic(real_scores, fake_scores)}
    if config.drift:
        terms["drift"] = config.drift * real_scores.square().mean()
    if config.gradient_penalty and lazily:
        penalty = gradient_penalty(score, reals, fakes, blend, config.gradient_target)
        terms["gradient penalty"] = config.gradient_penalty * lazily * penalty
    if needs_r1:
        terms["r1"] = 0.5 * config.r1 * lazily * squared_gradient(real_scores, reals).mean()
    return terms


def generator_terms(
    config: ObjectiveConfig,
    score: Score | None,
    fakes: Tensor,  # [N, 3, H, W], with a graph
    reals: Tensor | None,  # [N, 3, H, W] where data are paired
) -> dict[str, Tensor]:
    """The named terms whose sum the generator minimises."""
    terms: dict[str, Tensor] = {}
    if score is not None:
        loss = OBJECTIVES[config.adversarial].generator(_wide(score(fakes)))
        terms["generator"] = config.adversarial_weight * loss
    if config.pixel != "none" and reals is not None:
        terms["pixel"] = config.pixel_weight * PIXEL_LOSSES[config.pixel](_wide(fakes), _wide(reals))
    return terms


def _wide(x: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def squared_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """|d score / d image|**2 of each image: [N]."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return _wide(gradient).square().sum(dim=(1, 2, 3))


def gradient_penalty(score: Score, reals: Tensor, fakes: Tensor, blend: Tensor, target: float) -> Tensor:
    """E[(|grad D(x)| - target)**2] / target**2, x between real and fake (Gulrajani et al. 2017).

    The division keeps the weight's meaning for target != 1 (original code of paper 2, CIFAR-10).
    vector_norm, not sqrt(sum of squares), whose own gradient at zero is not a number.
    """
    between = reals + (fakes - reals) * blend.view(-1, 1, 1, 1)
    between = between.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(_wide(score(between)).sum(), between, create_graph=True)
    norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm - target).square().mean() / target**2
