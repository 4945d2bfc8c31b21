"""The generator and the upscaler: the same inputs through both systems, eager and on every backend."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr import draws
from pgsr.bundle import Bundle

from .bench import Bench, Entry, bound, eager_way
from .settings import GENERATOR, GRAPHS, UPSCALER
from .systems import System, inputs


def stage(bench: Bench, systems: Sequence[System], stage: str) -> list[dict[str, Any]]:
    """Times the generators or the upscalers of both systems."""
    batch = bench.settings.batch if stage == GENERATOR else bench.settings.large_batch
    x = inputs(bench.settings.widths, GRAPHS[stage], batch)
    entries: list[Entry] = []
    with contextlib.ExitStack() as stack:
        for system in systems:
            adds = system.multiply_adds[stage]
            eager = bound(system.eager, stage, x)
            entries.append(Entry(system.convolution, eager_way(system), stage, batch, eager, adds))
            expected = eager()
            for way in bench.ways:
                call = bench.runner_call(stack, system.bundle, way, stage, batch, x.numpy())
                if call is None:
                    continue
                bench.check(stage, system, way, expected, call())
                graph = system.bundle.graph(GRAPHS[stage], way.precision)
                done, traffic = graph.multiply_adds, bench.traffic_of(system.bundle, graph, batch)
                entries.append(Entry(system.convolution, way.name, stage, batch, call, adds, done, traffic))
        return bench.measured(entries, stage)


def shipped_stages(bench: Bench) -> list[dict[str, Any]]:
    """The generator and the upscaler of the model that ships, on every backend."""
    model = bench.model
    multiply_adds = {(g.name, g.precision): g.multiply_adds for g in model.graphs} if model else {}
    entries, batch = [], bench.settings.batch
    with contextlib.ExitStack() as stack:
        for stage in (GENERATOR, UPSCALER):
            for way in bench.ways:
                if model is None or (stage, way.precision) not in multiply_adds:
                    continue
                call = bench.runner_call(stack, model, way, stage, batch, _example(model, stage, batch))
                if call is not None:
                    adds = multiply_adds[stage, way.precision]
                    entries.append(Entry(model.name, way.name, stage, batch, call, adds))
        return bench.measured(entries, "the model's stages") if entries else []


def _example(model: Bundle, stage: str, batch: int) -> NDArray[np.float32]:
    """Latents [N, L], or images [N, 3, R, R] for the upscaler."""
    if stage == GENERATOR:
        return draws.latents(0, range(batch), model.latent_size)
    side = model.resolution
    return np.clip(draws.latents(0, range(batch), 3 * side**2), -1, 1).reshape(batch, 3, side, side)
