"""How near upscaled pictures come to the originals, as the field of super-resolution measures it: PSNR and
SSIM of the luminance Y alone, without a border as wide as the scale (Ledig et al. 2017, section 3.1).

    found = fidelity(made, originals, border=4)     # uint8 [N, H, W, 3] each
    found.psnr_db, found.ssim                       # [N] each; the field reports their means
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgsr.errors import PgsrError

from .similarity import ssim

Pixels = NDArray[np.uint8]

Y = (65.481, 128.553, 24.966)  # of red, green and blue in 0 ... 1; 16 is added (ITU-R BT.601, studio range)
BEST_DB = 100.0  # of pictures that are equal, whose PSNR is infinite


@dataclass(frozen=True)
class Fidelity:
    """PSNR and SSIM of each picture."""

    psnr_db: Tensor  # [N]
    ssim: Tensor  # [N]


def fidelity(pictures: Pixels, originals: Pixels, border: int) -> Fidelity:
    """Compares pictures uint8 [N, H, W, 3] with their originals, leaving out `border` pixels at every side.

    Raises PgsrError if shapes differ or nothing is left.
    """
    if pictures.shape != originals.shape:
        raise PgsrError(f"PSNR and SSIM of pictures {list(pictures.shape)} and {list(originals.shape)}")
    if min(pictures.shape[1:3]) <= 2 * border:
        raise PgsrError(
            f"pictures of {pictures.shape[2]}x{pictures.shape[1]} have nothing inside a border of {border}"
        )
    a, b = (_shaved(luminance(pixels), border) for pixels in (pictures, originals))
    error = (a - b).square().mean((1, 2, 3))
    psnr = 10 * torch.log10(255.0**2 / error.clamp_min(255.0**2 / 10 ** (BEST_DB / 10)))
    return Fidelity(psnr, ssim(a, b))


def luminance(pixels: Pixels) -> Tensor:
    """uint8 [N, H, W, 3] -> float64 [N, 1, H, W] in 16 ... 235, not rounded."""
    weights = torch.tensor(Y, dtype=torch.float64) / 255
    return (16 + torch.from_numpy(np.array(pixels)).double() @ weights)[:, None]


def _shaved(images: Tensor, border: int) -> Tensor:
    return images[:, :, border : images.shape[2] - border, border : images.shape[3] - border]
