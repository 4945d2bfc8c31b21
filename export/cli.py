"""pgsr-export: runs or checkpoints in, a bundle out.

pgsr-export runs/faces-64 runs/upscale --out bundle --fp16
pgsr-export runs/faces-64 runs/upscale runs/upscale --out chain        # 64 -> 256 -> 1024
pgsr-export import karras2018iclr-celebahq-1024x1024.pkl --out celebahq
pgsr-export engine bundle tensorrt-rtx --compute-capability 8.6,8.9
pgsr-export explain bundle --out chain.svg
pgsr-export triton bundle repository
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pgsr.bundle import MANIFEST, Bundle, read
from pgsr.cli import PATH, Mode, Modes, emit, json_option, option, options, packages, version_option
from pgsr.errors import check_choice

from .engines import EngineRequest, engine_request, engines_summary, progress

BUNDLE, GRAPHS, ENGINES, SERVING = "Bundle", "Graphs", "Engines", "Serving"

export_options = options(
    option(BUNDLE, "--out", type=PATH, help="The bundle's folder."),
    option(BUNDLE, "--name", help="The bundle's name; default: the folder's."),
    option(
        BUNDLE, "--licence", default="unstated", show_default=True, help="Of the weights, for the manifest."
    ),
    option(
        BUNDLE, "--resolution", type=int, help="Of the generator's images; default: the highest grown in."
    ),
    option(
        BUNDLE,
        "--truncation",
        type=click.FloatRange(0, 1),
        default=1.0,
        show_default=True,
        help="Of its faces, unless their user says another: less variety, more typical faces.",
    ),
    option(BUNDLE, "--label", type=int, help="Of a generator trained with labels: the one to draw, from 0."),
    option(
        BUNDLE,
        "--equalized",
        type=click.Choice(["yes", "no"]),
        help="Whether an imported generator has equalized learning rate, if its file leaves it open.",
    ),
    option(GRAPHS, "--fp16", is_flag=True, help="Write half-precision graphs as well."),
    option(GRAPHS, "--bf16", is_flag=True, help="Write bfloat16 graphs as well."),
    option(
        GRAPHS, "--int8", is_flag=True, help="Write 8-bit graphs as well, calibrated on generated images."
    ),
    option(
        GRAPHS,
        "--target",
        default="onnxruntime",
        show_default=True,
        metavar="onnxruntime|openvino|tensorrt",
        help="The backend whose fastest rewrites are made; any backend runs them all.",
    ),
    option(GRAPHS, "--rewrite", "also", multiple=True, metavar="NAME", help="Make this rewrite, too."),
    option(GRAPHS, "--no-rewrite", "without", multiple=True, metavar="NAME", help="Leave this rewrite out."),
    option(
        GRAPHS,
        "--samples",
        type=click.IntRange(2),
        help="Latents for parity.  [default: 64; fewer for pictures above 256 x 256]",
    ),
    option(
        ENGINES,
        "--engine",
        metavar="tensorrt|tensorrt-rtx",
        help="Also build engines, for the GPU present or for any.",
    ),
)
engine_options = options(
    option(
        ENGINES,
        "--batch",
        help="MIN,OPT,MAX of the engines' batch sizes.  [default: 1,16,64; fewer of large ones]",
    ),
    option(
        ENGINES, "--compute-capability", help="Of tensorrt-rtx engines: 8.6,8.9  [default: 8.0 and newer]"
    ),
)


@dataclass(frozen=True)
class Request:
    """What an export is asked for, as the options say it."""

    out: Path | None
    name: str | None
    licence: str
    resolution: int | None
    truncation: float
    label: int | None
    equalized: str | None
    fp16: bool
    bf16: bool
    int8: bool
    target: str
    also: tuple[str, ...]
    without: tuple[str, ...]
    samples: int | None

    @property
    def precisions(self) -> list[str]:
        """The precisions of the graphs that are written."""
        flags = {"fp32": True, "fp16": self.fp16, "bf16": self.bf16, "int8": self.int8}
        return [name for name, wished in flags.items() if wished]


@click.group(cls=Modes, default="bundle", spellings={"--explain": "explain", "--triton": "triton"})
@version_option
def main() -> None:
    """Export RUNS (a generator's, upscalers' in their order, or both; folders or checkpoints) as one bundle.

    Every graph is compared with the network it came from; one that is too far off is an error, and no
    bundle is written. With --engine, RUNS may be one bundle: its engines that are missing or stale are built.
    """


@main.command(cls=Mode, short_help="Runs or checkpoints as one bundle (the default).")
@click.argument("runs", nargs=-1, type=PATH)
@option(
    BUNDLE,
    "--from",
    "foreign",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="Weights of another project (see docs/importers.md); may be named again. They come behind RUNS.",
)
@export_options
@engine_options
@json_option
@version_option
def bundle(
    runs: tuple[Path, ...],
    foreign: tuple[Path, ...],
    engine: str | None,
    batch: str | None,
    compute_capability: str | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Export RUNS (a generator's, upscalers' in their order, or both: folders or checkpoints) as a bundle."""
    request, engines = Request(**wishes), engine_request(engine, batch, compute_capability)
    if engines and request.out is None and len(runs) == 1 and (runs[0] / MANIFEST).is_file():
        _build_engines(engines, runs[0], as_json)
        return
    if request.out is None:
        raise click.UsageError("Missing option '--out'.")
    if not runs and not foreign:
        raise click.UsageError("name a run, a checkpoint, or another project's weights with --from FILE")
    _export(runs, foreign, request, engines, as_json)


