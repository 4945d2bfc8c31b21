"""Weights of a small VGG19."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from pgsr.networks.vgg import LAYERS

WIDTHS = (3, 6, 7, 8, 6, 9, 7, 8, 6, 7, 9, 8, 6, 7, 8, 6, 9)


def tiny_vgg19() -> dict[str, Tensor]:
    """A VGG19 of a few maps, in the layout of torchvision, with the classifier that files have."""
    generator = torch.Generator().manual_seed(1)
    result = {"classifier.0.weight": torch.zeros(2, 2)}
    for number, (inputs, outputs) in zip(LAYERS, pairwise(WIDTHS), strict=True):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        result[f"features.{number}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        result[f"features.{number}.bias"] = 0.3 * torch.rand(outputs, generator=generator)
    return result
