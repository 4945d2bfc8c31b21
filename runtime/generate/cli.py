"""pgsr-generate: faces, from the bundle that comes with the package or from your own.

    pgsr-generate --count 1000 --out faces
    pgsr-generate --count 1000 --out faces --model my-bundle --seed 7 --format webp
    pgsr-generate --count 100000 --out faces.tar --shard 0/2       # WebDataset's form
    pgsr-generate --count 1000 --out - | program                   # raw uint8 [N, S, S, 3]
    pgsr-generate --video faces.mp4 --seconds 10

The same command again goes on where it was stopped; a video begins anew.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr import bundle
from pgsr.cli import Command, emit, json_option, version_option
from pgsr.errors import PgsrError

if TYPE_CHECKING:  # numpy, Pillow and a backend are loaded when there is something to do
    from ..synthesizer import Synthesizer
    from .job import Grid, Job, Result
    from .latents import Source
    from .video import VideoJob

REPORT_SECONDS = 0.2  # between updates of the progress line
ENCODERS = (
    "fpng",
    "isal",
    "zlib",
    "pillow",
    "imagecodecs",
    "simplejpeg",
)  # all of runtime.encoders, of any format


class Progress:
    """A line on stderr: rewritten in place on a terminal, else printed once at the end."""

    def __init__(self, count: int, what: str = "faces") -> None:
        self.count = 0  # images made or already there
        self._count = count
        self._what = what
        self._began = self._last_update = time.perf_counter()
        self._live = sys.stderr.isatty()
        self._open = False  # whether the cursor stands behind an unfinished line

    def __call__(self, count: int) -> None:
        """Tells that `done` images are made or were there."""
        self.count = count
        now = time.perf_counter()
        if self._live and now - self._last_update >= REPORT_SECONDS:
            self._last_update = now
            self._open = True
            click.echo(f"\r{self._line(now - self._began)}\x1b[K", err=True, nl=False)

    def _line(self, seconds: float) -> str:
        left = seconds * (self._count - self.count) / max(1, self.count)
        return f"{self.count}/{self._count} {self._what}, {left:.0f} s left"

    def finish(self) -> None:
        """Ends the line."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False
        elif not self._live and self.count == self._count:
            click.echo(f"{self.count}/{self._count} {self._what}", err=True)


def _run(synthesizer: Synthesizer, job: Job) -> Result:
    """`generate` with a progress line; Ctrl-C becomes a sentence."""
    from .job import STDOUT, generate

    count = len(job.positions)
    progress = Progress(count)
    try:
        return generate(synthesizer, job, progress, sys.stdout.buffer)
    except KeyboardInterrupt:
        again = "" if job.out == STDOUT else "; the same command again makes the rest"
        raise PgsrError(f"stopped at about {progress.count} of {count} faces{again}") from None
    finally:
        progress.finish()


def _description(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
    """What every result says of what was used."""
    return {
        "out": str(job.out),
        **job.faces.identity,
        "start": job.faces.number(0),
        "count": len(job.positions),
        "shard": f"{job.shard[0]}/{job.shard[1]}",
        "size": synthesizer.size,
        **_form(job),
        **_machinery(synthesizer),
    }


def _form(job: Job) -> dict[str, Any]:
    from .job import STDOUT

    if job.out == STDOUT:
        return {"format": "raw"}
    return {"format": job.encoding.format, "encoder": job.encoding.codec.name}


def _machinery(synthesizer: Synthesizer) -> dict[str, Any]:
    return {
        "model": synthesizer.bundle.name,
        "truncation": synthesizer.truncation,
        "precision": synthesizer.graph.precision,
        "provider": synthesizer.provider,
        "batch": synthesizer.batch,
    }


def _plan(synthesizer: Synthesizer, job: Job, as_json: bool) -> None:
    """--dry-run: what would be made."""
    from .job import survey

    missing, count = survey(synthesizer, job), len(job.positions)
    report = _description(synthesizer, job)
    text = (
        f"{job.out}: would make {missing} of {count} faces of {synthesizer.size} x {synthesizer.size} "
        f"as {report['format']} on {synthesizer.provider}"
    )
    emit({**report, "missing": missing, "present": count - missing}, text, as_json)


def _make(synthesizer: Synthesizer, job: Job, as_json: bool) -> None:
    result = _run(synthesizer, job)
    numbers = {
        "made": result.made,
        "present": result.present,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 2),
        "sheet": str(job.sheet) if job.sheet else None,
        "latents": str(job.latents) if job.latents else None,
    }
    text = (
        f"{job.out}: {result.made} faces made, {result.present} already there, {result.seconds:.1f} s "
        f"({result.images_per_second:.1f} images/s on {synthesizer.provider})"
    )
    report = {**_description(synthesizer, job), **numbers}
    if str(job.out) == "-":
        click.echo(json.dumps(report) if as_json else text, err=True)  # stdout has the pixels
    else:
        emit(report, text, as_json)


