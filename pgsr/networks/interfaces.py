"""What every network offers to the trainer and the exporter.

They are classes and not protocols because a network is also an nn.Module, and Python's types cannot say
"both". A network that neither grows nor has several scales overrides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from pgsr.errors import PgsrError

Images = Tensor | tuple[Tensor, ...]  # [N, 3, H, W], or one such tensor a scale, largest first


class Generator(nn.Module):
    """Latents [N, L], or images of low resolution, to images."""

    grows = False  # whether `at` gives several resolutions, and blends the level below into a new one
    multi_scale = False  # whether `training_at` gives a tuple of images
    resolutions: Sequence[int] = ()  # of the images that `at` can give; (): the one there is

    def at(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The network at one stage of training, as one that gives images of one size."""
        return self

    def training_at(self, resolution: int, alpha: float) -> Callable[[Tensor], Images]:
        """The network at one stage as it trains: with all its scales, if it has several."""
        return self.at(resolution, alpha)


class Discriminator(nn.Module):
    """Images to scores [N], or [N, 1 + labels]: the score and a logit a label."""

    depth = 0  # convolutions whose features it can give; 0: none
    frozen_digest = ""  # sha256 of the weights file that it holds and does not train, if any

    def at(
        self, resolution: int, alpha: float, objective_state: Mapping[str, Tensor]
    ) -> Callable[[Images], Tensor]:
        """The network at one stage of training, under an objective that carries scalars from step to step."""
        return self

    def views(self, images: Images) -> Images:
        """Images as the network takes them: the largest scale alone, unless it has several."""
        return images[0] if isinstance(images, tuple) else images

    def features(self, images: Tensor, depth: int) -> Tensor:
        """The activations after convolution `depth`, counted from 1: [N, 3, H, W] -> [N, C, h, w]."""
        raise PgsrError("a network with a depth of 0 has no features")
