"""A picture filter for other programs: pictures in on stdin, enhanced on stdout.

    python -m pgsr.runtime.upscale.pipe BUNDLE [--threads 1]

The bundle's upscaler graph may be of any scale, 1 as well (a network that removes JPEG's artefacts, say).
The first line on stdout is JSON: {"scale": ..., "sha256": of the graph}. Then for each picture: its height
and width as two little-endian 32-bit numbers and its RGB bytes, answered in the same form. The end of stdin
ends it.
A picture goes through the network in tiles (upscale.py), so that memory does not grow with it.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import IO

import click
import numpy as np

from pgsr.cli import Command

from .upscaler import Upscaler

HEADER = struct.Struct("<II")


def serve(upscaler: Upscaler, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answers every picture until the source ends."""
    first = {"scale": upscaler.scale, "sha256": upscaler.graph.sha256}
    sink.write(json.dumps(first).encode() + b"\n")
    sink.flush()
    while header := source.read(HEADER.size):
        height, width = HEADER.unpack(header)
        picture = np.frombuffer(source.read(height * width * 3), np.uint8).reshape(height, width, 3)
        larger = upscaler.upscale(picture)
        sink.write(HEADER.pack(*larger.shape[:2]) + larger.tobytes())
        sink.flush()


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N")
def main(model: Path, threads: int, device: str) -> None:
    """Enhance pictures from stdin through the upscaler of bundle MODEL, to stdout."""
    with Upscaler(model, device, threads=threads) as upscaler:
        serve(upscaler, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
