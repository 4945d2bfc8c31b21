"""pgsr-export: runs or checkpoints in, a bundle out.

pgsr-export runs/faces-64 runs/upscale --out bundle --fp16
"""

from __future__ import annotations

from pathlib import Path

import click

from pgsr.cli import Command, emit, json_option, packages, version_option


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle's folder.")
@click.option("--fp16", is_flag=True, help="Write half-precision graphs as well.")
@click.option("--resolution", type=int, help="Of the generator's images; default: the highest grown in.")
@click.option("--label", type=int, help="Of a generator trained with labels: the one to draw, from 0.")
@click.option("--name", help="The bundle's name; default: the folder's.")
@click.option("--licence", default="unstated", show_default=True, help="Of the weights, for the manifest.")
@click.option("--samples", type=click.IntRange(2), default=64, show_default=True, help="Latents for parity.")
@json_option
@version_option
def main(
    runs: tuple[Path, ...],
    out: Path,
    fp16: bool,
    resolution: int | None,
    label: int | None,
    name: str | None,
    licence: str,
    samples: int,
    as_json: bool,
) -> None:
    """Export RUNS (a generator's, an upscaler's or both; folders or checkpoint files) as one bundle.

    Every graph is compared with the network it came from; one that is too far off is an error, and no
    bundle is written.
    """
    with packages("exporting", "export"):
        from .build import export_bundle, summary
        from .source import at_resolution, read_source
    precisions = ("fp32", "fp16") if fp16 else ("fp32",)
    sources = [read_source(run, label) for run in runs]
    if resolution is not None:
        sources = at_resolution(sources, resolution)
    result = export_bundle(
        sources,
        out,
        precisions=precisions,
        name=name or out.name,
        licence=licence,
        samples=samples,
    )
    lines = [
        f"{g.name:<10} {g.precision}  {g.multiply_adds / 1e6:>9.1f} M multiply-adds  PSNR "
        f"{g.parity['psnr_db']:.1f} dB, largest difference {g.parity['max_steps']:.0f} of 255"
        for g in result.graphs
    ]
    emit(summary(result), "\n".join([*lines, str(out)]), as_json)
