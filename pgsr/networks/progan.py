"""Progressive GAN's generator and critic (paper 2, section A.1 and Table 2), any resolution 4 to 1024.

Both hold the layers of every resolution from the start; `resolution` and `alpha` of each call say how
much of them is grown in, so that growing changes no shapes, names or optimizer entries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from pgsr.errors import PgsrError, check_choice

from .layers import (
    CONVOLUTIONS,
    FIRST_LAYERS,
    EqualizedConv2d,
    EqualizedLinear,
    downsample,
    fade,
    leaky_relu,
    minibatch_stddev,
    pixel_norm,
    upsample,
)


def resolutions_up_to(resolution: int) -> list[int]:
    """[4, 8, ..., resolution]. Raises PgsrError unless it is a power of two from 4 to 1024."""
    levels = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    if resolution not in levels:
        raise PgsrError(f"resolution {resolution} is not one of {', '.join(map(str, levels))}")
    return levels[: levels.index(resolution) + 1]


def feature_maps(resolution: int, feature_base: int, feature_max: int) -> int:
    """Maps of the 3 x 3 layers at a resolution: Table 2 is base 16384, max 512 (16 maps at 1024)."""
    return max(1, min(feature_max, feature_base // resolution))


class GeneratorBlock(nn.Module):
    """Upsample, then two 3 x 3 layers: [N, C, H, W] -> [N, C', 2H, 2W]."""

    def __init__(self, inputs: int, outputs: int, convolution: str) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[convolution](inputs, outputs, 3)
        self.conv2 = CONVOLUTIONS[convolution](outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(leaky_relu(self.conv1(upsample(x))))
        return pixel_norm(leaky_relu(self.conv2(x)))


class FirstGeneratorBlock(nn.Module):
    """Latent to 4 x 4: [N, L] -> [N, C, 4, 4]. Normalised after both layers, as the original code is."""

    def __init__(self, latent_size: int, maps: int, convolution: str, first_layer: str) -> None:
        super().__init__()
        self.first = FIRST_LAYERS[first_layer](latent_size, maps)
        self.conv = CONVOLUTIONS[convolution](maps, maps, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = pixel_norm(leaky_relu(self.first(z)))
        return pixel_norm(leaky_relu(self.conv(x)))


class ProGANGenerator(nn.Module):
    """Latents [N, latent_size] -> images [N, 3, resolution, resolution] around [-1, 1], no tanh."""

    def __init__(
        self,
        resolution: int = 1024,  # of the grown network
        latent_size: int = 512,  # paper 2, section A.1
        feature_base: int = 16384,  # maps at resolution r: feature_base / r, but
        feature_max: int = 512,  # no more than this
        convolution: str = "vanilla",  # or "separable" (paper 1, section IV)
        separable_ends: bool = True,  # whether "separable" holds for the 4 x 4 first layer too
    ) -> None:
        super().__init__()
        check_choice("convolution", convolution, CONVOLUTIONS)
        self.resolutions = resolutions_up_to(resolution)
        self.latent_size = latent_size
        maps = [feature_maps(r, feature_base, feature_max) for r in self.resolutions]
        first_layer = convolution if separable_ends else "vanilla"
        self.blocks = nn.ModuleList([FirstGeneratorBlock(latent_size, maps[0], convolution, first_layer)])
        self.blocks.extend(GeneratorBlock(inputs, outputs, convolution) for inputs, outputs in pairwise(maps))
        self.to_rgb = nn.ModuleList([EqualizedConv2d(m, 3, 1, gain=1.0) for m in maps])

    def forward(self, z: Tensor, resolution: int | None = None, alpha: float = 1.0) -> Tensor:
        """Images at `resolution` (default: the highest); alpha < 1 blends in the level below."""
        level = self.resolutions.index(resolution or self.resolutions[-1])
        x = pixel_norm(z)  # the hypersphere of section A.1
        below = x
        for block in self.blocks[: level + 1]:
            below, x = x, block(x)
        image = self.to_rgb[level](x)
        if alpha >= 1.0 or level == 0:
            return image
        return fade(upsample(self.to_rgb[level - 1](below)), image, alpha)

    def grown(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The generator as it is at one stage of training."""
        return partial(self, resolution=resolution, alpha=alpha)


class CriticBlock(nn.Module):
    """Two 3 x 3 layers, then the 2 x 2 average: [N, C, H, W] -> [N, C', H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int, convolution: str) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[convolution](inputs, inputs, 3)
        self.conv2 = CONVOLUTIONS[convolution](inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return downsample(leaky_relu(self.conv2(leaky_relu(self.conv1(x)))))


class LastCriticBlock(nn.Module):
    """4 x 4 to a score: minibatch stddev, 3 x 3, 4 x 4, dense: [N, C, 4, 4] -> [N]."""

    def __init__(self, maps: int, convolution: str, last_layer: str, stddev_group: int) -> None:
        super().__init__()
        self.stddev_group = stddev_group
        self.conv = CONVOLUTIONS[convolution](maps + 1, maps, 3)
        self.last = CONVOLUTIONS[last_layer](maps, maps, 4, padding=0)
        self.dense = EqualizedLinear(maps, 1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = leaky_relu(self.conv(minibatch_stddev(x, self.stddev_group)))
        x = leaky_relu(self.last(x))  # [N, C, 1, 1]
        return self.dense(x.flatten(1)).squeeze(1)


class ProGANDiscriminator(nn.Module):
    """Images [N, 3, r, r] -> scores [N]."""

    def __init__(
        self,
        resolution: int = 1024,
        feature_base: int = 16384,
        feature_max: int = 512,
        convolution: str = "vanilla",
        separable_ends: bool = True,  # whether "separable" holds for the 4 x 4 last convolution too
        stddev_group: int = 4,  # images a minibatch standard deviation is taken over
    ) -> None:
        super().__init__()
        check_choice("convolution", convolution, CONVOLUTIONS)
        self.resolutions = resolutions_up_to(resolution)
        maps = [feature_maps(r, feature_base, feature_max) for r in self.resolutions]
        last_layer = convolution if separable_ends else "vanilla"
        self.from_rgb = nn.ModuleList([EqualizedConv2d(3, m, 1) for m in maps])
        self.last_block = LastCriticBlock(maps[0], convolution, last_layer, stddev_group)
        self.blocks = nn.ModuleList(
            CriticBlock(inputs, outputs, convolution) for outputs, inputs in pairwise(maps)
        )  # blocks[i] leads from level i + 1 to level i

    def forward(self, images: Tensor, alpha: float = 1.0) -> Tensor:
        """Scores; the images' own size says how much of the network is grown in."""
        level = self.resolutions.index(images.shape[-1])
        x = leaky_relu(self.from_rgb[level](images))
        for i in reversed(range(level)):
            x = self.blocks[i](x)
            if i == level - 1 and alpha < 1.0:
                x = fade(leaky_relu(self.from_rgb[i](downsample(images))), x, alpha)
        return self.last_block(x)

    def grown(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The critic as it is at one stage of training (the images say the resolution)."""
        return partial(self, alpha=alpha)


def fade_reals(images: Tensor, alpha: float) -> Tensor:
    """Real images blended with their own half resolution, as the generated ones are during a fade."""
    if alpha >= 1.0 or images.shape[-1] <= 4:
        return images
    return fade(upsample(downsample(images)), images, alpha)
