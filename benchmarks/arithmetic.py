"""Equation 3 of paper 1 for a whole network: what separable convolutions should save."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Saving:
    """Multiplications of one image."""

    vanilla: int
    separable: float  # by equation 3

    @property
    def ratio(self) -> float:
        return self.separable / self.vanilla

    def __add__(self, other: Saving) -> Saving:
        return Saving(self.vanilla + other.vanilla, self.separable + other.separable)


def equation_3(network: nn.Module, example: Tensor) -> Saving:
    """Every k x k convolution's multiplications (equation 1) times 1/N + 1/k**2, summed.

    1 x 1 convolutions are pointwise already. The layer of the latent stays as it is, too: the equation
    supposes an output of the input's size, and that one makes 4 x 4 of 1 x 1.
    """
    found: list[Saving] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        k = module.kernel_size[0]
        transposed = isinstance(module, nn.ConvTranspose2d)
        positions = (inputs[0] if transposed else output)[0, 0].numel()
        vanilla = positions * module.in_channels * module.out_channels * k**2
        kept = k == 1 or transposed
        found.append(Saving(vanilla, vanilla * (1 if kept else 1 / module.out_channels + 1 / k**2)))

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found, Saving(0, 0.0))
