"""Commands of pgsr-bench that ask what is learned: trainings side by side."""

from __future__ import annotations

from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages

from .options import by_features, device_option, network_of, overrides_option, runs_option, trained_on


@click.command(cls=Command)
@trained_on
@click.option("--resolution", type=int, default=64, show_default=True, help="The last one.")
@click.option("--images", type=int, default=800, show_default=True, help="Of a phase; 800,000 there.")
@click.option("--maps", type=click.IntRange(1), default=512, show_default=True, help="At most.")
@json_option
def convolutions(quick: bool, as_json: bool, **options: Any) -> None:
    """Train with separable and with vanilla convolutions and draw the time both take (paper 1, Figure 2).

    Goes on where it was stopped. With all maps and 800 images a phase it takes hours on a small machine.
    """
    with packages("measuring", "bench"):
        from ..curves.convolutions import QUICK, Settings, run, text, write_report
    settings = Settings(**{**options, **(QUICK if quick else {})})
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@trained_on
@click.option(
    "--resolution", type=int, default=32, show_default=True, help="Of (a), (b); the paper's is 128."
)
@click.option("--images", type=int, default=100_000, show_default=True, help="Shown to each; 10M there.")
@click.option("--maps", type=click.IntRange(16), default=64, show_default=True, help="At most; 512 there.")
@click.option("--rates", type=float, default=1.0, show_default=True, help="Times all learning rates.")
@click.option("--evaluations", type=int, default=20, show_default=True, help="Of the distance, in a run.")
@click.option("--swd-images", type=int, default=1024, show_default=True, help="Of either set.")
@click.option("--final", type=int, default=1024, show_default=True, help="The last resolution of (c).")
@click.option("--final-maps", type=click.IntRange(1), default=512, show_default=True, help="At most, of (c).")
@json_option
def growing(quick: bool, as_json: bool, **options: Any) -> None:
    """Train with and without progressive growing and draw quality against time (paper 2, Figure 4).

    Goes on where it was stopped. The third panel extends timed steps to 1024 x 1024.
    """
    with packages("measuring", "bench"):
        from ..curves.growing import QUICK, Settings, run, text, write_report
    settings = Settings(**{**options, **(QUICK if quick else {})})
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings)
    emit(result, text(result), as_json)


@click.command("quality-curves", cls=Command)
@trained_on
@click.option(
    "--held-out",
    type=PATH,
    help="What scores are against [default: --data].",
)
@click.option("--resolution", type=int, default=32, show_default=True, help="The last one: 16, 32 or 64.")
@click.option("--images", type=int, default=100_000, show_default=True, help="Shown to each.")
@click.option("--maps", type=int, default=32, show_default=True, help="Of vanilla, at every resolution.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Trainings of each kind.")
@click.option("--looks", type=int, default=20, show_default=True, help="Stretches, with scores after each.")
@click.option("--scored", type=int, default=2048, show_default=True, help="Images of either set.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Of the timed steps.")
@by_features(required=False)
@json_option
def quality_curves(quick: bool, as_json: bool, **options: Any) -> None:
    """Train vanilla and separable with equal images, time and parameters: what separable costs in quality.

    Goes on where it was stopped. The defaults take hours on a small machine.
    """
    with packages("measuring", "bench"):
        from ..curves.quality import QUICK, Settings, run
        from ..curves.quality_report import text_of, write_report
    settings = Settings(features=network_of(options), **{**options, **(QUICK if quick else {})})
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings.out)
    emit(result, text_of(result), as_json)


