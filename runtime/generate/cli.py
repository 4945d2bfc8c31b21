"""pgsr-generate: faces, from the bundle that comes with the package or from your own.

    pgsr-generate --count 1000 --out faces
    pgsr-generate --count 1000 --out faces --model my-bundle --seed 7 --format webp
    pgsr-generate --count 100000 --out faces.tar --shard 0/2       # WebDataset's form
    pgsr-generate --count 1000000 --out s3://bucket/faces --shard-size 10000 --ray auto
    pgsr-generate --count 1000 --out - | program                   # raw uint8 [N, S, S, 3]
    pgsr-generate video faces.mp4 --seconds 10
    pgsr-generate grid 8x8 page.png
    pgsr-generate backends

The same command again goes on where it was stopped; a video begins anew.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from io import RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pgsr import bundle
from pgsr.cli import Mode, Modes, emit, json_option, option, options, version_option
from pgsr.errors import PgsrError

from .progress import Progress

if TYPE_CHECKING:  # numpy, Pillow and a backend are loaded when there is something to do
    from ..synthesizer import Synthesizer
    from .job import Job, Result
    from .latents import Source
    from .pages import Grid
    from .shards import Shards
    from .video import VideoJob

ENCODERS = (
    "fpng",
    "isal",
    "zlib",
    "pillow",
    "imagecodecs",
    "simplejpeg",
)  # all of runtime.encoders, of any format


def _run(synthesizer: Synthesizer, job: Job) -> Result:
    """`generate` with a progress line; Ctrl-C becomes a sentence."""
    from .job import STDOUT
    from .write import generate

    count = len(job.positions)
    progress = Progress(count)
    try:
        return generate(synthesizer, job, progress, _raw_stdout() if job.out == STDOUT else None)
    except KeyboardInterrupt:
        again = "" if job.out == STDOUT else "; the same command again makes the rest"
        raise PgsrError(f"stopped at about {progress.count} of {count} faces{again}") from None
    finally:
        progress.finish()


def _raw_stdout() -> BinaryIO | RawIOBase:
    """The standard output without its buffer; with it where there is none below, as in tests."""
    try:
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    except UnsupportedOperation:
        return sys.stdout.buffer


def _description(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
    """Returns what every result says of what was used."""
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


def _form(job: Job, raw: bool = True) -> dict[str, Any]:
    from .job import STDOUT

    if raw and job.out == STDOUT:
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
    from .write import survey

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


# ----------------------------------------------------------------------------
# Shards, here or on a cluster.


def _shards_of(job: Job, out: Path | str, size: int | None, form: str | None) -> Shards:
    from ..output.archives import form_of
    from .job import STDOUT
    from .shards import SHARD_SIZE, Shards

    if isinstance(out, Path) and (out == STDOUT or form_of(out) is not None):
        raise PgsrError(f"--out {out} is not a folder for shards: name a folder, or s3://BUCKET/FOLDER")
    return Shards(job, SHARD_SIZE if size is None else size, form or "tar")


def _set_description(shards: Shards, out: Path | str) -> dict[str, Any]:
    faces = shards.job.faces
    return {
        "out": str(out),
        **faces.identity,
        "start": faces.number(0),
        "count": shards.job.count,
        "shard_size": shards.size,
        "shards_in_all": shards.count,
        **_form(shards.job, raw=False),
    }


def _plan_shards(shards: Shards, there: set[int], out: Path | str, as_json: bool) -> None:
    """--dry-run: what would be made."""
    missing = shards.count - len(there)
    text = f"{out}: would make {missing} of {shards.count} shards, {shards.job.count} faces in all"
    report = {**_set_description(shards, out), "missing": missing, "present": shards.faces(there)}
    emit(report, text, as_json)


def _make_shards(
    synthesizer: Synthesizer, shards: Shards, out: Path | str, mixed: bool, dry_run: bool, as_json: bool
) -> None:
    """Makes the shards that are missing, here."""
    from .progress import SetProgress
    from .shards import generate_shards, models_of, present, wanted
    from .store import open_store

    store = open_store(out)
    if dry_run:
        own, models = wanted(synthesizer, shards), models_of(synthesizer.bundle)
        _plan_shards(shards, present(store, shards, own, models, mixed), out, as_json)
        return
    progress = SetProgress(shards.job.count)
    try:
        result = generate_shards(synthesizer, shards, store, mixed, progress)
    except KeyboardInterrupt:
        raise PgsrError(f"stopped at {progress.words}; the same command again makes the rest") from None
    finally:
        progress.finish()
    numbers = {
        "made": result.made,
        "present": result.present,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 2),
    }
    report = {**_set_description(shards, out), **_machinery(synthesizer), **numbers}
    _tell_set(report, as_json)


def _tell_set(report: dict[str, Any], as_json: bool) -> None:
    text = (
        f"{report['out']}: {report['shards_in_all']} shards, {report['made']} faces made, "
        f"{report['present']} already there, {report['seconds']:.1f} s "
        f"({report['images_per_second']:.1f} images/s)"
    )
    emit(report, text, as_json)


def _on_ray(
    address: str,
    shards: Shards,
    out: Path | str,
    settings: dict[str, Any],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Makes the shards that are missing, on a Ray cluster."""
    from pgsr.crew import connected

    from ..machinery import Machinery
    from .on_ray import Driver, Plan
    from .progress import SetProgress
    from .store import open_store

    model, label = settings.pop("model"), settings.pop("label")
    truncation, mixed = settings.pop("truncation"), settings.pop("mixed")
    if label is not None:
        _check_label(model, label)
    plan = Plan(shards, out, model, truncation, Machinery(**settings), mixed)
    there = plan.present(open_store(out))
    if dry_run:
        _plan_shards(shards, there, out, as_json)
        return
    progress = SetProgress(shards.job.count)
    try:
        with connected(address) as ray:
            driver = Driver(ray, plan, progress)
            driver.run()
    except KeyboardInterrupt:
        raise PgsrError(f"stopped at {progress.words}; the same command again makes the rest") from None
    finally:
        progress.finish()
    _tell_set({**_set_description(shards, out), **driver.description()}, as_json)


