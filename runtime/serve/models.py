"""The opened bundles, by name: each with its queues, and replaced without dropping a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.bundle import Bundle
from pgsr.errors import PgsrError
from pgsr.images import rounded
from pgsr.machine import installed_versions
from pgsr.sphere import toward

from ..backends import backend_versions
from ..memory import give_back, share_arenas
from ..output.encoders import installed
from ..output.writers import FORMATS, Encoding
from ..synthesizer import Synthesizer
from ..upscale.upscaler import Upscaler
from .batcher import Batcher, Observe
from .settings import Settings

log = logging.getLogger(__name__)

ARENAS = 2  # of the C library's memory: more would keep a model's or a batch's worth each

STAGES = ("chain", "generator")  # after the upscaler, and before it


@dataclass(frozen=True)
class Look:
    """How a face is to look as a file. Raises PgsrError for a quality that the format does not have."""

    encoding: Encoding
    truncation: float = 1.0
    size: int = 0  # pixels a side; 0 is as the network makes them
    stage: str = "chain"  # one of STAGES


@dataclass(frozen=True)
class Order:
    """One face that somebody waits for."""

    look: Look | None  # None: the pixels alone
    truncation: float
    note: dict[str, Any]  # what the file says of its making
    seed: int = 0
    index: int = 0
    latent: NDArray[np.float32] | None = None  # [L], in place of a seed and an index


class Model:
    """One opened bundle. Opened on any thread; everything else is for the event loop's."""

    def __init__(self, name: str, folder: Path | None, settings: Settings) -> None:
        """Raises PgsrError if the bundle, the device or a backend is missing or cannot be used."""
        self.name, self._settings = name, settings
        s = settings
        # Each order says its own truncation.
        self.synthesizer = Synthesizer(folder, s.device, s.precision, s.backend, s.batch, s.threads, 1.0)
        self.synthesizer.tune()
        self.formats = [name for name in FORMATS if installed(name)]
        has = self._has
        self._generator = self.synthesizer.open_graph("generator") if has("generator") else None
        self._upscaler = (
            Upscaler(folder, s.device, s.precision, s.backend, s.threads) if has("upscaler") else None
        )
        self._warm_up()
        self._batchers: dict[str, Batcher[Order]] = {}
        self._leases = 0
        self._retired = asyncio.Event()
        self.upscales = ThreadPoolExecutor(1, thread_name_prefix="pgsr-upscale")

    def _warm_up(self) -> None:
        """Does what is done once, so that no request waits for it: a second or two."""
        self.synthesizer.render(draws.latents(0, [0], self.bundle.latent_size))
        if self._generator is not None:
            self.synthesizer.centre  # noqa: B018
        self._making  # noqa: B018

    @property
    def bundle(self) -> Bundle:
        return self.synthesizer.bundle

    @property
    def graph(self) -> str:
        """The graph's sha256, which faces come from."""
        return self.synthesizer.graph.sha256

    def side(self, stage: str) -> int:
        """Pixels along each side of what a stage makes."""
        return self.synthesizer.size if stage == "chain" else self.bundle.resolution

    def truncation(self, asked: float | None) -> float:
        """The truncation of a request: the model's own, unless it asks for another."""
        return self.bundle.truncation if asked is None else asked

    def start(self, observe: Observe) -> None:
        """Begins to take orders, on the running event loop."""
        self._batchers["chain"] = self._queue(self._paint, self.synthesizer.calls, observe)
        if self._generator is not None:
            self._batchers["generator"] = self._queue(self._paint_small, self._generator.calls, observe)

    def _queue(self, paint: Any, calls: int, observe: Observe) -> Batcher[Order]:
        settings = self._settings
        return Batcher(
            paint,
            self._file,
            self.synthesizer.batch,
            calls,
            settings.max_wait,
            settings.limits.waiting,
            settings.threads,
            observe,
        )

    def _has(self, graph: str) -> bool:
        precision = self._settings.precision
        return any((g.name, g.precision) == (graph, precision) for g in self.bundle.graphs)

    # ------------------------------------------------------------------------
    # Orders.

    def queue(self, look: Look) -> Batcher[Order]:
        """The queue for faces of this look. Raises PgsrError if the bundle lacks a graph for it."""
        centred = self._generator is not None or self.bundle.centre
        if (look.truncation < 1.0 and not centred) or (look.stage == "generator" and self._generator is None):
            raise PgsrError(f"the model {self.name} has no generator graph, which truncation and stage need")
        return self._batchers[look.stage]

    def latents(self, orders: list[Order]) -> NDArray[np.float32]:
        """As the networks get them, after truncation: [N, L]."""
        size = self.bundle.latent_size
        rows = np.empty((len(orders), size), dtype=np.float32)
        by_seed: dict[int, list[int]] = {}
        by_truncation: dict[float, list[int]] = {}
        for row, order in enumerate(orders):
            if order.latent is None:
                by_seed.setdefault(order.seed, []).append(row)
            else:
                rows[row] = order.latent
            if order.truncation < 1.0:
                by_truncation.setdefault(order.truncation, []).append(row)
        for seed, places in by_seed.items():
            rows[places] = draws.latents(seed, [orders[row].index for row in places], size)
        for psi, places in by_truncation.items():
            rows[places] = toward(rows[places], self.synthesizer.centre, psi)
        return rows

    def _paint(self, orders: list[Order]) -> NDArray[np.uint8]:
        return self.synthesizer.render(self.latents(orders))

    def _paint_small(self, orders: list[Order]) -> NDArray[np.uint8]:
        """What the generator alone makes: uint8 [N, R, R, 3]."""
        assert self._generator is not None
        return rounded(self._generator.run(self.latents(orders))).transpose(0, 2, 3, 1)

    def _file(self, order: Order, picture: NDArray[np.uint8]) -> Any:
        """A face's file, the same bytes as pgsr-generate's; or its pixels."""
        if order.look is None:
            return picture
        side = order.look.size
        if side and side != len(picture):
            image = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            picture = np.asarray(image)
        return order.look.encoding.encode(np.ascontiguousarray(picture), order.note)

    def etag(self, look: Look, *what: Any) -> str:
        """A strong validator: a function of all that decides a file's bytes, found without making it."""
        encoding = look.encoding
        how = (encoding.format, encoding.quality, encoding.codec.name, look.truncation, look.size, look.stage)
        text = json.dumps([self._making, how, what])
        return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'

    @cached_property
    def _making(self) -> list[Any]:
        versions = installed_versions("pgsr", "pillow", "fpng", "isal", "simplejpeg", "imagecodecs")
        return [self.graph, self.synthesizer.provider, versions, backend_versions()]

    @property
    def waiting(self) -> int:
        return sum(batcher.waiting for batcher in self._batchers.values())

    def description(self) -> dict[str, Any]:
        """What /v1/models says."""
        bundle = self.bundle
        return {
            "name": self.name,
            "graph": self.graph,
            "bundle": bundle.name,
            "size": self.synthesizer.size,
            "generator_size": bundle.resolution,
            "scale": bundle.scale,
            "latent_size": bundle.latent_size,
            "truncation": bundle.truncation,
            "stages": [stage for stage in STAGES if self._has(stage)],
            "upscales": self._upscaler is not None,
            "enlarges": self._upscaler.scale if self._upscaler is not None else 1,
            "formats": self.formats,
            "precision": self.synthesizer.graph.precision,
            "provider": self.synthesizer.provider,
            "batch": self.synthesizer.batch,
            "licence": bundle.licence,
        }

    # ------------------------------------------------------------------------
    # The upscaler, and videos: on threads of their own.

    @property
    def upscaler(self) -> Upscaler:
        """Raises PgsrError if the bundle has none."""
        if self._upscaler is None:
            raise PgsrError(f"the model {self.name} has no upscaler: name another model")
        return self._upscaler

    def painter(self, truncation: float, client: Hashable) -> Painter:
        """Makes pictures for a thread, through the queue that all share."""
        return Painter(self, truncation, client, asyncio.get_running_loop())

    # ------------------------------------------------------------------------
    # Leases.

    @contextlib.contextmanager
    def leased(self) -> Iterator[Model]:
        """Keeps the model open inside the block, though it be replaced."""
        self._leases += 1
        try:
            yield self
        finally:
            self._leases -= 1
            if not self._leases:
                self._retired.set()

    async def close(self, thread: Executor) -> None:
        """Waits until nobody uses it any more, and frees it on that thread."""
        while self._leases:
            self._retired.clear()
            await self._retired.wait()
        for batcher in self._batchers.values():
            await batcher.close()
        self.upscales.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(thread, self._free)

    def _free(self) -> None:
        self.upscales.shutdown(wait=True)
        if self._generator is not None:
            self._generator.__exit__(None, None, None)
        if self._upscaler is not None:
            self._upscaler.__exit__(None, None, None)
        self.synthesizer.__exit__(None, None, None)
        give_back()


