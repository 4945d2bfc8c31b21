"""Commands of pgsr-bench that ask how good: a model's images beside photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages

from .options import (
    by_features,
    device_option,
    model_option,
    network_of,
    photographs_option,
    seed_option,
    shares,
    threads_option,
)


@click.command(cls=Command)
@photographs_option
@click.option("--large-data", type=PATH, help="Of the upscaled size [default: --data].")
@model_option
@click.option("--upscalers", type=int, default=0, help="Of a chain, so many alone [default: all].")
@click.option("--precision", default="fp32", show_default=True, help="fp32 or fp16")
@click.option("--images", type=int, help="Of each set.  [default: 16384, by features 50000, as paper 2]")
@click.option("--pairs", type=int, default=10_000, show_default=True, help="Of MS-SSIM.")
@click.option("--truncation", type=float, default=1.0, show_default=True, help="As in pgsr-generate.")
@click.option("--reduce", default="lanczos", show_default=True, help="Filter of the upscaler's inputs.")
@seed_option
@by_features(required=False)
@click.option("--lpips", type=PATH, help="LPIPS as TorchScript.")
@device_option
@threads_option
@click.option("--ray", metavar="ADDRESS", help="Of a Ray cluster that looks: auto, HOST:PORT, or local.")
@click.option("--workers", type=int, help="Of the cluster, at most [default: what it has room for].")
@click.option("--out", type=PATH, help="Folder for the report, its plots and sheets.")
@json_option
def quality(out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a bundle: SWD, MS-SSIM, and FID and the like with a feature network (paper 1, Table 2)."""
    with packages("measuring", "bench"):
        from ..quality.measure import as_dict, run
        from ..quality.report import text, write_report
        from ..quality.sets import Settings
    result = run(Settings(features=network_of(options), **options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(as_dict(result), text(result), as_json)


@click.command(cls=Command)
@photographs_option
@model_option
@click.option(
    "--psi", "psis", default="0.5,0.7,0.8,0.9,1", show_default=True, callback=shares, help="Compared."
)
@click.option("--precision", default="fp32", show_default=True, help="fp32 or fp16")
@click.option("--images", type=int, help="Of each PSI [default: as pgsr-bench quality].")
@seed_option
@by_features(required=False)
@device_option
@threads_option
@click.option("--out", type=PATH, help="Folder for truncation.json, .md and .png.")
@json_option
def truncation(out: Path | None, psis: tuple[float, ...], as_json: bool, **options: Any) -> None:
    """Score a bundle's faces at several truncations, and show them side by side."""
    with packages("measuring", "bench"):
        from ..quality.sets import Settings
        from ..quality.truncation import run, text, write_report
    settings = Settings(features=network_of(options), **options)
    report, faces = run(settings, psis, lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(report, faces, out)
    emit(report, text(report), as_json)


@click.command(cls=Command)
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@json_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two quality.json score by score; scores that were made differently are refused."""
    with packages("comparing", "bench"):
        from ..quality.report import compare as compared
    emit(*compared(first, second), as_json)


@click.command(cls=Command)
@photographs_option
@model_option
@click.option("--count", type=int, default=8, show_default=True, help="Generated faces.")
@click.option("--start", type=int, default=0, show_default=True, help="The first one's index.")
@seed_option
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
@threads_option
@click.option("--out", type=PATH, help="Folder for neighbours.json and .png.")
@json_option
def neighbours(out: Path | None, as_json: bool, **options: Any) -> None:
    """Find the training photographs nearest to generated faces (paper 2, Figure 10)."""
    with packages("measuring", "bench"):
        from ..quality.neighbours import Settings, run, text, write_report
    report, picture = run(Settings(**options))
    if out is not None:
        write_report(report, picture, out)
    emit(report, text(report), as_json)


@click.command(cls=Command)
@click.argument("run", type=PATH)
@click.option("--count", type=int, default=8, show_default=True, help="Latents, a column each.")
@click.option("--start", type=int, default=0, show_default=True, help="The first one's index.")
@seed_option
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--out", type=PATH, help="Folder for scales.json and .png.")
@json_option
def scales(out: Path | None, as_json: bool, **options: Any) -> None:
    """Draw what a trained RUN makes of the same latents at each of its resolutions (paper 4, Figure 3)."""
    with packages("measuring", "bench"):
        from ..curves.scales import Settings, run, text, write_report
    report, picture = run(Settings(**options))
    if out is not None:
        write_report(report, picture, out)
    emit(report, text(report), as_json)


@click.command(cls=Command)
@click.option("--data", type=PATH, required=True, help="Photographs of faces.")
@click.option(
    "--labels",
    type=PATH,
    multiple=True,
    required=True,
    help="Their attributes: CelebA's list or CSV; may be repeated.",
)
@click.option("--epochs", type=int, default=20, show_default=True)
@seed_option
@click.option("--out", type=PATH, required=True, help="The .onnx file.")
@json_option
def judge(out: Path, as_json: bool, labels: tuple[Path, ...], **options: Any) -> None:
    """Train a classifier of attributes, for quality --features: a judge that no training has seen."""
    with packages("training a judge", "bench"):
        from ..quality.judge import Settings, run, text, write
    network, told = run(Settings(labels=labels, **options), lambda line: click.echo(line, err=True))
    write(network, told, out)
    emit(told, text(told), as_json)
