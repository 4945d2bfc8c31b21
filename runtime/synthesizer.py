"""Synthesizer: seeds and indices in, pixels out.

    with Synthesizer(Path("bundle"), device="cpu") as synthesizer:
        faces = synthesizer.images(seed=7, count=100, start=1000)   # uint8 [100, S, S, 3]

Image i of seed s is the same, byte for byte, whatever else is asked for with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.errors import PgsrError

from .backends import open_runner
from .truncation import check_truncation, toward, typical_direction

LIMIT = 2**64  # of seeds and of indices (pgsr.draws)


def check_window(seed: int, count: int, start: int) -> None:
    """Raises PgsrError unless images start ... start + count - 1 of `seed` exist."""
    if not 0 <= seed < LIMIT:
        raise PgsrError(f"--seed {seed} is not between 0 and 2**64 - 1")
    if count < 1:
        raise PgsrError(f"--count {count} is below 1: give the number of images to make")
    if start < 0 or start + count > LIMIT:
        raise PgsrError(f"--start {start} is out of range: images are numbered from 0 to 2**64 - 1")


class Synthesizer:
    """An opened bundle. A context manager; without `with`, it is freed when it is forgotten."""

    def __init__(
        self,
        model: Path | None = None,  # a bundle's folder; None is the one that comes with the package
        device: str = "auto",  # auto, cpu, cuda or cuda:N
        precision: str = "fp32",  # one of pgsr.bundle.PRECISIONS
        backend: str = "auto",  # one of pgsr.runtime.backends.BACKENDS
        batch: int = 16,  # images at a time, at most
        threads: int = 0,  # of the arithmetic on a CPU; 0 leaves it to the backend
        truncation: float = 1.0,  # 0 to 1: the share of the variety that is kept (docs/latents.md)
    ) -> None:
        """Raises PgsrError if the bundle, the device or a backend is missing or cannot be used."""
        check_truncation(truncation)
        self.bundle = bundles.read(bundles.shipped() if model is None else model)
        self.graph = self.bundle.graph("chain", precision)
        self.batch = batch
        self.truncation = truncation
        self._runner = open_runner(self.bundle, device, precision, backend, "chain", threads, batch)
        self._open_generator = partial(
            open_runner, self.bundle, device, precision, backend, "generator", threads, batch
        )

    @property
    def size(self) -> int:
        """Pixels along each side of an image."""
        return self.bundle.resolution * self.bundle.scale

    @property
    def provider(self) -> str:
        """What the arithmetic really runs on, in the backend's own words."""
        return self._runner.provider

    @property
    def note(self) -> dict[str, Any]:
        """What files say of what made them."""
        truncated = {} if self.truncation == 1.0 else {"truncation": self.truncation}
        return {"model": self.graph.sha256, **truncated}

    def images(self, seed: int = 0, count: int = 8, start: int = 0) -> NDArray[np.uint8]:
        """Images start ... start + count - 1 of `seed`: uint8 [count, S, S, 3]."""
        check_window(seed, count, start)
        pixels = np.empty((count, self.size, self.size, 3), dtype=np.uint8)
        done = 0
        for indices, made in self.batches(seed, range(start, start + count)):
            pixels[done : done + len(indices)] = made
            done += len(indices)
        return pixels

    def batches(self, seed: int, indices: Iterable[int]) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Pairs of some of `indices`, in their order, and their images, uint8 [N, S, S, 3].

        `indices` is read only as far as the next batch needs.
        """
        yield from self.rendered(indices, lambda chunk, size: draws.latents(seed, chunk, size))

    def rendered(
        self, positions: Iterable[int], latents: Callable[[list[int], int], NDArray[np.float32]]
    ) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Likewise of latents(some of the positions, latent size), float32 [N, L]."""
        rest = iter(positions)
        while chunk := list(islice(rest, self.batch)):
            yield chunk, self.render(latents(chunk, self.bundle.latent_size))

    def pictures(self, latents: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.uint8]]:
        """The image of each latent [L], in their order: uint8 [S, S, 3].

        `latents` is read only as far as the next batch needs.
        """
        rest = iter(latents)
        while rows := list(islice(rest, self.batch)):
            yield from self.render(np.stack(rows))

    def render(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The images of latents [N, L], one batch: uint8 [N, S, S, 3]."""
        return self._runner.run(self.truncated(latents))

    def truncated(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The latents that the networks are given in place of these, [N, L]: themselves at truncation 1."""
        return latents if self.truncation == 1.0 else toward(latents, self._centre, self.truncation)

    @cached_property
    def _centre(self) -> NDArray[np.float64]:
        """Where truncation turns latents, [L]: found once, by some hundred images of the generator.

        Raises PgsrError if the bundle holds no generator graph.
        """
        with self._open_generator() as generator:
            return typical_direction(generator.run, self.bundle.latent_size, self.batch)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)
