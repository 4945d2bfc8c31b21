"""The upscaler alone, on a picture of any size, in tiles that overlap.

    with Upscaler() as upscaler:
        larger = upscaler.upscale(picture)   # uint8 [H, W, 3] -> [4 H, 4 W, 3]

What a convolutional network makes of a pixel depends on the pixels within its reach, no others. So tiles
share a margin as wide as the reach, measured once when the network is opened, and what was made of it is
thrown away: elsewhere the tiles agree with each other and with the whole picture run at once, but for
rounding. A ramp of some pixels hides what is left, for networks whose reach has no end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.images import rounded, to_float

from ..backends import Runner, open_runner

TILE = 256  # pixels a side that the network sees at once, at most
LEAST_TILE = 32
RAMP = 8  # pixels over which a tile takes over from the one before

FIRST_SIDE, LAST_SIDE = 64, 256  # of the pictures by which the reach is measured
NOTICED = 0.5 / 255.0  # a quarter of a level, in the network's range of 2
SPARE = 2  # pixels, since another picture may reach a little farther than the one measured with

Picture = NDArray[np.uint8]  # [H, W, 3]
Floats = NDArray[np.float32]


class Upscaler:
    """An opened upscaler. A context manager."""

    def __init__(
        self,
        model: Path | None = None,  # a bundle's folder; None is the one that comes with the package
        device: str = "auto",  # auto, cpu, cuda or cuda:N
        precision: str = "fp32",  # one of pgsr.bundle.PRECISIONS
        backend: str = "auto",  # one of pgsr.runtime.backends.BACKENDS
        threads: int = 0,  # of the arithmetic on a CPU; 0 leaves it to the backend
        tile: int = TILE,  # pixels a side that are in the network at once; more is faster, and takes memory
    ) -> None:
        """Raises PgsrError if the bundle has no upscaler, or the device or a backend cannot be used."""
        if tile < LEAST_TILE:
            raise PgsrError(f"--tile {tile} is below {LEAST_TILE} pixels")
        self.bundle = bundles.read(bundles.shipped() if model is None else model)
        self.graph = self.bundle.graph("upscaler", precision)
        sides = self.graph.inputs[0].shape[2:]
        self._fixed = isinstance(sides[0], int)  # whether it takes pictures of one size only
        self._tile = int(sides[0]) if self._fixed else tile
        self._runner: Runner = open_runner(
            self.bundle, device, precision, backend, "upscaler", threads, batch=1
        )

    @property
    def scale(self) -> int:
        """Returns how many times as large pictures become."""
        return self.bundle.scale

    @property
    def provider(self) -> str:
        """Returns what the arithmetic really runs on, in the backend's own words."""
        return self._runner.provider

    @cached_property
    def reach(self) -> int:
        """Returns how many pixels away from a pixel something still changes it, as measured."""
        side = self._tile if self._fixed else FIRST_SIDE
        while True:
            radius = self._reach_within(side)
            if radius < side // 2 - 1 or self._fixed or side == LAST_SIDE:
                return min(radius + SPARE, side // 4)
            side *= 2

    def _reach_within(self, side: int) -> int:
        """Finds how far an input pixel acts, from the results of two noises that differ in their left halves
        alone."""
        noise = draws.normals(0, "picture", range(2), 3 * side * side)
        first, second = np.clip(noise, -1.0, 1.0).reshape(2, 1, 3, side, side).astype(np.float32)
        second[..., side // 2 :] = first[..., side // 2 :]
        difference = np.abs(self._runner.run(first) - self._runner.run(second)).max(axis=(0, 1, 2))
        changed = np.flatnonzero(difference > NOTICED)
        last = int(changed.max(initial=0))
        return max(0, math.ceil((last + 1) / self.scale) - side // 2)

    def upscale(self, picture: Picture) -> Picture:
        """uint8 [H, W, 3] -> [scale * H, scale * W, 3]. Raises PgsrError if the graph cannot be run."""
        if self._fixed:
            height, width = picture.shape[:2]
            fill = [(0, max(0, self._tile - side)) for side in (height, width)]
            larger = self._by_tiles(np.pad(picture, (*fill, (0, 0)), "edge"))
            return larger[: height * self.scale, : width * self.scale]
        return self._by_tiles(picture)

    def _by_tiles(self, picture: Picture) -> Picture:
        """Row by row of tiles, so that besides the result only one such row is in memory."""
        rows, columns = (self._axis(side) for side in picture.shape[:2])
        result = np.empty((picture.shape[0] * self.scale, picture.shape[1] * self.scale, 3), dtype=np.uint8)
        overlap = np.zeros((0, result.shape[1], 3), dtype=np.float32)  # rows that the next tiles add to
        for i, (top, weights) in enumerate(zip(rows.starts, rows.weights, strict=True)):
            band = self._band(picture[top : top + rows.side], columns) * weights[:, None, None]
            band[: len(overlap)] += overlap
            end = rows.starts[i + 1] if i + 1 < len(rows.starts) else picture.shape[0]
            height = (end - top) * self.scale
            place = slice(top * self.scale, end * self.scale)
            result[place] = rounded(band[:height])
            overlap = band[height:]
        return result

    def _band(self, strip: Picture, columns: Axis) -> Floats:
        """Returns what a row of tiles makes together: [h, W, 3] -> float32 [scale * h, scale * W, 3]."""
        width = strip.shape[1] * self.scale
        band = np.zeros((strip.shape[0] * self.scale, width, 3), dtype=np.float32)
        for left, weights in zip(columns.starts, columns.weights, strict=True):
            tile = np.ascontiguousarray(to_float(strip[None, :, left : left + columns.side]))
            tile_result = self._runner.run(tile)[0].transpose(1, 2, 0)
            start = left * self.scale
            band[:, start : start + len(weights)] += tile_result * weights[:, None]
        return band

    def _axis(self, length: int) -> Axis:
        return Axis(length, self._tile, self.reach if length > self._tile else 0, self.scale, self._fixed)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


class Axis:
    """Where tiles begin along one side of a picture, and how much each counts at every pixel of the result.

    A tile counts for nothing within `margin` of an edge that is not the picture's own; then more and more
    over RAMP pixels. All counts together are 1 everywhere.
    """

    def __init__(self, length: int, most: int, margin: int, scale: int, fixed: bool) -> None:
        """`most`: pixels of a tile; tiles are smaller if as few of them do, unless `fixed`."""
        self.length, self.scale = length, scale
        shared = min(2 * margin + RAMP, most // 2)
        count = max(1, math.ceil((length - shared) / (most - shared)))
        self.side = most if fixed else min(length, math.ceil((length + (count - 1) * shared) / count))
        last = length - self.side
        self.starts = [last * i // max(1, count - 1) for i in range(count)]
        raw = list(self._raw(min(margin, (shared - 1) // 2)))
        total = np.zeros(length * scale, dtype=np.float32)
        for start, weights in zip(self.starts, raw, strict=True):
            total[start * scale : (start + self.side) * scale] += weights
        self.weights = [
            weights / total[start * scale : (start + self.side) * scale]
            for start, weights in zip(self.starts, raw, strict=True)
        ]

    def _raw(self, margin: int) -> Iterator[Floats]:
        """The weights before they are made to sum to 1: [scale * side] each."""
        places = (np.arange(self.side * self.scale, dtype=np.float32) + 0.5) / self.scale
        rising = np.clip((places - margin) / RAMP, 0.0, 1.0).astype(np.float32)
        for start in self.starts:
            weights: Floats = np.ones(len(places), dtype=np.float32)
            if start > 0:
                weights = weights * rising
            if start + self.side < self.length:
                weights = weights * rising[::-1]
            yield weights
