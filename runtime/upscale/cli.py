"""pgsr-upscale: pictures made larger by the upscaler of a bundle, whatever their size.

    pgsr-upscale photo.jpg --out larger.png
    pgsr-upscale photos/ 'more/*.png' --out larger      # larger/NAME.png and so on
    pgsr-upscale - < photo.png > larger.png

The same command again makes only what is missing. What it made is left alone where it lies among the
pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr import bundle
from pgsr.cli import Command, emit, json_option, option, version_option
from pgsr.errors import PgsrError, check_choice

STREAM = Path("-")


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
    with Upscaler(**options) as upscaler:
        run = Run(upscaler, out, single or file_format, quality, overwrite)
        if out == STREAM:
            click.echo(run.stream(found.tasks[0]), err=True)
        else:
            emit(*run.files(found, is_file=single is not None), as_json)
