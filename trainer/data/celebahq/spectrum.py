"""How good a picture is by its power spectrum (paper 2, appendix C).

The paper keeps the CelebA pictures "whose power spectrum contains a broad range of frequencies and is
approximately radially symmetric", which leaves out blurred ones and those with, for example, halftone
patterns. It gives no formula; this one is ours. Power beyond what rounding leaves is averaged in rings of
equal width, and sectors of them, and weighted by the squared frequency, since pictures of nature have about
as much power as 1 / frequency**2 (Field, 1987), which makes a sharp one's rings alike. Noise counts as
detail.

breadth:  the effective share of the rings: exp(entropy) / rings; 1 where all have the same weight
symmetry: the effective share of the sectors in a ring, averaged by the rings' weights; 1 for round spectra
quality:  breadth * symmetry; 0 for a picture of one colour

None of them changes with contrast, as long as noise and rounding do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RING = 8  # frequencies a ring is wide, in periods a picture's side, at most
LEAST_RINGS = 4
SECTORS = 12  # of the half circle
NOISE = 1.0  # variance, in grey levels squared, of noise that does not count as detail
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Quality:
    """All in [0, 1]."""

    breadth: float
    symmetry: float

    @property
    def score(self) -> float:
        return self.breadth * self.symmetry


def quality(pixels: NDArray[np.uint8]) -> Quality:
    """Measures the quality of a square picture [S, S, 3], S at least 16."""
    power = rings_and_sectors(pixels.astype(np.float64) @ np.array(LUMA))
    rings = power.sum(axis=1)
    total = rings.sum()
    if total <= 0.0:
        return Quality(0.0, 0.0)
    symmetry = [effective_share(row) for row in power]
    return Quality(float(effective_share(rings)), float(np.dot(rings / total, symmetry)))


def effective_share(weights: NDArray[np.float64]) -> float:
    """exp(Shannon's entropy) of weights, as a share of their number: 1 if all are equal, 1/n for one."""
    total = weights.sum()
    if total <= 0.0:
        return 0.0
    p = weights[weights > 0.0] / total
    return float(np.exp(-(p * np.log(p)).sum()) / len(weights))


def rings_and_sectors(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean power times squared frequency of each ring and sector of the spectrum: [rings, SECTORS].

    The picture is seen through a Hann window, since its edges would make a cross in the spectrum.
    """
    side = len(grey)
    window = np.hanning(side + 2)[1:-1]
    window = window[:, None] * window[None, :]
    level = (grey * window).sum() / window.sum()
    spectrum = np.abs(np.fft.rfft2((grey - level) * window)) ** 2
    vertical, across = np.fft.fftfreq(side) * side, np.arange(spectrum.shape[1])
    radius = np.hypot(vertical[:, None], across[None, :])
    angle = np.arctan2(vertical[:, None], across[None, :])  # -pi/2 to pi/2
    count = max(LEAST_RINGS, side // 2 // RING)
    ring = np.floor(radius / (side / 2) * count).astype(np.int64)
    sector = np.floor((angle / np.pi + 0.5) * SECTORS).astype(np.int64) % SECTORS
    inside = (ring < count) & (radius > 1.5)  # not the window's own lobe
    place = (ring * SECTORS + sector)[inside]
    cells = np.maximum(np.bincount(place, minlength=count * SECTORS), 1)
    sums = np.bincount(place, spectrum[inside], minlength=count * SECTORS)
    power = np.maximum(sums / cells - NOISE * np.square(window).sum(), 0.0)
    frequency = (np.arange(count) + 0.5) / count
    weighted: NDArray[np.float64] = power.reshape(count, SECTORS) * np.square(frequency)[:, None]
    return weighted
