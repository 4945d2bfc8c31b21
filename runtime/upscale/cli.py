"""pgsr-upscale: pictures made larger by the upscaler of a bundle, whatever their size.

    pgsr-upscale photo.jpg --out larger.png
    pgsr-upscale photos/ 'more/*.png' --out larger      # larger/NAME.png and so on
    pgsr-upscale - < photo.png > larger.png

The same command again makes only what is missing.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr import bundle
from pgsr.cli import Command, emit, json_option, option, version_option
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, write_bytes

if TYPE_CHECKING:  # numpy, Pillow and a backend are loaded when there is something to do
    from .photographs import UpscaleTask
    from .upscaler import Upscaler

STREAM = Path("-")
READ_AHEAD = 2  # pictures
ENCODED_BEHIND = 4
TOLD = 5  # of the pictures that were not made


@click.command(cls=Command)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@option(
    "Output",
    "--out",
    type=click.Path(path_type=Path),
    help="A folder, or a file's name for a single picture; - is stdout [default: upscaled].",
)
@option(
    "Machine",
    "--model",
    type=click.Path(path_type=Path),
    help="A bundle's folder [default: the one that comes along].",
)
@option("Output", "--format", "file_format", metavar="png|jpeg|webp", help="[default: the picture's, or png]")
@option("Output", "--quality", type=click.IntRange(1, 100), help="[default: 95 for jpeg, 90 for webp]")
@option("Machine", "--tile", type=int, default=256, show_default=True, help="Pixels a side computed at once.")
@option("Machine", "--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@option("Machine", "--precision", default="fp32", show_default=True, metavar="|".join(bundle.PRECISIONS))
@option("Machine", "--backend", default="auto", show_default=True, help="See pgsr-generate --backends.")
@option("Machine", "--threads", type=int, default=0, show_default=True, help="0 for as many as are good.")
@option("Output", "--overwrite", is_flag=True, help="Replace files that are something else.")
@json_option
@version_option
def main(
    pictures: tuple[str, ...],
    out: Path | None,
    file_format: str | None,
    quality: int | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Upscale PICTURES: files, folders, 'patterns', or - for stdin."""
    from .photographs import SUFFIXES, tasks
    from .upscaler import Upscaler

    if file_format is not None:
        check_choice("--format", file_format, SUFFIXES)
    todo = tasks(pictures)
    streams = [task for task in todo if task.source == STREAM]
    if (streams or out == STREAM) and len(todo) > 1:
        raise PgsrError("stdin and stdout are for one picture alone: name a single one")
    if out is None:
        out = STREAM if streams else Path("upscaled")
    with Upscaler(**options) as upscaler:
        run = Run(upscaler, out, file_format, quality, overwrite)
        result, text = run.stream(todo[0]) if out == STREAM else run.files(todo)
    if out == STREAM:
        click.echo(text, err=True)
    else:
        emit(result, text, as_json)


