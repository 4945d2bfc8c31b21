"""The modules that become graphs: inputs and outputs in float32 and uint8, arithmetic in any precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pgsr.networks.pixels import to_pixels

# Of weights and activations. An int8 graph is made of the float32 one (export/int8.py).
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


class Chain(nn.Module):
    """Networks one after the other in one precision; float32 in, float32 images or uint8 pixels out.

    The first network of a chain normalises its latents itself. Pixelwise normalisation and the
    conversion to pixels are computed in float32 at every precision.
    """

    def __init__(self, networks: list[nn.Module], precision: str, pixels: bool) -> None:
        super().__init__()
        self.dtype, self.pixels = DTYPES[precision], pixels
        self.networks = nn.ModuleList([copy.deepcopy(n).to(self.dtype) for n in networks])

    def forward(self, x: Tensor) -> Tensor:
        if self.dtype != torch.float32:
            x = x.to(self.dtype)
        for network in self.networks:
            x = network(x)
        if self.dtype != torch.float32:
            x = x.float()
        return to_pixels(x) if self.pixels else x
