"""Networks in which a slip of folding or rewriting shows."""

from __future__ import annotations

import torch
from torch import nn


def lively(network: nn.Module) -> nn.Module:
    """In eval mode, biases and batch statistics away from their initial values."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in network.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.2, generator=generator)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
    return network.eval()
