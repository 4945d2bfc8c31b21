"""Paths through latent space, as paper 2 interpolates (section 6.3).

for z in walk(seed=0, frames=range(600), size=512, sigma=45.0):
    ...   # float32 [512], a little further than the one before
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.sphere import on_sphere

LIMIT = 2**64  # of the indices of draws
REACH = 4.0  # standard deviations at which the Gaussian is cut off: it is 0.0003 there


def walk(
    seed: int,
    frames: Iterable[int],
    size: int,
    sigma: float,  # of the blur, in frames; paper 2 has 45 at 60 Hz
    period: int = LIMIT,  # frames after which a loop begins again
) -> Iterator[NDArray[np.float32]]:
    """The latent of each of `frames`, float32 [size], of length sqrt(size).

    A latent from N(0, 1) for every frame, blurred over time with a Gaussian, then put on the hypersphere
    (paper 2, section 6.3). Frame t is a function of (seed, t, sigma, period) alone: it is the weighted sum
    of the draws t - reach ... t + reach, modulo the period. Memory is that of one such window.
    """
    weights = gaussian(sigma)[:, None]  # [2 * reach + 1, 1]
    reach = len(weights) // 2
    noises: dict[int, NDArray[np.float64]] = {}
    for t in frames:
        window = [(t + k) % period for k in range(-reach, reach + 1)]
        noises = {j: noises[j] if j in noises else _noise(seed, j, size) for j in window}
        blurred: NDArray[np.float64] = (weights * np.stack([noises[j] for j in window])).sum(axis=0)
        yield on_sphere(blurred).astype(np.float32)


def between(first: NDArray[np.float32], second: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Turns a latent [L] toward another by a share of the angle between them, 0 to 1; lengths go along.

    Spherical interpolation (Shoemake, 1985, section 3.3): straight lines would pass through lengths that
    normal latents do not have.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.sqrt(np.square(a).sum()), np.sqrt(np.square(b).sum())
    a, b = on_sphere(a), on_sphere(b)
    cosine = np.clip((a * b).mean(), -1.0, 1.0)
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-6:  # the same direction, or opposite ones, between which no way is the shortest
        turned = (1.0 - share) * a + share * b
    else:
        turned = np.sin((1.0 - share) * angle) * a + np.sin(share * angle) * b
    length = (1.0 - share) * lengths[0] + share * lengths[1]
    result: NDArray[np.float32] = (on_sphere(turned) * length / np.sqrt(len(a))).astype(np.float32)
    return result


def along(latents: NDArray[np.float32], position: float) -> NDArray[np.float32]:
    """The latent [L] at a place of the way through `latents` [N, L], which stand at 0, 1, ...; the last one
    leads to the first again. Their own at their places, and between them by equal angles."""
    first = min(int(position), len(latents) - 1)
    share = position - first
    own: NDArray[np.float32] = latents[first]
    return between(own, latents[(first + 1) % len(latents)], share) if share else own


def gaussian(sigma: float) -> NDArray[np.float64]:
    """exp(-k^2 / (2 sigma^2)) for |k| <= REACH * sigma: [2 * reach + 1]; what it sums to does not matter."""
    reach = math.ceil(REACH * sigma)
    k = np.arange(-reach, reach + 1, dtype=np.float64)
    weights: NDArray[np.float64] = np.exp(-0.5 * np.square(k / sigma)) if sigma > 0 else np.ones(1)
    return weights


def _noise(seed: int, index: int, size: int) -> NDArray[np.float64]:
    """The draw of one frame before the blur: [size]."""
    row: NDArray[np.float32] = draws.normals(seed, "film", [index], size)[0]
    return row.astype(np.float64)
