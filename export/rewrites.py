"""Exact algebra on trained networks: each rewrite is a function that changes a network in place and says
whether it found anything to change. REWRITES lists them in the order they are applied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pgsr.networks.layers import EqualizedWeight
from pgsr.networks.srgan import ResidualBlock, SRResNet


def fold_equalized(network: nn.Module) -> bool:
    """The constants of the equalized learning rate (paper 2, section 4.1) go into the weights."""
    layers = [m for m in network.modules() if isinstance(m, EqualizedWeight)]
    for layer in layers:
        layer.fold()
    return bool(layers)


def fold_batch_norm(network: nn.Module) -> bool:
    """Batch normalisation of fixed statistics is a scale and a shift: into the convolution before it."""
    if not isinstance(network, SRResNet):
        return False
    network.trunk = _fused(network.trunk, network.trunk_bn)
    network.trunk_bn = nn.Identity()  # type: ignore[assignment]
    for block in network.blocks:
        assert isinstance(block, ResidualBlock)
        block.conv1, block.bn1 = _fused(block.conv1, block.bn1), nn.Identity()  # type: ignore[assignment]
        block.conv2, block.bn2 = _fused(block.conv2, block.bn2), nn.Identity()  # type: ignore[assignment]
    return True


def _fused(convolution: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    """A convolution, or the pointwise half of a separable one, with the norm inside."""
    if isinstance(convolution, nn.Sequential):
        return nn.Sequential(convolution[0], _fused(convolution[1], norm))
    assert isinstance(convolution, nn.Conv2d)
    return fuse_conv_bn_eval(convolution, norm)


REWRITES: dict[str, Callable[[nn.Module], bool]] = {
    "fold equalized learning rate": fold_equalized,
    "fold batch norm": fold_batch_norm,
}


def rewritten(network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A changed copy of a network in eval mode, and the names of the rewrites that applied."""
    network = copy.deepcopy(network).eval()
    applied = tuple(name for name, rewrite in REWRITES.items() if rewrite(network))
    return network, applied


class Grown(nn.Module):
    """A generator at one resolution: no alpha, and no layer that this resolution does not use."""

    def __init__(self, generator: nn.Module, resolution: int) -> None:
        super().__init__()
        self.generator, self.resolution = generator, resolution

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.generator(latents, resolution=self.resolution)
        return images
