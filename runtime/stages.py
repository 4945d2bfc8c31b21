"""A chain's parts one behind the other, the upscalers in tiles: for pictures that the memory has no room for.

On CPUs the chain's one graph is faster (docs/generate.md), so it is run wherever the memory holds it. Tiles
cannot be seen: they share a margin as wide as the network's reach, and differ by rounding from the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr.batches import HELD, activation_bytes
from pgsr.bundle import Bundle, upscaler_name
from pgsr.images import rounded

from .backends import Runner, open_runner
from .upscale.upscaler import LEAST_TILE, Upscaler

GRAIN = 32  # pixels that tiles' sides are multiples of


def tile_that_fits(bundle: Bundle, place: int, memory: int) -> int:
    """The side of the largest tile of an upscaler's images that so many bytes have room for, at most that of
    the whole image."""
    side = bundle.side_before(place)
    needed = HELD * max(1, activation_bytes(bundle, upscaler_name(place)))  # of the whole image
    if needed <= memory:
        return max(side, LEAST_TILE)
    return max(LEAST_TILE, int(side * math.sqrt(memory / needed)) // GRAIN * GRAIN)


class Staged:
    """A generator and the upscalers behind it as one runner: latents [N, L] -> pixels uint8 [N, S, S, 3].

    Memory holds one picture's tile at a time, and the pictures that are finished.
    """

    calls = 1

    def __init__(self, generator: Runner, upscalers: Sequence[Upscaler], tiles: Sequence[int]) -> None:
        self._generator, self._upscalers = generator, upscalers
        self.provider = f"{generator.provider}, in tiles of {' and '.join(map(str, tiles))}"

    def run(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Raises PgsrError if one of the graphs cannot be run."""
        return np.stack([self._picture(image) for image in self._generator.run(values)])

    def _picture(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """[3, R, R] in [-1, 1] -> uint8 [S, S, 3]."""
        picture = image.transpose(1, 2, 0)
        for upscaler in self._upscalers:
            picture = upscaler.enlarged(picture)
        return rounded(picture)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as parts:
            parts.push(self._generator)
            for upscaler in self._upscalers:
                parts.push(upscaler)


def open_stages(
    bundle: Bundle,
    device: str,
    precision: str,
    backend: str,
    threads: int,
    batch: int,  # of the generator
    memory: int,  # bytes that a tile may take
    tile: int = 0,  # pixels a side; 0: by the memory
) -> Staged:
    """Raises PgsrError if a part is missing or cannot be used."""
    tiles = [tile or tile_that_fits(bundle, place, memory) for place in range(len(bundle.upscaler_scales))]
    with ExitStack() as parts:
        generator = open_runner(bundle, device, precision, backend, "generator", threads, batch)
        parts.push(generator)
        upscalers = [
            parts.enter_context(Upscaler(bundle.folder, device, precision, backend, threads, side, place))
            for place, side in enumerate(tiles)
        ]
        parts.pop_all()
    return Staged(generator, upscalers, tiles)