@main.command("import", cls=Mode, short_help="Another project's weights as a bundle.")
@click.argument("files", nargs=-1, required=True, type=PATH)
@export_options
@engine_options
@json_option
def import_(
    files: tuple[Path, ...],
    engine: str | None,
    batch: str | None,
    compute_capability: str | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Export FILES, weights of other projects (docs/importers.md), as one bundle. No code in them runs."""
    request, engines = Request(**wishes), engine_request(engine, batch, compute_capability)
    if request.out is None:
        raise click.UsageError("Missing option '--out'.")
    _export((), files, request, engines, as_json)


@main.command(cls=Mode, short_help="A bundle's engines for NVIDIA GPUs.")
@click.argument("folder", metavar="BUNDLE", type=PATH)
@click.argument("library", metavar="tensorrt|tensorrt-rtx")
@engine_options
@json_option
def engine(
    folder: Path, library: str, batch: str | None, compute_capability: str | None, as_json: bool
) -> None:
    """Build the engines of BUNDLE that are missing or stale, beside its graphs."""
    request = engine_request(library, batch, compute_capability)
    assert request is not None
    _build_engines(request, folder, as_json)


@main.command(cls=Mode, short_help="A bundle's graph as a table and a drawing.")
@click.argument("folder", metavar="BUNDLE", type=PATH)
@click.option("--out", type=PATH, help="A picture of the graph: .svg, .png or .pdf.")
@click.option("--graph", help="[default: chain, or the only one]")
@click.option("--precision", default="fp32", show_default=True)
@json_option
def explain(folder: Path, out: Path | None, graph: str | None, precision: str, as_json: bool) -> None:
    """Print and draw one of the graphs of BUNDLE: what each layer is, makes and costs."""
    with packages("explaining", "export"):
        from .explain import draw, explained, text
    explanation = explained(read(folder), graph, precision)
    if out is not None:
        with packages("the picture", "bench"):
            draw(explanation, out)
    emit(explanation, "\n".join([text(explanation), *([str(out)] if out else [])]), as_json)


@main.command(cls=Mode, short_help="A bundle as a model repository of NVIDIA Triton.")
@click.argument("folder", metavar="BUNDLE", type=PATH)
@click.argument("repository", metavar="REPO", type=PATH)
@option(GRAPHS, "--precision", default="fp32", show_default=True, help="Of the models: fp32,fp16,bf16,int8.")
@option(
    SERVING,
    "--backend",
    default="onnxruntime",
    show_default=True,
    metavar="onnxruntime|python",
    help="Triton's, of the graphs; python runs them by pgsr's own runtime.",
)
@option(SERVING, "--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
@option(
    SERVING,
    "--batch",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Images at a time, at most.",
)
@option(
    SERVING,
    "--instances",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Of each model, on the CPU or on each GPU.",
)
@option(
    SERVING,
    "--queue-delay",
    type=click.IntRange(0, 60_000_000),
    default=2000,
    show_default=True,
    help="Microseconds that a request waits for others to share its batch.",
)
@json_option
def triton(
    folder: Path,
    repository: Path,
    precision: str,
    backend: str,
    device: str,
    batch: int,
    instances: int,
    queue_delay: int,
    as_json: bool,
) -> None:
    """Write REPO, a model repository of NVIDIA's Triton server, from BUNDLE (docs/triton.md)."""
    from .triton.config import KINDS, Serving
    from .triton.repository import chosen_precisions, write_repository

    check_choice("--device", device, KINDS)
    if not (folder / MANIFEST).exists() and (repository / MANIFEST).exists():
        folder, repository = repository, folder  # as in --triton REPO BUNDLE
    models = write_repository(
        read(folder),
        repository,
        chosen_precisions(precision),
        backend,
        Serving(batch, device, instances, queue_delay),
        progress,
    )
    result = {"repository": str(repository), "models": [model.summary() for model in models]}
    emit(result, "\n".join([*(model.line() for model in models), str(repository)]), as_json)


def _build_engines(request: EngineRequest, folder: Path, as_json: bool) -> None:
    results = request.build_beside(read(folder), progress)
    emit(engines_summary(results), "\n".join(r.line() for r in results), as_json)


def _export(
    runs: tuple[Path, ...],
    foreign: tuple[Path, ...],
    request: Request,
    engines: EngineRequest | None,
    as_json: bool,
) -> None:
    """Writes the bundle, then its engines, and tells what was written."""
    with packages("exporting", "export"):
        from .bundle_builder import Choice, export_bundle, summary
        from .importers import read_foreign
        from .source import at_resolution, read_source
    assert request.out is not None
    sources = [read_source(run, request.label) for run in runs]
    equalized = None if request.equalized is None else request.equalized == "yes"
    sources += [read_foreign(file, request.label, equalized) for file in foreign]
    for note in (note for source in sources for note in source.notes):
        progress(note)
    if request.resolution is not None:
        sources = at_resolution(sources, request.resolution)
    result = export_bundle(
        sources,
        request.out,
        precisions=request.precisions,
        name=request.name or request.out.resolve().name,
        licence=request.licence,
        samples=request.samples or 0,
        truncation=request.truncation,
        choice=Choice(request.target, request.also, request.without),
    )
    results = engines.build_beside(result, progress) if engines else []
    lines = [*_graph_lines(result), *[r.line() for r in results], str(request.out)]
    emit({**summary(result), **(engines_summary(results) if results else {})}, "\n".join(lines), as_json)


def _graph_lines(written: Bundle) -> list[str]:
    """Returns what each graph costs, and how near it is to its network."""
    return [
        f"{g.name:<10} {g.precision}  {g.multiply_adds / 1e6:>9.1f} M multiply-adds  PSNR "
        f"{g.parity['psnr_db']:.1f} dB, largest difference {g.parity['max_steps']:.0f} of 255"
        for g in written.graphs
    ]
