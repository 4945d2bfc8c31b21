"""Unrolled GANs (Metz et al. 2017; paper 2, Table 4): the generator learns from the critic as it would be
after k more of its steps, and from how those steps depend on the generated images.

The steps are the critic's own optimizer's, Adam's from its present moments, on the batch at hand. They are
differentiable, and leave the critic as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pgsr.networks.interfaces import Discriminator, Images

from .objectives import critic_terms
from .schedule import Stage
from .state import Critic

TINY = 1e-30  # under Adam's root, whose slope at 0 is infinite


class _Scores(nn.Module):
    """A critic at a stage, as a module, so that it can be called with other weights."""

    def __init__(self, critic: Critic, stage: Stage) -> None:
        super().__init__()
        self.network: Discriminator = critic.network
        self.critic, self.stage = critic, stage

    def forward(self, images: Images) -> Tensor:
        stage = self.stage
        return self.network.at(stage.resolution, stage.alpha, self.critic.objective_state)(images)


def unrolled_scores(
    critic: Critic,
    stage: Stage,
    reals: Images,  # as the critic takes them
    fakes: Images,  # likewise, with a graph
    blend: Tensor,
    labels: Tensor | None,
    steps: int,
) -> Callable[[Images], Tensor]:
    """The critic's scores after so many steps, as a function of images."""
    scores = _Scores(critic, stage)
    weights = {name: p.detach().requires_grad_() for name, p in scores.named_parameters()}
    optimizer = critic.optimizer
    moments = {name: dict(optimizer.state.get(p, {})) for name, p in scores.named_parameters()}

    def with_weights(chosen: Mapping[str, Tensor], images: Images) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in scores.named_buffers()}
        result: Tensor = functional_call(scores, {**chosen, **buffers}, (images,))
        return result

    for _ in range(steps):
        terms = critic_terms(
            critic.objective,
            partial(with_weights, weights),
            reals,
            fakes,
            blend,
            stage.step,
            critic.objective_state,
            labels,
        )
        loss = torch.stack(list(terms.losses.values())).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
        for name, gradient in zip(list(weights), gradients, strict=True):
            if gradient is not None:  # a layer that is not grown in yet has none
                weights[name] = adam_step(weights[name], gradient, moments[name], optimizer.param_groups[0])
    return partial(with_weights, weights)


def adam_step(
    weight: Tensor, gradient: Tensor, moments: dict[str, Tensor], group: Mapping[str, Any]
) -> Tensor:
    """The weight after a step of torch.optim.Adam, differentiable; `moments` are replaced by the new ones."""
    beta1, beta2 = group["betas"]
    step = moments.get("step", torch.zeros((), device=weight.device)).double() + 1
    mean = beta1 * moments.get("exp_avg", torch.zeros_like(weight)) + (1 - beta1) * gradient
    square = beta2 * moments.get("exp_avg_sq", torch.zeros_like(weight)) + (1 - beta2) * gradient.square()
    moments.update(step=step, exp_avg=mean, exp_avg_sq=square)
    spread = (square / (1 - beta2**step) + TINY).sqrt() + group["eps"]
    moved: Tensor = weight - group["lr"] * (mean / (1 - beta1**step)) / spread
    return moved
