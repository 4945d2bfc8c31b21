"""pgsr-upscale: pictures made larger by the upscaler of a bundle, whatever their size.

    pgsr-upscale photo.jpg --out larger.png
    pgsr-upscale photos/ 'more/*.png' --out larger      # larger/NAME.png and so on
    pgsr-upscale - < photo.png > larger.png

The same command again makes only what is missing. What it made is left alone where it lies among the
pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr import bundle
from pgsr.cli import PATH, Command, emit, json_option, option, progress_bar, version_option
from pgsr.errors import PgsrError, check_choice

if TYPE_CHECKING:  # numpy is loaded when there is something to do
    from .tasks import Found

STREAM = Path("-")


@click.command(cls=Command)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@option(
    "Output",
    "--out",
    type=PATH,
    help="A folder, or a file's name for a single picture; - is stdout [default: upscaled].",
)
@option(
    "Machine",
    "--model",
    type=PATH,
    help="A bundle's folder [default: the one that comes along].",
)
@option("Output", "--format", "file_format", metavar="png|jpeg|webp", help="[default: the picture's, or png]")
@option("Output", "--quality", type=click.IntRange(1, 100), help="[default: 95 for jpeg, 90 for webp]")
@option("Machine", "--tile", type=int, default=256, show_default=True, help="Pixels a side computed at once.")
@option("Machine", "--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@option("Machine", "--precision", default="fp32", show_default=True, metavar="|".join(bundle.PRECISIONS))
@option("Machine", "--backend", default="auto", show_default=True, help="See pgsr-generate --backends.")
@option("Machine", "--threads", type=int, default=0, show_default=True, help="0 for as many as are good.")
@option(
    "Machine",
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Make them on a Ray cluster whose nodes share the folders: auto, HOST:PORT, or local.",
)
@option(
    "Machine", "--workers", type=int, help="Of the cluster, at most [default: as many as it has room for]."
)
@option("Output", "--overwrite", is_flag=True, help="Replace files that are something else.")
@json_option
@version_option
def main(
    pictures: tuple[str, ...],
    out: Path | None,
    file_format: str | None,
    quality: int | None,
    ray_address: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Upscale PICTURES: files, folders, 'patterns', or - for stdin."""
    from ..memory import share_arenas
    from .run import Run
    from .tasks import SUFFIXES, check_out, find
    from .upscaler import Upscaler

    if file_format is not None:
        check_choice("--format", file_format, SUFFIXES)
    found = find(pictures)
    streams = [task for task in found.tasks if task.source == STREAM]
    if (streams or out == STREAM) and len(found.tasks) != 1:
        raise PgsrError("stdin and stdout are for one picture alone: name a single one")
    if out == STREAM and found.refused:
        raise PgsrError(found.refused[0])
    if out is None:
        out = STREAM if streams else Path("upscaled")
    single = None if out == STREAM else check_out(out, len(found.tasks), file_format)
    if ray_address is not None:
        if single is not None or streams or out == STREAM:
            raise PgsrError("--ray is for pictures to a folder: name one with --out, or leave --ray out")
        given = (found, out, file_format, quality, overwrite)
        emit(*_on_ray(ray_address, workers, *given, **options), as_json)
        return
    if workers is not None:
        raise PgsrError("--workers is for --ray: leave it out")
    share_arenas()
    with Upscaler(**options) as upscaler:
        run = Run(upscaler, out, single or file_format, quality, overwrite)
        if out == STREAM:
            click.echo(run.stream(found.tasks[0]), err=True)
        else:
            emit(*run.files(found, is_file=single is not None), as_json)


def _on_ray(
    address: str,
    workers: int | None,
    found: Found,
    out: Path,
    file_format: str | None,
    quality: int | None,
    overwrite: bool,
    model: Path | None,
    tile: int,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Makes the pictures on a cluster; returns what is told of it."""
    from pgsr.crew import connected

    from ..machinery import Machinery
    from .on_ray import upscale_on_ray

    machinery = Machinery(**options, workers=workers)
    with progress_bar(len(found.tasks), "pictures") as bar, connected(address) as ray:

        def report(count: int) -> None:
            bar.update(count - bar.pos)

        try:
            return upscale_on_ray(
                ray, found, out, file_format, quality, overwrite, tile, model, machinery, report
            )
        except KeyboardInterrupt:
            raise PgsrError("stopped; the same command again makes the rest") from None
