"""The networks that paper 3 compares (its section 4): three generators from 16 x 16 to 64 x 64, the critics
they are trained against, and the generator from noise of its figure 5.

Each has batch normalisation or none and one activation throughout. What the paper leaves open is as in its
published sources: 5 x 5 kernels of stride 2, widths that double as the side halves, tanh at the end of
generators, no normalisation next to images, layer normalisation in critics under a gradient penalty.
`features` is the width beside images, 64 there; dense layers have 8 times as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError, check_choice

from .began import uniform
from .interfaces import Discriminator, Generator
from .layers import upsample
from .srgan import features_at_depth

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
NORMS = ("batch", "layer", "none")


# ----------------------------------------------------------------------------
# Layers and their initial weights: normal, of He's variance for the activation that follows. As in the
# sources, generators begin near grey (their last layer has deviation 0.02) and residual blocks near their
# shortcut (variance 1e-3 of He's): otherwise tanh begins saturated, and learns nothing for long.

LAST_DEVIATION = 0.02
RESIDUAL_SCALE = math.sqrt(1e-3)


def near_grey(layer: nn.Module) -> nn.Module:
    """Gives a generator's last layer small weights, so that its images begin near grey."""
    assert isinstance(layer.weight, Tensor)
    nn.init.normal_(layer.weight, 0.0, LAST_DEVIATION)
    return layer


def activation_of(kind: str) -> nn.Module:
    """Makes the activation of a name. Raises PgsrError for an unknown one."""
    check_choice("activation", kind, ACTIVATIONS)
    return ACTIVATIONS[kind]()


