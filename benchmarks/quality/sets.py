"""What `pgsr-bench quality` measures: photographs in two parts, and a bundle's images in each form."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.batches import LEAST, images_that_fit, most
from pgsr.bundle import UPSCALERS, Bundle
from pgsr.errors import PgsrError, check_choice
from pgsr.images import to_float, to_uint8
from pgsr.machine import available_memory
from pgsr.runtime.backends import open_runner
from pgsr.runtime.synthesizer import check_window
from pgsr.sphere import toward
from pgsr.trainer.data.cache import FILTERS, REDUCED_BY, Photographs, load_photographs, problem
from pgsr.trainer.data.listing import UNREADABLE, tell
from pgsr.trainer.data.sources import of_size, open_pictures, reading
from pgsr.trainer.metrics.similarity import PAIRS
from pgsr.truncation import check_truncation, typical_direction

from .feature_network import LITE0
from .feature_network import Settings as NetworkSettings

Pixels = NDArray[np.uint8]  # [N, S, S, 3]

BATCH = 16  # pictures, or fewer of large ones
SWD_IMAGES = 16384  # paper 2, section 5
FEATURE_IMAGES = 50_000  # paper 2, section F, of FID
TRIES = 10  # pictures looked at to learn how large they are


@dataclass(frozen=True)
class Settings:
    """The command line, as it was given. Raises PgsrError for values out of range."""

    data: Path
    large_data: Path | None = None  # photographs of the upscaled size; None: `data` again
    model: Path | None = None  # a bundle; None is the shipped one
    upscalers: int = 0  # of a chain, as many as are looked at; 0: all
    precision: str = "fp32"
    images: int | None = None  # of each set, at most; None: what paper 2 takes of each score
    pairs: int = PAIRS  # of MS-SSIM
    truncation: float = 1.0  # of the faces; 1, as scores are compared, whatever the bundle says
    reduce: str = "lanczos"  # how photographs are reduced for the upscaler to enlarge
    seed: int = 0
    features: NetworkSettings | None = None
    lpips: Path | None = None
    device: str = "cpu"
    threads: int = 0
    ray: str | None = None  # the address of a cluster whose workers look at the pictures
    workers: int | None = None  # of it, at most
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise PgsrError(f"--images {self.images} is below 2")
        if self.upscalers < 0:
            raise PgsrError(f"--upscalers {self.upscalers} is below 0")
        check_window(self.seed, self.images or FEATURE_IMAGES, 0)
        if self.pairs < 1:
            raise PgsrError(f"--pairs {self.pairs} is below 1")
        check_truncation(self.truncation)
        check_choice("--reduce", self.reduce, FILTERS)
        if self.workers is not None and self.ray is None:
            raise PgsrError("--workers is for --ray: leave it out")

    def everywhere(self) -> Settings:
        """These, with the names of files as processes elsewhere find them."""
        features = self.features
        if features is not None and features.path != LITE0:
            features = replace(features, path=features.path.absolute())
        return replace(self, features=features, lpips=self.lpips and self.lpips.absolute())

    def counts(self, most: int | None = None) -> Counts:
        """Images of a set by score, at most so many."""
        wanted = (self.images or SWD_IMAGES, 0 if self.features is None else self.images or FEATURE_IMAGES)
        return Counts(*(count if most is None else min(count, most) for count in wanted))


@dataclass(frozen=True)
class Counts:
    """Images of a set: for SWD and MS-SSIM, and for scores by features."""

    swd: int
    features: int

    @property
    def most(self) -> int:
        return max(self.swd, self.features)


@dataclass(frozen=True)
class Photos:
    """Photographs of one size in random order: all of them are the reference of generated images, one half
    of them that of the other, which is the floor."""

    pixels: Pixels  # memory-mapped
    order: NDArray[np.int64]
    whole: Counts  # in the reference
    half: Counts  # in either half
    conditions: dict[str, Any]  # what scores against them must say

    def first(self, count: int) -> Iterator[Pixels]:
        """The first `count`, in batches."""
        return self._between(0, count)

    def others(self) -> Iterator[Pixels]:
        """As many as `half` has, none of which is among the first so many."""
        return self._between(self.half.most, 2 * self.half.most)

    def _between(self, begin: int, end: int) -> Iterator[Pixels]:
        for start in range(begin, end, BATCH):
            yield self.pixels[self.order[start : min(start + BATCH, end)]]


def holds(source: Path, side: int) -> bool:
    """Returns whether there are photographs of at least `side` pixels among the first."""
    pictures = of_size(open_pictures(source), side)
    with reading(pictures) as read:
        for name in pictures.names[:TRIES]:
            with contextlib.suppress(*UNREADABLE):
                if problem(read(name), side)[0] is not None:
                    return True
    return False


def trained_filter(model: Bundle) -> str:
    """The filter by which the photographs were reduced that a bundle's generator was trained on."""
    recipe = model.provenance.get("generator", {}).get("recipe", {})
    data = recipe.get("data") if isinstance(recipe, dict) else None
    name = data.get("reduce") if isinstance(data, dict) else None
    return name if name in FILTERS else REDUCED_BY


