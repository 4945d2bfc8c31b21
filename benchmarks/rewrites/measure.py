"""What each rewrite of the export saves and gains: multiply-adds, operations and images a second.

Counts are of every resolution asked for, without arithmetic (on PyTorch's meta device); timings of those in
`timed`: the network in eager PyTorch float32 beside its graphs as written, as chosen for each backend, in
int8, and with each rewrite in turn left out or put in. One run, taking turns (benchmarks/harness/timing.py).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pgsr import __version__, bundle, draws
from pgsr.bundle import Bundle
from pgsr.errors import PgsrError
from pgsr.export.bundle_builder import Converted, in_int8, multiply_adds, plans, with_names
from pgsr.export.int8 import BALANCE
from pgsr.export.lowering import Grown
from pgsr.export.parity import compare
from pgsr.export.rewrites.table import REWRITES, TARGETS, choose_rewrites, rewritten
from pgsr.export.source import Source
from pgsr.files import make_folder, write_bytes
from pgsr.images import to_uint8
from pgsr.machine import usable_cores
from pgsr.networks import GENERATORS, build
from pgsr.networks.interfaces import Generator
from pgsr.runtime.backends import open_runner

from ..harness.machine import describe
from ..harness.timing import Contender, Timing, measure
from ..references.training import PlainProGenerator
from ..throughput.measure import torch_threads

Report = Callable[[str], None]

CONVOLUTIONS = ("vanilla", "separable")
LIBRARIES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}  # backends on a CPU, and what they import
EAGER, PLAIN, AS_WRITTEN, CHOSEN = "eager", "plain", "as written", "chosen"
CALIBRATION = 8  # images
RELATIVE_LIMIT = 1e-3  # of float32 images against eager ones

# Without these the others find nothing: they are in every variant but the first.
ALWAYS = ("remove-alpha", "fold-gains")
FORMS = ("upsample-convolution", "upsample-depthwise")  # of which one at a time can be made


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    resolutions: tuple[int, ...] = (64, 128, 256, 1024)  # that are counted
    timed: tuple[int, ...] = (64,)  # that are timed, too
    batch: int = 8
    rounds: int = 3
    each: bool = True  # whether every rewrite is timed by itself
    int8: bool = True
    latent_size: int = 512
    feature_base: int = 16384
    feature_max: int = 512
    threads: int = 0  # 0: one a usable core

    def __post_init__(self) -> None:
        if self.batch < 2:  # the runtime fills smaller ones up
            raise PgsrError(f"--batch is {self.batch}, but must be at least 2")
        if self.rounds < 1:
            raise PgsrError(f"--rounds is {self.rounds}, but must be at least 1")
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def network(self, convolution: str, resolution: int) -> Generator:
        options = {
            "kind": "progan",
            "resolution": resolution,
            "latent_size": self.latent_size,
            "feature_base": self.feature_base,
            "feature_max": self.feature_max,
            "convolution": convolution,
        }
        return build(GENERATORS, options).eval().requires_grad_(False)

    def plain(self, convolution: str, resolution: int) -> nn.Module:
        """The same architecture as one would first write it."""
        widths = (self.latent_size, self.feature_base, self.feature_max)
        return PlainProGenerator(convolution, resolution, *widths).eval().requires_grad_(False)


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data. Raises PgsrError if a graph does not draw what its network does."""
    backends = [name for name, library in LIBRARIES.items() if find_spec(library) is not None]
    report("timing the peak")
    machine = describe(settings.threads)
    counts, speeds = [], []
    with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as scratch, torch_threads(settings.threads):
        for convolution in CONVOLUTIONS:
            for resolution in settings.resolutions:
                counts.append(counted(settings, convolution, resolution))
            for resolution in settings.timed:
                folder = Path(scratch) / f"{convolution}-{resolution}"
                speeds.append(timed(settings, backends, convolution, resolution, folder, report))
    return {
        "benchmark": "rewrites",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "settings": asdict(settings),
        "backends": backends,
        "counts": counts,
        "speeds": speeds,
        "rewrites": {name: rewrite.what for name, rewrite in REWRITES.items()},
    }


# ----------------------------------------------------------------------------
# Counts.


class Operations(TorchDispatchMode):
    """Counts the operations that compute; views and new constants are none."""

    NONE = ("view", "expand", "reshape", "unsqueeze", "slice", "detach", "alias", "select", "t", "full")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__.strip("_") not in self.NONE
        return func(*args, **(kwargs or {}))


