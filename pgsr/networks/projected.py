"""A critic on frozen pretrained features (Sauer et al. 2021, "Projected GANs Converge Faster").

Images are enlarged to a fixed side, a frozen network gives features at four scales, frozen random
convolutions mix them across channels and then from coarse to fine (section 3.2 there), and each scale has a
small critic with spectral normalisation (Miyato et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import check_choice

from .efficientnet import PYRAMID_CHANNELS, EfficientNetLite0, load_lite0
from .interfaces import Discriminator
from .precision import at_least_float32, full_precision

FEATURES: dict[str, Callable[[], EfficientNetLite0]] = {"lite0": load_lite0}
SLOPE = 0.2  # of the leaky ReLU
FIRST_STEPS = 15  # of the power iteration, before training


class SpectralConv(nn.Module):
    """A 3 x 3 convolution over an estimate of its largest singular value: [N, C, H, W] -> [N, D, H', W'].

    One step of the power iteration is made at each training forward; its vector is part of the state.
    """

    u: Tensor

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / math.sqrt(9 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))
        self.stride = stride
        for _ in range(FIRST_STEPS):
            self.u = self.singular_vectors()[0]

    @torch.no_grad()
    def singular_vectors(self) -> tuple[Tensor, Tensor]:
        """The left and right vectors after one more step of the power iteration: [D], [9 C]."""
        matrix = self.weight.flatten(1)
        v = F.normalize(self.u @ matrix, dim=0)
        return F.normalize(matrix @ v, dim=0), v

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.singular_vectors()
        if self.training:
            self.u.copy_(u)
        norm = u @ self.weight.flatten(1) @ v
        return F.conv2d(x, self.weight / norm, self.bias, stride=self.stride, padding=1)


class ScaleCritic(nn.Module):
    """Features of one scale to logits by place: [N, C, S, S] -> [N, P]; halved to a side of 3 at most."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        while side > 3:
            self.layers.append(SpectralConv(channels, channels, 2))
            side = -(-side // 2)
        self.last = SpectralConv(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.last(x).flatten(1)


class ProjectedDiscriminator(Discriminator):
    """Images [N, 3, r, r] of any size -> logits [N * P]: P places of four scales for each image, in a row.

    The objective takes the mean over them, so that every place is a critic of its own.
    """

    def __init__(
        self,
        features: str = "lite0",  # the frozen network
        side: int = 96,  # images are enlarged or reduced to it
        channels: int = 48,  # of every scale after mixing
    ) -> None:
        super().__init__()
        check_choice("features", features, FEATURES)
        self.side = side
        self.network = FEATURES[features]()
        self.frozen_digest = self.network.digest
        for i, inputs in enumerate(PYRAMID_CHANNELS):
            self.register_buffer(f"across_channels_{i}", _random_weight(channels, inputs, 1))
            self.register_buffer(f"across_scales_{i}", _random_weight(channels, channels, 3))
        sides = [-(-side // stride) for stride in (4, 8, 16, 32)]
        self.critics = nn.ModuleList(ScaleCritic(channels, s) for s in sides)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N * P]; what is trained here is computed in float32 at least."""
        shape = (self.side, self.side)
        if tuple(images.shape[2:]) != shape:
            images = F.interpolate(images, shape, mode="bilinear", align_corners=False, antialias=False)
        mixed = self.mixed(self.network.pyramid(images))
        with full_precision(images.device):
            logits = [critic(at_least_float32(x)) for critic, x in zip(self.critics, mixed, strict=True)]
        return torch.cat(logits, dim=1).flatten()

    def mixed(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Cross-channel, then cross-scale mixing: the coarsest scale goes into all finer ones."""
        result: list[Tensor] = []
        for i in reversed(range(len(pyramid))):
            x = F.conv2d(pyramid[i], self.get_buffer(f"across_channels_{i}"))
            if result:
                x = x + F.interpolate(result[0], x.shape[2:], mode="bilinear", align_corners=False)
            result.insert(0, F.conv2d(x, self.get_buffer(f"across_scales_{i}"), padding=1))
        return result


def _random_weight(outputs: int, inputs: int, size: int) -> Tensor:
    """Weights of a convolution that is never trained, of unit gain (He et al. 2015, for a linear layer)."""
    return torch.randn(outputs, inputs, size, size) / math.sqrt(inputs * size * size)
