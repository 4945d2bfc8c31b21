"""Rewrites of nearest upsampling and the convolution behind it: the same image from fewer multiply-adds."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..lowering import Crop, Phases, Steps
from .rules import convolution, with_values

# ----------------------------------------------------------------------------
# Nearest upsampling and a 3 x 3 convolution: each of the 2 x 2 output pixels that stem from one input pixel
# sees 2 x 2 inputs only. So it is four 2 x 2 convolutions of the low resolution, interleaved: 16
# multiply-adds where there were 36.


def _is_doubling(step: nn.Module) -> bool:
    return isinstance(step, nn.Upsample) and step.mode == "nearest" and step.scale_factor == 2.0


def is_convolution(step: nn.Module, side: int, depthwise: bool = False) -> bool:
    """A plain one that keeps the size."""
    return (
        isinstance(step, nn.Conv2d)
        and (step.kernel_size, step.stride, step.dilation) == ((side, side), (1, 1), (1, 1))
        and step.padding == (side // 2, side // 2)
        and step.padding_mode == "zeros"
        and step.groups == (step.in_channels if depthwise else 1)
        and (not depthwise or step.out_channels == step.in_channels)
    )


def four_kernels(weight: Tensor) -> list[Tensor]:
    """[O, I, 3, 3] -> four [O, I, 2, 2], of the places (0, 0), (0, 1), (1, 0), (1, 1) among 2 x 2.

    Place 0 sees (before, here) with weights (k0, k1 + k2), place 1 (here, behind) with (k0 + k1, k2).
    """
    halves = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [place, tap, k]
    return [
        torch.einsum("oikl,ak,bl->oiab", weight, halves[a], halves[b]) for a, b in product((0, 1), (0, 1))
    ]


def four_by_four(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] -> [O, I, 4, 4]: the kernel of the transposed convolution of stride 2 and padding 1.

    Input pixel h reaches output 2h + p - (k - 1), p in (0, 1), by weight k: that is index p - k + 2.
    """
    kernel = weight.new_zeros(*weight.shape[:2], 4, 4)
    for down, right in product((0, 1), (0, 1)):
        kernel[:, :, down : down + 3, right : right + 3] += weight.flip(2, 3)
    return kernel


def upsampled_one(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """One 2 x 2 convolution with four times the maps over the padded image: its value (p, q) holds pixel
    (2p, 2q) and what belongs to places before it, so that the interleaved image lacks no crop but its rim."""
    if not is_upsampled(steps, i, 3):
        return None
    layer: Any = steps[i + 1]
    kernels = four_kernels(layer.weight)[::-1]  # a value's last place is its own pixel's first
    weight = torch.stack(kernels, dim=1).flatten(0, 1)  # [4 O, I, 2, 2], a map's four together
    bias = None if layer.bias is None else layer.bias.repeat_interleave(4)
    return 2, [convolution(weight, bias, 1), nn.PixelShuffle(2), Crop()]


def upsampled_four(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Computes nearest upsampling and a 3 x 3 convolution as four 2 x 2 convolutions, interleaved."""
    if not is_upsampled(steps, i, 3):
        return None
    layer: Any = steps[i + 1]
    return 2, [Phases(convolution(k, layer.bias, 0) for k in four_kernels(layer.weight))]


def upsampled_transposed(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Computes nearest upsampling and a 3 x 3 convolution as one transposed 4 x 4 convolution of stride 2."""
    if not is_upsampled(steps, i, 3):
        return None
    layer: Any = steps[i + 1]
    return 2, [_transposed(four_by_four(layer.weight).transpose(0, 1), layer.bias, 1)]


def _transposed(weight: Tensor, bias: Tensor | None, groups: int) -> nn.ConvTranspose2d:
    inputs, outputs = weight.shape[:2]
    with_bias = bias is not None
    layer = nn.ConvTranspose2d(inputs, outputs * groups, 4, 2, 1, groups=groups, bias=with_bias)
    return with_values(layer, weight.contiguous(), bias)


def is_upsampled(steps: Steps, i: int, side: int, depthwise: bool = False) -> bool:
    """Returns whether a doubling and such a convolution stand there."""
    return i + 1 < len(steps) and _is_doubling(steps[i]) and is_convolution(steps[i + 1], side, depthwise)


# The same for a depthwise convolution. The pointwise one behind it commutes with interleaving, and so does
# an activation or normalisation of single pixels: then only its maps, often half as many, are interleaved.
def depthwise_four(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Computes upsampling and a depthwise convolution as four, interleaved behind what acts on single
    pixels."""
    if not is_upsampled(steps, i, 3, depthwise=True):
        return None
    layer: Any = steps[i + 1]
    after: Steps = []
    for step in steps[i + 2 :]:
        if not isinstance(step, (nn.LeakyReLU, nn.ReLU)) and not (not after and is_convolution(step, 1)):
            break
        after.append(step)
    kernels = [convolution(k, layer.bias, 0, layer.groups) for k in four_kernels(layer.weight)]
    return 2 + len(after), [Phases(kernels, after)]


def depthwise_transposed(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Computes upsampling and a depthwise convolution as one transposed convolution."""
    if not is_upsampled(steps, i, 3, depthwise=True):
        return None
    layer: Any = steps[i + 1]
    return 2, [_transposed(four_by_four(layer.weight), layer.bias, layer.groups)]


# ----------------------------------------------------------------------------
# A 1 x 1 convolution (an RGB head of a fade, a shortcut) before the upsampling: a quarter of the work.


def pointwise_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Puts a 1 x 1 convolution before the upsampling: a quarter of its pixels or less."""
    replicates = isinstance(steps[i], nn.Upsample) and steps[i].mode == "nearest"  # any factor
    if replicates and i + 1 < len(steps) and is_convolution(steps[i + 1], 1):
        return 2, [steps[i + 1], steps[i]]
    return None
