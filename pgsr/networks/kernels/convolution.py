"""Stride-1 convolutions whose gradients, and gradients of gradients, are themselves fast convolutions.

A convolution is bilinear in images and weights, so three maps are closed under differentiation: images by
weights, images by flipped weights (the transposed convolution) and the weights' gradient. Each is written
here once, as a Function whose backward calls the others; WGAN-GP differentiates twice, where PyTorch's own
second derivative runs a grouped convolution group by group and a vanilla one with kernels as large as the
image.

Where channels are many, a 3 x 3 convolution is computed in Winograd's form F(4 x 4, 3 x 3): 36 products for
16 outputs in place of 144 (Lavin & Gray 2016). Its error in float32 is three times the direct form's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# ----------------------------------------------------------------------------
# The three maps, by kind of convolution.


class Depthwise:
    """k x k, each map by itself: weights [C, 1, k, k]."""

    @staticmethod
    def output(x: Tensor, weight: Tensor, padding: int, transposed: bool) -> Tensor:
        if transposed:
            weight, padding = weight.flip(2, 3), weight.shape[-1] - 1 - padding
        return F.conv2d(x, weight, padding=padding, groups=x.shape[1])

    @staticmethod
    def weight_gradient(x: Tensor, gradient: Tensor, padding: int, size: int) -> Tensor:
        shape = [x.shape[1], 1, size, size]
        return _library_weight_gradient(x, gradient, shape, padding, groups=x.shape[1])


class Vanilla:
    """k x k over all maps: weights [out, in, k, k]."""

    @staticmethod
    def output(x: Tensor, weight: Tensor, padding: int, transposed: bool) -> Tensor:
        if transposed:
            return F.conv_transpose2d(x, weight, padding=padding)
        return F.conv2d(x, weight, padding=padding)

    @staticmethod
    def weight_gradient(x: Tensor, gradient: Tensor, padding: int, size: int) -> Tensor:
        shape = [gradient.shape[1], x.shape[1], size, size]
        return _library_weight_gradient(x, gradient, shape, padding, groups=1)


def _library_weight_gradient(
    x: Tensor, gradient: Tensor, shape: list[int], padding: int, groups: int
) -> Tensor:
    like = x.new_empty(1).expand(shape)
    pair, none = [1, 1], [0, 0]
    result = torch.ops.aten.convolution_backward(
        gradient, x, like, None, pair, [padding, padding], pair, False, none, groups, [False, True, False]
    )
    return result[1]


# Winograd's F(4, 3) with the points 0, 1, -1, 2, -2 and infinity: y = A^T [(G g) * (B^T d)], and in two
# dimensions its Kronecker square.
_BT: list[list[float]] = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G: list[list[float]] = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_AT: list[list[float]] = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _squared(matrix: Sequence[Sequence[float]]) -> Tensor:
    wide = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(wide, wide)


BT, G, AT = _squared(_BT), _squared(_G), _squared(_AT)  # [36, 36], [36, 9], [16, 36]
CHUNK = 12 * 2**20  # bytes of transformed tiles at a time: what stays in the cache


class Winograd:
    """3 x 3, padding 1, sides multiples of 4; images in channels-last order."""

    @staticmethod
    def output(x: Tensor, weight: Tensor, padding: int, transposed: bool) -> Tensor:
        n, c, h, w = x.shape
        if transposed:
            weight = weight.flip(2, 3).transpose(0, 1)
        maps = weight.shape[0]
        bank = (G.to(x) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, c, maps)
        result = torch.empty((n, maps, h, w), dtype=x.dtype, memory_format=torch.channels_last)
        outwards = AT.to(x)
        for part, into in zip(_parts(x, x), _parts(result, x), strict=True):
            places = into.permute(0, 2, 3, 1).view(-1, h // 4, 4, w // 4, 4, maps)
            products = torch.bmm(_tiles(part), bank).view(36, -1)
            blocks = (outwards @ products).view(4, 4, len(part), h // 4, w // 4, maps)
            places.copy_(blocks.permute(2, 3, 0, 4, 1, 5))
        return result

    @staticmethod
    def weight_gradient(x: Tensor, gradient: Tensor, padding: int, size: int) -> Tensor:
        c, maps = x.shape[1], gradient.shape[1]
        inwards = AT.to(x).t()
        bank = torch.zeros((36, c, maps), dtype=x.dtype)
        for part, slopes in zip(_parts(x, x), _parts(gradient, x), strict=True):
            spread = (inwards @ _blocks(slopes)).view(36, -1, maps)
            bank.baddbmm_(_tiles(part).transpose(1, 2), spread)
        weight = (G.to(x).t() @ bank.view(36, -1)).view(3, 3, c, maps)
        return weight.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _parts(images: Tensor, x: Tensor) -> Sequence[Tensor]:
    """The images, so many at a time that the tiles of as many of `x` fill a chunk."""
    tiles = x[0].numel() * x.element_size() * 36 // 16
    return torch.split(images, max(1, CHUNK // tiles))


def _tiles(x: Tensor) -> Tensor:
    """Overlapping 6 x 6 tiles, transformed: [N, C, H, W] -> [36, N H/4 W/4, C]."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4)  # [N, H/4, W/4, C, 6, 6]
    return (BT.to(x) @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)).view(36, -1, x.shape[1])


