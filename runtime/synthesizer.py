"""Synthesizer: seeds and indices in, pixels out.

    with Synthesizer(Path("bundle"), device="cpu") as synthesizer:
        faces = synthesizer.images(seed=7, count=100, start=1000)   # uint8 [100, S, S, 3]

Image i of seed s is the same, byte for byte, whatever else is asked for with it: in any batch, order or
number of threads. (docs/backends.md says where that holds.)
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.batches import LEAST, MOST, WAITING, images_on_gpu, images_that_fit, most
from pgsr.errors import PgsrError
from pgsr.machine import available_memory, installed_versions
from pgsr.sphere import toward
from pgsr.truncation import check_truncation, typical_direction

from .autotune import FIRST, FIRST_ON_GPU, fastest_batch
from .backends import MOST_IMAGES, Runner, Settings, backend_versions, open_runner
from .backends.choice import gpu_present
from .measured import machine, recall, remember
from .pipeline import in_turn, prefetch
from .stages import open_stages

log = logging.getLogger(__name__)

LIMIT = 2**64  # of seeds and of indices (pgsr.draws)

LATENTS_AHEAD = 2  # batches
SHARE = 0.25  # of the memory that is free, for pictures in work; libraries and files want the rest
STAGED = 4  # pictures at a time, at most, where upscalers run in tiles


def check_window(seed: int, count: int, start: int) -> None:
    """Raises PgsrError unless images start ... start + count - 1 of `seed` exist."""
    if not 0 <= seed < LIMIT:
        raise PgsrError(f"--seed {seed} is not between 0 and 2**64 - 1")
    if count < 1:
        raise PgsrError(f"--count {count} is below 1: give the number of images to make")
    if count > sys.maxsize:
        raise PgsrError(f"--count {count} is above {sys.maxsize}: give the number of images to make")
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
        batch: int = 0,  # images at a time, at most; 0 is the fastest, if that was measured (see `tune`)
        threads: int = 0,  # of the arithmetic on a CPU; 0 leaves it to the backend
        truncation: float | None = None,  # 0 to 1: the share of the variety; None: as the bundle says
        tile: int = 0,  # pixels a side that upscalers see at once, on CPUs; 0: all, where the memory holds it
    ) -> None:
        """Raises PgsrError if the bundle, the device or a backend is missing or cannot be used."""
        if truncation is not None:
            check_truncation(truncation)
        Settings(device, threads, batch or FIRST)  # raises PgsrError for what is out of range
        self.bundle = bundles.read(bundles.shipped() if model is None else model)
        self.graph = self.bundle.graph("chain", precision)
        self.truncation = self.bundle.truncation if truncation is None else truncation
        self._device, self._backend, self._threads = device, backend, threads
        self._memory = int(SHARE * available_memory())
        room = 0 if self._gpu else images_that_fit(self.bundle, "chain", self._memory)
        at_once = room if room < MOST else 0
        self._open = partial(
            open_runner, self.bundle, device, precision, backend, threads=threads, at_once=at_once
        )
        self._staged = self._in_stages(tile, room)
        self._limit = self._most(room)
        self._measured = batch == 0 and not self._staged
        self.batch = min(batch or self._remembered or self._first, self._limit)
        if self.batch < batch and not self._staged:
            log.warning("--batch %d is more than there is memory for: %d at a time", batch, self.batch)
        self._runner: Runner = self._opened(self.batch, tile)

    def _in_stages(self, tile: int, room: int) -> bool:
        """Returns whether upscalers run in tiles. Raises PgsrError where they cannot."""
        if tile and self._gpu:
            raise PgsrError("--tile is for CPUs, and a GPU would be used: leave it out, or add --device cpu")
        has_upscaler = bool(self.bundle.upscaler_scales)
        if tile and not has_upscaler:
            raise PgsrError(f"--tile {tile}: {self.bundle.name} has no upscaler: leave it out")
        if room < LEAST and not self._gpu and not tile and has_upscaler:
            log.warning(
                "there is little memory for pictures of %d x %d: upscaling in tiles", *2 * [self.size]
            )
            return True
        return tile > 0

    def _most(self, room: int) -> int:
        """The largest batch that nobody needs to be asked about."""
        if self._gpu:
            return MOST_IMAGES
        if self._staged:
            waiting = WAITING * 3 * self.size**2
            return max(1, min(STAGED, self._memory // waiting))
        return MOST_IMAGES if room == MOST else max(1, room)

    def _opened(self, batch: int, tile: int = 0) -> Runner:
        """The chain, whole or in stages."""
        if not self._staged:
            return self._open(graph="chain", batch=batch)
        settings = (self._device, self.graph.precision, self._backend, self._threads)
        return open_stages(self.bundle, *settings, batch, self._memory, tile)

    @cached_property
    def _gpu(self) -> Any:
        """The GPU that may be used, or None."""
        return None if self._device == "cpu" else gpu_present(Settings(self._device).device_index)

    @property
    def _first(self) -> int:
        """The batch where nobody has measured."""
        if self._gpu:
            return min(FIRST_ON_GPU, images_on_gpu(self.bundle, self.graph))
        return min(FIRST, most(self.size))

    @property
    def _key(self) -> dict[str, Any]:
        """All that decides which batch is the fastest."""
        return {
            "model": self.graph.sha256,
            "device": self._device,
            "backend": self._backend,
            "threads": self._threads,
            "versions": installed_versions("pgsr", "numpy") | backend_versions(),
            "machine": machine(),
            "gpu": self._gpu and [self._gpu.name, self._gpu.driver],
        }

    @property
    def _remembered(self) -> int:
        """The fastest batch, or 0 if it was never measured."""
        batch = recall("batch", self._key)
        return batch if type(batch) is int and 0 < batch <= MOST else 0

    def tune(self) -> None:
        """Measures which batch is the fastest, some seconds, unless one was given or it was measured before.

        What was found is kept in the user's cache directory. It changes how fast images are made, and on
        backends whose arithmetic depends on the batch (docs/backends.md) their last bits.
        """
        if not self._measured or self._remembered:
            return
        log.warning("trying how many images at a time are the fastest here; that is remembered")  # on stderr
        best = fastest_batch(
            self._opened,
            self.bundle.latent_size,
            min(self._first, self._limit),
            self._largest,
        )
        remember("batch", self._key, best)
        if best != self.batch:
            self._runner.__exit__(None, None, None)
            self.batch = best
            self._runner = self._opened(best)

    @property
    def _largest(self) -> int:
        """The largest batch to try."""
        return images_on_gpu(self.bundle, self.graph) if self._gpu else min(most(self.size), self._limit)

    @property
    def size(self) -> int:
        """Pixels along each side of an image."""
        return self.bundle.size

    @property
    def provider(self) -> str:
        """Returns what the arithmetic really runs on, in the backend's own words."""
        return self._runner.provider

    @property
    def note(self) -> dict[str, Any]:
        """Returns what files say of what made them."""
        return self.note_at(self.truncation)

    def note_at(self, truncation: float) -> dict[str, Any]:
        """Returns what files say of what made them with another truncation than this synthesizer's own."""
        truncated = {} if truncation == 1.0 else {"truncation": truncation}
        return {"model": self.graph.sha256, **truncated}

    @property
    def calls(self) -> int:
        """Returns how many calls of `render` at once, on threads of their own, keep the backend busy."""
        return self._runner.calls

    def open_graph(self, name: str) -> Runner:
        """Opens another graph of the bundle as this one's is. Raises PgsrError if there is none."""
        return self._open(graph=name, batch=self.batch)

    def images(self, seed: int = 0, count: int = 8, start: int = 0) -> NDArray[np.uint8]:
        """Images start ... start + count - 1 of `seed`: uint8 [count, S, S, 3]."""
        check_window(seed, count, start)
        pixels = np.empty((count, self.size, self.size, 3), dtype=np.uint8)
        position = 0
        for indices, pictures in self.batches(seed, range(start, start + count)):
            pixels[position : position + len(indices)] = pictures
            position += len(indices)
        return pixels

    def batches(self, seed: int, indices: Iterable[int]) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Pairs of some of `indices`, in their order, and their images, uint8 [N, S, S, 3].

        `indices` is read only as far as the next batches need.
        """
        yield from self.rendered(indices, lambda chunk, size: draws.latents(seed, chunk, size))

    def rendered(
        self,
        positions: Iterable[int],
        latents: Callable[[list[int], int], NDArray[np.float32]],
        early: bool = False,
    ) -> Generator[tuple[list[int], NDArray[np.uint8]], None, None]:
        """Yields pictures batch by batch of latents(some of the positions, latent size), float32 [N, L].

        With `early` both are asked for on a thread of their own, while the networks are busy.
        """
        size = self.bundle.latent_size
        rest = iter(positions)
        chunks = iter(lambda: list(islice(rest, self.batch)), [])
        pairs = ((chunk, self.truncated(latents(chunk, size))) for chunk in chunks)
        with contextlib.closing(prefetch(pairs, LATENTS_AHEAD) if early else pairs) as rows:
            yield from in_turn(lambda pair: (pair[0], self._runner.run(pair[1])), rows, self._runner.calls)

    def pictures(self, latents: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.uint8]]:
        """The image of each latent [L], in their order: uint8 [S, S, 3].

        `latents` is read only as far as the next batches need.
        """
        rest = iter(latents)
        chunks = iter(lambda: list(islice(rest, self.batch)), [])
        batches = (self.truncated(np.stack(chunk)) for chunk in chunks)
        for pixels in in_turn(self._runner.run, batches, self._runner.calls):
            yield from pixels

    def render(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The images of latents [N, L], one batch: uint8 [N, S, S, 3]."""
        return self._runner.run(self.truncated(latents))

    def truncated(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The latents that the networks are given in place of these, [N, L]: themselves at truncation 1."""
        return latents if self.truncation == 1.0 else toward(latents, self.centre, self.truncation)

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """Returns where truncation turns latents, [L]: as the bundle says, or found once, by some hundred
        images of the generator. Raises PgsrError if the bundle says nothing and holds no generator graph."""
        if self.bundle.centre:
            return np.array(self.bundle.centre)
        with self.open_graph("generator") as generator:
            return typical_direction(generator.run, self.bundle.latent_size, self.batch)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)
