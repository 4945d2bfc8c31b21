"""Exact algebra on trained networks: each rewrite is a function that changes a network in place and says
whether it found anything to change. REWRITES lists them in the order they are applied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pgsr.networks.layers import Activation, fold_equalized
from pgsr.networks.progan import FirstGeneratorBlock, GeneratorBlock
from pgsr.networks.srgan import ResidualBlock, SRResNet


def fold_batch_norm(network: nn.Module) -> bool:
    """Batch normalisation of fixed statistics is a scale and a shift: into the convolution before it."""
    if not isinstance(network, SRResNet):
        return _fold_progan_norms(network) | _fold_in_sequences(network)
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


def _fold_progan_norms(network: nn.Module) -> bool:
    normed = [(layer, act) for layer, act in _progan_layers(network) if act.norm is not None]
    for layer, act in normed:
        assert isinstance(act.norm, nn.BatchNorm2d)
        _fold_into(layer, act.norm)
        act.norm = None
    return bool(normed)


def _progan_layers(network: nn.Module) -> Iterator[tuple[nn.Module, Activation]]:
    """Every layer of ProGAN's generator with what follows it."""
    for block in network.modules():
        if isinstance(block, FirstGeneratorBlock):
            yield from ((block.first, block.act1), (block.conv, block.act2))
        if isinstance(block, GeneratorBlock):
            yield from ((block.conv1, block.act1), (block.conv2, block.act2))


def _fold_into(layer: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Weights of a ProGAN layer hold its output maps first, the dense first layer's 16 rows a map."""
    weighted: Any = getattr(layer, "pointwise", layer)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.data * (norm.running_var + norm.eps).rsqrt()
    weight, bias = weighted.weight.data, weighted.bias.data
    weighted.weight.data = (weight.reshape(len(scale), -1) * scale[:, None]).view(weight.shape)
    weighted.bias.data = (bias - norm.running_mean) * scale + norm.bias.data


def _fold_in_sequences(network: nn.Module) -> bool:
    """Norms behind a layer in a Sequential, or behind a dense one whose values were given places."""
    found = False
    for steps in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for i, norm in enumerate(steps):
            if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or i == 0:
                continue
            layer = steps[i - 2] if i > 1 and isinstance(steps[i - 1], nn.Unflatten) else steps[i - 1]
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.bias is not None:
                _fold_behind(layer, norm)
                steps[i], found = nn.Identity(), True
    return found


def _fold_behind(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d
) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert layer.bias is not None
    scale = norm.weight.data * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias.data - norm.running_mean * scale
    values_a_map = len(layer.bias) // len(scale)
    scale, shift = scale.repeat_interleave(values_a_map), shift.repeat_interleave(values_a_map)
    outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # which axis of the weight they are
    shape = [-1 if axis == outputs else 1 for axis in range(layer.weight.dim())]
    layer.weight.data = layer.weight.data * scale.view(shape)
    layer.bias.data = layer.bias.data * scale + shift


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

    @property
    def leaves_out(self) -> bool:
        """Whether the generator has other resolutions."""
        return len(getattr(self.generator, "resolutions", ())) > 1

    def forward(self, latents: Tensor) -> Tensor:
        grown = getattr(self.generator, "grown", None)
        form = self.generator if grown is None else grown(self.resolution, 1.0)
        images: Tensor = form(latents)
        return images
