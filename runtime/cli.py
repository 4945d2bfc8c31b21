"""pgsr-generate: faces, from the bundle that comes with the package or from your own.

    pgsr-generate --count 1000 --out faces
    pgsr-generate --count 1000 --out faces --model my-bundle --seed 7 --format webp

The same command again goes on where it was stopped.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr import bundle
from pgsr.cli import Command, emit, json_option, version_option
from pgsr.errors import PgsrError

if TYPE_CHECKING:  # numpy, Pillow and a backend are loaded when there is something to do
    from .generate import Job, Result
    from .synthesizer import Synthesizer

REPORT_SECONDS = 0.2  # between updates of the progress line


class Progress:
    """A line on stderr: rewritten in place on a terminal, else printed once at the end."""

    def __init__(self, count: int) -> None:
        self.done = 0  # images made or already there
        self._count = count
        self._began = self._shown = time.perf_counter()
        self._live = sys.stderr.isatty()
        self._open = False  # whether the cursor stands behind an unfinished line

    def __call__(self, done: int) -> None:
        """Tells that `done` images are made or were there."""
        self.done = done
        now = time.perf_counter()
        if self._live and now - self._shown >= REPORT_SECONDS:
            self._shown = now
            self._open = True
            click.echo(f"\r{self._line(now - self._began)}\x1b[K", err=True, nl=False)

    def _line(self, seconds: float) -> str:
        left = seconds * (self._count - self.done) / max(1, self.done)
        return f"{self.done}/{self._count} faces, {left:.0f} s left"

    def finish(self) -> None:
        """Ends the line."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False
        elif not self._live and self.done == self._count:
            click.echo(f"{self.done}/{self._count} faces", err=True)


def _run(synthesizer: Synthesizer, job: Job) -> Result:
    """`generate` with a progress line; Ctrl-C becomes a sentence."""
    from .generate import generate

    progress = Progress(job.count)
    try:
        return generate(synthesizer, job, progress)
    except KeyboardInterrupt:
        raise PgsrError(
            f"stopped at about {progress.done} of {job.count} faces; the same command again makes the rest"
        ) from None
    finally:
        progress.finish()


def _description(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
    """What every result says of what was used."""
    return {
        "out": str(job.out),
        "seed": job.seed,
        "start": job.start,
        "count": job.count,
        "size": synthesizer.size,
        "format": job.encoding.format,
        "model": synthesizer.bundle.name,
        "precision": synthesizer.graph.precision,
        "provider": synthesizer.provider,
    }


def _plan(synthesizer: Synthesizer, job: Job, as_json: bool) -> None:
    """--dry-run: what would be made."""
    from .generate import survey

    missing = survey(synthesizer, job)
    text = (
        f"{job.out}: would make {missing} of {job.count} faces of {synthesizer.size} x {synthesizer.size} "
        f"as {job.encoding.format} on {synthesizer.provider}"
    )
    emit(
        {**_description(synthesizer, job), "missing": missing, "present": job.count - missing}, text, as_json
    )


def _make(synthesizer: Synthesizer, job: Job, as_json: bool) -> None:
    result = _run(synthesizer, job)
    numbers = {
        "made": result.made,
        "present": result.present,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 2),
        "sheet": str(job.sheet) if job.sheet else None,
    }
    text = (
        f"{job.out}: {result.made} faces made, {result.present} already there, {result.seconds:.1f} s "
        f"({result.images_per_second:.1f} images/s on {synthesizer.provider})"
    )
    emit({**_description(synthesizer, job), **numbers}, text, as_json)


@click.command(cls=Command)
@click.option("--count", type=int, default=64, show_default=True, help="How many faces.")
@click.option("--start", type=int, default=0, show_default=True, help="The first one's index.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="0 to 2**64 - 1; names a sequence of faces."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="faces", show_default=True, help="Their folder."
)
@click.option(
    "--model", type=click.Path(path_type=Path), help="A bundle's folder [default: the one that comes along]."
)
@click.option("--batch", type=int, default=16, show_default=True, help="Faces at a time.")
@click.option("--format", "file_format", default="png", show_default=True, metavar="png|jpeg|webp")
@click.option("--quality", type=int, help="1 to 100 [default: 95 for jpeg, 90 for webp].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--precision", default="fp32", show_default=True, metavar="|".join(bundle.PRECISIONS))
@click.option(
    "--backend", default="auto", show_default=True, help="What runs the networks: auto, onnxruntime."
)
@click.option(
    "--threads", type=int, default=0, show_default=True, help="CPU threads; 0 for as many as are good."
)
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="The contact sheet, a PNG [default: OUT/sheet.png]."
)
@click.option("--no-sheet", is_flag=True, help="Write no contact sheet.")
@click.option("--dry-run", is_flag=True, help="Say what would be made; make nothing.")
@json_option
@version_option
def main(
    count: int,
    start: int,
    seed: int,
    out: Path,
    model: Path | None,
    batch: int,
    file_format: str,
    quality: int | None,
    device: str,
    precision: str,
    backend: str,
    threads: int,
    sheet: Path | None,
    no_sheet: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make faces: OUT/000000.png and so on. What OUT holds already is not made again."""
    from .generate import Job
    from .synthesizer import Synthesizer
    from .writers import Encoding

    contact_sheet = None if no_sheet else sheet or out / "sheet.png"
    job = Job(out, count, start, seed, Encoding(file_format, quality), contact_sheet, threads)
    with Synthesizer(model, device, precision, backend, batch, threads) as synthesizer:
        if dry_run:
            _plan(synthesizer, job, as_json)
        else:
            _make(synthesizer, job, as_json)
