"""Commands of pgsr-bench that ask how fast: convolutions, networks, steps, the whole way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages

from .options import (
    batch_at,
    feature_base_option,
    feature_max_option,
    latent_size_option,
    numbers,
    optional_numbers,
    rounds_option,
    threads_option,
)


@click.command(cls=Command)
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
@rounds_option
@click.option("--resolution", type=click.IntRange(1), default=64, show_default=True, help="The generator's.")
@latent_size_option
@feature_base_option
@feature_max_option
@click.option("--scale", type=click.IntRange(1), default=4, show_default=True, help="2 or 4.")
@click.option("--sr-blocks", type=click.IntRange(1), default=16, show_default=True)
@click.option("--sr-features", type=click.IntRange(1), default=64, show_default=True)
@click.option("--model", type=PATH, help="A bundle to measure [default: the shipped].")
@threads_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--out", type=PATH, help="Folder for throughput.json, .md and .png.")
@json_option
def throughput(out: Path | None, as_json: bool, **options: Any) -> None:
    """Time every stage from latents to files: naive, vanilla, separable, the model that ships; all backends.

    The defaults are the papers' full widths, and take minutes on a small machine.
    """
    with packages("measuring", "bench"):
        from ..throughput.measure import run
        from ..throughput.report import text, write_report
        from ..throughput.settings import Settings
        from ..throughput.systems import Widths
    widths = Widths(**{name: options.pop(name) for name in Widths.__dataclass_fields__})
    result = run(Settings(widths=widths, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--channels", callback=optional_numbers, help="Maps in and out [default: 16,32,...,512].")
@click.option("--resolutions", callback=optional_numbers, help="Pixels a side out [default: 4,8,...,256].")
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
@click.option("--out", type=PATH, help="Folder for conv.json, .md and .svg.")
@json_option
def conv(out: Path | None, quick: bool, as_json: bool, **options: Any) -> None:
    """Time single convolutions, vanilla beside separable: tells from which width on separable pays.

    With --out, the same command goes on where it was stopped.
    """
    with packages("measuring", "bench"):
        from dataclasses import replace

        from ..conv.measure import QUICK, Settings, run
        from ..conv.report import text_of, write_report
    given = {name: value for name, value in options.items() if value not in (None, ())}
    settings = replace(QUICK, threads=0, **given) if quick else Settings(**given)
    kept = None if out is None else out / "conv.rows.jsonl"
    result = run(settings, lambda line: click.echo(line, err=True), kept)
    if out is not None:
        write_report(result, out)
    emit(result, text_of(result), as_json)


@click.command(cls=Command)
@click.option("--resolutions", default="4,8,16,32,64", show_default=True, callback=numbers)
@click.option("--batch", type=int, default=16, show_default=True, help="Images of a step.")
@click.option(
    "--batch-at",
    multiple=True,
    default=("64=4",),
    show_default=True,
    callback=batch_at,
    help="At a resolution.",
)
@rounds_option
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=("plain-malloc", "lazy-penalty"),
    show_default=True,
    help="Further rows of ours; also float32. An empty one: none.",
)
@latent_size_option
@feature_base_option
@feature_max_option
@click.option("--call-seconds", type=float, default=1.0, show_default=True, help="The least of a timed call.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe setting, for all of ours."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N.")
@threads_option
@click.option("--out", type=PATH, help="Folder for training.json, .md and .png.")
@json_option
def training(out: Path | None, as_json: bool, variants: tuple[str, ...], **options: Any) -> None:
    """Time a step of pgsr-train beside a plain reference's: vanilla and separable, at each resolution.

    The defaults are the paper's full widths, and take half an hour on a small machine.
    """
    with packages("measuring", "bench"):
        from ..training.measure import Settings, run
        from ..training.report import text, write_report
    settings = Settings(variants=tuple(name for name in variants if name), **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--resolutions", default="64,128,256,1024", show_default=True, callback=numbers)
@click.option("--timed", default="64", show_default=True, callback=numbers, help="Timed, too; 0: none.")
@click.option("--batch", type=int, default=8, show_default=True, help="Images a call.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Timed calls of everything.")
@click.option("--each/--no-each", default=True, help="Time every rewrite by itself.  [default: each]")
@click.option("--int8/--no-int8", default=True, help="Time 8-bit graphs.  [default: int8]")
@latent_size_option
@feature_base_option
@feature_max_option
@threads_option
@click.option("--out", type=PATH, help="Folder for rewrites.json, .md and .png.")
@json_option
def rewrites(out: Path | None, timed: tuple[int, ...], as_json: bool, **options: Any) -> None:
    """Count and time what each rewrite of pgsr-export gains, on every backend, beside eager PyTorch.

    The defaults are the paper's full widths, and take minutes on a small machine.
    """
    with packages("measuring", "bench"):
        from ..rewrites.measure import Settings, run
        from ..rewrites.report import text, write_report
    settings = Settings(timed=tuple(side for side in timed if side), **options)
    result = run(settings, lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--images", type=int, default=16, show_default=True, help="Of a call.")
@click.option("--batch", type=int, default=4, show_default=True, help="Of our graphs in the stages.")
@rounds_option
@click.option(
    "--precision", "precisions", multiple=True, help="May be repeated [default: all that are fast]."
)
@click.option("--convolution", "convolutions", type=click.Choice(["vanilla", "separable"]), multiple=True)
@click.option("--stage", "stages", type=click.Choice(["generator", "upscaler", "end to end"]), multiple=True)
@click.option("--resolution", type=click.IntRange(4), default=64, show_default=True, help="The generator's.")
@feature_base_option
@feature_max_option
@click.option("--sr-blocks", type=click.IntRange(1), default=16, show_default=True)
@click.option("--sr-features", type=click.IntRange(1), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: one a usable core.")
@click.option("--out", type=PATH, help="Folder for opponent.json and .md.")
@json_option
def opponent(out: Path | None, as_json: bool, **options: Any) -> None:
    """Race a plain export in plain OpenVINO, as a good engineer writes it in an afternoon."""
    with packages("the opponent", "opponent"):
        import cv2  # noqa: F401
        import nncf  # noqa: F401

        from ..opponent.measure import STAGES, Settings, run
        from ..opponent.report import text, write_report
        from ..throughput.systems import CONVOLUTIONS, Widths
    names = ("resolution", "feature_base", "feature_max", "sr_blocks", "sr_features")
    widths = Widths(**{name: options.pop(name) for name in names})
    options["convolutions"] = options["convolutions"] or CONVOLUTIONS
    options["stages"] = options["stages"] or STAGES
    result = run(Settings(widths, **options), lambda line: click.echo(line, err=True))
    if out:
        write_report(result, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--data", type=PATH, help="Photographs [default: drawn pictures].")
@click.option("--from-size", type=click.IntRange(0), default=0, help="Of the originals [default: their own].")
@click.option("--to-size", type=int, default=64, show_default=True, help="What they are reduced to.")
@click.option("--pictures", type=int, default=8, show_default=True)
@click.option("--rounds", type=int, default=7, show_default=True, help="Timed calls of every filter.")
@click.option("--enlarge", default="bicubic", show_default=True, help="Filter back, for PSNR; or same.")
@click.option("--out", type=PATH, help="Folder for resample.json, .md and .png.")
@json_option
def resample(out: Path | None, as_json: bool, **options: Any) -> None:
    """Time and judge the filters that reduce photographs (paper 1, Table 1)."""
    with packages("measuring", "bench"):
        from ..resample.measure import Settings, run
        from ..resample.report import text, write_report
    result, originals = run(Settings(**options), lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(result, originals, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--images", default="1000,4096,16384", show_default=True, callback=numbers)
@click.option("--resolution", type=int, default=64, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda[:N]")
@threads_option
@json_option
def swd(as_json: bool, **options: Any) -> None:
    """Time the sliced Wasserstein distance, and its memory, by the number of images."""
    with packages("measuring", "bench"):
        from ..quality.swd_cost import run, text
    result = run(**options)
    emit(result, text(result), as_json)
