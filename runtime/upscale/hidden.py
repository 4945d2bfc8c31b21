"""Colours under alpha 0, which editors leave as anything: filled from what can be seen, so that an upscaler,
which sees no alpha, does not draw them into the edges of what is visible."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROWS = 512  # in numbers at once; even
SEEN = [0, *[255] * 255]  # a table: any alpha but 0


def fill_hidden(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """The colours, where alpha is 0 taken from the nearest visible ones: a pyramid of means, from coarse to
    fine. L or RGB; all of it is left as it is where nothing, or everything, is visible."""
    seen = alpha.point(SEEN)
    if seen.getextrema() != (0, 255):
        return colours
    smaller_seen = seen.reduce(2).point(SEEN)
    smaller = fill_hidden(_means(colours, seen), smaller_seen)
    around = smaller.resize((2 * smaller.width, 2 * smaller.height), Image.Resampling.NEAREST)
    return Image.composite(colours, around.crop((0, 0, *colours.size)), seen)


def _means(colours: Image.Image, seen: Image.Image) -> Image.Image:
    """Means of 2 x 2 pixels, of the visible ones alone."""
    result = Image.new(colours.mode, ((colours.width + 1) // 2, (colours.height + 1) // 2))
    for top in range(0, colours.height, ROWS):
        box = (0, top, colours.width, min(top + ROWS, colours.height))
        means = _means_of(np.asarray(colours.crop(box)), np.asarray(seen.crop(box)) > 0)
        result.paste(Image.fromarray(means), (0, top // 2))
    return result


def _means_of(levels: NDArray[np.uint8], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """[H, W] or [H, W, 3], and [H, W], both halved."""
    seen = seen.reshape(seen.shape + (1,) * (levels.ndim - 2))
    counts, sums = _sums(seen.astype(np.uint16)), _sums(levels.astype(np.uint16) * seen)
    means: NDArray[np.uint8] = ((sums + counts // 2) // np.maximum(counts, 1)).astype(np.uint8)
    return means


def _sums(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Of 2 x 2 values; beyond an odd edge there are zeros."""
    odd = [(0, side % 2) for side in values.shape[:2]] + [(0, 0)] * (values.ndim - 2)
    values = np.pad(values, odd)
    halves = values[::2] + values[1::2]
    return halves[:, ::2] + halves[:, 1::2]
