"""Truncation: less variety for better faces, on the hypersphere.

centre = typical_direction(generator.run, latent_size, batch)
closer = toward(latents, centre, 0.7)

Why it is done so. BigGAN cuts the tails of the latents' normal distribution, StyleGAN scales what its
mapping network gives. Neither means anything to a network that first puts its latent on the hypersphere
(paper 2, section A.1): lengths are divided out, and directions stay as far apart as they were. So a latent
is turned toward a centre on the sphere instead. The sphere is the same everywhere, hence the centre has
to come from the network: it is the direction in which faces become typical.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.sphere import on_sphere

SAMPLES = 512  # faces that the centre is estimated from
SIDE = 32  # pixels at which faces are compared, at most
MARGIN = 8  # this part of each side is background: not compared

Generator = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # [N, L] -> [N, 3, R, R] in [-1, 1]


def check_truncation(psi: float) -> None:
    """Raises PgsrError unless 0 <= psi <= 1."""
    if not 0.0 <= psi <= 1.0:
        raise PgsrError(f"--truncation {psi} is not between 0 (always one face) and 1 (all of the variety)")


def typical_direction(generator: Generator, latent_size: int, batch: int) -> NDArray[np.float64]:
    """The direction in which faces become typical: mean((score - mean score) * latent), [L].

    By Stein's lemma that estimates the mean gradient of the score over normal latents. It changes smoothly
    with the images, so that machines whose arithmetic differs in the last bit agree on the faces.
    """
    latents = on_sphere(draws.normals(0, "centre", range(SAMPLES), latent_size).astype(np.float64))
    rows = latents.astype(np.float32)
    faces = [_outline(generator(rows[start : start + batch])) for start in range(0, SAMPLES, batch)]
    score = typicality(np.concatenate(faces))
    return np.asarray(((score - score.mean())[:, None] * latents).mean(axis=0))


def typicality(outlines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how well each [N, P] is correlated with the mean of all: [N], -1 to 1.

    Of brightness without its mean and contrast: else grey blurs would be the most typical of all.
    """
    standard = outlines - outlines.mean(axis=1, keepdims=True)
    standard = on_sphere(standard)  # [N, P], mean square 1
    return np.asarray((standard * on_sphere(standard.mean(axis=0))).mean(axis=1))


def _outline(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """The brightness of the middle of images, reduced: [N, 3, R, R] -> [N, P]."""
    grey = images.astype(np.float64).mean(axis=1)  # [N, R, R]
    n, side = len(grey), grey.shape[-1]
    factor = -(-side // SIDE)
    small = side // factor
    grey = grey[:, : small * factor, : small * factor]
    grey = grey.reshape(n, small, factor, small, factor).mean(axis=(2, 4))
    edge = small // MARGIN
    outlines: NDArray[np.float64] = grey[:, edge : small - edge, edge : small - edge].reshape(n, -1)
    return outlines
