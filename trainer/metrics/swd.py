"""Sliced Wasserstein distance between two sets of pictures (paper 2, section 5), times 1000.

    result = distance_between(reals, fakes, resolution=64, seed=0)  # iterables of uint8 [N, 64, 64, 3]
    result.levels   # {64: 3.6, 32: 3.1, 16: 7.7}: fine detail first, layout last
    result.average

Every picture gives 128 patches of 7x7 pixels and 3 colours at each level of its Laplacian pyramid; at each
level the two sets of patches are compared along 512 random directions. The paper uses 16384 pictures a set.
The distance falls as sets grow, so compare only at equal counts. Both sets are normalised, each by its own
mean and deviation a colour, so brightness, contrast and tint alone do not count.

A picture's patches depend on the seed and on its place in the set, not on how the set was cut into batches.
The same seed takes the same places in both sets, so equal sets are at distance 0; two Descriptors of
different seeds sample each on its own, as the paper does.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.errors import PgsrError

Images = NDArray[np.uint8] | Tensor

COARSEST = 16  # pixels: the side of the pyramid's last level
PATCH = 7  # pixels: the side of a descriptor
PATCHES = 128  # descriptors of an image and level
SIZE = 3 * PATCH**2  # numbers in a descriptor
DIRECTIONS = 512
FIRST_DIRECTION = 2**63  # draws of an index below are positions in an image, those from here on directions
BLOCK = 16  # images handled at once, and held in one tensor
CHUNK_BYTES = 2**28  # of the projections of one set held at once
FLAT = 1e-6  # grey levels: a colour that deviates less is constant


@dataclass(frozen=True)
class Swd:
    """Sliced Wasserstein distances, times 1000."""

    levels: dict[int, float]  # side of the pyramid's level in pixels -> distance, finest first

    @property
    def average(self) -> float:
        return sum(self.levels.values()) / len(self.levels)


def distance_between(
    reals: Iterable[Images],
    fakes: Iterable[Images],
    resolution: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Swd:
    """Computes the distance of two sets of as many images, in batches of uint8 [N, resolution, resolution,
    3].

    Raises what Descriptors and distance raise.
    """
    sets = []
    for batches in (reals, fakes):
        sets.append(Descriptors(resolution, seed, device))
        for images in batches:
            sets[-1].add(images)
    return distance(*sets)


def distance(real: Descriptors, fake: Descriptors) -> Swd:
    """The directions are those of real's seed.

    Raises PgsrError if the sets are empty, or differ in resolution or in their number of images.
    """
    if real.resolution != fake.resolution:
        raise PgsrError(
            f"SWD of images of {real.resolution} and of {fake.resolution}: bring both to one size"
        )
    if real.count != fake.count or not real.count:
        raise PgsrError(
            f"SWD of {real.count} real and {fake.count} generated images: it needs as many of either, "
            "and at least one"
        )
    levels = {}
    for level in real.levels:
        along = random_directions(real.seed, level).to(real.device)
        levels[level] = 1000 * sliced_wasserstein(real.samples(level), fake.samples(level), along)
    return Swd(levels)


class Descriptors:
    """The patches of a set of images, which may come in any batches; a patch takes 588 bytes.

    Raises PgsrError for a resolution that is not a power of two or is less than 16.
    """

    def __init__(self, resolution: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.resolution, self.seed, self.device = resolution, seed, torch.device(device)
        self.levels = pyramid_levels(resolution)
        self.count = 0  # images added
        self._blocks: dict[int, list[Tensor]] = {level: [] for level in self.levels}

    def add(self, images: Images) -> None:
        """uint8 [N, resolution, resolution, 3]. Raises PgsrError for anything else."""
        _check(images, self.resolution)
        start = 0
        while start < len(images):
            stop = start + BLOCK - self.count % BLOCK
            self._add(_floats(images[start:stop], self.device))
            start = stop

    def _add(self, images: Tensor) -> None:
        """[N, 3, H, W], at most as many as the current block has room for."""
        begin = self.count % BLOCK
        places = positions(self.seed, range(self.count, self.count + len(images)), self.levels)
        for level, filtered in zip(self.levels, laplacian_pyramid(images, len(self.levels)), strict=True):
            blocks = self._blocks[level]
            if not begin:
                blocks.append(images.new_empty(BLOCK, PATCHES, SIZE))
            blocks[-1][begin : begin + len(images)] = patches(filtered, places[level].to(self.device))
        self.count += len(images)

    def samples(self, level: int) -> Samples:
        """All descriptors of one level, to be normalised by their mean and deviation a colour."""
        blocks = [block.flatten(0, 1) for block in self._blocks[level]]
        blocks[-1] = blocks[-1][: PATCHES * ((self.count - 1) % BLOCK + 1)]
        mean, deviation = _moments(blocks)
        return Samples(blocks, mean.repeat_interleave(PATCH**2), deviation.repeat_interleave(PATCH**2))


def _check(images: Images, resolution: int) -> None:
    if images.dtype not in (np.uint8, torch.uint8) or tuple(images.shape[1:]) != (resolution, resolution, 3):
        shape = ", ".join(map(str, images.shape))
        raise PgsrError(
            f"SWD at {resolution} takes uint8 [N, {resolution}, {resolution}, 3], "
            f"not {images.dtype} [{shape}]"
        )


def _floats(images: Images, device: torch.device) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], still 0 ... 255."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images))  # a copy: memory-mapped files are read-only
    return images.to(device).permute(0, 3, 1, 2).float()


# ----------------------------------------------------------------------------
# Laplacian pyramid (Burt & Adelson 1983). The filter's weights are dyadic, so that from bytes the levels of
# a 64x64 image come out all but exact in float32.


def pyramid_levels(resolution: int) -> list[int]:
    """resolution, resolution / 2, ..., 16."""
    if resolution < COARSEST or resolution & (resolution - 1):
        raise PgsrError(f"SWD needs a resolution that is a power of two from {COARSEST}, not {resolution}")
    return [2**k for k in range(resolution.bit_length() - 1, COARSEST.bit_length() - 2, -1)]


def laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """[N, C, H, W] -> what each level adds to the next one upsampled, and the coarsest itself."""
    pyramid = [images]
    for _ in range(levels - 1):
        smaller = pyramid_down(pyramid[-1])
        pyramid[-1] = pyramid[-1] - pyramid_up(smaller)
        pyramid.append(smaller)
    return pyramid


def pyramid_down(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2]."""
    return _smooth(images)[:, :, ::2, ::2]


