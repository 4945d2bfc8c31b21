"""Structural similarity: of two pictures (SSIM, MS-SSIM), and among the pictures of a set, whose mean over
random pairs tells how varied they are (MS-SSIM of paper 2, section 6.1: the lower, the more varied).

    ms_ssim(a, b)                                        # [N, C, H, W] in 0 ... 255 -> [N]
    similar = PairSimilarity(images=2000, pairs=10_000)  # of a set in random order, which comes in batches
    for pixels in batches:
        similar.add(pixels)                              # uint8 [N, H, W, 3]
    similar.mean

Formulas of Wang et al. (2004) for SSIM and Wang, Simoncelli and Bovik (2003) for MS-SSIM, in the form of the
authors of paper 2: statistics under a Gaussian window of 11 pixels and sigma 1.5 at places where it fits
whole; halved by averages of 2x2; at scales smaller than the window, a window as large as the picture with
sigma in proportion, so that 64x64 has five scales too; negative contrast counts as 0. (torchmetrics refuses
pictures below 161 pixels and lets SSIM see a mirrored border.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pgsr.errors import PgsrError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MIDDLE = 127.5  # taken off before squaring, so that variances are not differences of large numbers
PAIRS = 10_000  # paper 2, section 6.1
SMALLEST = 2 ** (len(WEIGHTS) - 1)  # pixels: a side that can be halved from scale to scale
BLOCK = 8  # pictures compared at once


@dataclass(frozen=True)
class Scale:
    """Pictures at one scale and their local statistics."""

    centred: Tensor  # [N, C, H, W]: pixels less 127.5
    mean: Tensor  # [N, C, H - 10, W - 10], of the centred
    variance: Tensor

    def __getitem__(self, rows: slice) -> Scale:
        return Scale(self.centred[rows], self.mean[rows], self.variance[rows])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Computes SSIM of pairs of pictures [N, C, H, W] in 0 ... 255: [N]."""
    first, second = _scale(a - MIDDLE), _scale(b - MIDDLE)
    return (_contrast(first, second) * _luminance(first, second)).mean((1, 2, 3))


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Computes MS-SSIM of pairs of pictures [N, C, H, W] in 0 ... 255: [N]. Raises PgsrError below 16x16."""
    return similarity(scales(a), scales(b))


def scales(images: Tensor) -> list[Scale]:
    """Returns what `similarity` needs of pictures [N, C, H, W] in 0 ... 255."""
    if min(images.shape[2:]) < SMALLEST:
        side = "x".join(map(str, images.shape[2:]))
        raise PgsrError(f"MS-SSIM needs pictures of at least {SMALLEST}x{SMALLEST}, not {side}")
    centred, levels = images - MIDDLE, []
    for _ in WEIGHTS:
        levels.append(_scale(centred))
        centred = F.avg_pool2d(centred, 2) if len(levels) < len(WEIGHTS) else centred
    return levels


def similarity(a: Sequence[Scale], b: Sequence[Scale]) -> Tensor:
    """MS-SSIM of each picture of `a` and the one in its place in `b`: [N]."""
    result = torch.ones(len(a[0].mean), dtype=a[0].mean.dtype, device=a[0].mean.device)
    for k, weight in enumerate(WEIGHTS):
        contrast = _contrast(a[k], b[k])
        if k == len(WEIGHTS) - 1:
            contrast *= _luminance(a[k], b[k])
        result *= contrast.mean((1, 2, 3)).clamp_min(0) ** weight
    return result


def _scale(centred: Tensor) -> Scale:
    mean = _smooth(centred)
    return Scale(centred, mean, _smooth(centred.square()) - mean.square())


def _contrast(a: Scale, b: Scale) -> Tensor:
    """SSIM's factor of contrast and structure at every place: [N, C, H - 10, W - 10]."""
    covariance = _smooth(a.centred * b.centred).addcmul_(a.mean, b.mean, value=-1)
    return covariance.mul_(2).add_(C2).div_((a.variance + b.variance).add_(C2))


def _luminance(a: Scale, b: Scale) -> Tensor:
    """SSIM's other factor."""
    first, second = a.mean + MIDDLE, b.mean + MIDDLE
    return (2 * first * second + C1) / (first.square() + second.square() + C1)