def _blocks(x: Tensor) -> Tensor:
    """4 x 4 blocks side by side: [N, C, H, W] -> [16, N H/4 W/4 C]."""
    n, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, h // 4, 4, w // 4, 4, c)
    return blocks.permute(2, 4, 0, 1, 3, 5).reshape(16, -1)


Kind = type[Depthwise] | type[Vanilla] | type[Winograd]

# ----------------------------------------------------------------------------
# Their derivatives.


class Convolve(torch.autograd.Function):
    """(images, weights) -> images; with `transposed`, the transposed convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kind: Kind, padding: int, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = kind, padding, transposed
        return kind.output(x, weight, padding, transposed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        kind, padding, transposed = ctx.options
        along, across = None, None
        if ctx.needs_input_grad[0]:
            along = _convolve(gradient, weight, kind, padding, not transposed)
        if ctx.needs_input_grad[1]:
            one, other = (gradient, x) if transposed else (x, gradient)
            across = _weight_gradient(one, other, kind, padding, weight.shape[-1])
        return along, across, None, None, None


class WeightGradient(torch.autograd.Function):
    """(images, gradients at the output) -> gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, kind: Kind, padding: int, size: int) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.options = kind, padding
        return kind.weight_gradient(x, gradient, padding, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = gradients
        x, gradient = ctx.saved_tensors
        kind, padding = ctx.options
        along, across = None, None
        if ctx.needs_input_grad[0]:
            along = _convolve(gradient, weight, kind, padding, True)
        if ctx.needs_input_grad[1]:
            across = _convolve(x, weight, kind, padding, False)
        return along, across, None, None, None


def _convolve(x: Tensor, weight: Tensor, kind: Kind, padding: int, transposed: bool) -> Tensor:
    result: Tensor = Convolve.apply(x, weight, kind, padding, transposed)  # type: ignore[no-untyped-call]
    return result


def _weight_gradient(x: Tensor, gradient: Tensor, kind: Kind, padding: int, size: int) -> Tensor:
    result: Tensor = WeightGradient.apply(x, gradient, kind, padding, size)  # type: ignore[no-untyped-call]
    return result


# ----------------------------------------------------------------------------
# What layers call while they train.


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A stride-1 convolution, vanilla or depthwise (weights [C, 1, k, k]): [N, C, H, W] -> [N, D, H', W']."""
    kind: Kind = Vanilla
    if weight.shape[1] == 1 and x.shape[1] == weight.shape[0]:
        kind = Depthwise
    elif weight.shape[-1] == 1 and padding == 0:
        return pointwise(x, weight, bias)
    elif winograd_wins(x, weight, padding):
        kind = Winograd
    if _autocasts(x):
        precision = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(precision), weight.to(precision)
        with torch.autocast(x.device.type, enabled=False):
            result = _convolve(x, weight, kind, padding, False)
    else:
        result = _convolve(x, weight, kind, padding, False)
    return result if bias is None else result.add_(bias.to(result.dtype).view(1, -1, 1, 1))


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1 x 1 as a matrix product: without a copy where images are in channels-last order."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def winograd_wins(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Returns whether Winograd's form is faster: on the CPU in float32, with many channels and sides of 16 or
    more."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or _autocasts(x):
        return False
    fits = weight.shape[-1] == 3 and padding == 1 and x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0
    large = min(weight.shape[:2]) >= 96 and min(x.shape[2:]) >= 16
    return fits and large and math.prod(x.shape[2:]) * x.shape[0] >= 1024


def _autocasts(x: Tensor) -> bool:
    return x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)
