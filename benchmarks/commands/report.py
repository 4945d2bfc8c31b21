"""Commands of pgsr-bench that ask all of it as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages

from .options import threads_option


@click.command(cls=Command)
@click.option("--out", type=PATH, help="Folder of the report.")
@click.option("--quick", is_flag=True, help="Coarser and fewer: minutes in the place of hours.")
@click.option("--part", "parts", multiple=True, help="One part; may be repeated [default: all].")
@click.option("--data", type=PATH, help="Photographs, for the parts that want some.")
@click.option("--held-out", type=PATH, help="Others, that trainings are scored against.")
@click.option(
    "--features",
    type=PATH,
    default="auto",
    show_default=True,
    help="Whose features they are judged by, as pgsr-bench quality takes them.",
)
@threads_option
@click.option(
    "--compare",
    "both",
    nargs=2,
    type=PATH,
    metavar="A.json B.json",
    help="Measure nothing: compare two reports, and mark what differs by more than its spread.",
)
@click.option(
    "--figures",
    type=PATH,
    metavar="CHECKOUT",
    help="Then draw the pictures and fill in the tables of the README and docs there.",
)
@json_option
def report(
    out: Path | None,
    quick: bool,
    both: tuple[Path, Path] | None,
    figures: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure what separable convolutions buy here, and write it as one page, JSON and Markdown.

    The same command goes on where it was stopped: a part whose JSON is in the folder is not measured again.
    """
    with packages("measuring", "bench"):
        from ..report.build import read, run
        from ..report.documents import write_documents
        from ..report.settings import Settings
        from ..report.words import comparison, comparison_text
    if both is not None:
        result = comparison(both, (read(both[0]), read(both[1])))
        emit(result, comparison_text(result), as_json)
        return
    if out is None:
        raise click.UsageError("name the report's folder with --out, or two reports with --compare")
    settings = Settings(out, "quick" if quick else "full", **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    if figures is not None:
        write_documents(result, figures)
    emit(result, str(out / "report.html"), as_json)
