"""pgsr-bench: measurements and their reports.

pgsr-bench throughput --out report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr.cli import Group, emit, json_option, packages, version_option


@click.group(cls=Group)
@version_option
def main() -> None:
    """Measure this machine and these networks."""


@main.command()
@click.option("--batch", type=int, default=8, show_default=True, help="Images a call of the generator.")
@click.option(
    "--large-batch", type=int, default=4, show_default=True, help="Of the upscaler and of the chain."
)
@click.option("--images", type=int, default=8, show_default=True, help="Of an end-to-end call.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Timed calls of everything.")
@click.option("--resolution", type=click.IntRange(1), default=64, show_default=True, help="The generator's.")
@click.option("--latent-size", type=click.IntRange(1), default=512, show_default=True)
@click.option("--feature-base", type=click.IntRange(1), default=16384, show_default=True)
@click.option("--feature-max", type=click.IntRange(1), default=512, show_default=True)
@click.option("--scale", type=click.IntRange(1), default=4, show_default=True, help="2 or 4.")
@click.option("--sr-blocks", type=click.IntRange(1), default=16, show_default=True)
@click.option("--sr-features", type=click.IntRange(1), default=64, show_default=True)
@click.option("--model", type=click.Path(path_type=Path), help="A bundle to measure [default: the shipped].")
@click.option("--threads", type=int, default=0, show_default=True, help="0: one a usable core.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for throughput.json, .md and .png.")
@json_option
def throughput(out: Path | None, as_json: bool, **options: Any) -> None:
    """Time generator, upscaler, both, and latents to files: vanilla and separable, eager and exported.

    The defaults are the papers' full widths, and take minutes on a small machine.
    """
    with packages("measuring", "bench"):
        from .report import text, write_report
        from .systems import Widths
        from .throughput import Settings, run
    widths = Widths(**{name: options.pop(name) for name in Widths.__dataclass_fields__})
    result = run(Settings(widths=widths, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)