def pyramid_up(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W]: zeros between the pixels, filtered."""
    n, c, h, w = images.shape
    spread = images.new_zeros(n, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = images
    return 4 * _smooth(spread)


def _smooth(images: Tensor) -> Tensor:
    """Binomial filter of 5x5, borders mirrored about the outermost pixel."""
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    for axis, length in ((2, images.shape[2]), (3, images.shape[3])):
        a, b, c, d, e = (padded.narrow(axis, shift, length) for shift in range(5))
        padded = (a + e + 4 * (b + d) + 6 * c) / 16
    return padded


# ----------------------------------------------------------------------------
# Descriptors


def positions(seed: int, indices: Iterable[int], levels: list[int]) -> dict[int, Tensor]:
    """Returns where the patches of images `indices` begin: level -> int64 [N, 2, 128] of rows and columns.

    A level's places do not depend on how many finer ones there are.
    """
    u = np.array([draws.uniforms(seed, "swd", i, len(levels) * 2 * PATCHES) for i in indices])
    u = u.reshape(-1, len(levels), 2, PATCHES)
    return {
        level: torch.from_numpy((u[:, k] * (level - PATCH + 1)).astype(np.int64))
        for k, level in enumerate(reversed(levels))
    }


def patches(images: Tensor, places: Tensor) -> Tensor:
    """[N, 3, H, W] and their places [N, 2, 128] -> descriptors [N, 128, 147], channel by channel."""
    windows = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [N, 3, H-6, W-6, 7, 7]
    rows = torch.arange(len(images), device=images.device)[:, None]
    return windows[rows, :, places[:, 0], places[:, 1]].flatten(2)


def _moments(blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each colour over all descriptors: float64 [3] each.

    A constant colour gets deviation 1, and so becomes 0 when normalised.
    """
    first = second = torch.zeros(3, dtype=torch.float64, device=blocks[0].device)
    for block in blocks:
        values = block.view(-1, 3, PATCH**2).double()
        first = first + values.sum((0, 2))
        second = second + values.square().sum((0, 2))
    count = PATCH**2 * sum(map(len, blocks))
    mean = first / count
    deviation = (second / count - mean.square()).clamp_min(0).sqrt()
    return mean, torch.where(deviation < FLAT, torch.ones_like(deviation), deviation)


# ----------------------------------------------------------------------------
# Sliced Wasserstein distance (Rabin et al. 2011)


def random_directions(seed: int, level: int) -> Tensor:
    """Unit vectors of a level, uniform on the sphere: float64 [512, 147]."""
    first = FIRST_DIRECTION + level * DIRECTIONS
    rows = draws.normals(seed, "swd", range(first, first + DIRECTIONS), SIZE).astype(np.float64)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@dataclass(frozen=True)
class Samples:
    """Points that stand for (x - mean) / deviation: normalising happens in the projection, without a copy."""

    blocks: list[Tensor]  # float32 [*, D] each
    mean: Tensor  # float64 [D]
    deviation: Tensor  # float64 [D]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def projected(self, directions: Tensor) -> Tensor:
        """Coordinates along directions [K, D], in ascending order: float32 [K, N]."""
        scaled = directions / self.deviation
        weights, offsets = scaled.float(), -(scaled @ self.mean).float()[:, None]
        coordinates = weights.new_empty(len(directions), len(self))
        start = 0
        for block in self.blocks:
            stop = start + len(block)
            torch.addmm(offsets, weights, block.T, out=coordinates[:, start:stop])
            start = stop
        return _sorted(coordinates)


def _sorted(rows: Tensor) -> Tensor:
    """Each row in ascending order; the CPU's are sorted in place, by numpy: 20 times as fast as torch."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(np.ndarray.sort, rows.numpy()))
    return rows


@torch.no_grad()
def sliced_wasserstein(a: Samples, b: Samples, directions: Tensor) -> float:
    """Mean over directions [K, D] of the distance between two sets of as many points along each."""
    rows = max(1, CHUNK_BYTES // (4 * len(a)))
    total = 0.0
    for chunk in directions.split(rows):
        gaps = a.projected(chunk).sub_(b.projected(chunk)).abs_()
        total += float(gaps.mean(dim=1).double().sum())
    return total / len(directions)
