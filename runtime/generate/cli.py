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

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr import bundle
from pgsr.cli import PATH, Mode, Modes, emit, json_option, option, options, version_option
from pgsr.errors import PgsrError

if TYPE_CHECKING:  # numpy, Pillow and a backend are loaded when there is something to do
    from .latents import Source
    from .pages import Grid

ENCODERS = (
    "fpng",
    "isal",
    "zlib",
    "pillow",
    "imagecodecs",
    "simplejpeg",
)  # all of runtime.encoders, of any format


# ----------------------------------------------------------------------------
# Options that modes share.

MACHINE, WHICH, OUTPUT, WAY = "Machine", "Which faces", "Output", "Way through the latents"
SHARDS = "Shards, and clusters"


class Output(click.Path):
    """A path, or as a string an address for fsspec: s3://bucket/folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

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
    type=PATH,
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
        type=PATH,
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
    type=PATH,
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
    from . import modes
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
        shards = modes.shards_of(job, out, shard_size, shard_form)
        if ray_address is None:
            with modes.opened(threads=threads, **machine) as synthesizer:
                modes.shards_here(synthesizer, shards, out, mixed, dry_run, as_json)
        else:
            settings = {**machine, "threads": threads, "workers": workers, "mixed": mixed}
            modes.shards_on_ray(ray_address, shards, out, settings, dry_run, as_json)
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
    with modes.opened(threads=threads, from_latents=from_latents, **machine) as synthesizer:
        modes.faces(synthesizer, job, dry_run, as_json)


@main.command(cls=Mode, short_help="An interpolation: .mp4, .gif or .webp.")
@click.argument("file", type=PATH)
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
    from . import modes
    from .video import VideoJob

    job = VideoJob(file, seconds=seconds, fps=fps, smooth=smooth, loop=loop, seed=seed, quality=quality)
    with modes.opened(threads=threads, **machine) as synthesizer:
        modes.video(synthesizer, job, threads, dry_run, as_json)


@main.command(cls=Mode, short_help="One picture of many faces.")
@click.argument("columns_by_rows", metavar="COLUMNSxROWS")
@click.argument("file", type=PATH)
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
    from . import modes

    page = replace(_grid_of(columns_by_rows, file), between=between)
    source = _source_of(seed, start, page.faces, seeds, from_latents)
    with modes.opened(from_latents=from_latents, **machine) as synthesizer:
        modes.grid(synthesizer, source, page, dry_run, as_json)


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


def _grid_of(text: str, path: Path) -> Grid:
    from .pages import Grid

    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not match:
        raise PgsrError(f"grid {text!r} is not COLUMNSxROWS, such as 8x8")
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
