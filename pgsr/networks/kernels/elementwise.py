"""Activation and normalisation whose gradients read memory fewer times; used where gradients are taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class LeakyReLU(torch.autograd.Function):
    """Keeps its result, which the next layer keeps anyway, in place of its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        y = F.leaky_relu(x, slope)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return _gradient(gradients[0], y, ctx.slope), None


class LeakyReLUGradient(torch.autograd.Function):
    """Linear in the gradient and constant in the activation: no zeros are sent back for its curvature."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.slope = slope
        result: Tensor = torch.ops.aten.leaky_relu_backward(gradient, y, slope, True)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return _gradient(gradients[0], y, ctx.slope), None, None


class PixelNorm(torch.autograd.Function):
    """y = x r with r = (mean x**2 + eps)**-1/2 over dimension 1; dx = r (g - y mean(g y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        inverse = _inverse(x, eps)
        ctx.save_for_backward(x)
        ctx.inverse, ctx.eps = inverse, eps
        return x * inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        twice = torch.is_grad_enabled()  # then the result is differentiated again, and all must be recorded
        inverse = _inverse(x, ctx.eps) if twice else ctx.inverse
        y = x * inverse
        along = (gradient * y).mean(dim=1, keepdim=True)
        if twice:
            return (gradient - y * along) * inverse, None
        return torch.addcmul(gradient, y, along, value=-1.0).mul_(inverse), None


def _inverse(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


# ----------------------------------------------------------------------------
# As functions.


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Computes the leaky ReLU, whose gradients keep its result alone."""
    result: Tensor = LeakyReLU.apply(x, slope)  # type: ignore[no-untyped-call]
    return result


def pixel_norm(x: Tensor, eps: float) -> Tensor:
    """Computes the pixelwise normalisation, with x in float32 at least."""
    result: Tensor = PixelNorm.apply(x, eps)  # type: ignore[no-untyped-call]
    return result


def _gradient(gradient: Tensor, y: Tensor, slope: float) -> Tensor:
    result: Tensor = LeakyReLUGradient.apply(gradient, y, slope)  # type: ignore[no-untyped-call]
    return result