class Painter:
    """A Synthesizer's part for videos, whose pictures come from a model's queue. For a thread."""

    def __init__(
        self, model: Model, truncation: float, client: Hashable, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.bundle, self.size = model.bundle, model.synthesizer.size
        self.note = model.synthesizer.note_at(truncation)
        self._model, self._truncation, self._client, self._loop = model, truncation, client, loop

    def pictures(self, latents: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.uint8]]:
        """The image of each latent [L], in their order: uint8 [S, S, 3]."""
        ahead = 2 * self._model.synthesizer.batch
        line: deque[Future[Any]] = deque()
        try:
            for latent in latents:
                line.append(asyncio.run_coroutine_threadsafe(self._picture(latent), self._loop))
                if len(line) >= ahead:
                    yield line.popleft().result()
            while line:
                yield line.popleft().result()
        finally:
            for future in line:
                future.cancel()

    async def _picture(self, latent: NDArray[np.float32]) -> Any:
        look = Look(Encoding(), self._truncation)
        return await self._model.queue(look).put(
            Order(None, self._truncation, {}, latent=latent), self._client
        )


class Models:
    """All models by name, the default first."""

    def __init__(self, settings: Settings) -> None:
        """Opens every bundle. Raises PgsrError if one cannot be."""
        self._settings = settings
        share_arenas(ARENAS)
        self._models = {name: Model(name, path, settings) for name, path in settings.models.items()}
        self._observe: Observe = lambda images, seconds: None
        self._closing: set[asyncio.Task[None]] = set()
        # One opens and frees them all: the C library gives each thread memory of its own, and would keep
        # pieces of a model on every one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pgsr-models")
        self._reloading = asyncio.Lock()

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, name: str = "", graph: str = "") -> Model:
        """The model of that name, or the first one. Raises KeyError if there is none, or its graph does not
        begin with those hexadecimal digits."""
        model = self._models[name or next(iter(self._models))]
        if not model.graph.startswith(graph):
            raise KeyError(graph)
        return model

    def start(self, observe: Observe) -> None:
        """Begins to take orders, on the running event loop."""
        self._observe = observe
        for model in self:
            model.start(observe)

    async def reload(self) -> None:
        """Opens every bundle again and lets the old ones finish what they have begun. One that cannot be
        opened stays as it was, which is logged."""
        async with self._reloading:
            for name, path in self._settings.models.items():
                try:
                    fresh = await self._opened(name, path)
                except PgsrError as error:
                    log.error("model %s is not reloaded, the one before goes on: %s", name, error)
                    continue
                fresh.start(self._observe)
                old, self._models[name] = self._models[name], fresh
                task = asyncio.create_task(old.close(self._thread))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                log.warning("model %s is reloaded: graph %s", name, fresh.graph[:12])

    def _opened(self, name: str, path: Path | None) -> asyncio.Future[Model]:
        return asyncio.get_running_loop().run_in_executor(self._thread, Model, name, path, self._settings)

    async def close(self) -> None:
        """Frees all."""
        await asyncio.gather(*self._closing, *(model.close(self._thread) for model in self))
        self._thread.shutdown()


@asynccontextmanager
async def opened(models: Models, observe: Observe) -> AsyncIterator[None]:
    """Runs the models as long as the block."""
    models.start(observe)
    try:
        yield
    finally:
        await models.close()


def check_bundles(settings: Settings) -> None:
    """Reads every manifest. Raises PgsrError before anything is opened."""
    for path in settings.models.values():
        bundles.read(bundles.shipped() if path is None else path)