def operations(module: nn.Module, example: Tensor) -> int:
    """Counts the operations that PyTorch dispatches for an example."""
    counter = Operations()
    with torch.no_grad(), counter:
        module(example)
    return counter.count


def counted(settings: Settings, convolution: str, resolution: int) -> dict[str, Any]:
    """One image's work as the network is written, and after the chosen rewrites."""
    network = Grown(settings.network(convolution, resolution), resolution).to("meta")
    latents = torch.empty(1, settings.latent_size, device="meta")
    row: dict[str, Any] = {"convolution": convolution, "resolution": resolution}
    for name, names in ((AS_WRITTEN, ()), *((target, TARGETS[target]) for target in LIBRARIES)):
        module, applied = rewritten(network, names)
        row[name] = {
            "multiply_adds": multiply_adds(module, latents),
            "operations": operations(module, latents),
            "rewrites": list(applied),
        }
    return row


# ----------------------------------------------------------------------------
# Variants.


@dataclass(frozen=True)
class Variant:
    """A graph to be timed."""

    name: str
    names: tuple[str, ...]  # of rewrites
    backends: tuple[str, ...]
    precision: str = "fp32"
    rewrite: str = ""  # that makes its difference to the chosen ones


def variants(settings: Settings, network: nn.Module, backends: list[str]) -> list[Variant]:
    """Lists the variants: as written; as chosen for each backend, in float32 and int8; every other rewrite in
    or out."""
    result = [Variant(AS_WRITTEN, (), tuple(backends))]
    for backend in backends:
        usual = TARGETS[backend]
        result.append(Variant(f"{CHOSEN} for {backend}", usual, (backend,)))
        if settings.int8:
            names = choose_rewrites(backend, precision="int8")
            result.append(Variant(f"{CHOSEN} for {backend}, int8", names, (backend,), "int8"))
        if settings.each:
            result += [v for name in REWRITES for v in _one_other(network, usual, name, backend)]
    return result


def _one_other(network: nn.Module, usual: tuple[str, ...], name: str, backend: str) -> Iterator[Variant]:
    """The chosen rewrites without this one, or with it in place of another form; nothing if it is idle."""
    if name in (*ALWAYS, BALANCE):
        return
    if name in usual:
        names = tuple(n for n in usual if n != name)
        idle, verb = name not in rewritten(network, usual)[1], "without"
    else:
        form = next((form for form in FORMS if name.startswith(form)), name)
        names = (*(n for n in usual if not n.startswith(form)), name)
        idle, verb = name not in rewritten(network, names)[1], "with"
    if not idle:
        yield Variant(f"{verb} {name}", names, (backend,), rewrite=name)


# ----------------------------------------------------------------------------
# Timings.


def timed(
    settings: Settings, backends: list[str], convolution: str, resolution: int, folder: Path, report: Report
) -> dict[str, Any]:
    """Images a second of one network in all its variants."""
    network = settings.network(convolution, resolution)
    grown = Grown(network, resolution)
    latents = draws.latents(0, range(settings.batch), settings.latent_size)
    variants_to_time = variants(settings, grown, backends)
    with contextlib.ExitStack() as stack:
        eager = _eager(grown, torch.from_numpy(latents))
        expected = eager()
        plain = _eager(settings.plain(convolution, resolution), torch.from_numpy(latents))
        contenders = [Contender(EAGER, settings.batch, eager), Contender(PLAIN, settings.batch, plain)]
        rows: dict[str, dict[str, Any]] = {}
        graphs = Graphs(settings, network, resolution, folder, report)
        for variant in variants_to_time:
            model = graphs.bundle(variant)
            for backend in variant.backends:
                widths = (settings.threads, settings.batch)
                opened = open_runner(model, "cpu", variant.precision, backend, "generator", *widths)
                runner = stack.enter_context(opened)
                name = f"{variant.name} on {backend}"
                call = _bound(runner.run, latents)
                rows[name] = {
                    **asdict(variant),
                    "backend": backend,
                    **_checked(name, variant.precision, expected, call()),
                }
                contenders.append(Contender(name, settings.batch, call))
        timings = measure(
            contenders,
            settings.rounds,
            report=lambda i: report(f"{convolution} {resolution}: round {i} of {settings.rounds}"),
        )
    return {
        "convolution": convolution,
        "resolution": resolution,
        EAGER: timings[EAGER].as_dict(),
        PLAIN: {**timings[PLAIN].as_dict(), "to_eager": timings[PLAIN].ratio_to(timings[EAGER])},
        "rows": _rows(rows, timings),
    }