def _resize(photographs: Photographs, reduce: str) -> str:
    """How photographs came to their size: as stored, by a filter, or so many of them."""
    stored, count = photographs.as_stored, len(photographs)
    if stored in (0, count):
        return "as stored" if stored else reduce
    return f"{reduce} ({count - stored} of {count})"


def open_photos(source: Path, side: int, settings: Settings, reduce: str = REDUCED_BY) -> Photos:
    """Larger photographs are reduced by that filter. Raises PgsrError if there are fewer than four of that
    size."""
    photographs = load_photographs(source, side, reduce)
    tell(source, len(photographs), photographs.left_out)
    if len(photographs) < 4:
        raise PgsrError(
            f"{source} has {len(photographs)} photographs of {side}x{side}: two halves need at least 4"
        )
    conditions = {
        "resolution": side,
        "resize": _resize(photographs, reduce),
        "photographs": photographs.fingerprint[:16],
        "seed": settings.seed,
        "truncation": settings.truncation,
    }
    order = draws.permutation(settings.seed, "evaluation", 0, len(photographs))
    whole, half = (settings.counts(most) for most in (len(photographs), len(photographs) // 2))
    return Photos(photographs.pixels, order, whole, half, conditions)


def _batch(model: Bundle, graph: str) -> int:
    """Pictures at a time, by their size and the memory that is free."""
    room = images_that_fit(model, graph, available_memory() // 4)
    return min(BATCH, most(model.size), max(LEAST, room))


@dataclass(frozen=True)
class Chain:
    """A bundle's graphs, one after the other, as far as they are measured."""

    bundle: Bundle
    upscalers: tuple[str, ...]  # graphs

    @property
    def whole(self) -> bool:
        """Whether that is the bundle's own chain."""
        return 0 < len(self.upscalers) == len(self.bundle.upscaler_scales)

    @property
    def scale(self) -> int:
        return math.prod(self.bundle.upscaler_scales[: len(self.upscalers)])

    @property
    def size(self) -> int:
        """Pixels along each side of the upscaled images."""
        return self.bundle.resolution * self.scale

    def batches(self, count: int, graph: str) -> Iterator[range]:
        """Indices of so many images, as many at a time as a graph takes."""
        size = _batch(self.bundle, graph)
        return (range(start, min(start + size, count)) for start in range(0, count, size))


def chain_of(model: Bundle, settings: Settings) -> Chain:
    """Raises PgsrError if there are fewer upscalers than are to be looked at."""
    held = len(model.upscaler_scales)
    if settings.upscalers > held:
        raise PgsrError(f"--upscalers {settings.upscalers}: {model.name} has {held}")
    return Chain(model, UPSCALERS[: settings.upscalers or held])


class Faces:
    """A bundle's images by the indices of a seed, in each form."""

    def __init__(self, model: Bundle, settings: Settings) -> None:
        """Raises PgsrError if the bundle lacks a graph or it cannot be run."""
        self.seed, self.truncation = settings.seed, settings.truncation
        self.chain = chain_of(model, settings)
        names = ("generator", *self.chain.upscalers, *(["chain"] if self.chain.whole else []))
        self.runners = {
            name: open_runner(
                model,
                settings.device,
                settings.precision,
                graph=name,
                threads=settings.threads,
                batch=_batch(model, name),
            )
            for name in names
        }

    def small(self, indices: range) -> Pixels:
        return to_uint8(self._run("generator", self._latents(indices)))

    def large(self, indices: range) -> Pixels:
        if self.chain.whole:
            return self._run("chain", self._latents(indices))
        return self._enlarged(self._run("generator", self._latents(indices)))

    def upscaled(self, pixels: Pixels) -> Pixels:
        """Any pictures through all upscalers."""
        size = _batch(self.chain.bundle, "chain")
        starts = range(0, len(pixels), size)
        return np.concatenate([self._enlarged(to_float(pixels[start : start + size])) for start in starts])

    def _enlarged(self, images: NDArray[np.float32]) -> Pixels:
        for name in self.chain.upscalers:
            images = self.runners[name].run(images)
        return to_uint8(images)

    def _run(self, graph: str, latents: NDArray[np.float32]) -> NDArray[Any]:
        """As many at a time as this machine has room for."""
        size = _batch(self.chain.bundle, graph)
        parts = (latents[start : start + size] for start in range(0, len(latents), size))
        return np.concatenate([self.runners[graph].run(part) for part in parts])

    def _latents(self, indices: range) -> NDArray[np.float32]:
        latents = draws.latents(self.seed, indices, self.chain.bundle.latent_size)
        return latents if self.truncation == 1.0 else toward(latents, self._centre, self.truncation)

    @cached_property
    def _centre(self) -> NDArray[np.float64]:
        """Where truncation turns latents, as pgsr-generate has it: [L]."""
        if self.chain.bundle.centre:
            return np.array(self.chain.bundle.centre)
        run, bundle = self.runners["generator"].run, self.chain.bundle
        return typical_direction(run, bundle.latent_size, _batch(bundle, "generator"))

    def __enter__(self) -> Self:
        self._open = ExitStack()
        for runner in self.runners.values():
            self._open.enter_context(runner)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._open.close()
