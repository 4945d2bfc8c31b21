"""Convolutions and their first and second derivatives against PyTorch's own, in float64 and float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pgsr.networks.kernels import convolution
from pgsr.networks.kernels.convolution import Convolve, Depthwise, Vanilla, Winograd, convolve
from pgsr.networks.kernels.elementwise import LeakyReLU, PixelNorm


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def derivatives(function, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Value, gradients, and gradients of a function of the gradients."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight)
    slope = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    first = torch.autograd.grad((y.square() * slope).sum(), (x, weight), create_graph=True)
    second = torch.autograd.grad(first[0].pow(3).sum() + first[1].square().sum(), (x, weight))
    return [y, *first, *second]


CASES = {
    "depthwise 3x3": (Depthwise, (2, 6, 8, 8), (6, 1, 3, 3), 1),
    "depthwise 4x4": (Depthwise, (2, 6, 4, 4), (6, 1, 4, 4), 0),
    "vanilla 3x3": (Vanilla, (2, 6, 8, 8), (5, 6, 3, 3), 1),
    "vanilla 4x4": (Vanilla, (2, 6, 4, 4), (5, 6, 4, 4), 0),
    "Winograd": (Winograd, (3, 6, 8, 12), (5, 6, 3, 3), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str):
    kind, images, weights, padding = CASES[name]
    x, weight = randn(*images), randn(*weights, seed=1)
    groups = images[1] if kind is Depthwise else 1
    found = derivatives(lambda x, w: Convolve.apply(x, w, kind, padding, False), x, weight)
    expected = derivatives(lambda x, w: F.conv2d(x, w, padding=padding, groups=groups), x, weight)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [Depthwise, Vanilla, Winograd])
def test_turned_is_the_transposed_convolution(kind):
    groups = 4 if kind is Depthwise else 1
    x, weight = randn(2, 4, 8, 8), randn(4, 4 // groups, 3, 3, seed=1)
    expected = F.conv_transpose2d(x, weight, padding=1, groups=groups)
    found = derivatives(lambda x, w: Convolve.apply(x, w, kind, 1, True), x, weight)
    torch.testing.assert_close(found[0], expected)
    theirs = derivatives(lambda x, w: F.conv_transpose2d(x, w, padding=1, groups=groups), x, weight)
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_winograd_in_parts_is_winograd_at_once(monkeypatch: pytest.MonkeyPatch):
    x, weight = randn(5, 8, 16, 16), randn(8, 8, 3, 3, seed=1)
    whole = derivatives(lambda x, w: Convolve.apply(x, w, Winograd, 1, False), x, weight)
    monkeypatch.setattr(convolution, "CHUNK", 2 * 8 * 16 * 16 * 8 * 36 // 16)
    parts = derivatives(lambda x, w: Convolve.apply(x, w, Winograd, 1, False), x, weight)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_winograd_in_float32_errs_little_more_than_the_direct_form():
    x, weight = randn(2, 128, 16, 16), 0.03 * randn(128, 128, 3, 3, seed=1)
    exact = F.conv2d(x, weight, padding=1)

    def error(y: Tensor) -> float:
        return ((y.double() - exact).norm() / exact.norm()).item()

    x32, weight32 = x.float(), weight.float()
    assert convolution.winograd_wins(x32[:1].expand(8, -1, -1, -1), weight32, 1)
    direct = error(F.conv2d(x32, weight32, padding=1))
    fast = error(Winograd.output(x32, weight32, 1, False))
    assert direct < fast < 20 * direct
    assert direct < 1e-6
    assert fast < 1e-5


@pytest.mark.parametrize(
    ("images", "weights", "padding"),
    [
        ((2, 96, 32, 32), (96, 96, 3, 3), 1),  # Winograd
        ((2, 6, 8, 8), (5, 6, 3, 3), 1),
        ((2, 6, 8, 8), (6, 1, 3, 3), 1),
        ((2, 6, 8, 8), (5, 6, 1, 1), 0),
        ((2, 6, 4, 4), (5, 6, 4, 4), 0),
        ((2, 1, 8, 8), (1, 1, 3, 3), 1),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_get_what_the_library_computes(images, weights, padding: int, channels_last: bool):
    x, weight = randn(*images, dtype=torch.float32), 0.03 * randn(*weights, seed=1, dtype=torch.float32)
    bias = randn(weights[0], seed=2, dtype=torch.float32)
    if channels_last:
        x, weight = (v.to(memory_format=torch.channels_last) for v in (x, weight))
    groups = images[1] if weights[1] == 1 and weights[0] == images[1] else 1
    expected = F.conv2d(x, weight, bias, padding=padding, groups=groups)
    weight.requires_grad_()
    found = convolve(x, weight, bias, padding)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    (gradient,) = torch.autograd.grad(
        F.conv2d(x.double(), weight.double(), bias.double(), padding=padding, groups=groups).square().sum(),
        weight,
    )
    assert weight.grad is not None
    assert ((weight.grad - gradient).norm() / gradient.norm()).item() < 1e-5


def test_autocast_reaches_the_convolutions():
    x, weight = randn(2, 6, 8, 8, dtype=torch.float32), randn(6, 1, 3, 3, dtype=torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolve(x, weight, None, 1)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "function", [lambda x: PixelNorm.apply(x, 1e-8), lambda x: LeakyReLU.apply(x, 0.2)], ids=["norm", "relu"]
)
def test_elementwise_derivatives_are_finite_differences(function):
    x = randn(2, 5, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_pixel_norm_gradients_are_those_of_the_formula():
    """Also without a graph for a second derivative, where another form computes them."""
    x, slope = randn(3, 7, 4, 4), randn(3, 7, 4, 4, seed=1)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (PixelNorm.apply(mine, 1e-8) * slope).sum().backward()
    norm = (theirs.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    (theirs / norm * slope).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)
