"""Content loss (SRGAN, section 2.2.1): which network's features of real and generated images are compared.

objective.content = "critic" takes the critic's own; a path takes VGG19's, whose weights this package does not
bring: `pgsr-train srgan-4x --set objective.content=vgg19-dcbb9e9d.pth` with the file of torchvision, or a
.safetensors of it. The feature network is in no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.networks.interfaces import Discriminator
from pgsr.networks.vgg import LAYERS, load_vgg19

from .objectives import ObjectiveConfig


def content_features(
    config: ObjectiveConfig, critic: Discriminator | None, generator: nn.Module
) -> Callable[[Tensor], Tensor] | None:
    """Images [N, 3, H, W] -> features, or None; on the generator's device and in its precision.

    Raises PgsrError if the critic has none, the file is not VGG19, or neither is so deep.
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
        example = next(generator.parameters())
        features, deepest = load_vgg19(Path(config.content)).to(example.device, example.dtype), len(LAYERS)
    depth = config.content_depth or deepest
    if depth > deepest:
        raise PgsrError(f"objective.content_depth is {depth}, but there are {deepest} convolutions")
    return partial(features, depth=depth)


def content_provenance(config: ObjectiveConfig) -> dict[str, str]:
    """{"content": sha256 of the weights file}, or nothing."""
    return {} if config.content in ("none", "critic") else {"content": sha256(Path(config.content))}
