"""Rules: rewrites of a sequence of steps at one place, and the layers that they put there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..lowering import Steps

# (steps, i) -> how many steps from place i go, and what comes there instead; None if the rule does not apply.
Rule = Callable[[Steps, int], tuple[int, Steps] | None]


@dataclass(frozen=True)
class Rewrite:
    """What a name of --rewrite stands for."""

    apply: Callable[[nn.Module], bool]
    what: str


def apply_rule(network: nn.Module, rule: Rule) -> bool:
    """A rule everywhere in a network's sequences, until it applies nowhere."""
    any_change = False
    for sequence in [m for m in network.modules() if type(m) is nn.Sequential]:
        steps, i = list(sequence), 0
        while i < len(steps):
            match = rule(steps, i)
            if match is None:
                i += 1
                continue
            count, instead = match
            steps[i : i + count] = instead
            i, any_change = max(0, i - 1), True  # what came there may suit the step before it
        sequence._modules = {str(i): step for i, step in enumerate(steps)}
    return any_change


def convolution(weight: Tensor, bias: Tensor | None, padding: int, groups: int = 1) -> nn.Conv2d:
    """nn.Conv2d of given values."""
    outputs, inputs, side, _ = weight.shape
    layer = nn.Conv2d(inputs * groups, outputs, side, padding=padding, groups=groups, bias=bias is not None)
    return with_values(layer, weight, bias)


def dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Makes nn.Linear of given values."""
    return with_values(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)


def with_values(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """Puts values into a layer, without gradients."""
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()