def _video(synthesizer: Synthesizer, film: VideoJob, threads: int, dry_run: bool, as_json: bool) -> None:
    """--video."""
    from .video import description, make_video

    report = {**description(film), "size": synthesizer.size, **_machinery(synthesizer)}
    long = f"{film.frames} frames, {film.frames / film.fps:.1f} s at {film.fps} Hz"
    if dry_run:
        emit(report, f"{film.out}: would make {long}, on {synthesizer.provider}", as_json)
        return
    progress = Progress(film.frames, "frames")
    try:
        seconds = make_video(synthesizer, film, threads, progress)
    except KeyboardInterrupt:
        raise PgsrError(
            f"stopped at frame {progress.count} of {film.frames}; {film.out} is not made"
        ) from None
    finally:
        progress.finish()
    speed = film.frames / seconds
    numbers = {"seconds": round(seconds, 3), "frames_per_second": round(speed, 2)}
    text = f"{film.out}: {long}, in {seconds:.1f} s ({speed:.1f} frames/s on {synthesizer.provider})"
    emit({**report, **numbers}, text, as_json)


def _grid(synthesizer: Synthesizer, source: Source, grid: Grid, dry_run: bool, as_json: bool) -> None:
    """--grid."""
    from .job import write_grid

    count = min(len(source), grid.most)
    report = {"out": str(grid.path), **source.identity, "count": count, **_machinery(synthesizer)}
    if not dry_run:
        progress = Progress(count)
        try:
            write_grid(synthesizer, source, grid, progress)
        except KeyboardInterrupt:
            raise PgsrError(f"stopped at face {progress.count} of {count}; {grid.path} is not made") from None
        finally:
            progress.finish()
    words = "would show " if dry_run else ""
    emit(report, f"{grid.path}: {words}{count} faces, on {synthesizer.provider}", as_json)


# ----------------------------------------------------------------------------
# The command.

FOLDER_ONLY: tuple[str, ...] = ("count", "start", "out", "file_format", "sheet", "no_sheet", "shard")
FOLDER_ONLY += ("seeds", "from_latents", "save_latents", "grid", "encoder")
GRID_NEVER: tuple[str, ...] = ("count", "out", "file_format", "quality", "sheet", "no_sheet")
GRID_NEVER += ("save_latents", "shard", "encoder")
ENCODED_ONLY = ("file_format", "quality", "encoder")
VIDEO_ONLY = ("seconds", "fps", "smooth", "loop")


def _refuse(names: tuple[str, ...], why: str) -> None:
    """Raises PgsrError if the user gave one of these options."""
    context = click.get_current_context()
    conflicts = [
        option for option in context.command.params if option.name in names and _typed(context, option)
    ]
    if conflicts:
        raise PgsrError(f"{conflicts[0].opts[0]} {why}: leave it out")


def _typed(context: click.Context, option: click.Parameter) -> bool:
    source = context.get_parameter_source(str(option.name))
    return source is not None and source.name == "COMMANDLINE"


