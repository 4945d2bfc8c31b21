"""Progressive GAN's generator and critic (paper 2, section A.1 and Table 2), any resolution 4 to 1024.

Both hold the layers of every resolution from the start; `resolution` and `alpha` of each call say how
much of them is grown in, so that growing changes no shapes, names or optimizer entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError, check_choice

from .interfaces import Discriminator, Generator, Images
from .layers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    EPSILON,
    FIRST_LAYERS,
    Activation,
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchDiscrimination,
    MinibatchStddev,
    downsample,
    fade,
    fold_equalized,
    leaky_relu,
    multiplicative_noise,
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


def maps_by_resolution(
    resolutions: Sequence[int], feature_base: int, feature_max: int, maps: Sequence[int] = ()
) -> list[int]:
    """Maps of the 3 x 3 layers at each resolution: `maps` if it is given, else those of `feature_maps`.

    Raises PgsrError if `maps` does not name one positive number for each resolution.
    """
    if not maps:
        return [feature_maps(r, feature_base, feature_max) for r in resolutions]
    if len(maps) != len(resolutions) or min(maps) < 1:
        levels = ", ".join(map(str, resolutions))
        raise PgsrError(f"maps is {list(maps)}, but must hold a positive number for each of {levels}")
    return list(maps)


class GeneratorBlock(nn.Module):
    """Upsample, then two 3 x 3 layers: [N, C, H, W] -> [N, C', 2H, 2W]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        convolution: str,
        normalization: str = "pixel",
        activation: str = "leaky",
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[convolution](inputs, outputs, 3)
        self.act1 = Activation(outputs, normalization, activation, epsilon)
        self.conv2 = CONVOLUTIONS[convolution](outputs, outputs, 3)
        self.act2 = Activation(outputs, normalization, activation, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(upsample(x)))
        return self.act2(self.conv2(x))


class FirstGeneratorBlock(nn.Module):
    """Latent to 4 x 4: [N, L] -> [N, C, 4, 4].

    Normalised after both layers, as the original code is. The text (section A.1) says "after each Conv 3 x 3
    layer", so not behind the first, which is 4 x 4: `first_normalized` off.
    """

    def __init__(
        self,
        latent_size: int,
        maps: int,
        convolution: str,
        first_layer: str,
        normalization: str = "pixel",
        activation: str = "leaky",
        epsilon: float = EPSILON,
        first_normalized: bool = True,
        first_maps: int = 0,
    ) -> None:
        super().__init__()
        first_maps = first_maps or maps
        self.first = FIRST_LAYERS[first_layer](latent_size, first_maps)
        self.act1 = Activation(first_maps, normalization if first_normalized else "none", activation, epsilon)
        self.conv = CONVOLUTIONS[convolution](first_maps, maps, 3)
        self.act2 = Activation(maps, normalization, activation, epsilon)

    def forward(self, z: Tensor) -> Tensor:
        x = self.act1(self.first(z))
        return self.act2(self.conv(x))


class ProGANGenerator(Generator):
    """Latents [N, latent_size] -> images [N, 3, resolution, resolution] around [-1, 1].

    With `labels`, each latent is followed by its label as a one-hot vector: [N, latent_size + labels].
    """

    grows = True

    def __init__(
        self,
        resolution: int = 1024,  # of the grown network
        latent_size: int = 512,  # paper 2, section A.1
        feature_base: int = 16384,  # maps at resolution r: feature_base / r, but
        feature_max: int = 512,  # no more than this
        convolution: str = "vanilla",  # or "separable" (paper 1, section IV)
        separable_ends: bool = True,  # whether "separable" holds for the 4 x 4 first layer too
        labels: int = 0,  # classes that it is conditioned on
        # The rest is for the ladder of paper 2's Table 1 (section A.2).
        normalize_latents: bool = True,  # to the hypersphere
        normalization: str = "pixel",  # or "batch", "none", "pixel-before"
        activation: str = "leaky",  # or "relu"
        output: str = "linear",  # or "tanh"
        equalized: bool = True,  # learning rate; without it, He's initialisation alone
        # Forms that other implementations have, for what is imported from them.
        first_normalized: bool = True,  # the first layer's values too
        first_bias: str = "map",  # of the vanilla first layer: one a map; or "place", 16 a map
        maps: Sequence[int] = (),  # at 4, 8, ..., in place of feature_base and feature_max
        first_maps: int = 0,  # of the first layer alone, at 16 weights a map and latent; 0: as at 4 x 4
        epsilon: float = EPSILON,  # of pixelwise normalisation; 1e-4 in NVIDIA's presets of half precision
    ) -> None:
        super().__init__()
        check_choice("convolution", convolution, CONVOLUTIONS)
        check_choice("normalization", normalization, ("pixel", "batch", "none", "pixel-before"))
        check_choice("first_bias", first_bias, ("map", "place"))
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("output", output, ("linear", "tanh"))
        if epsilon <= 0.0:
            raise PgsrError(f"epsilon {epsilon} is not above 0")
        self.resolutions = resolutions_up_to(resolution)
        self.latent_size, self.labels = latent_size, labels
        self.normalize_latents, self.tanh, self.epsilon = normalize_latents, output == "tanh", epsilon
        maps = maps_by_resolution(self.resolutions, feature_base, feature_max, maps)
        first_layer = convolution if separable_ends else "vanilla"
        if first_bias == "place":
            if first_layer != "vanilla":
                raise PgsrError('first_bias = "place" needs a vanilla first layer: separable_ends = false')
            first_layer = "placed"
        acts = (normalization, activation, epsilon)
        first = FirstGeneratorBlock(
            latent_size + labels, maps[0], convolution, first_layer, *acts, first_normalized, first_maps
        )
        self.blocks = nn.ModuleList([first])
        self.blocks.extend(
            GeneratorBlock(inputs, outputs, convolution, *acts) for inputs, outputs in pairwise(maps)
        )
        self.to_rgb = nn.ModuleList([EqualizedConv2d(m, 3, 1, gain=1.0) for m in maps])
        if not equalized:
            fold_equalized(self)

    def forward(self, z: Tensor, resolution: int | None = None, alpha: float = 1.0) -> Tensor:
        """Images at `resolution` (default: the highest); alpha < 1 blends in the level below."""
        level = self.resolutions.index(resolution or self.resolutions[-1])
        x = self.on_hypersphere(z)
        below = x
        for block in self.blocks[: level + 1]:
            below, x = x, block(x)
        image = self.to_rgb[level](x)
        if alpha < 1.0 and level > 0:
            image = fade(upsample(self.to_rgb[level - 1](below)), image, alpha)
        return self.finished(image)

    def on_hypersphere(self, z: Tensor) -> Tensor:
        """Latents on the hypersphere (section A.1)."""
        return pixel_norm(z, self.epsilon) if self.normalize_latents else z

    def finished(self, image: Tensor) -> Tensor:
        return torch.tanh(image) if self.tanh else image

    def at(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The generator as it is at one stage of training."""
        return partial(self, resolution=resolution, alpha=alpha)


Noise = Callable[[Tensor], Tensor]


def no_noise(x: Tensor) -> Tensor:
    """Returns its input: a critic without noise."""
    return x


class CriticBlock(nn.Module):
    """Two 3 x 3 layers, then the 2 x 2 average: [N, C, H, W] -> [N, C', H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int, convolution: str, normalization: str = "none") -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[convolution](inputs, inputs, 3)
        self.act1 = Activation(inputs, normalization)
        self.conv2 = CONVOLUTIONS[convolution](inputs, outputs, 3)
        self.act2 = Activation(outputs, normalization)

    def forward(self, x: Tensor, noisy: Noise = no_noise) -> Tensor:
        x = self.act1(self.conv1(noisy(x)))
        return downsample(self.act2(self.conv2(noisy(x))))


class LastCriticBlock(nn.Module):
    """4 x 4 to a score: minibatch stddev, 3 x 3, 4 x 4, dense: [N, C, 4, 4] -> [N], or [N, 1 + labels].

    Minibatch discrimination has its place before the dense layer, as in the original code.
    """

    def __init__(
        self,
        maps: int,
        convolution: str,
        last_layer: str,
        stddev_group: int,
        inputs: int | None = None,  # maps that come in, if other than `maps`
        statistics: str = "stddev",
        normalization: str = "none",
        labels: int = 0,
    ) -> None:
        super().__init__()
        inputs = maps if inputs is None else inputs
        self.stddev = MinibatchStddev(stddev_group) if statistics == "stddev" else None
        self.conv = CONVOLUTIONS[convolution](inputs + (statistics == "stddev"), maps, 3)
        self.act1 = Activation(maps, normalization)
        self.last = CONVOLUTIONS[last_layer](maps, maps, 4, padding=0)
        self.act2 = Activation(maps, normalization)
        self.discrimination = MinibatchDiscrimination(maps) if statistics == "discrimination" else None
        width = maps if self.discrimination is None else maps + self.discrimination.kernels
        self.dense = EqualizedLinear(width, 1 + labels, gain=1.0)

    def forward(self, x: Tensor, noisy: Noise = no_noise) -> Tensor:
        if self.stddev is not None:
            x = self.stddev(x)
        x = self.act1(self.conv(noisy(x)))
        x = self.act2(self.last(noisy(x))).flatten(1)  # [N, C]
        if self.discrimination is not None:
            x = self.discrimination(x)
        return self.dense(x).squeeze(1)


class ProGANDiscriminator(Discriminator):
    """Images [N, 3, r, r] -> scores [N], or with `labels` [N, 1 + labels]: the score, a logit a label."""

    def __init__(
        self,
        resolution: int = 1024,
        feature_base: int = 16384,
        feature_max: int = 512,
        convolution: str = "vanilla",
        separable_ends: bool = True,  # whether "separable" holds for the 4 x 4 last convolution too
        stddev_group: int = 4,  # images of a minibatch standard deviation; a batch no larger is one group
        noise: bool = False,  # at every 3 x 3 and 4 x 4 layer, as "lsgan-adaptive" finds it (appendix B)
        labels: int = 0,
        # The rest is for the ladder of paper 2's Table 1 (section A.2).
        statistics: str = "stddev",  # of the minibatch; or "discrimination", "none"
        normalization: str = "none",  # or "layer", in every 3 x 3 and 4 x 4 layer
        equalized: bool = True,
        maps: Sequence[int] = (),  # at 4, 8, ..., in place of feature_base and feature_max
    ) -> None:
        super().__init__()
        self.noise = noise
        check_choice("convolution", convolution, CONVOLUTIONS)
        check_choice("statistics", statistics, ("stddev", "discrimination", "none"))
        check_choice("normalization", normalization, ("none", "layer"))
        self.resolutions = resolutions_up_to(resolution)
        maps = maps_by_resolution(self.resolutions, feature_base, feature_max, maps)
        last_layer = convolution if separable_ends else "vanilla"
        self.from_rgb = nn.ModuleList([EqualizedConv2d(3, m, 1) for m in maps])
        self.last_block = LastCriticBlock(
            maps[0],
            convolution,
            last_layer,
            stddev_group,
            statistics=statistics,
            normalization=normalization,
            labels=labels,
        )
        self.blocks = nn.ModuleList(
            CriticBlock(inputs, outputs, convolution, normalization) for outputs, inputs in pairwise(maps)
        )  # blocks[i] leads from level i + 1 to level i
        if not equalized:
            fold_equalized(self)

    def forward(self, images: Tensor, alpha: float = 1.0, noise: Tensor | None = None) -> Tensor:
        """Scores; the images' own size says how much of the network is grown in, `noise` how strong its own
        noise is (None: there is none)."""
        level = self.resolutions.index(images.shape[-1])
        noisy = no_noise if noise is None else partial(multiplicative_noise, magnitude=noise)
        x = leaky_relu(self.from_rgb[level](images))
        for i in reversed(range(level)):
            x = self.blocks[i](x, noisy)
            if i == level - 1 and alpha < 1.0:
                x = fade(leaky_relu(self.from_rgb[i](downsample(images))), x, alpha)
        return self.last_block(x, noisy)

    def at(
        self, resolution: int, alpha: float, objective_state: Mapping[str, Tensor]
    ) -> Callable[[Images], Tensor]:
        """The critic as it is at one stage of training (the images say the resolution).

        Raises PgsrError if it has noise and the objective does not say how much.
        """
        if self.noise and "noise" not in objective_state:
            raise PgsrError(
                'discriminator.noise needs objective.adversarial = "lsgan-adaptive", which measures it'
            )
        return partial(self, alpha=alpha, noise=objective_state["noise"] if self.noise else None)


def fade_reals(images: Tensor, alpha: float) -> Tensor:
    """Real images blended with their own half resolution, as the generated ones are during a fade."""
    if alpha >= 1.0 or images.shape[-1] <= 4:
        return images
    return fade(upsample(downsample(images)), images, alpha)
