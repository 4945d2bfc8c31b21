"""Networks as sequences of small steps, which rewrites can look at: what each forward does, spelled out.

    steps = as_steps(Grown(generator, 64))     # nn.Sequential: PixelNorm, first layer, LeakyReLU, ...

A network of a kind that LOWERINGS does not know stays as it is; the sequences inside it are rewritten alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.networks.began import BEGANGenerator, uniform
from pgsr.networks.interfaces import Generator
from pgsr.networks.layers import EPSILON, LRELU_SLOPE, Activation, fade, leaky_relu
from pgsr.networks.msggan import MSGGANGenerator
from pgsr.networks.precision import at_least_float32
from pgsr.networks.progan import FirstGeneratorBlock, GeneratorBlock, ProGANGenerator
from pgsr.networks.sr_variants import ResNetUpscaler, ShortcutBlock
from pgsr.networks.srgan import CompactUpscaler, NearestPhases, ResidualBlock, SRResNet

from .source import OneLabel

Steps = list[nn.Module]


# ----------------------------------------------------------------------------
# The steps that PyTorch has no module for.


def with_epsilon(x: Tensor, epsilon: float) -> Tensor:
    """Computes x + epsilon. In one dimension: the exporter takes a scalar that small for 0 and leaves the sum
    out, and then a pixel whose maps are all 0 becomes 0 / 0."""
    return x + torch.full((1,), epsilon, dtype=x.dtype, device=x.device)


class PixelNorm(nn.Module):
    """Pixelwise feature normalisation as it is trained (paper 2, section 4.2)."""

    def __init__(self, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        mean = with_epsilon(wide.square().mean(dim=1, keepdim=True), self.epsilon)
        return (wide * torch.rsqrt(mean)).to(x.dtype)


class AppendLabel(nn.Module):
    """A fixed label behind every latent: [N, L] -> [N, L + labels]."""

    label: Tensor

    def __init__(self, label: Tensor) -> None:
        super().__init__()
        self.register_buffer("label", label)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, self.label.to(z.dtype).expand(z.shape[0], -1)], dim=1)


class Uniform(nn.Module):
    """Standard normal -> uniform on [-1, 1] (BEGAN's latents)."""

    def forward(self, z: Tensor) -> Tensor:
        return uniform(z)


class UnitRange(nn.Module):
    """[-1, 1] -> [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) / 2


class Sum(nn.Module):
    """Branches from one input, added up. An empty branch is the input itself."""

    def __init__(self, *branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(*branch) for branch in branches])

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [branch(x) for branch in self.branches]
        for other in others:
            first = first + other
        return first


class Fade(nn.Module):
    """The fade-in of a level (paper 2, Figure 2): old branch and new, alpha between them."""

    def __init__(self, old: Iterable[nn.Module], new: Iterable[nn.Module], alpha: float) -> None:
        super().__init__()
        self.old, self.new, self.alpha = nn.Sequential(*old), nn.Sequential(*new), alpha

    def forward(self, x: Tensor) -> Tensor:
        new, old = self.new(x), self.old(x)
        return fade(old, new, self.alpha) if self.alpha < 1.0 else old + (new - old) * self.alpha


# ----------------------------------------------------------------------------
# A generator at one resolution.


class Grown(nn.Module):
    """A generator at one resolution: no alpha, and no layer that this resolution does not use."""

    resolution: int

    def __init__(self, generator: Generator, resolution: int) -> None:
        super().__init__()
        self.generator, self.resolution = generator, resolution

    def forward(self, latents: Tensor) -> Tensor:
        return self.generator.at(self.resolution, 1.0)(latents)


# ----------------------------------------------------------------------------
# Network -> steps. The modules are the network's own: lower a copy.


def as_steps(network: nn.Module) -> nn.Module:
    """The network as nn.Sequential, nested ones spliced in; itself if its kind is not known."""
    whole = network
    resolution: int | None = None
    if isinstance(network, Grown):
        resolution = network.resolution
        network = network.generator
    if type(network) is nn.Sequential:
        return _spliced(as_steps(part) for part in network)
    if isinstance(network, OneLabel):
        steps = [AppendLabel(network.label), *_progan(network.generator, resolution)]
        return _spliced(steps)
    if isinstance(network, ProGANGenerator):
        return _spliced(_progan(network, resolution))
    lowering = LOWERINGS.get(type(network))
    return whole if lowering is None else _spliced(lowering(network))


def _spliced(steps: Iterable[nn.Module]) -> nn.Sequential:
    flat: Steps = []
    for step in steps:
        flat.extend(_spliced(step) if type(step) is nn.Sequential else [step])
    return nn.Sequential(*flat)


def _progan(network: ProGANGenerator, resolution: int | None) -> Steps:
    level = network.resolutions.index(resolution or network.resolutions[-1])
    steps: Steps = [PixelNorm(network.epsilon)] if network.normalize_latents else []
    for block in network.blocks[:level]:
        steps += _block(block)
    newest = [*_block(network.blocks[level]), network.to_rgb[level]]
    if level > 0 and not isinstance(network, MSGGANGenerator):
        steps.append(Fade([network.to_rgb[level - 1], doubled()], newest, 1.0))
    else:
        steps += newest
    return [*steps, nn.Tanh()] if network.tanh else steps


def doubled() -> nn.Upsample:
    """Makes the layer that replicates each pixel 2 x 2."""
    return nn.Upsample(scale_factor=2.0, mode="nearest")


def _block(block: nn.Module) -> Steps:
    if isinstance(block, FirstGeneratorBlock):
        return [block.first, *_after(block.act1), block.conv, *_after(block.act2)]
    assert isinstance(block, GeneratorBlock)
    return [doubled(), block.conv1, *_after(block.act1), block.conv2, *_after(block.act2)]


def _after(act: Activation) -> Steps:
    """Returns what follows a convolution, in its order."""
    activation = nn.LeakyReLU(LRELU_SLOPE) if act.activation is leaky_relu else nn.ReLU()
    steps: Steps = [] if act.norm is None else [act.norm]
    steps += [PixelNorm(act.epsilon)] if act.pixel_before else []
    return [*steps, activation, *([PixelNorm(act.epsilon)] if act.pixel else [])]


def _began(network: nn.Module) -> Steps:
    assert isinstance(network, BEGANGenerator)
    decoder = network.decoder
    side = math.isqrt(decoder.dense.out_features // decoder.features)
    steps: Steps = [Uniform(), decoder.dense, nn.Unflatten(1, (decoder.features, side, side))]
    for i, block in enumerate(decoder.blocks):
        steps += [block] if i == 0 else [doubled(), block]
    return [*steps, decoder.to_rgb]


def _srresnet(network: nn.Module) -> Steps:
    assert isinstance(network, SRResNet)
    trunk: Steps = []
    for block in network.blocks:
        assert isinstance(block, ResidualBlock)
        body = _spliced([block.conv1, block.bn1, block.prelu, block.conv2, block.bn2])
        trunk.append(Sum([], body))
    trunk += _spliced([network.trunk, network.trunk_bn])
    before: Steps = [UnitRange()] if network.unit_inputs else []
    return [*before, network.head, network.head_prelu, Sum([], trunk), network.upsampling, network.tail]


def _compact(network: nn.Module) -> Steps:
    assert isinstance(network, CompactUpscaler)
    detail, shuffle = _spliced([network.body, network.tail]), nn.PixelShuffle(network.scale)
    if isinstance(network.base, NearestPhases):
        enlarged = nn.Upsample(scale_factor=float(network.scale), mode="nearest")
        return [Sum([*detail, shuffle], [enlarged])]
    return [Sum(detail, [network.base]), shuffle]


def _resnet_upscaler(network: nn.Module) -> Steps:
    assert isinstance(network, ResNetUpscaler)
    steps: Steps = []
    for i, block in enumerate(network.blocks):
        assert isinstance(block, ShortcutBlock)
        before: Steps = [doubled()] if i else []
        shortcut: Steps = [] if isinstance(block.shortcut, nn.Identity) else [block.shortcut]
        steps.append(Sum([*before, *shortcut], [*before, *_spliced([block.body])]))
    return [*steps, network.tail]


LOWERINGS: dict[type[nn.Module], Callable[[nn.Module], Steps]] = {
    BEGANGenerator: _began,
    SRResNet: _srresnet,
    CompactUpscaler: _compact,
    ResNetUpscaler: _resnet_upscaler,
}


# ----------------------------------------------------------------------------
# What rewrites put in place of steps.


class Crop(nn.Module):
    """Takes the outermost pixels off: [N, C, H, W] -> [N, C, H - 2, W - 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:-1, 1:-1]


class Phases(nn.Module):
    """Four 2 x 2 convolutions of the low resolution, one for each place among 2 x 2 output pixels, what
    follows each pixel by itself, and the four interleaved: [N, C, H, W] -> [N, C', 2H, 2W]."""

    def __init__(self, convolutions: Iterable[nn.Module], after: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)  # of the places (0, 0), (0, 1), (1, 0), (1, 1)
        self.after = nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for place, convolution in enumerate(self.convolutions):
            down, right = divmod(place, 2)
            around = (1 - right, right, 1 - down, down)  # left, right, top, bottom
            parts.append(self.after(convolution(F.pad(x, around))))
        return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)


