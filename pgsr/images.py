"""Pixels outside the networks: uint8 NHWC, and the one conversion from [-1, 1] (contract 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rounded(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [-1, 1] as levels, of any shape: round(clip((x + 1) * 127.5, 0, 255))."""
    levels: NDArray[np.uint8] = np.rint(np.clip((x + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)
    return levels


def to_uint8(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """[N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]."""
    return rounded(x).transpose(0, 2, 3, 1)


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1]."""
    return (pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)).transpose(0, 3, 1, 2)


def sheet(pictures: NDArray[np.uint8], columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """A contact sheet on white: uint8 [N, H, W, C] -> [H', W', C], row by row."""
    n, h, w, c = pictures.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    page = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top = gap + (i // columns) * (h + gap)
        left = gap + (i % columns) * (w + gap)
        page[top : top + h, left : left + w] = picture
    return page
