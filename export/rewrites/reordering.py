"""Rewrites of order: what stands before or behind PixelShuffle, and a normalisation behind an RGB layer."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..lowering import BlocksFirstShuffle, DividingNorm, NormBehind, PixelNorm, Steps
from .rules import convolution, with_values
from .upsampling import is_convolution

# ----------------------------------------------------------------------------
# A convolution of few maps after PixelShuffle, as one of the low resolution before it: 9 x 9 of C maps to 3
# becomes 5 x 5 of 4 C to 12. It multiplies 100/81 as much, but fills 12 of a vector's 16 lanes instead of 3.


MOST_MAPS = 16  # of the result: beyond, nothing is gained


def before_shuffle(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Computes a convolution of few maps before the PixelShuffle, at the low resolution."""
    shuffle = steps[i]
    if not isinstance(shuffle, nn.PixelShuffle):
        return None
    between = steps[i + 1 : i + 2]
    activations = [step for step in between if _is_same_activation(step)]
    if i + 1 + len(activations) >= len(steps):
        return None
    layer: Any = steps[i + 1 + len(activations)]
    factor = shuffle.upscale_factor
    side = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 0
    if side < 3 or not is_convolution(layer, side) or layer.out_channels * factor**2 > MOST_MAPS:
        return None
    weight = unshuffled(layer.weight, factor)
    bias = None if layer.bias is None else layer.bias.repeat_interleave(factor**2)
    return 2 + len(activations), [*activations, convolution(weight, bias, weight.shape[-1] // 2), shuffle]


def _is_same_activation(step: nn.Module) -> bool:
    """Returns whether it does the same to every value (and leaves 0, which surrounds the image, as it is)."""
    return isinstance(step, (nn.LeakyReLU, nn.ReLU)) or (
        isinstance(step, nn.PReLU) and step.num_parameters == 1
    )


def unshuffled(weight: Tensor, factor: int) -> Tensor:
    """[O, I, k, k] after PixelShuffle(r) -> [O r r, I r r, k', k'] before it.

    Output place a and tap d lie at high pixel r i + (a + d - k // 2), that is place (..) mod r of low pixel
    i + (..) // r.
    """
    outputs, inputs, side, _ = weight.shape
    reach = -((side // 2) // -factor)  # low pixels to either side
    low = weight.new_zeros(outputs, factor, factor, inputs, factor, factor, 2 * reach + 1, 2 * reach + 1)
    for a, b, d, e in product(range(factor), range(factor), range(side), range(side)):
        (row, alpha), (column, beta) = divmod(a + d - side // 2, factor), divmod(b + e - side // 2, factor)
        low[:, a, b, :, alpha, beta, row + reach, column + reach] += weight[:, :, d, e]
    return low.flatten(3, 5).flatten(0, 2)


# ----------------------------------------------------------------------------
# The order of the maps before PixelShuffle: place by place instead of map by map, so that what belongs to one
# place lies together where the maps of a pixel do (NHWC, in which OpenVINO computes).


def blocks_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Orders the maps of a convolution before PixelShuffle by their places."""
    layer: Any = steps[i]
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return None
    behind = i + 1
    while behind < len(steps) and _is_same_activation(steps[behind]):
        behind += 1
    shuffle = steps[behind] if behind < len(steps) else None
    if not isinstance(shuffle, nn.PixelShuffle):
        return None
    factor = shuffle.upscale_factor
    order = torch.arange(layer.out_channels).view(-1, factor**2).T.flatten()
    bias = None if layer.bias is None else layer.bias[order]
    with_values(layer, layer.weight[order], bias)
    return behind + 1 - i, [layer, *steps[i + 1 : behind], BlocksFirstShuffle(factor)]


# ----------------------------------------------------------------------------
# Pixelwise normalisation.


def norm_behind(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """The division behind a pointwise convolution to fewer maps (the RGB layer): three maps to divide."""
    norm = steps[i]
    if i + 1 >= len(steps) or not isinstance(norm, (PixelNorm, DividingNorm)):
        return None
    layer: Any = steps[i + 1]
    if is_convolution(layer, 1) and layer.out_channels < layer.in_channels:
        return 2, [NormBehind(layer, norm.epsilon)]
    return None


def dividing(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Divides by the length in pixelwise normalisation, in place of multiplying by its inverse."""
    norm = steps[i]
    return (1, [DividingNorm(norm.epsilon)]) if isinstance(norm, PixelNorm) else None
