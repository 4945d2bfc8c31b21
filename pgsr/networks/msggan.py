"""MSG-GAN (paper 4): ProGAN's networks, all resolutions at once and joined at every one of them.

The generator makes an image after each block; the critic takes each beside its own activations of that size,
so gradients reach every block directly and nothing is grown. Images of all scales are a tuple, largest first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError, check_choice

from .interfaces import Discriminator, Images
from .layers import CONVOLUTIONS, EqualizedConv2d, MinibatchStddev, downsample, leaky_relu
from .progan import LastCriticBlock, ProGANGenerator, feature_maps, resolutions_up_to


class MSGGANGenerator(ProGANGenerator):
    """Latents [N, latent_size] -> images of one resolution, or of all; ProGAN's layers (section 4)."""

    def __init__(
        self,
        resolution: int = 1024,  # 32 for CIFAR-10, 256 for Oxford flowers, 1024 for CelebA-HQ
        latent_size: int = 512,
        feature_base: int = 16384,  # maps at resolution r: feature_base / r, but
        feature_max: int = 512,  # no more than this
        convolution: str = "vanilla",  # or "separable" (paper 1)
        separable_ends: bool = True,  # whether "separable" holds for the 4 x 4 first layer too
    ) -> None:
        super().__init__(resolution, latent_size, feature_base, feature_max, convolution, separable_ends)

    def images(self, z: Tensor) -> Images:
        """[N, 3, resolution, resolution], ..., [N, 3, 4, 4]: o^k, ..., o^0 of section 2."""
        x = self.on_hypersphere(z)
        scales: list[Tensor] = []
        for block, to_rgb in zip(self.blocks, self.to_rgb, strict=True):
            x = block(x)
            scales.insert(0, self.finished(to_rgb(x)))
        return tuple(scales)

    multi_scale = True

    def training_at(self, resolution: int, alpha: float) -> Callable[[Tensor], Images]:
        """The generator as it trains. Raises PgsrError for a schedule that grows."""
        if resolution != self.resolutions[-1]:
            raise PgsrError(
                "msggan trains all its resolutions at once: set schedule.resolution and "
                f"schedule.start_resolution to {self.resolutions[-1]}"
            )
        return self.images


# ----------------------------------------------------------------------------
# combine (section 2, equations 7 and 9): what a critic block makes of the image of its size and of the
# activations that come down to it.


class LinearConcatenation(nn.Module):
    """[r'(image); activations], r' a 1 x 1 convolution: half of the maps are the image's (equation 9)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.path_maps, self.input_maps = maps - maps // 2, maps
        self.from_rgb = EqualizedConv2d(3, maps // 2, 1, gain=1.0)

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        return torch.cat([self.from_rgb(image), x], dim=1)


class SimpleConcatenation(nn.Module):
    """[image; activations]: three maps more."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.path_maps, self.input_maps = maps, maps + 3

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        return torch.cat([image, x], dim=1)


class ConcatenationLinear(nn.Module):
    """r'([image; activations]): the 1 x 1 convolution after the concatenation."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.path_maps, self.input_maps = maps, maps
        self.linear = EqualizedConv2d(maps + 3, maps, 1, gain=1.0)

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        return self.linear(torch.cat([image, x], dim=1))


# (maps of the level) -> module (image, activations of `carried` maps) -> `joined` maps
COMBINATIONS: dict[str, Callable[[int], nn.Module]] = {
    "linear-cat": LinearConcatenation,
    "simple": SimpleConcatenation,
    "cat-linear": ConcatenationLinear,
}


# ----------------------------------------------------------------------------
# The critic.


class MSGCriticBlock(nn.Module):
    """Two 3 x 3 layers, then the 2 x 2 average: [N, C, H, W] -> [N, C', H/2, W/2]."""

    def __init__(self, inputs: int, maps: int, outputs: int, convolution: str, stddev_group: int) -> None:
        super().__init__()
        self.stddev = MinibatchStddev(stddev_group) if stddev_group else None
        self.conv1 = CONVOLUTIONS[convolution](inputs + bool(stddev_group), maps, 3)
        self.conv2 = CONVOLUTIONS[convolution](maps, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.stddev is not None:
            x = self.stddev(x)
        return downsample(leaky_relu(self.conv2(leaky_relu(self.conv1(x)))))


class MSGGANDiscriminator(Discriminator):
    """Images of every scale, largest first -> scores [N]."""

    def __init__(
        self,
        resolution: int = 1024,
        feature_base: int = 16384,
        feature_max: int = 512,
        convolution: str = "vanilla",  # or "separable" (paper 1)
        separable_ends: bool = True,  # whether "separable" holds for the 4 x 4 last convolution too
        combine: str = "linear-cat",  # equations 7 and 9; or "simple", "cat-linear"
        stddev_group: int = 4,  # images of a minibatch standard deviation; a batch no larger is one group
        stddev_everywhere: bool = False,  # in every block instead of the last alone (section 3.3)
    ) -> None:
        super().__init__()
        check_choice("convolution", convolution, CONVOLUTIONS)
        check_choice("combine", combine, COMBINATIONS)
        self.resolutions = resolutions_up_to(resolution)
        maps = [feature_maps(r, feature_base, feature_max) for r in self.resolutions]
        self.from_rgb = EqualizedConv2d(3, maps[-1], 1)  # d^0 of equation 8 begins so
        self.combine = nn.ModuleList([COMBINATIONS[combine](m) for m in maps[:-1]])
        path_maps = [int(c.path_maps) for c in self.combine]  # type: ignore[arg-type]
        input_maps = [*(int(c.input_maps) for c in self.combine), maps[-1]]  # type: ignore[arg-type]
        group = stddev_group if stddev_everywhere else 0
        self.blocks = nn.ModuleList(
            MSGCriticBlock(input_maps[level], maps[level], path_maps[level - 1], convolution, group)
            for level in range(1, len(maps))
        )  # blocks[i] leads from level i + 1 to level i
        last_layer = convolution if separable_ends else "vanilla"
        self.last_block = LastCriticBlock(
            maps[0], convolution, last_layer, stddev_group, inputs=input_maps[0]
        )

    def forward(self, images: Images) -> Tensor:
        x = leaky_relu(self.from_rgb(images[0]))
        for block, combine, image in zip(
            reversed(self.blocks), reversed(self.combine), images[1:], strict=True
        ):
            x = combine(image, block(x))
        return self.last_block(x)

    def views(self, images: Images) -> Images:
        """Real images at every scale, by 2 x 2 averages: [N, 3, resolution, resolution] -> a tuple."""
        if isinstance(images, tuple):
            return images
        scales = [images]
        for _ in self.blocks:
            scales.append(downsample(scales[-1]))
        return tuple(scales)
