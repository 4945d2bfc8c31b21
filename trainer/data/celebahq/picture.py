"""CelebA-HQ's making, one picture at a time: read, enhanced, aligned, judged, written, recorded."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgsr import bundle
from pgsr.errors import PgsrError
from pgsr.files import replacing

from ..cache import problem
from ..listing import UNREADABLE, Read
from ..sources import reading
from .align import OVERSAMPLING, Alignment, Pass, align
from .enhance import Enhancer
from .sources import Place, drawn_file
from .spectrum import quality

Record = dict[str, Any]

PICTURES = "pictures"  # the folder of the results


@dataclass(frozen=True)
class Settings:
    """What every picture goes through."""

    size: int = 1024
    oversampling: int = OVERSAMPLING
    restorer: Path | None = None  # a bundle whose upscaler graph is of scale 1
    upscaler: Path | None = None  # one of another scale, 4 in the paper
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.size < 16:
            raise PgsrError(f"--size {self.size} is below 16: the quality of so few pixels cannot be told")
        if self.oversampling < 1:
            raise PgsrError(f"--oversampling {self.oversampling} is below 1")
        for name, path in self.bundles.items():
            if path.exists() and not (path / bundle.MANIFEST).exists():  # a run, a checkpoint or a graph
                raise PgsrError(f"--{name} {path} is no bundle: make one by pgsr-export {path} --out BUNDLE")
            scale = bundle.read(path).scale
            if (scale == 1) != (name == "restorer"):
                other = "upscaler" if name == "restorer" else "restorer"
                raise PgsrError(
                    f"--{name} {path} makes pictures {scale} times as large: is it for --{other}?"
                )

    @property
    def bundles(self) -> dict[str, Path]:
        """The bundles that enhance a picture, in the order in which they are applied."""
        paths = {"restorer": self.restorer, "upscaler": self.upscaler}
        return {name: path for name, path in paths.items() if path is not None}


class Maker:
    """Reads, aligns, judges and writes pictures. A context manager."""

    def __init__(self, place: Place, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self._stack = ExitStack()
        try:
            self.read: Read = self._stack.enter_context(reading(place)) if place is not None else drawn_file
            self.enhancers = {
                name: self._stack.enter_context(Enhancer(path, settings.device))
                for name, path in settings.bundles.items()
            }
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def make(self, name: str, landmarks: NDArray[np.float64] | None, least: float) -> Record:
        """The record of one picture; its face is written if its quality is at least `least`."""
        if landmarks is None:
            return {"name": name, "skipped": "no landmarks"}
        try:
            data = self.read(name)
        except UNREADABLE as error:
            return {"name": name, "skipped": f"cannot be read ({error})", "damaged": True}
        picture, why = problem(data, 1, turn=False)  # CelebA's landmarks know nothing of EXIF
        if picture is None:
            return {"name": name, "skipped": why, "damaged": True}
        try:
            alignment = align(picture, landmarks, self.settings.size, self.passes, self.settings.oversampling)
        except ValueError as error:
            return {"name": name, "skipped": str(error)}
        score = quality(np.asarray(alignment.picture))
        file = encoded(alignment)
        if score.score >= least:
            with replacing(picture_path(self.out, name)) as temporary:
                temporary.write_bytes(file)
        return {
            "name": name,
            "quality": score.score,
            "breadth": score.breadth,
            "symmetry": score.symmetry,
            "source_sha256": hashlib.sha256(data).hexdigest(),
            "source_size": list(picture.size),
            "landmarks": landmarks.tolist(),
            "crop": asdict(alignment.crop),
            "passes": list(alignment.passes),
            "reduced": alignment.reduced,
            "padded": list(alignment.padded),
            "sha256": hashlib.sha256(file).hexdigest(),
        }

    @property
    def passes(self) -> tuple[Pass, ...]:
        return tuple(Pass(name, enhancer.scale, enhancer) for name, enhancer in self.enhancers.items())


def encoded(alignment: Alignment) -> bytes:
    """Encodes an aligned face as PNG."""
    buffer = io.BytesIO()
    alignment.picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def picture_path(out: Path, name: str) -> Path:
    """Returns the path of a picture's aligned face."""
    return out / PICTURES / f"{PurePosixPath(name).stem}.png"