def _video(synthesizer: Synthesizer, film: VideoJob, threads: int, dry_run: bool, as_json: bool) -> None:
    """Makes a video and tells of it."""
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
    """Makes a page of faces and tells of it."""
    from .pages import shows, write_grid

    source.check(synthesizer.bundle.latent_size)
    count = min(len(shows(source, grid)), grid.most)
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
# Options that modes share.

MACHINE, WHICH, OUTPUT, WAY = "Machine", "Which faces", "Output", "Way through the latents"
SHARDS = "Shards, and clusters"


class Output(click.Path):
    """A path, or as a string an address for fsspec: s3://bucket/folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            return value
        return super().convert(value, param, ctx)


seed_option = option(
    WHICH, "--seed", type=int, default=0, show_default=True, help="0 to 2**64 - 1; names a sequence of faces."
)
seeds_option = option(WHICH, "--seeds", help="In place of one seed, the first face of each: 0-99,200.")
start_option = option(WHICH, "--start", type=int, default=0, show_default=True, help="The first one's index.")
from_latents_option = option(
    WHICH,
    "--from-latents",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="In place of a seed, latents: a row for each face.",
)
quality_option = option(OUTPUT, "--quality", type=int, help="1 to 100 [default: 95 for jpeg, 90 for webp].")
threads_option = option(
    MACHINE, "--threads", type=int, default=0, show_default=True, help="CPU threads; 0: as many as are good."
)
synthesizer_options = options(
    option(
        WHICH,
        "--model",
        type=click.Path(path_type=Path),
        help="A bundle's folder [default: the one that comes along].",
    ),
    option(
        WHICH,
        "--truncation",
        type=float,
        help="0 to 1: less variety, more typical faces [default: as the model says; 1 of given latents].",
    ),
    option(
        WHICH,
        "--label",
        type=int,
        help="Of a model that draws labelled pictures: the one its graph is for.",
    ),
    option(
        MACHINE, "--batch", type=int, default=0, help="Faces at a time [default: the fastest, by measuring]."
    ),
    option(MACHINE, "--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]"),
    option(MACHINE, "--precision", default="fp32", show_default=True, metavar="|".join(bundle.PRECISIONS)),
    option(
        MACHINE,
        "--backend",
        default="auto",
        show_default=True,
        help="What runs the networks; auto: the fastest here.",
    ),
    option(
        MACHINE,
        "--tile",
        type=int,
        default=0,
        help="Pixels a side that upscalers see at once, on CPUs [default: all that the memory holds].",
    ),
    threads_option,
)
result_options = options(
    click.option("--dry-run", is_flag=True, help="Say what would be made; make nothing."),
    json_option,
    version_option,
)


def _opened(
    model: Path | None,
    truncation: float | None,
    label: int | None,
    batch: int,
    device: str,
    precision: str,
    backend: str,
    tile: int,
    threads: int,
    from_latents: Path | None = None,
) -> Synthesizer:
    """The synthesizer that the shared options describe. Latents of a file are drawn as they are, unless the
    user says how far to turn them."""
    from ..synthesizer import Synthesizer

    if from_latents is not None and truncation is None:
        truncation = 1.0
    if label is not None:
        _check_label(model, label)
    return Synthesizer(model, device, precision, backend, batch, threads, truncation, tile)


# ----------------------------------------------------------------------------
# The command and its modes.


@click.group(
    cls=Modes, default="faces", spellings={"--video": "video", "--grid": "grid", "--backends": "backends"}
)
@version_option
def main() -> None:
    """Make faces: OUT/000000.png and so on. What OUT holds already is not made again."""


@main.command(cls=Mode, short_help="Faces to a folder, an archive or a stream (the default).")
@option(OUTPUT, "--count", type=int, default=64, show_default=True, help="How many faces.")
@option(
    OUTPUT,
    "--out",
    type=Output(),
    default="faces",
    show_default=True,
    help="Their folder; or FILE.tar or FILE.zip, in WebDataset's form; or - for raw uint8 on stdout; "
    "or s3://BUCKET/FOLDER and the like, in shards.",
)
@option(
    OUTPUT,
    "--shard",
    default="0/1",
    metavar="K/N",
    help="Of every N faces the one at place K: for N processes.",
)
@option(
    SHARDS,
    "--shard-size",
    type=int,
    help="In OUT, an archive for every so many faces [default: 10000 with --ray or s3://..., else none].",
)
@option(SHARDS, "--shard-form", metavar="tar|files", help="Archives, or folders of files [default: tar].")
@option(
    SHARDS,
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Make shards on a Ray cluster: auto, HOST:PORT, or local, which starts one here. A worker takes a "
    "GPU, or as many cores as --threads says [default: 1].",
)
@option(SHARDS, "--workers", type=int, help="At most [default: as many as the cluster has room for].")
@option(SHARDS, "--mixed", is_flag=True, help="Let one set have faces of several backends and precisions.")
@option(OUTPUT, "--format", "file_format", default="png", show_default=True, metavar="png|jpeg|webp|jxl")
@option(OUTPUT, "--encoder", default="auto", metavar="NAME", help=f"auto, or one of {', '.join(ENCODERS)}.")
@quality_option
@option(
    OUTPUT,
    "--sheet",
    type=click.Path(path_type=Path),
    help="The contact sheet, a PNG [default: OUT/sheet.png].",
)
@option(OUTPUT, "--no-sheet", is_flag=True, help="Write no contact sheet.")
@option(OUTPUT, "--save-latents", is_flag=True, help="Also write OUT/latents.npy, a row for each face.")
@start_option
@seed_option
@seeds_option
@from_latents_option
@synthesizer_options
@result_options
def faces(
    count: int,
    out: Path | str,
    shard: str,
    shard_size: int | None,
    shard_form: str | None,
    ray_address: str | None,
    workers: int | None,
    mixed: bool,
    file_format: str,
    encoder: str,
    quality: int | None,
    sheet: Path | None,
    no_sheet: bool,
    save_latents: bool,
    start: int,
    seed: int,
    seeds: str | None,
    from_latents: Path | None,
    threads: int,
    dry_run: bool,
    as_json: bool,
    **machine: Any,
) -> None:
    """Make faces: OUT/000000.png and so on. What OUT holds already is not made again."""
    from ..output.writers import Encoding
    from .job import STDOUT, Job

    if shard_size is not None or ray_address is not None or isinstance(out, str):
        _refuse(FOLDER_ONLY, "is not for faces in shards")
        if ray_address is not None:
            _refuse(("from_latents",), "is not for --ray, since nodes would need the file")
        if ray_address is None:
            _refuse(("workers",), "is for --ray")
        job = Job(
            STDOUT,
            encoding=Encoding(file_format, quality, encoder),
            threads=threads,
            source=_source_of(seed, start, count, seeds, from_latents),
        )
        shards = _shards_of(job, out, shard_size, shard_form)
        if ray_address is None:
            with _opened(threads=threads, **machine) as synthesizer:
                _make_shards(synthesizer, shards, out, mixed, dry_run, as_json)
        else:
            settings = {**machine, "threads": threads, "workers": workers, "mixed": mixed}
            _on_ray(ray_address, shards, out, settings, dry_run, as_json)
        return
    _refuse(("shard_form", "workers", "mixed"), "is for --shard-size and --ray")
    if out == STDOUT:
        _refuse(ENCODED_ONLY, "is not for --out -, which is raw pixels")
    job = Job(
        out,
        encoding=Encoding(file_format, quality, encoder),
        sheet=None if no_sheet else sheet,
        threads=threads,
        source=_source_of(seed, start, count, seeds, from_latents),
        latents=out / "latents.npy" if save_latents else None,
        shard=_shard_of(shard),
    )
    if job.is_folder and not (sheet or no_sheet):
        job = replace(job, sheet=out / "sheet.png")
    with _opened(threads=threads, from_latents=from_latents, **machine) as synthesizer:
        (_plan if dry_run else _make)(synthesizer, job, as_json)


@main.command(cls=Mode, short_help="An interpolation: .mp4, .gif or .webp.")
@click.argument("file", type=click.Path(path_type=Path))
@option(WAY, "--seconds", type=float, default=10.0, show_default=True, help="Of the video.")
@option(WAY, "--fps", type=int, default=0, help="Frames a second [default: 60; 50 for .gif].")
@option(
    WAY,
    "--smooth",
    type=float,
    default=0.75,
    show_default=True,
    help="Seconds: the standard deviation of the latents' blur over time; more is slower.",
)
@option(WAY, "--loop", is_flag=True, help="The video's end runs into its beginning.")
@quality_option
@seed_option
@synthesizer_options
@result_options
def video(
    file: Path,
    seconds: float,
    fps: int,
    smooth: float,
    loop: bool,
    quality: int | None,
    seed: int,
    threads: int,
    dry_run: bool,
    as_json: bool,
    **machine: Any,
) -> None:
    """Make FILE, a smooth walk through the latents: .mp4 (needs pgsr[video]), .gif or .webp."""
    from .video import VideoJob

    job = VideoJob(file, seconds=seconds, fps=fps, smooth=smooth, loop=loop, seed=seed, quality=quality)
    with _opened(threads=threads, **machine) as synthesizer:
        _video(synthesizer, job, threads, dry_run, as_json)


@main.command(cls=Mode, short_help="One picture of many faces.")
@click.argument("columns_by_rows", metavar="COLUMNSxROWS")
@click.argument("file", type=click.Path(path_type=Path))
@option(WHICH, "--between", is_flag=True, help="Each row leads from one face to the next.")
@start_option
@seed_option
@seeds_option
@from_latents_option
@synthesizer_options
@result_options
def grid(
    columns_by_rows: str,
    file: Path,
    between: bool,
    start: int,
    seed: int,
    seeds: str | None,
    from_latents: Path | None,
    dry_run: bool,
    as_json: bool,
    **machine: Any,
) -> None:
    """Make FILE, one picture of COLUMNSxROWS faces: 8x8 faces.png."""
    page = replace(_grid_of(columns_by_rows, file), between=between)
    source = _source_of(seed, start, page.faces, seeds, from_latents)
    with _opened(from_latents=from_latents, **machine) as synthesizer:
        _grid(synthesizer, source, page, dry_run, as_json)


@main.command(cls=Mode, short_help="What can run the networks here, and what installs the rest.")
@json_option
def backends(as_json: bool) -> None:
    """List the backends: what is there, what is missing, and what installs it."""
    from ..backends.listing import report

    emit(*report(), as_json)


# ----------------------------------------------------------------------------
# What options name.

ENCODED_ONLY = ("file_format", "quality", "encoder")
FOLDER_ONLY = ("sheet", "no_sheet", "save_latents", "shard")


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


def _grid_of(text: str, path: Path) -> Grid:
    from .pages import Grid

    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not match:
        raise PgsrError(f"--grid {text!r} is not COLUMNSxROWS, such as 8x8")
    return Grid(path, int(match[1]), int(match[2]))


def _shard_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise PgsrError(f"--shard {text!r} is not K/N, such as 0/2")
    return int(match[1]), int(match[2])


def _source_of(seed: int, start: int, count: int, seeds: str | None, from_latents: Path | None) -> Source:
    """Returns what --seed, --start and --count, --seeds, or --from-latents name."""
    from .latents import Seeds, Stored, Window

    others = ("seed", "start", "count", "from_latents")
    if seeds is not None:
        _refuse(others, "is not for --seeds")
        return Seeds(seeds)
    if from_latents is not None:
        _refuse(("seed", "start", "count", "seeds"), "is not for --from-latents")
        return Stored(from_latents)
    return Window(seed, start, count)