@click.command("sr-matrix", cls=Command)
@click.option("--data", required=True, type=PATH, help="Photographs, at least 64x64.")
@click.option("--out", required=True, type=PATH, help="Folder for runs and report.")
@click.option("--images", type=int, default=80_000, show_default=True, help="Of each cell's generator.")
@click.option("--batch", type=int, default=16, show_default=True)
@click.option("--features", type=int, default=64, show_default=True, help="Width of the networks.")
@click.option("--held-out", type=int, default=64, show_default=True, help="Pictures not trained on.")
@click.option("--evaluations", type=int, default=20, show_default=True, help="Looks at the held-out ones.")
@click.option("--cells", default="all", show_default=True, help="Names, with commas between.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of every recipe.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@json_option
def sr_matrix(cells: str, as_json: bool, **options: Any) -> None:
    """Train paper 3's objectives and architectures side by side; draw its figures, answer its claims.

    The same command goes on where it was stopped. The defaults are the paper's widths and want a GPU.
    """
    with packages("measuring", "bench"):
        from ..sr_matrix.cells import CELLS, Settings
        from ..sr_matrix.measure import run
        from ..sr_matrix.report import result_of, text, write_report
    names = tuple(CELLS) if cells == "all" else tuple(cells.split(","))
    settings = Settings(cells=names, **options)
    trained, test_set = run(settings, lambda line: click.echo(line, err=True))
    result = result_of(trained, test_set, settings)
    with packages("the report's pictures", "bench"):
        write_report(result, trained, test_set, settings)
    emit(result, f"{text(result)}\n{settings.out / 'report.md'}", as_json)


@click.command(cls=Command)
@click.option("--data", type=PATH, required=True, help="Labelled digits: pgsr-data of MNIST.")
@runs_option
@click.option("--images", type=int, default=6_400_000, show_default=True, help="Shown in each training.")
@click.option("--seeds", type=int, default=8, show_default=True, help="Trainings of each system.")
@click.option(
    "--system", "systems", multiple=True, help="gan, wgan-gp, norm or stddev; may be repeated [default: all]."
)
@click.option("--generated", type=int, default=25_600, show_default=True, help="Images counted.")
@overrides_option
@device_option
@json_option
def modes(systems: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train small GANs on stacked digits and count which of the 1000 modes they cover (paper 2, Table 4).

    Goes on where it was stopped; finished trainings are not repeated.
    """
    with packages("measuring", "bench"):
        from ..modes.measure import SYSTEMS, Settings, run
        from ..modes.report import text, write_report
    settings = Settings(systems=systems or SYSTEMS, **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--data", type=PATH, required=True, help="Photographs to train on.")
@runs_option
@click.option("--resolution", type=int, default=32, show_default=True, help="The paper's is 128.")
@click.option("--images", type=int, default=100_000, show_default=True, help="Shown to each; 10M there.")
@click.option("--maps", type=click.IntRange(16), default=64, show_default=True, help="At most; 512 there.")
@click.option("--rates", type=float, default=1.0, show_default=True, help="Times all learning rates.")
@click.option("--rung", "rungs", multiple=True, help="a, b, ..., e-star, ...; may be repeated.")
@click.option("--swd-images", type=click.IntRange(0), default=1024, show_default=True, help="Of either set.")
@overrides_option
@device_option
@json_option
def ladder(rungs: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train every configuration of paper 2's Table 1 at a small size: one picture, one table.

    Goes on where it was stopped; finished trainings are not repeated.
    """
    with packages("measuring", "bench"):
        from ..ladder.measure import RUNGS, Settings, run, text, write_report
    settings = Settings(rungs=rungs or tuple(RUNGS), **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings.out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--data", type=PATH, required=True, help="What is trained on.")
@click.option("--recipe", default="progan-cifar10", show_default=True, help="Its name, or a .toml file.")
@click.option("--runs", type=int, default=10, show_default=True, help="Trainings, each of its own seed.")
@click.option("--evaluations", type=int, default=20, show_default=True, help="Looks at each run.")
@click.option("--images", type=int, default=50_000, show_default=True, help="Scored at each look.")
@by_features(required=True)
@overrides_option
@device_option
@runs_option
@json_option
def inception(as_json: bool, **options: Any) -> None:
    """Train a recipe several times and report the best inception score and FID, and their mean (Table 3).

    Goes on where it was stopped.
    """
    with packages("measuring", "bench"):
        from ..quality.inception import Settings, run, text, write_report
    network = network_of(options)
    if network is None:
        raise click.UsageError("--features names no network that is there: name a file, or lite0")
    settings = Settings(features=network, **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings.out)
    emit(result, text(result), as_json)
