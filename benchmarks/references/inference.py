"""The pipeline as one would first write it: the measure that everything else is compared with.

Eager PyTorch, NCHW, float32, ordinary modules, straight from the papers, Pillow's default PNG. It shares
no layer with pgsr.networks, so it is a second opinion on what they compute as well; the functions at the
end translate their weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

# ----------------------------------------------------------------------------
# Progressive GAN's generator, fully grown (paper 2, sections 4.1, 4.2, A.1 and Table 2).


class EqualConv2d(nn.Conv2d):
    """Equalized learning rate: the weight is multiplied by He's constant in every call."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, gain: float = math.sqrt(2.0)) -> None:
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2)
        nn.init.normal_(self.weight)
        self.equalizer = gain / math.sqrt(inputs * kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.equalizer, self.bias, padding=self.padding)


class EqualConvTranspose2d(nn.ConvTranspose2d):
    """The 4 x 4 layer of the latent: [N, L, 1, 1] -> [N, C, 4, 4]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 4)
        nn.init.normal_(self.weight)
        self.equalizer = math.sqrt(2.0) / math.sqrt(inputs * 16)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(x, self.weight * self.equalizer, self.bias)


class PixelNorm(nn.Module):
    """Pixelwise feature vector normalisation (paper 2, section 4.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


class PlainGenerator(nn.Module):
    """Latents [N, L] -> images [N, 3, resolution, resolution]."""

    def __init__(
        self,
        resolution: int = 64,
        latent_size: int = 512,
        feature_base: int = 16384,  # Table 2
        feature_max: int = 512,
    ) -> None:
        super().__init__()
        steps = int(math.log2(resolution)) - 1
        maps = [max(1, min(feature_max, feature_base // 2 ** (i + 2))) for i in range(steps)]
        self.first: nn.Module = EqualConvTranspose2d(latent_size, maps[0])
        self.convs = nn.ModuleList([EqualConv2d(maps[0], maps[0], 3)])
        for inputs, outputs in pairwise(maps):
            self.convs.append(EqualConv2d(inputs, outputs, 3))
            self.convs.append(EqualConv2d(outputs, outputs, 3))
        self.to_rgb = EqualConv2d(maps[-1], 3, 1, gain=1.0)
        self.norm = PixelNorm()
        self.activation = nn.LeakyReLU(0.2)
        self.upsample = nn.Upsample(scale_factor=2)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(z)[:, :, None, None]
        x = self.norm(self.activation(self.first(x)))
        for i, conv in enumerate(self.convs):
            if i % 2 == 1:
                x = self.upsample(x)
            x = self.norm(self.activation(conv(x)))
        return self.to_rgb(x)


# ----------------------------------------------------------------------------
# SRResNet (Ledig et al. 2017, Figure 4; paper 3).


class PlainResidual(nn.Module):
    """conv, BN, PReLU, conv, BN, sum."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(maps, maps, 3, padding=1),
            nn.BatchNorm2d(maps),
            nn.PReLU(),
            nn.Conv2d(maps, maps, 3, padding=1),
            nn.BatchNorm2d(maps),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PlainUpscaler(nn.Module):
    """Images [N, 3, H, W] -> [N, 3, sH, sW]; s is 2 or 4."""

    def __init__(self, scale: int = 4, features: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(3, features, 9, padding=4), nn.PReLU())
        self.residuals = nn.Sequential(*[PlainResidual(features) for _ in range(blocks)])
        self.trunk = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features))
        steps: list[nn.Module] = []
        for _ in range(int(math.log2(scale))):
            steps += [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.larger = nn.Sequential(*steps)
        self.exit = nn.Conv2d(features, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        x = x + self.trunk(self.residuals(x))
        return self.exit(self.larger(x))


# ----------------------------------------------------------------------------
# Pixels and files.


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """[N, 3, H, W] around [-1, 1] -> uint8 [N, H, W, 3]."""
    scaled = ((images + 1) * 127.5).round().clamp(0, 255)
    return np.asarray(scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def device_of(network: nn.Module) -> torch.device:
    """Returns where a network is; the CPU if it has no weights."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def write_images(generator: nn.Module, upscaler: nn.Module, latents: Tensor, batch: int, folder: Path) -> int:
    """Latents to PNG files, one thing after the other; how many were written."""
    count = 0
    for part in latents.split(batch):
        with torch.no_grad():
            pixels = to_pixels(upscaler(generator(part.to(device_of(generator)))))
        for picture in pixels:
            Image.fromarray(picture).save(folder / f"{count:06d}.png")
            count += 1
    return count


# ----------------------------------------------------------------------------
# Weights of pgsr.networks -> weights of these modules.


def generator_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a vanilla ProGANGenerator, for a PlainGenerator of its full resolution."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    dense = state["blocks.0.first.weight"]  # [C * 16, L]
    result = {
        "first.weight": dense.view(-1, 4, 4, dense.shape[1]).permute(3, 0, 1, 2),  # [L, C, 4, 4]
        "first.bias": state["blocks.0.first.bias"],
    }
    layers = ["blocks.0.conv", *(f"blocks.{i}.conv{j}" for i in range(1, last + 1) for j in (1, 2))]
    names = {layer: f"convs.{i}" for i, layer in enumerate(layers)} | {f"to_rgb.{last}": "to_rgb"}
    for theirs, mine in names.items():
        for part in ("weight", "bias"):
            result[f"{mine}.{part}"] = state[f"{theirs}.{part}"]
    return result


UPSCALER_NAMES = (
    (r"^head\.", "entry.0."),
    (r"^head_prelu\.", "entry.1."),
    (r"^blocks\.(\d+)\.conv1\.", r"residuals.\1.body.0."),
    (r"^blocks\.(\d+)\.bn1\.", r"residuals.\1.body.1."),
    (r"^blocks\.(\d+)\.prelu\.", r"residuals.\1.body.2."),
    (r"^blocks\.(\d+)\.conv2\.", r"residuals.\1.body.3."),
    (r"^blocks\.(\d+)\.bn2\.", r"residuals.\1.body.4."),
    (r"^trunk\.", "trunk.0."),
    (r"^trunk_bn\.", "trunk.1."),
    (r"^upsampling\.", "larger."),
    (r"^tail\.", "exit."),
)


def upscaler_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a vanilla SRResNet, for a PlainUpscaler."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in UPSCALER_NAMES:
            translated, count = re.subn(pattern, replacement, name)
            if count:
                result[translated] = value
                break
    return result
