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
from .residency import Cuts, Pixels, whole


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


def middle_boxes(pixels: Pixels, count: int, recipe: Recipe) -> Tensor:
    """The box in the middle of each of the first photographs, reduced as `boxes` does: [N, 3, R, R]."""
    box = recipe.data.box
    start = (pixels.side - box) // 2
    return _reduced(pixels.cut(Cuts(tuple((row, start, start) for row in range(count)), box)), recipe)


def box_cuts(side: int, indices: list[int], positions: range, recipe: Recipe) -> Cuts:
    """Random boxes of photographs of that side, or of their width in its middle, each by its position."""
    width = recipe.data.width or side
    down, across, margin = side - recipe.data.box + 1, width - recipe.data.box + 1, (side - width) // 2
    places = []
    for p, index in zip(positions, indices, strict=True):
        u, v = draws.uniforms(recipe.seed, "crop", p, 2)
        places.append((index, int(u * down), margin + int(v * across)))
    return Cuts(tuple(places), recipe.data.box)


def boxes(pixels: Pixels, cuts: Cuts, recipe: Recipe) -> Tensor:
    """Boxes of photographs, reduced to the schedule's resolution by averaging: [N, 3, R, R]."""
    return _reduced(pixels.cut(cuts), recipe)


def _reduced(cut: Tensor, recipe: Recipe) -> Tensor:
    return F.avg_pool2d(from_pixels(cut), recipe.data.box // recipe.schedule.resolution)


def stack_indices(seed: int, positions: range, count: int) -> list[list[int]]:
    """Returns which three of `count` pictures make the stacked images at positions, each drawn by itself:
    [N][3]."""
    return [[int(u * count) for u in draws.uniforms(seed, "stack", p, 3)] for p in positions]


def stack_cuts(pixels: Pixels, seed: int, positions: range) -> Cuts:
    """The pictures that make the stacked images at positions, three in a row each."""
    rows = [row for three in stack_indices(seed, positions, len(pixels)) for row in three]
    return whole(rows, pixels.side)


def stacked(pixels: Pixels, cuts: Cuts) -> Tensor:
    """The red of one picture, the green of another and the blue of a third: [N, 3, H, W] in [-1, 1].

    Of grey digits these are the 1000 modes of paper 2, appendix E.
    """
    threes = pixels.cut(cuts).view(-1, 3, cuts.side, cuts.side, 3)
    images = torch.stack([threes[:, channel, :, :, channel] for channel in range(3)], dim=1)
    return from_pixels(images.permute(0, 2, 3, 1))


def mirror(images: Tensor, flips: list[bool]) -> Tensor:
    """Flips the chosen images left to right."""
    mask = torch.tensor(flips, device=images.device).view(-1, 1, 1, 1)
    return torch.where(mask, images.flip(3), images)
