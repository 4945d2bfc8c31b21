"""Inputs of super-resolution that look like a generator's images rather than like reduced photographs.

An upscaler that has seen only photographs reduced by one filter sharpens whatever a generator leaves in its
images. So what it learns from is made worse at random, as Wang et al. (2021, Real-ESRGAN, section 3.1) do for
old photographs: another filter, blur, noise of single pixels, and noise of blocks of 2 x 2, which is what a
generator's last doubling leaves. How strong each is, every crop draws for itself. Last of all a crop may be
compressed as JPEG, which a network of scale 1 learns to undo (paper 2, appendix C).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.networks.pixels import from_pixels, to_pixels

STORED = "stored"  # as the archive has them, or as data.reduce makes them
REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "area": lambda high, scale: F.avg_pool2d(high, scale),
    "bilinear": lambda high, scale: _interpolated(high, scale, "bilinear"),
    "bicubic": lambda high, scale: _interpolated(high, scale, "bicubic").clamp(-1, 1),
}
FILTERS = (STORED, *REDUCTIONS)

JPEG_GRID = 16  # pixels: a block of 8 x 8 of chroma, which Pillow halves

DEVIATIONS = 3  # of a Gaussian, on either side, that its kernel has


def degraded(
    low: Tensor,  # [N, 3, h, w] in [-1, 1], the stored reductions
    high: Tensor,  # [N, 3, s h, s w], the photographs
    seed: int,
    positions: range,
    filters: Sequence[str] = (STORED,),  # of FILTERS, one for each crop
    blur: float = 0.0,  # the most, as a Gaussian's standard deviation in pixels of `low`
    noise: float = 0.0,  # the most, as a standard deviation in [-1, 1]
    coarse_noise: float = 0.0,  # the same, of blocks of 2 x 2
    jpeg: Sequence[int] = (),  # the least and the most quality, 1 to 95; empty: none is compressed
) -> Tensor:
    """[N, 3, h, w], a function of (seed, position)."""
    low = _before_jpeg(low, high, seed, positions, filters, blur, noise, coarse_noise)
    return compressed(low, seed, positions, jpeg) if jpeg else low


def _before_jpeg(
    low: Tensor,
    high: Tensor,
    seed: int,
    positions: range,
    filters: Sequence[str],
    blur: float,
    noise: float,
    coarse_noise: float,
) -> Tensor:
    if not (blur or noise or coarse_noise or set(filters) != {STORED}):
        return low  # and nothing is drawn
    shares = np.stack([draws.uniforms(seed, "degradation", p, 4) for p in positions])  # [N, 4]
    chosen = [filters[int(share * len(filters))] for share in shares[:, 3]]
    low = reduced(low, high, chosen)
    if blur:
        low = blurred(low, blur * shares[:, 2], blur)
    if noise:
        low = low + _noise(low, seed, "noise", positions, noise * shares[:, 0], 1)
    if coarse_noise:
        low = low + _noise(low, seed, "coarse noise", positions, coarse_noise * shares[:, 1], 2)
    return low


def reduced(low: Tensor, high: Tensor, chosen: Sequence[str]) -> Tensor:
    """The photographs by the filter chosen for each: [N, 3, h, w]."""
    result, scale = low.clone(), high.shape[-1] // low.shape[-1]
    for name in set(chosen) - {STORED}:
        rows = [i for i, filter in enumerate(chosen) if filter == name]
        result[rows] = REDUCTIONS[name](high[rows], scale)
    return result


def compressed(images: Tensor, seed: int, positions: range, qualities: Sequence[int]) -> Tensor:
    """Each image through Pillow's JPEG encoder at a quality of its own, every one of the range as likely.

    Where the grid of blocks begins is drawn as well, since a crop or a tile may begin anywhere in a picture:
    the image is continued by its first row and column to the left and above, and cut out again.
    """
    if images.is_meta:
        return torch.empty_like(images)  # where a step's cost is traced, images have no values
    least, most = qualities
    results = []
    for pixels, p in zip(to_pixels(images).cpu().numpy(), positions, strict=True):
        of_quality, *of_place = draws.uniforms(seed, "degradation", p, 7)[4:]  # those before: `_before_jpeg`
        top, left = (int(share * JPEG_GRID) for share in of_place)
        whole = np.pad(pixels, ((top, 0), (left, 0), (0, 0)), "edge")
        buffer = io.BytesIO()
        Image.fromarray(whole).save(buffer, "JPEG", quality=least + int(of_quality * (most - least + 1)))
        results.append(np.asarray(Image.open(buffer, formats=["JPEG"]))[top:, left:])
    return from_pixels(torch.from_numpy(np.stack(results)).to(images.device), images.dtype)


def _interpolated(high: Tensor, scale: int, mode: str) -> Tensor:
    size = (high.shape[2] // scale, high.shape[3] // scale)
    return F.interpolate(high, size, mode=mode, antialias=True, align_corners=False)


def blurred(images: Tensor, deviations: NDArray[np.float64], most: float) -> Tensor:
    """Each image by a Gaussian of its own, edges repeated; kernels are as wide as for `most`."""
    n, channels, height, width = images.shape
    radius = math.ceil(DEVIATIONS * most)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    sigma = torch.from_numpy(deviations).clamp(min=1e-3)[:, None]
    kernels = torch.exp(-0.5 * (offsets / sigma).square())  # [N, 2 radius + 1]
    kernels = kernels / kernels.sum(1, keepdim=True)
    weights = kernels.to(images).repeat_interleave(channels, 0)[:, None]  # [3 N, 1, 2 radius + 1]
    x = F.pad(images, (radius,) * 4, mode="replicate").reshape(1, n * channels, height + 2 * radius, -1)
    x = F.conv2d(x, weights[:, :, :, None], groups=n * channels)
    x = F.conv2d(x, weights[:, :, None, :], groups=n * channels)
    return x.view(n, channels, height, width)


def _noise(
    like: Tensor, seed: int, purpose: str, positions: range, strengths: NDArray[np.float64], block: int
) -> Tensor:
    """Normal noise, the same within blocks: [N, 3, h, w]."""
    height, width = like.shape[-2:]
    rows_high, rows_wide = -(-height // block), -(-width // block)
    rows = draws.normals(seed, purpose, positions, 3 * rows_high * rows_wide)
    rows *= strengths.astype(np.float32)[:, None]
    blocks = torch.from_numpy(rows).to(like).view(-1, 3, rows_high, rows_wide)
    if block == 1:
        return blocks
    return F.interpolate(blocks, scale_factor=block, mode="nearest")[..., :height, :width]
