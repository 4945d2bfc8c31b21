"""Pictures through an exported upscaler, in a process of its own (`python -m pgsr.runtime.upscale.pipe`).

The trainer imports nothing of the runtime, nor an inference library; it talks to a program.

    with Enhancer(Path("bundle")) as enhancer:
        larger = enhancer(picture)   # PIL RGB -> PIL RGB, enhancer.scale times as large
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Self

from PIL import Image

from pgsr.errors import PgsrError

HEADER = struct.Struct("<II")  # height, width


class Enhancer:
    """A running program. A context manager."""

    def __init__(self, model: Path, device: str = "cpu") -> None:
        """Raises PgsrError if the bundle cannot be used, in the program's words."""
        self.model = model
        command = [sys.executable, "-m", "pgsr.runtime.upscale.pipe", str(model), "--device", device]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            first = json.loads(self._read_line())
        except ValueError:
            raise self._failure() from None
        self.scale: int = first["scale"]
        self.sha256: str = first["sha256"]

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Raises PgsrError if the program failed, for want of memory say."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(HEADER.pack(picture.height, picture.width) + picture.tobytes())
            stdin.flush()
            height, width = HEADER.unpack(stdout.read(HEADER.size))
            pixels = stdout.read(height * width * 3)
            return Image.frombytes("RGB", (width, height), pixels)
        except (OSError, struct.error, ValueError):
            raise self._failure() from None

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _failure(self) -> PgsrError:
        self._process.kill()
        _, said = self._process.communicate()
        lines = said.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        return PgsrError(f"the upscaler of {self.model} failed: {lines[-1].removeprefix('error: ')}")

    def close(self) -> None:
        """Ends the program. It has nothing to lose, and some inference libraries take long to end."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