class BlocksFirstShuffle(nn.Module):
    """PixelShuffle of maps that lie place by place: [N, r r C, H, W] -> [N, C, r H, r W].

    Where pixels lie together (NHWC) it moves runs of C values, and PixelShuffle single ones.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        n, maps, height, width = x.shape
        r = self.factor
        if torch.onnx.is_in_onnx_export():
            shape = (n, maps // r**2, r * height, r * width)
            how: Any = {"blocksize": r, "mode": "DCR"}
            return torch.onnx.ops.symbolic("DepthToSpace", (x,), how, dtype=x.dtype, shape=shape)
        places = x.view(n, r, r, maps // r**2, height, width)
        return places.permute(0, 3, 4, 1, 5, 2).reshape(n, maps // r**2, r * height, r * width)


class DividingNorm(nn.Module):
    """PixelNorm as one division: x / sqrt(mean(x * x) + eps), in float32 inside half precision."""

    def __init__(self, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        return (wide / length(wide, self.epsilon)).to(x.dtype)


def length(wide: Tensor, epsilon: float) -> Tensor:
    """Root of the mean square over maps: [N, C, ...] -> [N, 1, ...]."""
    return with_epsilon((wide * wide).mean(dim=1, keepdim=True), epsilon).sqrt()


class NormBehind(nn.Module):
    """A pointwise convolution of pixel-normalised maps: W (x / l) + b = (W x) / l + b."""

    def __init__(self, pointwise: nn.Conv2d, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.pointwise = nn.Conv2d(pointwise.in_channels, pointwise.out_channels, 1, bias=False)
        self.pointwise.weight = pointwise.weight
        self.bias = pointwise.bias

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        y = self.pointwise(x).to(wide.dtype) / length(wide, self.epsilon)
        return (y if self.bias is None else y + self.bias.to(wide.dtype).view(1, -1, 1, 1)).to(x.dtype)
