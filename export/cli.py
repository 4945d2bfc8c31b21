"""pgsr-export: runs or checkpoints in, a bundle out.

pgsr-export runs/faces-64 runs/upscale --out bundle --fp16
pgsr-export --from karras2018iclr-celebahq-1024x1024.pkl --out celebahq
pgsr-export bundle --engine tensorrt-rtx --compute-capability 8.6,8.9
pgsr-export --explain bundle --out chain.svg
"""

from __future__ import annotations

from pathlib import Path

import click

from pgsr.bundle import MANIFEST, read
from pgsr.cli import Command, emit, json_option, packages, version_option

from .engines import engine_request, engines_summary, progress


@click.command(cls=Command)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--from",
    "foreign",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights of another project (see docs/importers.md); may be named twice.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder; of --explain, a picture.")
@click.option("--fp16", is_flag=True, help="Write half-precision graphs as well.")
@click.option("--bf16", is_flag=True, help="Write bfloat16 graphs as well.")
@click.option("--int8", is_flag=True, help="Write 8-bit graphs as well, calibrated on generated images.")
@click.option(
    "--target",
    default="onnxruntime",
    show_default=True,
    metavar="onnxruntime|openvino|tensorrt",
    help="The backend whose fastest rewrites are made; any backend runs them all.",
)
@click.option("--rewrite", "also", multiple=True, metavar="NAME", help="Make this rewrite, too.")
@click.option("--no-rewrite", "without", multiple=True, metavar="NAME", help="Leave this rewrite out.")
@click.option(
    "--explain", type=click.Path(path_type=Path), metavar="BUNDLE", help="Print and draw one of its graphs."
)
@click.option("--graph", help="Of --explain.  [default: chain, or the only one]")
@click.option("--precision", default="fp32", show_default=True, help="Of --explain.")
@click.option("--resolution", type=int, help="Of the generator's images; default: the highest grown in.")
@click.option("--label", type=int, help="Of a generator trained with labels: the one to draw, from 0.")
@click.option("--name", help="The bundle's name; default: the folder's.")
@click.option("--licence", default="unstated", show_default=True, help="Of the weights, for the manifest.")
@click.option("--samples", type=click.IntRange(2), default=64, show_default=True, help="Latents for parity.")
@click.option(
    "--engine", metavar="tensorrt|tensorrt-rtx", help="Also build engines, for the GPU present or for any."
)
@click.option("--batch", help="MIN,OPT,MAX of the engines' batch sizes.  [default: 1,16,64]")
@click.option("--compute-capability", help="Of tensorrt-rtx engines: 8.6,8.9  [default: 8.0 and newer]")
@json_option
@version_option
def main(
    runs: tuple[Path, ...],
    foreign: tuple[Path, ...],
    out: Path | None,
    fp16: bool,
    bf16: bool,
    int8: bool,
    target: str,
    also: tuple[str, ...],
    without: tuple[str, ...],
    explain: Path | None,
    graph: str | None,
    precision: str,
    resolution: int | None,
    label: int | None,
    name: str | None,
    licence: str,
    samples: int,
    engine: str | None,
    batch: str | None,
    compute_capability: str | None,
    as_json: bool,
) -> None:
    """Export RUNS (a generator's, an upscaler's or both; folders or checkpoint files) as one bundle.

    Every graph is compared with the network it came from; one that is too far off is an error, and no
    bundle is written. With --engine, RUNS may be one bundle: its engines that are missing or stale are built.
    """
    if explain is not None:
        _explain(explain, graph, precision, out, as_json)
        return
    request = engine_request(engine, batch, compute_capability)
    if request and out is None and len(runs) == 1 and (runs[0] / MANIFEST).is_file():
        engines = request.build_beside(read(runs[0]), progress)
        emit(engines_summary(engines), "\n".join(m.line() for m in engines), as_json)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    if not runs and not foreign:
        raise click.UsageError("name a run, a checkpoint, or another project's weights with --from FILE")
    with packages("exporting", "export"):
        from .bundle_builder import Choice, export_bundle, summary
        from .importers import read_foreign
        from .source import at_resolution, read_source
    flags = {"fp32": True, "fp16": fp16, "bf16": bf16, "int8": int8}
    precisions = [name for name, wished in flags.items() if wished]
    choice = Choice(target, also, without)
    sources = [read_source(run, label) for run in runs] + [read_foreign(file, label) for file in foreign]
    if resolution is not None:
        sources = at_resolution(sources, resolution)
    result = export_bundle(
        sources,
        out,
        precisions=precisions,
        name=name or out.name,
        licence=licence,
        samples=samples,
        choice=choice,
    )
    lines = [
        f"{g.name:<10} {g.precision}  {g.multiply_adds / 1e6:>9.1f} M multiply-adds  PSNR "
        f"{g.parity['psnr_db']:.1f} dB, largest difference {g.parity['max_steps']:.0f} of 255"
        for g in result.graphs
    ]
    engines = request.build_beside(result, progress) if request else []
    lines += [m.line() for m in engines]
    report = {**summary(result), **(engines_summary(engines) if engines else {})}
    emit(report, "\n".join([*lines, str(out)]), as_json)


def _explain(bundle: Path, graph: str | None, precision: str, out: Path | None, as_json: bool) -> None:
    with packages("explaining", "export"):
        from .explain import draw, explained, text
    explanation = explained(read(bundle), graph, precision)
    if out is not None:
        with packages("the picture", "bench"):
            draw(explanation, out)
    emit(explanation, "\n".join([text(explanation), *([str(out)] if out else [])]), as_json)
