"""pgsr-celeba-hq: pictures in the wild and landmarks -> aligned faces, the best (paper 2, appendix C).

    pgsr-celeba-hq img_celeba/ --landmarks list_landmarks_celeba.txt --out celeba-hq
    pgsr-celeba-hq img_celeba/ --out celeba-hq --restorer de-jpeg-bundle --upscaler 4x-bundle --keep 30000
    pgsr-celeba-hq --procedural 40 --size 128 --keep 10 --out trial      # drawn pictures: no CelebA needed
    pgsr-celeba-hq --figure steps.png                                    # the paper's Figure 8

The same command goes on where it was stopped, and ends with the same files whatever the number of processes:
OUT/pictures/000001.png ... are the best, OUT/images.jsonl says where each comes from, best first, and
OUT/made.jsonl has every picture looked at, those left out too. `pgsr-data OUT/pictures` makes the archive.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, version_option
from pgsr.errors import PgsrError

from ..listing import tell
from ..sources import MAX_DAMAGED
from .align import OVERSAMPLING
from .dataset import run
from .picture import Settings
from .sources import Drawn, Files, Source, open_source


@click.command(cls=Command)
@click.argument("source", required=False, type=PATH)
@click.option("--out", type=PATH, help="Folder for the pictures and their records.")
@click.option(
    "--landmarks",
    type=PATH,
    help="list_landmarks_celeba.txt  [default: in SOURCE or beside it]",
)
@click.option("--size", type=int, default=1024, show_default=True, help="Pixels a side.")
@click.option(
    "--oversampling",
    type=int,
    default=OVERSAMPLING,
    show_default=True,
    help="Bilinear at so many times that.",
)
@click.option("--keep", type=click.IntRange(1), default=30_000, show_default=True, help="The best so many.")
@click.option(
    "--restorer",
    type=PATH,
    help="A bundle that removes JPEG's artefacts, of every picture.",
)
@click.option(
    "--upscaler",
    type=PATH,
    help="A bundle that enlarges every picture, 4x in the paper.",
)
@click.option("--device", default="cpu", show_default=True, help="Of the bundles: auto, cpu, cuda or cuda:N")
@click.option("--processes", type=click.IntRange(0), default=0, help="0: one a usable core.  [default: 0]")
@click.option(
    "--max-damaged", type=click.IntRange(0), default=MAX_DAMAGED, show_default=True, help="Pictures."
)
@click.option("--procedural", type=click.IntRange(0), default=0, help="Draw so many pictures instead.")
@click.option("--figure", type=PATH, help="Draw the steps of one picture: a PNG or JPEG.")
@click.option("--picture", "named", help="Which one: its name, or the index of a drawn one.")
@click.option("--verbose", is_flag=True, help="Name every file that is left out, with the reason.")
@json_option
@version_option
def main(
    source: Path | None,
    out: Path | None,
    landmarks: Path | None,
    keep: int,
    processes: int,
    max_damaged: int,
    procedural: int,
    figure: Path | None,
    named: str | None,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make CelebA-HQ from the in-the-wild pictures in SOURCE (folder, zip) and CelebA's landmarks.

    Each picture is extended by mirror images out of focus where its face leaves it, cut out along the eyes
    and mouth, and resampled; the best by their power spectrum are kept. The same command again goes on where
    it was stopped.
    """
    settings = Settings(**options)
    if source is None and not procedural and figure is None:
        raise PgsrError("name the folder or zip of pictures, or how many to draw with --procedural")
    if out is None and figure is None:
        raise PgsrError("name the folder to write to with --out, or a picture of the steps with --figure")
    opened: Source = Drawn(procedural or 1000) if source is None else open_source(source, landmarks)
    if source is not None and isinstance(opened, Files):
        tell(source, len(opened.names), opened.pictures.left_out, verbose)
    if figure is not None:
        from .figure import write_figure

        emit(*write_figure(opened, settings, figure, named), as_json)
        return
    assert out is not None
    processes = processes or len(os.sched_getaffinity(0))
    try:
        summary = run(opened, settings, out, keep, processes, max_damaged)
    except KeyboardInterrupt:
        raise PgsrError("stopped; the same command again goes on") from None
    emit(
        summary,
        f"{out}: kept the best {summary['kept']} of {summary['judged']} faces, {summary['skipped']} pictures "
        f"skipped; quality {summary['quality_best']:.3f} to {summary['quality_least']:.3f}"
        + "".join(f"; {count} through the {name}" for name, count in summary["passes"].items()),
        as_json,
    )


if __name__ == "__main__":
    main()
