"""SRResNet, SRGAN's discriminator (Ledig et al. 2017; papers 1 and 3) and a light upscaler.

Low-resolution images [N, 3, H, W] in [-1, 1] -> [N, 3, sH, sW] around [-1, 1]; s is 2, 4 or 8.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError, check_choice

from .interfaces import Discriminator, Generator
from .layers import LRELU_SLOPE


def convolution_of(kind: str, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """A k x k convolution that keeps the size (divided by the stride), vanilla or separable (paper 1)."""
    check_choice("convolution", kind, ("vanilla", "separable"))
    padding = kernel_size // 2
    if kind == "vanilla":
        return nn.Conv2d(inputs, outputs, kernel_size, stride, padding)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel_size, stride, padding, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1),
    )


def features_at_depth(layers: nn.Sequential, depth: int, x: Tensor) -> Tensor:
    """`x` after the first `depth` convolutions and all that follows each."""
    count = 0
    for layer in layers:
        count += isinstance(layer, (nn.Conv2d, nn.Sequential))  # vanilla or separable
        if count > depth:
            break
        x = layer(x)
    return x


def doublings(scale: int) -> int:
    """Returns how many times a scale doubles. Raises PgsrError unless it is 2, 4 or 8."""
    if scale not in (2, 4, 8):
        raise PgsrError(f"scale {scale} is not 2, 4 or 8")
    return int(math.log2(scale))


class ResidualBlock(nn.Module):
    """conv, BN, PReLU, conv, BN, skip: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, maps: int, convolution: str) -> None:
        super().__init__()
        self.conv1 = convolution_of(convolution, maps, maps, 3)
        self.bn1 = nn.BatchNorm2d(maps)
        self.prelu = nn.PReLU()
        self.conv2 = convolution_of(convolution, maps, maps, 3)
        self.bn2 = nn.BatchNorm2d(maps)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class SRResNet(Generator):
    """SRGAN's generator: k9n64, 16 residual blocks, long skip, sub-pixel upsampling, k9n3."""

    def __init__(
        self,
        scale: int = 4,
        features: int = 64,  # n64
        blocks: int = 16,  # B
        convolution: str = "vanilla",  # or "separable" (paper 1)
        unit_inputs: bool = False,  # the first layer sees [0, 1], so that borders are padded with black
    ) -> None:
        super().__init__()
        self.scale, self.unit_inputs = scale, unit_inputs
        self.head = convolution_of(convolution, 3, features, 9)
        self.head_prelu = nn.PReLU()
        self.blocks = nn.Sequential(*[ResidualBlock(features, convolution) for _ in range(blocks)])
        self.trunk = convolution_of(convolution, features, features, 3)
        self.trunk_bn = nn.BatchNorm2d(features)
        steps: list[nn.Module] = []
        for _ in range(doublings(scale)):
            steps += [
                convolution_of(convolution, features, 4 * features, 3),
                nn.PixelShuffle(2),  # [N, 4C, H, W] -> [N, C, 2H, 2W]
                nn.PReLU(),
            ]
        self.upsampling = nn.Sequential(*steps)
        self.tail = convolution_of(convolution, features, 3, 9)

    def forward(self, x: Tensor) -> Tensor:
        head = self.head_prelu(self.head((x + 1) / 2 if self.unit_inputs else x))
        trunk = head + self.trunk_bn(self.trunk(self.blocks(head)))
        return self.tail(self.upsampling(trunk))


class BicubicPhases(nn.Module):
    """Bicubic enlargement (Keys 1981, a = -0.5; borders replicated) before its PixelShuffle.

    [N, 3, H, W] -> [N, 3 s s, H, W]: a 5 x 5 convolution for each place of the s x s output pixels.
    """

    weight: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        taps = torch.tensor([[cubic(t - offset(i, scale)) for t in range(-2, 3)] for i in range(scale)])
        planes = torch.einsum("ik,jl->ijkl", taps, taps).reshape(scale**2, 5, 5)
        weight = torch.zeros(3, scale**2, 3, 5, 5)
        for colour in range(3):
            weight[colour, :, colour] = planes
        self.register_buffer("weight", weight.flatten(0, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), self.weight)


def offset(i: int, scale: int) -> float:
    """Returns where the centre of output pixel i of an input pixel lies, in input pixels from that one's
    centre."""
    return (i + 0.5) / scale - 0.5


def cubic(t: float) -> float:
    """The cubic convolution kernel of Keys (1981), a = -0.5, as photograph software has it."""
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


class NearestPhases(nn.Module):
    """Replication before its PixelShuffle: [N, 3, H, W] -> [N, 3 s s, H, W]."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.copies = scale**2

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.copies, dim=1)


BASES: dict[str, type[nn.Module]] = {"nearest": NearestPhases, "bicubic": BicubicPhases}


class CompactUpscaler(Generator):
    """An upscaler that computes at the low resolution, ends in one PixelShuffle and adds a plain enlargement.

    The layers only learn what the enlargement misses, and the network starts as that enlargement.
    """

    def __init__(
        self,
        scale: int = 4,
        features: int = 32,
        layers: int = 8,  # 3 x 3 layers between the first and the last
        convolution: str = "vanilla",
        base: str = "nearest",  # or "bicubic", which leaves no grid of input pixels to be learnt away
    ) -> None:
        super().__init__()
        doublings(scale)
        check_choice("base", base, BASES)
        self.scale = scale
        self.base = BASES[base](scale)
        widths = [3] + [features] * (layers + 1)
        steps: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            steps += [convolution_of(convolution, inputs, outputs, 3), nn.PReLU(outputs)]
        self.body = nn.Sequential(*steps)
        self.tail = convolution_of(convolution, features, 3 * scale**2, 3)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter) if parameter.dim() == 1 else parameter.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.base(x) + self.tail(self.body(x)), self.scale)


class SRGANDiscriminator(Discriminator):
    """Eight 3 x 3 convolutions 64 -> 512, every second one of stride 2, then dense 1024 and a score.

    [N, 3, crop, crop] -> [N]
    """

    depth = 8

    def __init__(
        self,
        crop: int = 96,  # side of the training images, a multiple of 16
        features: int = 64,  # maps of the first layer; 8 times as many in the last
        dense: int = 1024,
        convolution: str = "vanilla",
        batch_norm: bool = True,  # off where a gradient penalty looks at single images
    ) -> None:
        super().__init__()
        if crop % 16:
            raise PgsrError(f"crop {crop} is not a multiple of 16")
        steps: list[nn.Module] = []
        inputs = 3
        for i, factor in enumerate((1, 1, 2, 2, 4, 4, 8, 8)):
            outputs = features * factor
            steps.append(convolution_of(convolution, inputs, outputs, 3, stride=1 + i % 2))
            if batch_norm and i > 0:
                steps.append(nn.BatchNorm2d(outputs))
            steps.append(nn.LeakyReLU(LRELU_SLOPE))
            inputs = outputs
        self.convolutions = nn.Sequential(*steps)
        self.dense = nn.Linear(inputs * (crop // 16) ** 2, dense)
        self.score = nn.Linear(dense, 1)

    def features(self, x: Tensor, depth: int = depth) -> Tensor:
        """[N, 3, crop, crop] -> [N, C, H, W]: the activations after convolution `depth`, counted from 1."""
        return features_at_depth(self.convolutions, depth, x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolutions(x).flatten(1)
        return self.score(F.leaky_relu(self.dense(x), LRELU_SLOPE)).squeeze(1)
