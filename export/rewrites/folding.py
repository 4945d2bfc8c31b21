"""Rewrites that fold constants: gains, the alpha of a fade, batch normalisation, the first layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pgsr.networks.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    PlacedBiasFirstLayer,
    SeparableConv2d,
    SeparableFirstLayer,
    VanillaFirstLayer,
    fold_equalized,
)

from ..lowering import Fade, Steps
from .rules import apply_rule, convolution, dense

# ----------------------------------------------------------------------------
# Equalized learning rate: a constant of every layer, into its weight.


def fold_gains(network: nn.Module) -> bool:
    """Puts the equalized learning rate's constants into the weights, and plain layers in the place of its
    own."""
    any_layer = fold_equalized(network)
    return apply_rule(network, _plain_layer) | any_layer


def _plain_layer(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A layer whose constant is folded, as PyTorch's own."""
    layer = steps[i]
    if type(layer) is EqualizedConv2d:
        return 1, [convolution(layer.weight, layer.bias, layer.padding)]
    if type(layer) is EqualizedLinear:
        return 1, [dense(layer.weight, layer.bias)]
    if type(layer) is SeparableConv2d:
        deep, point = layer.depthwise, layer.pointwise
        return 1, [convolution(deep.weight, None, deep.padding, len(deep.weight)), point]
    return None


# ----------------------------------------------------------------------------
# alpha: a level that is grown in has no old branch.


def new_branch(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Keeps the new branch alone of a fade whose alpha is 1."""
    step = steps[i]
    if isinstance(step, Fade) and step.alpha >= 1.0:
        return 1, list(step.new)
    return None


# ----------------------------------------------------------------------------
# Batch normalisation of fixed statistics is a scale and a shift: into the layer before it.


def fold_norm(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A layer, and its norm; between them perhaps the places that a dense layer's values are given."""
    layer, between = steps[i], steps[i + 1 : i + 2]
    if not between or not _weighted(layer):
        return None
    reshapes = [step for step in between if isinstance(step, nn.Unflatten)]
    behind = i + 1 + len(reshapes)
    norm = steps[behind] if behind < len(steps) else None
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return None
    _fold_into(layer, norm)
    return 2 + len(reshapes), [layer, *reshapes]


def _weighted(layer: nn.Module) -> Any:
    """Returns where a layer's outgoing weights and bias are; None if it has none."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, EqualizedConv2d, EqualizedLinear, VanillaFirstLayer)
    if isinstance(layer, (SeparableConv2d, SeparableFirstLayer)):
        return layer.pointwise
    return layer if isinstance(layer, kinds) else None


def _fold_into(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Weights hold their output maps first, but for transposed convolutions; a dense layer whose values get
    places has several rows a map, and perhaps one bias a map."""
    weighted = _weighted(layer)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.data * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias.data - norm.running_mean * scale
    weight = weighted.weight.data
    outputs = 1 if isinstance(weighted, nn.ConvTranspose2d) else 0  # which axis of the weight they are
    shape = [-1 if axis == outputs else 1 for axis in range(weight.dim())]
    bias = weight.new_zeros(weight.shape[outputs]) if weighted.bias is None else weighted.bias.data
    rows, values = weight.shape[outputs] // len(scale), len(bias) // len(scale)
    weighted.weight.data = weight * scale.repeat_interleave(rows).view(shape)
    bias = bias * scale.repeat_interleave(values) + shift.repeat_interleave(values)
    weighted.bias = nn.Parameter(bias, requires_grad=False)


# ----------------------------------------------------------------------------
# The first layer: latents -> 4 x 4.


def merge_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Dense layer, places and bias as one matrix product with a bias for every place."""
    layer = steps[i]
    if not isinstance(layer, VanillaFirstLayer):
        return None
    weight = layer.scaled()
    bias = layer.bias if isinstance(layer, PlacedBiasFirstLayer) else layer.bias.repeat_interleave(16)
    return 1, [dense(weight, bias), nn.Unflatten(1, (len(weight) // 16, 4, 4))]


def dense_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A latent value spread over 4 x 4, then a pointwise convolution: one matrix, 16 times as large."""
    layer = steps[i]
    if not isinstance(layer, SeparableFirstLayer):
        return None
    spread, point = layer.depthwise.scaled(), layer.pointwise.scaled().flatten(1)  # [L, 4, 4], [C, L]
    weight = torch.einsum("lij,cl->cijl", spread, point).flatten(0, 2)  # [C * 16, L]
    bias = layer.pointwise.bias.repeat_interleave(16)
    return 1, [dense(weight, bias), nn.Unflatten(1, (len(point), 4, 4))]
