"""Chains: latents to pixels, and latents to files of every kind that pgsr-generate writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pgsr.runtime import Synthesizer
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.write import generate
from pgsr.runtime.output.encoders import installed
from pgsr.runtime.output.writers import Encoding

from ..references import inference as plain
from .bench import Bench, Entry, Execution, bound, eager_way
from .settings import END_TO_END, NETWORK, OUTPUTS
from .systems import System, inputs


def chains(bench: Bench, systems: Sequence[System]) -> list[dict[str, Any]]:
    """Times the chains of both systems, naive or eager and on every backend, and the model that ships."""
    with contextlib.ExitStack() as stack:
        entries = [entry for system in systems for entry in _chain(bench, stack, system)]
        entries += _shipped_chain(bench, stack)
        return bench.measured(entries, END_TO_END)


def _chain(bench: Bench, stack: contextlib.ExitStack, system: System) -> list[Entry]:
    images, batch = bench.settings.images, bench.settings.large_batch
    latents = inputs(bench.settings.widths, "chain", images)
    adds, name, eager = system.multiply_adds["chain"], system.convolution, eager_way(system)
    part = latents[:batch]  # eager is slow, and does one batch after the other anyway
    entries = [
        Entry(name, eager, NETWORK, len(part), bound(system.eager, "chain", part), adds),
        Entry(name, eager, END_TO_END, len(part), _plain_files(bench, system, part), adds),
    ]
    expected = system.eager("chain", part)
    for way in bench.ways:
        synthesizer = bench.open_synthesizer(stack, system.bundle, way, batch)
        if synthesizer is not None:
            bench.check("chain", system, way, expected, synthesizer.render(part.numpy()))
            entries += _both(bench, synthesizer, name, way, images, adds)
    return entries


def _shipped_chain(bench: Bench, stack: contextlib.ExitStack) -> list[Entry]:
    if bench.model is None:
        bench.notes.append(
            "No model comes with this copy of the package, so none was measured: name one with --model."
        )
        return []
    entries: list[Entry] = []
    for way in bench.ways:
        synthesizer = bench.open_synthesizer(stack, bench.model, way, 0)
        if synthesizer is not None:
            adds, count = synthesizer.graph.multiply_adds, bench.settings.shipped_images
            entries += _both(bench, synthesizer, bench.model.name, way, count, adds)
    return entries


def shipped_outputs(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The model that ships into everything that pgsr-generate writes, the fastest way of these rows."""
    model = bench.model
    rows_of_network = [
        row for row in rows if model and (row["system"], row["stage"]) == (model.name, NETWORK)
    ]
    if model is None or not rows_of_network:  # no backend could run it, which is noted
        return []
    name = max(rows_of_network, key=lambda row: float(row["images_per_second"]))["way"]
    way = next(way for way in bench.ways if way.name == name)
    images = bench.settings.shipped_images
    with contextlib.ExitStack() as stack:
        synthesizer = bench.open_synthesizer(stack, model, way, 0)
        if synthesizer is None:
            return []
        entries = [Entry(model.name, way.name, NETWORK, images, _pixels(synthesizer, images))]
        for stage, (ending, format) in OUTPUTS.items():
            if installed(format):
                call = _files(bench, synthesizer, images, ending, format)
                entries.append(Entry(model.name, way.name, stage, images, call))
        return bench.measured(entries, "outputs")[1:]


def _both(
    bench: Bench, synthesizer: Synthesizer, system: str, way: Execution, images: int, adds: int
) -> list[Entry]:
    done = synthesizer.graph.multiply_adds
    return [
        Entry(system, way.name, NETWORK, images, _pixels(synthesizer, images), adds, done),
        Entry(system, way.name, END_TO_END, images, _files(bench, synthesizer, images), adds, done),
    ]


def _plain_files(bench: Bench, system: System, latents: Tensor) -> Callable[[], int]:
    batch = bench.settings.large_batch
    return lambda: plain.write_images(system.generator, system.upscaler, latents, batch, bench.new_folder())


def _files(
    bench: Bench, synthesizer: Synthesizer, images: int, ending: str = "", format: str = "png"
) -> Callable[[], int]:
    """pgsr-generate to a folder, an archive in one or, where the ending is -, to nowhere."""

    def call() -> int:
        out = Path("-") if ending == "-" else Path(f"{bench.new_folder()}{ending}")
        job = Job(out, images, encoding=Encoding(format), threads=bench.settings.threads)
        with open(os.devnull, "wb") as nowhere:
            return generate(synthesizer, job, stream=nowhere).made

    return call


def _pixels(synthesizer: Synthesizer, images: int) -> Callable[[], None]:
    def call() -> None:
        for _ in synthesizer.batches(0, range(images)):
            pass

    return call