def _eager(network: nn.Module, latents: Tensor) -> Callable[[], NDArray[Any]]:
    def call() -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(network(latents).numpy())

    return call


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


class Graphs:
    """Exports what variants need, each graph once."""

    def __init__(
        self, settings: Settings, network: Generator, resolution: int, folder: Path, report: Report
    ) -> None:
        source = Source(network, "generator", settings.latent_size, resolution, 1, {})
        self.plan = next(p for p in plans({"generator": source}) if p.name == "generator")
        self.network = Grown(network, resolution)
        self.settings, self.resolution, self.folder, self.report = settings, resolution, folder, report
        self.graphs_by_key: dict[tuple[tuple[str, ...], str], Converted] = {}
        self.bundles: dict[tuple[tuple[str, ...], str], Bundle] = {}

    def bundle(self, variant: Variant) -> Bundle:
        """A bundle of the one graph, made by the functions of pgsr-export."""
        key = (rewritten(self.network, variant.names)[1], variant.precision)
        if key not in self.bundles:
            folder = make_folder(self.folder / str(len(self.bundles)))
            self.bundles[key] = self._written(self._graph(*key), folder)
        return self.bundles[key]

    def _graph(self, names: tuple[str, ...], precision: str) -> Converted:
        if (names, precision) not in self.graphs_by_key:
            if precision == "int8":
                graph = self._in_int8(self._graph(names, "fp32"))
            else:
                self.report(f"{self.folder.name}: exporting {', '.join(names) or AS_WRITTEN}")
                example = torch.from_numpy(draws.latents(0, range(2), self.settings.latent_size))
                graph = with_names(self.plan, precision, example, names)
            self.graphs_by_key[names, precision] = graph
        return self.graphs_by_key[names, precision]

    def _in_int8(self, graph: Converted) -> Converted:
        calibration = draws.latents(1, range(CALIBRATION), self.settings.latent_size)
        return in_int8(graph, calibration, True, "")[0]

    def _written(self, graph: Converted, folder: Path) -> Bundle:
        write_bytes(folder / graph.graph.file, graph.model, durable=False)
        result = Bundle(
            folder=folder,
            name=folder.name,
            version=__version__,
            latent_size=self.settings.latent_size,
            resolution=self.resolution,
            scale=1,
            graphs=(graph.graph,),
            licence="random weights",
        )
        bundle.write(result)
        return bundle.read(folder)


def _checked(name: str, precision: str, expected: NDArray[Any], pixels: NDArray[Any]) -> dict[str, Any]:
    """Returns how far a graph is off. Raises PgsrError for a float32 one that is not the network."""
    difference = float(np.abs(expected.astype(np.float64) - pixels).max())
    if precision == "fp32" and not difference <= RELATIVE_LIMIT * max(1.0, float(np.abs(expected).max())):
        raise PgsrError(f"{name} is {difference:.2g} away from its network: nothing was measured")
    parity = compare(to_uint8(expected), to_uint8(pixels))
    return {"largest_difference": difference, "psnr_db": parity.psnr_db}


def _rows(rows: Mapping[str, Mapping[str, Any]], timings: Mapping[str, Timing]) -> list[dict[str, Any]]:
    """Every graph with its time, to eager and to what was chosen for its backend."""
    return [
        {
            **row,
            **timings[name].as_dict(),
            "to_eager": timings[name].ratio_to(timings[EAGER]),
            "to_plain": timings[name].ratio_to(timings[PLAIN]),
            "to_chosen": timings[name].ratio_to(
                timings[f"{CHOSEN} for {row['backend']} on {row['backend']}"]
            ),
        }
        for name, row in rows.items()
    ]


def best(result: Mapping[str, Any], convolution: str, precision: str) -> dict[str, Any] | None:
    """The fastest graph of a convolution at the first resolution that was timed."""
    for speeds in result["speeds"]:
        if speeds["convolution"] == convolution:
            rows = [row for row in speeds["rows"] if row["precision"] == precision]
            return max(rows, key=lambda row: row["to_eager"], default=None)
    return None
