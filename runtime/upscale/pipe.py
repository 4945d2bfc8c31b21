"""A picture filter for other programs: pictures in on stdin, enhanced on stdout.

    python -m pgsr.runtime.upscale.pipe BUNDLE [--threads 1]

The bundle's upscaler graph may be of any scale, 1 as well (a network that removes JPEG's artefacts, say).
The first line on stdout is JSON: {"scale": ..., "sha256": of the graph}. Then for each picture: its height
and width as two little-endian 32-bit numbers and its RGB bytes, answered in the same form. The end of stdin
ends it.
A picture goes through the network in tiles (upscaler.py), so that memory does not grow with it.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import IO

import click
import numpy as np
from numpy.typing import NDArray

from pgsr.cli import PATH, Command
from pgsr.decoding import MOST_PIXELS
from pgsr.errors import PgsrError

from .upscaler import Upscaler

HEADER = struct.Struct("<II")


def serve(upscaler: Upscaler, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answers every picture until the source ends."""
    first = {"scale": upscaler.scale, "sha256": upscaler.graph.sha256}
    sink.write(json.dumps(first).encode() + b"\n")
    sink.flush()
    while header := source.read(HEADER.size):
        larger = upscaler.upscale(_picture(header, source))
        sink.write(HEADER.pack(*larger.shape[:2]) + larger.tobytes())
        sink.flush()


def _picture(header: bytes, source: IO[bytes]) -> NDArray[np.uint8]:
    """The picture that follows its header. Raises PgsrError if it is cut short or too large."""
    height, width = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
    if height * width > MOST_PIXELS:
        raise PgsrError(f"a picture of {width}x{height} came: at most {MOST_PIXELS:,} pixels are taken")
    levels = source.read(height * width * 3)
    if len(header) < HEADER.size or len(levels) < height * width * 3:
        raise PgsrError("the last picture is cut short: each is height, width and RGB bytes")
    return np.frombuffer(levels, np.uint8).reshape(height, width, 3)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N")
def main(model: Path, threads: int, device: str) -> None:
    """Enhance pictures from stdin through the upscaler of bundle MODEL, to stdout."""
    with Upscaler(model, device, threads=threads) as upscaler:
        serve(upscaler, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