def _smooth(images: Tensor) -> Tensor:
    """Means under the window, where it fits: [N, C, H, W] -> [N, C, H - 10, W - 10]. As two matrix products,
    which are many times as fast as a convolution of each channel by itself."""
    h, w = images.shape[2:]
    size = min(WINDOW, h, w)
    down, across = (_windows(n, size, images.dtype, images.device) for n in (h, w))
    return down @ images @ across.T


@lru_cache(maxsize=64)
def _windows(side: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One row for each place of a window of `size` in `side` pixels: [side - size + 1, side]."""
    sigma = SIGMA * size / WINDOW
    offsets = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    rows = np.zeros((side - size + 1, side))
    for place in range(len(rows)):
        rows[place, place : place + size] = weights / weights.sum()
    return torch.from_numpy(rows).to(device, dtype)


# ----------------------------------------------------------------------------
# Pairs of a set.


class PairSimilarity:
    """Mean MS-SSIM over pairs of a set of `images` pictures in random order.

    Of such a set any pair is a random one, so picture i is paired with the ones just before it, i - 1, i - 2
    and so on until there are `pairs` (or all pairs there are): only these few are kept in memory.
    """

    def __init__(self, images: int, pairs: int = PAIRS, device: torch.device | str = "cpu") -> None:
        """Raises PgsrError for less than two pictures or one pair."""
        if images < 2 or pairs < 1:
            raise PgsrError(f"MS-SSIM of {pairs} pairs of {images} images: it needs a pair at least")
        self.images, self.device = images, torch.device(device)
        self.pairs = min(pairs, images * (images - 1) // 2)
        self.lags = lags(images, self.pairs)
        self._total, self._count, self._images = 0.0, 0, 0
        self._recent: list[Scale] = []  # of the pictures just before, at most as many as there are lags

    def add(self, pixels: NDArray[np.uint8] | Tensor) -> None:
        """uint8 [N, H, W, 3]. Raises PgsrError if they are more than was said, or too small."""
        if self._images + len(pixels) > self.images:
            raise PgsrError(f"MS-SSIM was to be of {self.images} images, and got more")
        for start in range(0, len(pixels), BLOCK):
            self._add(torch.as_tensor(np.array(pixels[start : start + BLOCK])))

    @torch.no_grad()
    def _add(self, pixels: Tensor) -> None:
        levels = scales(pixels.to(self.device).permute(0, 3, 1, 2).float())
        if self._recent:
            levels = [_concatenate(a, b) for a, b in zip(self._recent, levels, strict=True)]
        before, after = len(levels[0].mean) - len(pixels), len(levels[0].mean)
        for lag, pairs in enumerate(self.lags, start=1):
            # Picture i is the (i - lag)-th to have one `lag` before it; only the first `pairs` of them count.
            start = max(before, lag)
            stop = min(after, before - self._images + lag + pairs)
            if start < stop:
                pair = [x[start:stop] for x in levels], [x[start - lag : stop - lag] for x in levels]
                self._total += float(similarity(*pair).double().sum())
                self._count += stop - start
        self._images += len(pixels)
        self._recent = [x[max(0, after - len(self.lags)) :] for x in levels]

    @property
    def mean(self) -> float:
        """Raises PgsrError unless all the pictures have come."""
        if self._images < self.images:
            raise PgsrError(f"MS-SSIM was to be of {self.images} images, and got {self._images}")
        assert self._count == self.pairs
        return self._total / self._count


def lags(images: int, pairs: int) -> list[int]:
    """Returns how many pairs there are of pictures 1 apart, 2 apart, ...: as many as there can be, until the
    last."""
    numbers: list[int] = []
    while sum(numbers) < pairs:
        numbers.append(min(images - len(numbers) - 1, pairs - sum(numbers)))
    return numbers


def _concatenate(a: Scale, b: Scale) -> Scale:
    return Scale(
        torch.cat([a.centred, b.centred]),
        torch.cat([a.mean, b.mean]),
        torch.cat([a.variance, b.variance]),
    )
