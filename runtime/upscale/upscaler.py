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
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.images import rounded, to_float

from ..backends import Runner, open_runner

TILE = 256  # pixels a side that the network sees at once, at most
LEAST_TILE = 32
BAND_BYTES = 2**26  # of what a row of tiles makes, about
RAMP = 8  # pixels over which a tile takes over from the one before

FIRST_SIDE, LAST_SIDE = 64, 256  # of the pictures by which the reach is measured
NOTICED = 0.5 / 255.0  # a quarter of a level, in the network's range of 2
SPARE = 2  # pixels, since another picture may reach a little farther than the one measured with

Picture = NDArray[Any]  # [H, W, 3]: levels in uint8, or float32 in [-1, 1]
Floats = NDArray[np.float32]
Rows = Callable[[int, int], Picture]  # first and last (not included) -> these rows of a picture


def check_levels(picture: Any) -> None:
    """Raises PgsrError unless this is a picture's levels, uint8 [H, W, 3]: other numbers would be taken for
    levels that they are not."""
    kind: Any = getattr(picture, "dtype", type(picture).__name__)
    shape: tuple[int, ...] = getattr(picture, "shape", ())
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise PgsrError(
            f"a picture is uint8 [height, width, 3] of levels from 0 to 255, not {kind} {list(shape)}: "
            "scale it to that first"
        )


class Filled:
    """A picture continued by its last rows and columns, where it is smaller than a side that is needed."""

    def __init__(self, height: int, width: int, rows: Rows, side: int) -> None:
        self.height, self.width = max(height, side), max(width, side)
        self._held, self._missing, self._rows = height, self.width - width, rows

    def rows(self, top: int, bottom: int) -> Picture:
        """Any rows of it."""
        held = self._rows(min(top, self._held - 1), min(bottom, self._held))
        missing = bottom - top - len(held)
        return np.pad(held, ((0, missing), (0, self._missing), (0, 0)), "edge")


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
        place: int = 0,  # of the upscaler, where the bundle's chain has several
    ) -> None:
        """Raises PgsrError if the bundle has no upscaler, or the device or a backend cannot be used."""
        if tile < LEAST_TILE:
            raise PgsrError(f"--tile {tile} is below {LEAST_TILE} pixels")
        self.bundle = bundles.read(bundles.shipped() if model is None else model)
        self.graph = self.bundle.graph(bundles.upscaler_name(place), precision)
        self.scale = self.bundle.upscaler_scales[place]  # how many times as large pictures become
        sides = self.graph.inputs[0].shape[2:]
        self._fixed = isinstance(sides[0], int)  # whether it takes pictures of one size only
        self._tile = int(sides[0]) if self._fixed else tile
        self._runner: Runner = open_runner(
            self.bundle, device, precision, backend, self.graph.name, threads, batch=1
        )

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
        """uint8 [H, W, 3] -> [scale * H, scale * W, 3].

        Raises PgsrError for an array of another kind, or if the graph cannot be run.
        """
        check_levels(picture)
        return self.enlarged(picture)

    def enlarged(self, picture: Picture) -> Picture:
        """[H, W, 3] -> [scale * H, scale * W, 3] of the same kind: levels, or float32 in [-1, 1]."""
        height, width = picture.shape[:2]
        result = np.empty((height * self.scale, width * self.scale, 3), dtype=picture.dtype)
        top = 0
        for band in self.bands(height, width, lambda top, bottom: picture[top:bottom]):
            result[top : top + len(band)] = band
            top += len(band)
        return result

    def bands(self, height: int, width: int, rows: Rows) -> Iterator[Picture]:
        """Yields the result from top to bottom, [some rows, scale * width, 3]: memory holds one row of tiles
        at a time. `rows` gives any rows of the picture, levels or floats, and the result is of that kind.
        Raises PgsrError if the graph cannot be run."""
        if not self._fixed or min(height, width) >= self._tile:
            yield from self._by_tiles(height, width, rows)
            return
        filled = Filled(height, width, rows, self._tile)
        left = height * self.scale
        for band in self._by_tiles(filled.height, filled.width, filled.rows):
            if left > 0:
                yield band[:left, : width * self.scale]
            left -= len(band)

    def _by_tiles(self, height: int, width: int, rows: Rows) -> Iterator[Picture]:
        """Row by row of tiles. Floats are kept only of what the next row of tiles adds to."""
        down, across = self._axis(height, self._tile_height(width)), self._axis(width, self._tile)
        overlap = np.zeros((0, width * self.scale, 3), dtype=np.float32)
        for top, end, weights in zip(down.starts, [*down.starts[1:], height], down.weights, strict=True):
            finished = (end - top) * self.scale
            strip = rows(top, top + down.side)
            band = np.empty((finished, width * self.scale, 3), dtype=strip.dtype)
            rest = np.empty((len(weights) - finished, *band.shape[1:]), dtype=np.float32)
            for columns, part in self._columns(strip, across):
                part *= weights[:, None, None]
                part[: len(overlap)] += overlap[:, columns]
                band[:, columns] = rounded(part[:finished]) if band.dtype == np.uint8 else part[:finished]
                rest[:, columns] = part[finished:]
            yield band
            overlap = rest

    def _columns(self, strip: Picture, across: Axis) -> Iterator[tuple[slice, Floats]]:
        """What a row of tiles makes together: columns of the result, and what is in them, float32
        [scale * h, some, 3]."""
        overlap = np.zeros((strip.shape[0] * self.scale, 0, 3), dtype=np.float32)
        ends = [*across.starts[1:], across.length]
        for left, end, weights in zip(across.starts, ends, across.weights, strict=True):
            tile = np.ascontiguousarray(_as_image(strip[:, left : left + across.side]))
            part = self._runner.run(tile)[0].transpose(1, 2, 0) * weights[:, None]
            part[:, : overlap.shape[1]] += overlap
            finished = (end - left) * self.scale
            yield slice(left * self.scale, end * self.scale), part[:, :finished]
            overlap = part[:, finished:]

    def _tile_height(self, width: int) -> int:
        """Rows of a tile: fewer where a row of tiles would make more than BAND_BYTES, but not so few that
        most of their arithmetic is for margins."""
        rows = BAND_BYTES // (3 * self.scale**2 * width)
        if self._fixed or rows >= self._tile:
            return self._tile
        shared = 2 * self.reach + RAMP
        return min(self._tile, max(rows, shared, LEAST_TILE) + shared)

    def _axis(self, length: int, tile: int) -> Axis:
        return Axis(length, tile, self.reach if length > tile else 0, self.scale, self._fixed)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def _as_image(picture: Picture) -> Floats:
    """Levels or floats [H, W, 3] as what networks take, [1, 3, H, W]."""
    return to_float(picture[None]) if picture.dtype == np.uint8 else picture[None].transpose(0, 3, 1, 2)


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
