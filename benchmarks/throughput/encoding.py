"""Encoders and files: pictures to bytes, and bytes to files, on one thread."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr.files import write_bytes
from pgsr.runtime import Synthesizer
from pgsr.runtime.output.encoders import ENCODERS, installed, open_encoder
from pgsr.runtime.output.writers import FORMATS

from .bench import Bench, Entry
from .settings import ENCODE, ENCODED, WRITE


def files(bench: Bench) -> list[dict[str, Any]]:
    """Pictures to bytes by every encoder that is installed, and bytes to files."""
    pictures = _pictures(bench)
    entries = [Entry("Pillow's defaults", "png", ENCODE, len(pictures), _encoded(pictures, _naive_png))]
    for name in ENCODERS:
        for encoder in installed(name):
            quality = FORMATS[name].quality
            call = _encoded(pictures, _encoding(open_encoder(name, encoder).encode, quality))
            entries.append(Entry(encoder, name, ENCODE, len(pictures), call))
    data = open_encoder("png").encode(pictures[0], None, {})
    entries.append(Entry(f"{len(data) / 1e3:.0f} kB", "whole or not", WRITE, ENCODED, _written(bench, data)))
    return bench.measured(entries, ENCODE)


def _pictures(bench: Bench) -> list[NDArray[np.uint8]]:
    """Faces of the model, or noise without one."""
    if bench.model is None:
        return list(np.random.default_rng(0).integers(0, 256, (ENCODED, 256, 256, 3), dtype=np.uint8))
    way = bench.ways[0]
    folder, threads = bench.model.folder, bench.settings.threads
    with Synthesizer(folder, bench.device, "fp32", way.backend, 4, threads) as synthesizer:
        return list(synthesizer.images(count=ENCODED))


def _written(bench: Bench, data: bytes) -> Callable[[], None]:
    def call() -> None:
        folder = bench.new_folder()
        for i in range(ENCODED):
            write_bytes(folder / f"{i}.png", data, durable=False)

    return call


def _encoded(
    pictures: list[NDArray[np.uint8]], encode: Callable[[NDArray[np.uint8]], bytes]
) -> Callable[[], None]:
    def call() -> None:
        for picture in pictures:
            encode(picture)

    return call


def _encoding(encode: Callable[..., bytes], quality: int | None) -> Callable[[NDArray[np.uint8]], bytes]:
    return lambda picture: encode(picture, quality, {"seed": 0, "index": 0})


def _naive_png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