class Run:
    """What is done with every picture."""

    def __init__(
        self, upscaler: Upscaler, out: Path, file_format: str | None, quality: int | None, overwrite: bool
    ) -> None:
        self.upscaler, self.out = upscaler, out
        self.format, self.quality, self.overwrite = file_format, quality, overwrite

    def stream(self, task: UpscaleTask) -> tuple[dict[str, Any], str]:
        """One picture to stdout."""
        began = time.perf_counter()
        data = self.read(task)
        larger = self.encoded(task, data, *self.larger(task, data))
        sys.stdout.buffer.write(larger)
        sys.stdout.buffer.flush()
        return {}, f"{self._seconds(began)} on {self.upscaler.provider}"

    def files(self, todo: list[UpscaleTask]) -> tuple[dict[str, Any], str]:
        """Pictures to files: read ahead, computed, encoded and written behind.

        Raises PgsrError at the end if some could not be made.
        """
        from ..pipeline import Finisher, prefetch

        began = time.perf_counter()
        targets = self._targets(todo)
        files = Files(self, todo, targets)
        try:
            with (
                Finisher(files, limit=ENCODED_BEHIND) as finisher,
                closing(prefetch(files.unread(), READ_AHEAD)) as sources,
            ):
                for position, data in sources:
                    larger = files.tried(position, self.larger, todo[position], data)
                    if larger is not None:
                        finisher.put([position], [(data, *larger)])
        except KeyboardInterrupt:
            raise PgsrError("stopped; the same command again makes the rest") from None
        files.raise_refusals()
        result = {
            "out": str(self.out),
            "made": len(todo) - files.present,
            "present": files.present,
            "scale": self.upscaler.scale,
            "model": self.upscaler.bundle.name,
            "precision": self.upscaler.graph.precision,
            "provider": self.upscaler.provider,
            "seconds": round(time.perf_counter() - began, 3),
        }
        text = f"{self.out}: {result['made']} made, {files.present} already there, {self._seconds(began)}"
        return result, f"{text} on {self.upscaler.provider}"

    def _seconds(self, began: float) -> str:
        return f"{time.perf_counter() - began:.1f} s"

    def _targets(self, todo: list[UpscaleTask]) -> list[Path]:
        """Returns where each picture goes. Raises PgsrError if two go to one place, or one onto itself."""
        from .photographs import FORMATS

        suffix = self.out.suffix.lower()
        if suffix in FORMATS and not self.out.is_dir():
            if len(todo) > 1:
                raise PgsrError(f"--out {self.out} is one file for {len(todo)} pictures: name a folder")
            if self.format not in (None, FORMATS[suffix]):
                raise PgsrError(f"--out {self.out} is no {self.format}: leave --format out")
            self.format = FORMATS[suffix]
            targets = [self.out]
        else:
            targets = [task.target(self.out, self.format or task.format) for task in todo]
        first: dict[Path, UpscaleTask] = {}
        for task, target in zip(todo, targets, strict=True):
            if target in first:
                raise PgsrError(
                    f"{first[target].source} and {task.source} would both be {target}: take them in turn, "
                    "with another --out"
                )
            if target.exists() and target.samefile(task.source):
                raise PgsrError(f"{target} would replace the picture that it is made of: name another --out")
            first[target] = task
        return targets

    def read(self, task: UpscaleTask) -> bytes:
        if task.source == STREAM:
            return sys.stdin.buffer.read()
        try:
            return task.source.read_bytes()
        except OSError as error:
            raise PgsrError(f"cannot read {task.source}: {error.strerror or error}") from error

    def larger(self, task: UpscaleTask, data: bytes) -> tuple[Any, Any]:
        from .photographs import read_photograph

        photograph = read_photograph(data, str(task.source))
        return photograph, self.upscaler.upscale(photograph.colours)

    def encoded(self, task: UpscaleTask, data: bytes, photograph: Any, larger: Any) -> bytes:
        from .photographs import FORMATS, encode_photograph

        by_contents = photograph.format if photograph.format in FORMATS.values() else "png"
        format = by_contents if task.source == STREAM else task.format
        return encode_photograph(photograph, larger, self.format or format, self.quality, self.note(data))

    def note(self, data: bytes) -> dict[str, Any]:
        """Returns what a file says of what it was made of."""
        entries = {"model": self.upscaler.graph.sha256, "source": hashlib.sha256(data).hexdigest()}
        return entries if self.quality is None else {**entries, "quality": self.quality}


class Files:
    """The sink of a run, and what became of each picture. One that is refused does not stop the others."""

    ordered = False

    def __init__(self, run: Run, todo: list[UpscaleTask], targets: list[Path]) -> None:
        self.present = 0
        self._run, self._todo, self._targets = run, todo, targets
        self._refused: dict[int, str] = {}

    def unread(self) -> Iterator[tuple[int, bytes]]:
        """Positions and files of the pictures that are not there yet."""
        for position, task in enumerate(self._todo):
            data = self.tried(position, self._run.read, task)
            if data is None:
                continue
            if self._is_there(position, data):
                self.present += 1
            elif position not in self._refused:
                yield position, data

    def _is_there(self, position: int, data: bytes) -> bool:
        from .photographs import held_note

        target = self._targets[position]
        if not target.exists():
            return False
        if held_note(target) == self._run.note(data):
            return True
        if not self._run.overwrite:
            self._refused[position] = f"{target} is there and is something else: --overwrite replaces it"
        return False

    def tried(self, position: int, function: Callable[..., Any], *values: Any) -> Any:
        """The function's result, or None if it refuses."""
        try:
            return function(*values)
        except PgsrError as error:
            self._refused[position] = str(error)
            return None

    def encode(self, position: int, picture: Any) -> bytes | None:
        encoded: bytes | None = self.tried(position, self._run.encoded, self._todo[position], *picture)
        return encoded

    def write(self, position: int, data: bytes | None) -> None:
        if data is not None:
            target = self._targets[position]
            write_bytes(make_folder(target.parent) / target.name, data)

    def raise_refusals(self) -> None:
        """Raises PgsrError if there was any."""
        if self._refused:
            messages = [self._refused[position] for position in sorted(self._refused)]
            more = "" if len(messages) <= TOLD else f"; and {len(messages) - TOLD} more"
            several = f"{len(messages)} of {len(self._todo)} are not made: " if len(self._todo) > 1 else ""
            raise PgsrError(several + "; ".join(messages[:TOLD]) + more)
