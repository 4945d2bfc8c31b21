"""Latents on the hypersphere, and turned on it. Numpy alone: Triton runs a copy of this file.

closer = toward(latents, centre, 0.7)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def on_sphere(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., L] -> the same directions, of length sqrt(L), as normal latents have on average."""
    # Bounded below by the smallest number only: a zero vector stays one.
    mean_square = np.square(z).mean(axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = z / np.sqrt(np.maximum(mean_square, np.finfo(np.float64).tiny))
    return scaled


def toward(latents: NDArray[np.float32], centre: NDArray[np.float64], psi: float) -> NDArray[np.float32]:
    """Turns latents [N, L] toward `centre` [L]: what is left of each one's angle to it is `psi` times that.

    Spherical interpolation. Lengths go toward sqrt(L) alike, for networks that do not divide them out.
    """
    z = latents.astype(np.float64)
    length = np.sqrt(np.square(z).sum(axis=1, keepdims=True))  # [N, 1]
    c = centre / np.sqrt(np.square(centre).sum())
    along = (z * c).sum(axis=1, keepdims=True)
    across = z - along * c
    away = np.sqrt(np.square(across).sum(axis=1, keepdims=True))
    angle = psi * np.arctan2(away, along)
    direction = across / np.maximum(away, np.finfo(np.float64).tiny)
    length = psi * length + (1.0 - psi) * np.sqrt(z.shape[1])
    rotation: NDArray[np.float64] = length * (np.cos(angle) * c + np.sin(angle) * direction)
    return rotation.astype(np.float32)
