"""Rewrites of wide convolutions into fewer products: sums of maps first, so that fewer are multiplied.

They trade a third to a half of the multiply-adds for passes of additions over the maps, which pays where the
maps are many (LEAST_MAPS).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..lowering import BlocksFirstShuffle, Crop, DividingNorm, Phases, PixelNorm, Steps
from .rules import convolution
from .upsampling import is_convolution, is_upsampled

LEAST_MAPS = 256  # on either side: at 128 the additions take what is saved


def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1 x 1 convolution of [O, I]."""
    return convolution(weight[:, :, None, None], bias, 0)


def _is_wide(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) >= LEAST_MAPS


# ----------------------------------------------------------------------------
# Nearest upsampling and a 3 x 3 convolution. In one dimension, with weights (u, v, w) whose sum is s, and
# d(i) = x(i - 1) - x(i): the first pixel of x(i) is u x(i - 1) + (v + w) x(i) = s x(i) + u d(i), the second
# (u + v) x(i) + w x(i + 1) = s x(i) - w d(i + 1). Three products for two pixels: nine for four, not sixteen.


def _three(weight: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of three taps, the first and the last."""
    return weight.sum(axis), weight.select(axis, 0), weight.select(axis, 2)


class NineProducts(nn.Module):
    """Upsampling and a 3 x 3 convolution: [N, C, H, W] -> [N, C', 2H, 2W]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rows = [_three(kernel, 2) for kernel in _three(weight, 2)]  # [of rows][of columns]
        self.here = _pointwise(rows[0][0], bias)
        self.right = nn.ModuleList(_pointwise(rows[0][column]) for column in (1, 2))
        self.down = nn.ModuleList(_pointwise(rows[row][0]) for row in (1, 2))
        self.both = nn.ModuleList(_pointwise(rows[row][column]) for row in (1, 2) for column in (1, 2))
        self.shuffle = BlocksFirstShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        right, down = _differences(x, 3), _differences(x, 2)
        both = _differences(down, 3)
        here = self.here(x)
        columns = [_from(conv(right), 3, b) for b, conv in enumerate(self.right)]
        rows = [_from(conv(down), 2, a) for a, conv in enumerate(self.down)]
        places = []
        for place, conv in enumerate(self.both):
            a, b = divmod(place, 2)
            corner = _from(_from(conv(both), 2, a), 3, b)
            y = here - columns[b] if b else here + columns[b]
            y = y - rows[a] if a else y + rows[a]
            places.append(y - corner if a != b else y + corner)
        return self.shuffle(torch.cat(places, dim=1))


def _differences(x: Tensor, axis: int) -> Tensor:
    """x(i - 1) - x(i) along an axis, from the first to one behind the last; 0 surrounds x."""
    before, behind = ((0, 0, 1, 0), (0, 0, 0, 1)) if axis == 2 else ((1, 0), (0, 1))
    return F.pad(x, before) - F.pad(x, behind)


def _from(x: Tensor, axis: int, start: int) -> Tensor:
    """All but the last along an axis, or all but the first."""
    kept = slice(1, None) if start else slice(None, -1)
    return x[:, :, kept] if axis == 2 else x[:, :, :, kept]


def upsampled_nine(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Computes nearest upsampling and a wide 3 x 3 convolution by nine products a low pixel."""
    if not is_upsampled(steps, i, 3) or not _is_wide(steps[i + 1]):
        return None
    layer: Any = steps[i + 1]
    return 2, [NineProducts(layer.weight, layer.bias)]


# ----------------------------------------------------------------------------
# Winograd's minimal filtering, F(2 x 2, 3 x 3) (Lavin and Gray 2016, section 4.1): 2 x 2 pixels by 16
# products of sums of 4 x 4 inputs, not 36. G, B and A are the paper's.


class Winograd(nn.Module):
    """A 3 x 3 convolution of maps with even sides: [N, C, H, W] -> [N, C', H, W]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        kernel = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
        products = torch.einsum("ka,oiab,lb->kloi", kernel, weight, kernel).flatten(0, 1)
        # The product (1, 1) is part of every pixel with a weight of 1, and so is its bias.
        biases = [bias if place == 5 else None for place in range(16)]
        self.products = nn.ModuleList(_pointwise(w, b) for w, b in zip(products, biases, strict=True))
        self.shuffle = BlocksFirstShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        places = _places(x)
        halves = [_four(places[b], places[2 + b], 2) for b in (0, 1)]  # sums of rows, of either column
        tiles = [tile for k in range(4) for tile in _four(halves[0][k], halves[1][k], 3)]
        made = [product(tile) for product, tile in zip(self.products, tiles, strict=True)]
        columns = [_two([made[4 * k + j] for k in range(4)]) for j in range(4)]
        results = [_two([columns[j][a] for j in range(4)]) for a in (0, 1)]
        return self.shuffle(torch.cat([*results[0], *results[1]], dim=1))


def _places(x: Tensor) -> list[Tensor]:
    """[N, C, 2H, 2W] -> [N, C, H, W] of each place among 2 x 2."""
    if torch.onnx.is_in_onnx_export():
        n, maps, height, width = x.shape
        shape = (n, 4 * maps, height // 2, width // 2)
        how: Any = {"blocksize": 2}
        low = torch.onnx.ops.symbolic("SpaceToDepth", (x,), how, dtype=x.dtype, shape=shape)
        return list(low.split(maps, dim=1))
    return [x[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)]


def _four(first: Tensor, second: Tensor, axis: int) -> list[Tensor]:
    """B's sums of a tile's four rows (or columns): the second's before, first, second, the first's behind."""
    before = _from(_differences(second, axis), axis, 0)
    behind = _from(_differences(first, axis), axis, 1)
    return [before, first + second, second - first, behind]


def _two(products: list[Tensor]) -> list[Tensor]:
    """A's sums: two rows (or columns) of the result."""
    a, b, c, d = products
    return [a + b + c, b - c - d]


EACH_PIXEL = (nn.LeakyReLU, nn.ReLU, PixelNorm, DividingNorm)
EVEN_SIDES = (Crop, Phases, NineProducts, Winograd)  # Crop stands behind a shuffle by 2


def winograd(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A wide 3 x 3 convolution of maps that were doubled before, so that their sides are even."""
    layer: Any = steps[i]
    if not is_convolution(layer, 3) or not _is_wide(layer):
        return None
    above = i - 1
    while above >= 0 and isinstance(steps[above], EACH_PIXEL):
        above -= 1
    if above < 0 or not _is_even(steps[above]):
        return None
    return 1, [Winograd(layer.weight, layer.bias)]


def _is_even(step: Any) -> bool:
    """Whether what a step makes has even sides: what was doubled."""
    if isinstance(step, nn.Upsample):
        return step.scale_factor in (2.0, 4.0, 8.0)
    return isinstance(step, EVEN_SIDES)