def initialised(layer: nn.Module, fan_in: int, activation: str) -> nn.Module:
    """The layer with weights of standard deviation gain / sqrt(fan_in) and no bias."""
    check_choice("activation", activation, ("linear", *ACTIVATIONS))
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    nn.init.normal_(layer.weight, 0.0, nn.init.calculate_gain(activation) / math.sqrt(fan_in))  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)
    return layer


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, activation: str = "linear"
) -> nn.Module:
    """[N, in, H, W] -> [N, out, H / stride, W / stride]; odd kernels."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return initialised(layer, inputs * kernel**2, activation)


def deconvolution(inputs: int, outputs: int, kernel: int, activation: str = "linear") -> nn.Module:
    """[N, in, H, W] -> [N, out, 2H, 2W]: a transposed convolution of stride 2, odd kernels."""
    layer = nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2, output_padding=1)
    return initialised(layer, inputs * kernel**2 // 4, activation)  # an output sees a quarter of the kernel


def dense(inputs: int, outputs: int, activation: str = "linear") -> nn.Module:
    """Makes a fully connected layer with the initial weights of its activation."""
    return initialised(nn.Linear(inputs, outputs), inputs, activation)


def normed(layer: nn.Module, norm: str, activation: str) -> list[nn.Module]:
    """The layer, its normalisation if any, its activation."""
    check_choice("norm", norm, NORMS)
    nonlinearity = activation_of(activation)
    if norm == "none":
        return [layer, nonlinearity]
    flat = isinstance(layer, nn.Linear)
    maps = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert isinstance(maps, int)
    if norm == "layer":  # over all maps and places of one image, with a scale and a shift for each map
        return [layer, nn.GroupNorm(1, maps), nonlinearity]
    return [layer, nn.BatchNorm1d(maps) if flat else nn.BatchNorm2d(maps), nonlinearity]


def _batch(batch_norm: bool) -> str:
    return "batch" if batch_norm else "none"


def _require_scale(scale: int) -> None:
    if scale != 4:
        raise PgsrError(f"scale {scale} is not 4, the only one of paper 3's networks")


# ----------------------------------------------------------------------------
# Generators.


class DCGANUpscaler(Generator):
    """2 convolutions halve 16 x 16 to 4 x 4, 4 deconvolutions double it to 64 x 64 (paper 3, section 4)."""

    def __init__(
        self,
        scale: int = 4,
        input_size: int = 16,  # side of the images it takes, a multiple of 4
        features: int = 64,
        kernel_size: int = 5,
        batch_norm: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _require_scale(scale)
        if input_size % 4 or input_size < 4:
            raise PgsrError(f"input_size {input_size} is not a multiple of 4")
        self.scale, self.input_size = scale, input_size
        norm, f = _batch(batch_norm), features
        self.layers = nn.Sequential(
            *normed(convolution(3, 4 * f, kernel_size, 2, activation), norm, activation),  # 8 x 8
            *normed(convolution(4 * f, 8 * f, kernel_size, 2, activation), norm, activation),  # 4 x 4
            *_deconvolutions(f, kernel_size, norm, activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _deconvolutions(features: int, kernel: int, norm: str, activation: str) -> list[nn.Module]:
    """[N, 8 features, 4, 4] -> [N, 3, 64, 64] in [-1, 1], by four deconvolutions."""
    steps: list[nn.Module] = []
    for factor in (8, 4, 2):
        layer = deconvolution(factor * features, factor * features // 2, kernel, activation)
        steps += normed(layer, norm, activation)
    return [*steps, near_grey(deconvolution(features, 3, kernel)), nn.Tanh()]


class ShortcutBlock(nn.Module):
    """conv, norm, activation, conv, norm, plus the input: [N, C, H, W] -> [N, C', H, W].

    Where the number of maps changes the input goes through a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, activation: str) -> None:
        super().__init__()
        first = normed(convolution(inputs, outputs, 3, 1, activation), norm, activation)
        second = normed(convolution(outputs, outputs, 3), norm, activation)[:-1]
        scaled = second[-1]  # the norm, which hides its layer's scale, or the layer
        assert isinstance(scaled.weight, Tensor)
        scaled.weight.data.mul_(RESIDUAL_SCALE)
        self.body = nn.Sequential(*first, *second)
        self.shortcut = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class ResNetUpscaler(Generator):
    """3 residual blocks, at 16 x 16, 32 x 32 and 64 x 64, then 3 convolutions (paper 3, section 4).

    Between blocks each pixel is replicated 2 x 2. Takes images of any size.
    """

    def __init__(
        self,
        scale: int = 4,
        features: int = 64,
        batch_norm: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _require_scale(scale)
        self.scale = scale
        widths = (3, 4 * features, 2 * features, features)
        norm = _batch(batch_norm)
        self.blocks = nn.ModuleList(
            [ShortcutBlock(widths[i], widths[i + 1], norm, activation) for i in range(3)]
        )
        self.tail = nn.Sequential(
            convolution(features, features, 3, 1, activation),
            activation_of(activation),
            convolution(features, features, 1, 1, activation),
            activation_of(activation),
            near_grey(convolution(features, 3, 1)),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(upsample(x) if i else x)
        return self.tail(x)


class MLPUpscaler(Generator):
    """4 dense layers from all pixels to all pixels (paper 3, section 4)."""

    def __init__(
        self,
        scale: int = 4,
        input_size: int = 16,  # side of the images it takes
        features: int = 64,
        batch_norm: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.scale, self.input_size, self.side = scale, input_size, scale * input_size
        widths = (3 * input_size**2, *[8 * features] * 3)
        self.layers = nn.Sequential(
            *_dense_layers(widths, _batch(batch_norm), activation),
            near_grey(dense(8 * features, 3 * self.side**2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x.flatten(1))).view(-1, 3, self.side, self.side)


def _dense_layers(widths: Sequence[int], norm: str, activation: str) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        steps += normed(dense(inputs, outputs, activation), norm, activation)
    return steps


class DCGANGenerator(Generator):
    """Noise -> 64 x 64: a dense layer to 4 x 4, then 4 deconvolutions (paper 3, figure 5)."""

    def __init__(
        self,
        resolution: int = 64,
        latent_size: int = 128,
        features: int = 64,
        kernel_size: int = 5,
        batch_norm: bool = True,
        activation: str = "relu",
        latents: str = "normal",  # or "uniform" on [0, 1) (paper 5, its WGAN listing)
    ) -> None:
        super().__init__()
        check_choice("latents", latents, ("normal", "uniform"))
        self.uniform = latents == "uniform"
        if resolution != 64:
            raise PgsrError(f"resolution {resolution} is not 64, the only one of paper 3's networks")
        norm = _batch(batch_norm)
        first = dense(latent_size, 8 * features * 16, activation)
        reshaped = nn.Unflatten(1, (8 * features, 4, 4))
        after = [nn.BatchNorm2d(8 * features)] if batch_norm else []
        self.layers = nn.Sequential(
            first,
            reshaped,
            *after,
            activation_of(activation),
            *_deconvolutions(features, kernel_size, norm, activation),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """[N, latent_size], standard normal -> [N, 3, 64, 64]. Uniform ones are made here, so that every
        bundle takes the same latents and truncation, videos and files of latents mean the same."""
        return self.layers((uniform(latents) + 1) / 2 if self.uniform else latents)


# ----------------------------------------------------------------------------
# Critics: [N, 3, crop, crop] -> [N].


class CNNDiscriminator(Discriminator):
    """4 convolutions of stride 2 and a dense layer (paper 3, section 4)."""

    depth = 4

    def __init__(
        self,
        crop: int = 64,  # side of the images, a multiple of 16
        features: int = 64,
        kernel_size: int = 5,
        norm: str = "batch",  # "layer" under a gradient penalty, which is of single images; or "none"
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if crop % 16:
            raise PgsrError(f"crop {crop} is not a multiple of 16")
        steps = [convolution(3, features, kernel_size, 2, activation), activation_of(activation)]
        for factor in (1, 2, 4):
            layer = convolution(factor * features, 2 * factor * features, kernel_size, 2, activation)
            steps += normed(layer, norm, activation)
        self.convolutions = nn.Sequential(*steps)
        self.score = dense(8 * features * (crop // 16) ** 2, 1)

    def features(self, x: Tensor, depth: int = depth) -> Tensor:
        """[N, 3, crop, crop] -> [N, C, H, W]: the activations after convolution `depth`, counted from 1."""
        return features_at_depth(self.convolutions, depth, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.convolutions(x).flatten(1)).squeeze(1)


class MLPDiscriminator(Discriminator):
    """4 dense layers (paper 3, section 4)."""

    def __init__(
        self,
        crop: int = 64,  # side of the images
        features: int = 64,
        norm: str = "batch",  # as of the CNN
        activation: str = "relu",
    ) -> None:
        super().__init__()
        wide = 8 * features
        first = [dense(3 * crop**2, wide, activation), activation_of(activation)]
        self.layers = nn.Sequential(
            *first, *_dense_layers((wide, wide, wide), norm, activation), dense(wide, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1)).squeeze(1)
