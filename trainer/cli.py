"""pgsr-train: a recipe and photographs in, a run folder out.

pgsr-train faces-64 --data faces.zip --out runs/faces
pgsr-train --data faces.zip --out runs/faces --resume
pgsr-train --status runs/faces
pgsr-train --plot runs/one runs/other
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, option, packages, version_option


def _list_recipes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        with packages("training", "train"):
            from .start import list_recipes
        click.echo(list_recipes())
        ctx.exit()


@click.command(cls=Command)
@click.argument("words", metavar="[RECIPE]", nargs=-1)
@option("Run", "--data", type=PATH, help="Folder, zip or pgsr-data archive of photographs.")
@option("Run", "--out", type=PATH, help="The run's folder.")
@option("Run", "--resume", is_flag=True, help="Go on from the run's newest checkpoint, exactly.")
@option("Run", "--other-data", is_flag=True, help="Let --resume go on with data of another fingerprint.")
@option(
    "Run",
    "--start-from",
    type=PATH,
    help="A run or checkpoint to take the generator from.",
)
@option("Run", "--verbose", is_flag=True, help="Name every file of the data that is not trained on.")
@option("Recipe", "--set", "settings", multiple=True, metavar="KEY=VALUE", help="schedule.batch=8")
@option("Recipe", "--seed", type=int, help="Short for --set seed=N.")
@option(
    "Recipe",
    "--eval-every",
    type=click.IntRange(1),
    metavar="IMAGES",
    help="Measure SWD so often and keep the best checkpoint; short for --set run.evaluate_images=N.",
)
@option("Run", "--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@option("Run", "--minutes", type=float, help="Stop cleanly after this time; --resume goes on.")
@option(
    "Run",
    "--on-nan",
    type=click.Choice(["stop", "rollback"]),
    default="stop",
    show_default=True,
    help="When losses break down: stop, or go back to the last checkpoint with half the learning rate.",
)
@option("Look", "--dry-run", is_flag=True, help="Print the schedule and the resolved recipe; train nothing.")
@option(
    "Look",
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_recipes,
    help="List recipes.",
)
@option("Look", "--status", type=PATH, metavar="RUN", help="Print where a run stands.")
@option(
    "Look",
    "--plot",
    type=PATH,
    metavar="RUN [RUN ...]",
    help="Draw a run's curves.png; of several, runs.png: over each other, over images and hours.",
)
@json_option
@version_option
def main(
    words: tuple[str, ...],
    settings: tuple[str, ...],
    seed: int | None,
    eval_every: int | None,
    status: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Train RECIPE (a name from --list, or a .toml file) on photographs.

    --resume alone takes the run's own recipe.
    """
    if status is not None or plot is not None:
        _look_at(
            status, [] if plot is None else [plot, *map(Path, words)], options["out"], options["as_json"]
        )
        return
    if len(words) > 1:
        raise click.UsageError(f"Got unexpected extra argument ({' '.join(words[1:])})")
    recipe_name = words[0] if words else None
    if recipe_name is None and not options["resume"]:
        raise click.UsageError("Missing argument 'RECIPE': a name from --list, or a .toml file.")
    with packages("training", "train"):
        from .start import Options, start
    if seed is not None:
        settings = (*settings, f"seed={seed}")
    if eval_every is not None:
        settings = (*settings, f"run.evaluate_images={eval_every}")
    start(Options(recipe_name=recipe_name, settings=settings, **options))


def _look_at(status: Path | None, plot: list[Path], out: Path | None, as_json: bool) -> None:
    """--status and --plot."""
    with packages("training", "train"):
        from .run_folder.plot import plot_of
        from .run_folder.status import status_of
    if status is not None:
        emit(*status_of(status), as_json)
    if plot:
        emit(*plot_of(plot, out), as_json)
