"""Pixels on the device: uint8 NHWC <-> float NCHW in [-1, 1] (contract 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def from_pixels(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [N, H, W, C] -> [N, C, H, W] in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).to(dtype).div_(127.5).sub_(1.0)


def to_pixels(images: Tensor) -> Tensor:
    """[N, C, H, W] -> uint8 [N, H, W, C]: round(clip((x + 1) * 127.5, 0, 255)).

    The clip comes after the round so that an exported graph keeps its order; both agree.
    """
    scaled = (images + 1.0) * 127.5
    return scaled.round().clamp(0.0, 255.0).permute(0, 2, 3, 1).to(torch.uint8)