@click.command(cls=Command)
@click.option("--count", type=int, default=64, show_default=True, help="How many faces.")
@click.option("--start", type=int, default=0, show_default=True, help="The first one's index.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="0 to 2**64 - 1; names a sequence of faces."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="faces",
    show_default=True,
    help="Their folder; or FILE.tar or FILE.zip, in WebDataset's form; or - for raw uint8 on stdout.",
)
@click.option(
    "--shard", default="0/1", metavar="K/N", help="Of every N faces the one at place K: for N processes."
)
@click.option(
    "--model", type=click.Path(path_type=Path), help="A bundle's folder [default: the one that comes along]."
)
@click.option("--batch", type=int, default=0, help="Faces at a time [default: the fastest, by measuring].")
@click.option("--format", "file_format", default="png", show_default=True, metavar="png|jpeg|webp|jxl")
@click.option("--encoder", default="auto", metavar="NAME", help=f"auto, or one of {', '.join(ENCODERS)}.")
@click.option("--quality", type=int, help="1 to 100 [default: 95 for jpeg, 90 for webp].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--precision", default="fp32", show_default=True, metavar="|".join(bundle.PRECISIONS))
@click.option(
    "--backend", default="auto", show_default=True, help="What runs the networks; auto: the fastest here."
)
@click.option("--backends", is_flag=True, help="List the backends: what is there, and what installs others.")
@click.option(
    "--threads", type=int, default=0, show_default=True, help="CPU threads; 0 for as many as are good."
)
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="The contact sheet, a PNG [default: OUT/sheet.png]."
)
@click.option("--no-sheet", is_flag=True, help="Write no contact sheet.")
@click.option("--seeds", help="In place of one seed, the first face of each: 0-99,200.")
@click.option(
    "--from-latents",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="In place of a seed, latents: a row for each face.",
)
@click.option("--save-latents", is_flag=True, help="Also write OUT/latents.npy, a row for each face.")
@click.option(
    "--grid",
    type=(str, click.Path(path_type=Path)),
    metavar="COLUMNSxROWS FILE.png",
    help="In place of a folder, one picture: 8x8 faces.png.",
)
@click.option(
    "--truncation",
    type=float,
    default=1.0,
    show_default=True,
    help="0 to 1: less variety, more typical faces.",
)
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In place of a folder, an interpolation: .mp4 (needs pgsr[video]), .gif or .webp.",
)
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Of the video.")
@click.option("--fps", type=int, default=0, help="Frames a second [default: 60; 50 for .gif].")
@click.option(
    "--smooth",
    type=float,
    default=0.75,
    show_default=True,
    help="Seconds: the standard deviation of the latents' blur over time; more is slower.",
)
@click.option("--loop", is_flag=True, help="The video's end runs into its beginning.")
@click.option("--label", type=int, help="Of a model that draws labelled pictures: the one its graph is for.")
@click.option("--dry-run", is_flag=True, help="Say what would be made; make nothing.")
@json_option
@version_option
def main(
    seed: int,
    quality: int | None,
    model: Path | None,
    batch: int,
    device: str,
    precision: str,
    backend: str,
    threads: int,
    truncation: float,
    label: int | None,
    video: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make faces: OUT/000000.png and so on. What OUT holds already is not made again."""
    if options.pop("backends"):
        from ..backends.listing import report

        emit(*report(), as_json)
        return
    from ..synthesizer import Synthesizer

    if label is not None:
        _check_label(model, label)
    open_synthesizer = partial(Synthesizer, model, device, precision, backend, batch, threads, truncation)
    if video is not None:
        _refuse(FOLDER_ONLY, "is not for a --video")
        film = _film_of(video, seed, quality, **options)
        with open_synthesizer() as synthesizer:
            _video(synthesizer, film, threads, dry_run, as_json)
        return
    _refuse(VIDEO_ONLY, "is for a --video")
    if options["grid"] is not None:
        _refuse(GRID_NEVER, "is not for a --grid")
        grid = _grid_of(*options["grid"])
        source = _source_of(seed, **{**options, "count": grid.most})
        with open_synthesizer() as synthesizer:
            _grid(synthesizer, source, grid, dry_run, as_json)
        return
    job = _job_of(seed, quality, threads, **options)
    with open_synthesizer() as synthesizer:
        (_plan if dry_run else _make)(synthesizer, job, as_json)


def _check_label(model: Path | None, label: int) -> None:
    """Raises PgsrError unless that is the label which the bundle's graph draws."""
    model_bundle = bundle.read(bundle.shipped() if model is None else model)
    own = model_bundle.provenance.get("generator", {}).get("label")
    if own is None:
        raise PgsrError(f"--label {label}: {model_bundle.name} was trained without labels: leave it out")
    if own != label:
        raise PgsrError(
            f"--label {label}: the graph of {model_bundle.name} draws label {own} alone, because the label "
            f"is fixed at export: pgsr-export --label {label}"
        )


def _film_of(video: Path, seed: int, quality: int | None, **options: Any) -> VideoJob:
    from .video import VideoJob

    return VideoJob(video, seed=seed, quality=quality, **{name: options[name] for name in VIDEO_ONLY})


def _grid_of(text: str, path: Path) -> Grid:
    from .job import Grid

    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not match:
        raise PgsrError(f"--grid {text!r} is not COLUMNSxROWS, such as 8x8")
    return Grid(path, int(match[1]), int(match[2]))


def _job_of(seed: int, quality: int | None, threads: int, **options: Any) -> Job:
    from ..output.writers import Encoding
    from .job import STDOUT, Job

    out, sheet = options["out"], options["sheet"]
    if out == STDOUT:
        _refuse(ENCODED_ONLY, "is not for --out -, which is raw pixels")
    job = Job(
        out,
        encoding=Encoding(options["file_format"], quality, options["encoder"]),
        sheet=None if options["no_sheet"] else sheet,
        threads=threads,
        source=_source_of(seed, **options),
        latents=out / "latents.npy" if options["save_latents"] else None,
        shard=_shard_of(options["shard"]),
    )
    if job.is_folder and not (sheet or options["no_sheet"]):
        return replace(job, sheet=out / "sheet.png")
    return job


def _shard_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise PgsrError(f"--shard {text!r} is not K/N, such as 0/2")
    return int(match[1]), int(match[2])


def _source_of(seed: int, **options: Any) -> Source:
    """What --seed, --start and --count, --seeds, or --from-latents name."""
    from .latents import Seeds, Stored, Window

    for name, source in (("seeds", Seeds), ("from_latents", Stored)):
        if options[name] is not None:
            others = {"seed", "start", "count", "seeds", "from_latents"} - {name}
            _refuse(tuple(others), f"is not for --{name.replace('_', '-')}")
            return source(options[name])
    return Window(seed, options["start"], options["count"])
