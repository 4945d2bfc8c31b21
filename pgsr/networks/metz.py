"""The small networks of the test on 1000 modes (Metz et al. 2016; paper 2, appendix E), 28 x 28 pixels.

Paper 2 says of them only that the generator is "fairly low-capacity", that the critics have "~2000" (K/2)
and "~500" (K/4) parameters, and that both use batch normalisation. The layers are those of Metz et al. as
the public code of PacGAN (Lin et al. 2018, experiment "unrolled GAN") builds them too: a latent of 256, a
dense layer to 64 maps of 4 x 4, 3 x 3 transposed convolutions of stride 2 to 32, 16 and 8 maps of 7, 14 and
28, a 3 x 3 convolution and tanh; critics of three 3 x 3 convolutions of stride 2 with 8 K, 16 K and 32 K
maps, leaky ReLU of slope 0.3, and a dense layer. Convolutions before a batch normalisation have no bias,
since it would take that away again; so the critics have 1861 (K/2) and 571 (K/4) parameters. Weights start as
PyTorch's layers do.

`normalization="pixel"` is "our norm" of paper 2's Table 4: equalized learning rate everywhere, pixelwise
normalisation behind the generator's activations, nothing in the critic (1833 and 557 parameters).
`minibatch_stddev` is its next column, one map more before the dense layer (1849 and 573, which is within
0.7% of the first; the paper says 0.5% and not where the layer stands).

The growing ones are the last column, "progression": they begin at 7 x 7 and double twice. What looks at small
images, or makes them, is there while they grow alone: 3 x 3 to RGB, 1 x 1 from RGB, as in the original code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError, check_choice

from .interfaces import Discriminator, Generator, Images
from .layers import (
    EqualizedConv2d,
    EqualizedLinear,
    EqualizedWeight,
    MinibatchStddev,
    downsample,
    fade,
    pixel_norm,
    upsample,
)

SIDE = 28  # pixels, as MNIST's digits have
SLOPE = 0.3  # of the critic's leaky ReLU
NORMALIZATIONS = ("batch", "pixel")
GAIN = math.sqrt(2.0)


class EqualizedStride(EqualizedConv2d):
    """3 x 3 convolution of stride 2: [N, in, H, W] -> [N, out, ceil(H / 2), ceil(W / 2)]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scaled(), self.bias, stride=2, padding=1)


