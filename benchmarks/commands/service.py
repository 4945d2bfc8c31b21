"""Commands of pgsr-bench that ask how it holds: servers, clusters, hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages

from .options import model_option, numbers, seed_option


@click.command(cls=Command)
@model_option
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--format", default="png", show_default=True, metavar="png|jpeg|webp|jxl")
@click.option("--batch", type=int, default=16, show_default=True)
@click.option("--clients", type=int, default=32, show_default=True, help="At once, a face a request.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--cores", default="", help="How many, such as 1,2 [default: all that may be used].")
@click.option("--minutes", type=float, default=0.0, help="Of further load, to watch the memory.")
@click.option("--out", type=PATH, help="Folder for serve.json and serve.md.")
@json_option
def serve(out: Path | None, cores: str, as_json: bool, **options: Any) -> None:
    """Load pgsr-serve beside pgsr-generate and a plain handler: throughput, latencies, memory."""
    with packages("measuring", "bench"), packages("pgsr-serve", "serve"):
        import fastapi  # noqa: F401
        import uvloop  # noqa: F401

        from ..serve.measure import Settings, run
        from ..serve.report import text, write_report
    counts = numbers(click.get_current_context(), None, cores) if cores else ()  # type: ignore[arg-type]
    result = run(Settings(cores=counts, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(result, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--model", type=PATH, help="A bundle [default: the one that ships].")
@click.option("--count", type=int, help="Faces of a set [default: 20000].")
@click.option("--shard-size", type=int, help="[default: 10000; 500 with --kills]")
@click.option("--workers", default="1,2,4", show_default=True, callback=numbers, help="On a core each.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Of everything, in turns.")
@click.option(
    "--kills",
    type=int,
    default=0,
    help="Measure nothing: kill workers, nodes and drivers so often, and compare the sets' bytes.",
)
@click.option("--seed", type=int, help="Of the kills' instants [default: by chance].")
@click.option("--out", type=PATH, help="Folder for cluster.json, or kills.json.")
@json_option
def cluster(out: Path | None, kills: int, seed: int | None, as_json: bool, **options: Any) -> None:
    """Time pgsr-generate --ray beside the plain command, on a cluster of nodes with a core each here."""
    with packages("a local cluster", "ray"):
        import ray  # noqa: F401

        from ..cluster.report import run_and_write
    options = {name: value for name, value in options.items() if value is not None}
    emit(*run_and_write(out, kills, seed, options, lambda line: click.echo(line, err=True)), as_json)


@click.command(cls=Command)
@model_option
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
@click.option("--nodes", default="1,2,5,10,20,50,100,200,500,1000", callback=numbers, show_default=True)
@click.option("--workers", type=int, default=16, show_default=True, help="Cores of a node, a worker each.")
@click.option("--storage", type=float, default=10.0, show_default=True, help="GB a second it takes from all.")
@click.option("--link", type=float, default=10.0, show_default=True, help="Gbit a second of a node.")
@click.option("--mtbf-days", type=float, default=30.0, show_default=True, help="Between a node's failures.")
@click.option("--check", is_flag=True, help="Hold the simulation to real processes, some of them killed.")
@click.option(
    "--check-faces", type=int, default=300, show_default=True, help="Faces of a shard of the check."
)
@seed_option
@click.option("--out", type=PATH, help="Folder for scaling.html, .md and .json.")
@json_option
def scaling(out: Path | None, precisions: str, as_json: bool, **options: Any) -> None:
    """What a billion faces cost, and how long 1 to 1,000 nodes take: measured figures, simulated nodes."""
    with packages("measuring", "bench"):
        from ..scaling.measure import Settings, run
        from ..scaling.report import text, write_report
    names = tuple(filter(None, precisions.split(",")))
    result = run(Settings(precisions=names, **options), lambda line: click.echo(line, err=True))
    if out is not None:
        write_report(result, out)
    emit(result, text(result), as_json)


@click.command(cls=Command)
@click.option("--what", required=True, metavar="serve|generate|resume", help="The work that is watched.")
@click.option("--minutes", type=float, default=60.0, show_default=True)
@model_option
@click.option("--clients", type=int, default=6, show_default=True, help="Of the server.")
@click.option("--pause", type=float, default=0.02, show_default=True, help="Seconds between their requests.")
@click.option("--out", type=PATH, help="Folder for soak-WHAT.json and .png.")
@json_option
def soak(out: Path | None, as_json: bool, **options: Any) -> None:
    """Watch memory, handles, threads and temporary files while faces are served or made, or runs resumed."""
    with packages("measuring", "bench"), packages("pgsr-serve", "serve"):
        from ..soak.measure import Settings, run
        from ..soak.report import text, write_report
    result = run(Settings(**options), lambda line: click.echo(line, err=True))
    if out is not None:
        with packages("the report's picture", "bench"):
            write_report(result, out)
    emit(result, text(result), as_json)
