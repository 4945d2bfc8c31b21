"""Photographs as tensors: which are shown when, flipped, cut or stacked, by (seed, images shown)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.networks.pixels import from_pixels

from .recipe import Recipe


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return draws.permutation(seed, "order", epoch, count)


def data_indices(seed: int, positions: range, count: int) -> list[int]:
    """Returns which of `count` photographs are the real images shown at positions: every epoch its own
    order."""
    return [int(_epoch_order(seed, p // count, count)[p % count]) for p in positions]


def mirrored(seed: int, positions: range) -> list[bool]:
    """Returns which of the real images shown are flipped."""
    return [bool(draws.raw(seed, "mirror", p, 1)[0] & 1) for p in positions]


def middle_boxes(pixels: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """The box in the middle of each photograph, reduced as `boxes` does: [N, 3, R, R]."""
    box = recipe.data.box
    start = (pixels.shape[1] - box) // 2
    images = from_pixels(pixels[:, start : start + box, start : start + box].to(device))
    return F.avg_pool2d(images, box // recipe.schedule.resolution)


def boxes(
    pixels: Tensor, indices: list[int], seed: int, positions: range, recipe: Recipe, device: torch.device
) -> Tensor:
    """A random box of each photograph, reduced to the schedule's resolution by averaging: [N, 3, R, R]."""
    box, side = recipe.data.box, pixels.shape[1]
    cut = []
    for p, index in zip(positions, indices, strict=True):
        top, left = (int(u * (side - box + 1)) for u in draws.uniforms(seed, "crop", p, 2))
        cut.append(pixels[index, top : top + box, left : left + box])
    images = from_pixels(torch.stack(cut).to(device))
    return F.avg_pool2d(images, box // recipe.schedule.resolution)


def stack_indices(seed: int, positions: range, count: int) -> list[list[int]]:
    """Returns which three of `count` pictures make the stacked images at positions, each drawn by itself:
    [N][3]."""
    return [[int(u * count) for u in draws.uniforms(seed, "stack", p, 3)] for p in positions]


def stacked(pixels: Tensor, seed: int, positions: range, device: torch.device) -> Tensor:
    """The red of one picture, the green of another and the blue of a third: [N, 3, H, W] in [-1, 1].

    Of grey digits these are the 1000 modes of paper 2, appendix E.
    """
    rows = torch.tensor(stack_indices(seed, positions, len(pixels)), device=pixels.device).view(-1, 3)
    channels = torch.arange(3, device=pixels.device)
    return from_pixels(pixels[rows, :, :, channels].permute(0, 2, 3, 1).to(device))


def resident(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """The data set where gathering is cheapest: on the GPU, or the mapped file itself."""
    if device.type == "cpu":
        return _without_copy(pixels)
    return torch.from_numpy(np.asarray(pixels)).to(device)


def _without_copy(pixels: NDArray[np.uint8]) -> Tensor:
    """A tensor over read-only memory; nothing here writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def gather(pixels: Tensor, indices: list[int], device: torch.device) -> Tensor:
    """Rows of uint8 [N, H, W, 3] -> [B, 3, H, W] in [-1, 1]."""
    return from_pixels(pixels[torch.tensor(indices, device=pixels.device)].to(device))


def mirror(images: Tensor, flips: list[bool]) -> Tensor:
    """Flips the chosen images left to right."""
    mask = torch.tensor(flips, device=images.device).view(-1, 1, 1, 1)
    return torch.where(mask, images.flip(3), images)