class EqualizedTransposed(EqualizedWeight):
    """3 x 3 transposed convolution of stride 2: [N, in, H, W] -> [N, out, 2H - 1 + extra, ...].

    An output value sums over 9 / 4 of its input maps' values on average.
    """

    def __init__(self, inputs: int, outputs: int, extra: int) -> None:
        super().__init__(inputs, outputs, 3, 3, fan_in=inputs * 9 // 4, gain=GAIN)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.scaled(), self.bias, stride=2, padding=1, output_padding=self.extra)


def _enlarging(inputs: int, outputs: int, extra: int, normalization: str) -> nn.Module:
    if normalization == "pixel":
        return EqualizedTransposed(inputs, outputs, extra)
    layer = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=extra, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def _reducing(inputs: int, outputs: int, normalization: str) -> nn.Module:
    if normalization == "pixel":
        return EqualizedStride(inputs, outputs, 3)
    layer = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class MetzGenerator(Generator):
    """Latents [N, latent_size] -> images [N, 3, 28, 28] in [-1, 1]."""

    def __init__(
        self,
        latent_size: int = 256,
        normalization: str = "batch",  # or "pixel"
    ) -> None:
        super().__init__()
        check_choice("normalization", normalization, NORMALIZATIONS)
        self.latent_size, self.pixel = latent_size, normalization == "pixel"
        self.first: nn.Module
        self.to_rgb: nn.Module
        if self.pixel:
            self.first, self.first_norm = EqualizedLinear(latent_size, 64 * 16), None
            self.to_rgb = EqualizedConv2d(8, 3, 3, gain=1.0)
        else:
            self.first, self.first_norm = nn.Linear(latent_size, 64 * 16, bias=False), nn.BatchNorm2d(64)
            self.to_rgb = nn.Conv2d(8, 3, 3, padding=1)
        widths = ((64, 32, 0), (32, 16, 1), (16, 8, 1))  # to 7, 14, 28
        self.blocks = nn.ModuleList([_enlarging(*width, normalization) for width in widths])

    def _first(self, z: Tensor) -> Tensor:
        """[N, latent_size] -> [N, 64, 4, 4]."""
        x = self.first(z).view(-1, 64, 4, 4)
        if self.first_norm is not None:
            x = self.first_norm(x)
        return self._activated(x)

    def forward(self, z: Tensor) -> Tensor:
        x = self._first(z)
        for block in self.blocks:
            x = self._activated(block(x))
        return torch.tanh(self.to_rgb(x))

    def _activated(self, x: Tensor) -> Tensor:
        return pixel_norm(F.relu(x)) if self.pixel else F.relu(x)


class GrowingMetzGenerator(MetzGenerator):
    """The same, growing from 7 x 7: latents [N, latent_size] -> images [N, 3, r, r]."""

    grows = True
    resolutions = (7, 14, 28)

    def __init__(self, latent_size: int = 256, normalization: str = "pixel") -> None:
        super().__init__(latent_size, normalization)
        self.smaller_to_rgb = nn.ModuleList(
            EqualizedConv2d(m, 3, 3, gain=1.0) if self.pixel else nn.Conv2d(m, 3, 3, padding=1)
            for m in (32, 16)
        )

    def forward(self, z: Tensor, resolution: int = SIDE, alpha: float = 1.0) -> Tensor:
        level = self.resolutions.index(resolution)
        below = x = self._first(z)
        for block in self.blocks[: level + 1]:
            below, x = x, self._activated(block(x))
        to_rgb = [*self.smaller_to_rgb, self.to_rgb]
        image = to_rgb[level](x)
        if alpha < 1.0 and level > 0:
            image = fade(upsample(to_rgb[level - 1](below)), image, alpha)
        return torch.tanh(image)

    def at(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The generator as it is at one stage of training. Raises PgsrError at other resolutions."""
        if resolution not in self.resolutions:
            raise PgsrError(f"metz-growing makes images of 7, 14 and 28, not {resolution}")
        return partial(self, resolution=resolution, alpha=alpha)


class MetzDiscriminator(Discriminator):
    """Images [N, 3, 28, 28] -> scores [N]."""

    def __init__(
        self,
        maps: int = 4,  # of the first layer, 8 K: 4 is the paper's K/2, 2 its K/4
        normalization: str = "batch",  # or "pixel": equalized, without any
        minibatch_stddev: bool = False,
        stddev_group: int = 4,  # images that it is taken over; a batch no larger is one group
    ) -> None:
        super().__init__()
        check_choice("normalization", normalization, NORMALIZATIONS)
        if maps < 1:
            raise PgsrError(f"discriminator.maps is {maps}, but must be at least 1")
        self.stddev = MinibatchStddev(stddev_group) if minibatch_stddev else None
        widths = ((3, maps), (maps, 2 * maps), (2 * maps, 4 * maps))  # to 14, 7, 4
        self.blocks = nn.ModuleList([_reducing(*width, normalization) for width in widths])
        inputs = (4 * maps + minibatch_stddev) * 16
        pixel = normalization == "pixel"
        self.last = EqualizedLinear(inputs, 1, gain=1.0) if pixel else nn.Linear(inputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self._score(images, 0)

    def _score(self, x: Tensor, level: int) -> Tensor:
        """What enters block `level` -> scores [N]."""
        for block in self.blocks[level:]:
            x = F.leaky_relu(block(x), SLOPE)
        if self.stddev is not None:
            x = self.stddev(x)
        return self.last(x.flatten(1)).squeeze(1)  # [N]


class GrowingMetzDiscriminator(MetzDiscriminator):
    """The same, growing from 7 x 7: images [N, 3, r, r] -> scores [N]."""

    def __init__(
        self,
        maps: int = 4,
        normalization: str = "pixel",
        minibatch_stddev: bool = True,
        stddev_group: int = 128,
    ) -> None:
        super().__init__(maps, normalization, minibatch_stddev, stddev_group)
        layer = EqualizedConv2d if normalization == "pixel" else nn.Conv2d
        self.from_rgb = nn.ModuleList(layer(3, m, 1) for m in (maps, 2 * maps))  # of 14, of 7

    def forward(self, images: Tensor, alpha: float = 1.0) -> Tensor:
        level = (SIDE, SIDE // 2, SIDE // 4).index(images.shape[-1])
        x = self._entering(images, level)
        if alpha < 1.0 and level < 2:
            x = F.leaky_relu(self.blocks[level](x), SLOPE)
            level += 1
            x = fade(self._entering(downsample(images), level), x, alpha)
        return self._score(x, level)

    def _entering(self, images: Tensor, level: int) -> Tensor:
        """Images as block `level` takes them; the first takes RGB."""
        return images if level == 0 else F.leaky_relu(self.from_rgb[level - 1](images), SLOPE)

    def at(
        self, resolution: int, alpha: float, objective_state: Mapping[str, Tensor]
    ) -> Callable[[Images], Tensor]:
        """The critic as it is at one stage of training (the images say the resolution)."""
        return partial(self, alpha=alpha)
