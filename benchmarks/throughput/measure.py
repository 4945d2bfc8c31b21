"""Images a second of every stage: the naive chain, ours of the same widths, and the model that ships.

One run times everything, side by side, on the CPU or a GPU: see benchmarks/harness/timing.py. The contenders
of a stage take turns, so that their ratios hold although the machine's speed wanders. Every backend that is
installed is one.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pgsr import bundle, draws
from pgsr.bundle import Bundle, Graph
from pgsr.errors import PgsrError, check_choice
from pgsr.export.engines import add_engines
from pgsr.export.parity import compare, pictures, require
from pgsr.files import make_folder, write_bytes
from pgsr.machine import usable_cores
from pgsr.runtime import Synthesizer
from pgsr.runtime.backends import Settings as RunnerSettings
from pgsr.runtime.backends import open_runner
from pgsr.runtime.backends.choice import candidates
from pgsr.runtime.generate.job import Job, generate
from pgsr.runtime.output.encoders import ENCODERS, installed, open_encoder
from pgsr.runtime.output.writers import FORMATS, Encoding
from pgsr.tensorrt.engines import LIBRARIES, Profile
from pgsr.trainer.start import chosen_device

from ..gpu.peaks import device_name, gpu_bandwidth_gbs, gpu_peak_gflops
from ..harness.arithmetic import traffic
from ..harness.machine import FAST, Machine, describe, low_peak_gflops
from ..harness.timing import Contender, Timing, measure
from ..references import inference as plain
from .systems import CONVOLUTIONS, System, Widths, inputs, new_system, predicted

Report = Callable[[str], None]  # is told what is going on

GENERATOR, UPSCALER, NETWORK, END_TO_END = "generator", "upscaler", "network", "end to end"
ENCODE, WRITE = "encode", "write"
OUTPUTS = {  # what end to end could end in instead of a folder of PNG files: the ending of --out, --format
    "PNG in a tar": ("/faces.tar", "png"),
    "JPEG files": ("", "jpeg"),
    "JPEG in a tar": ("/faces.tar", "jpeg"),
    "JPEG XL files": ("", "jxl"),
    "raw pixels": ("-", "png"),
}
GRAPHS = {GENERATOR: "generator", UPSCALER: "upscaler", NETWORK: "chain", END_TO_END: "chain"}

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
NAIVE, EAGER = "naive", "eager"  # ways; the others are a backend and a precision

# Largest differences allowed between a float32 graph and its network, which must do the same work.
RELATIVE_LIMIT = 1e-3  # of images, against their largest value
STEPS_LIMIT = 1  # of pixels

GPU_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_BATCH = 64  # that engines are built for

ENCODED = 16  # pictures of an encoding or writing call

NOTES = (
    "Weights of vanilla and separable are random: the networks' speed does not depend on them. PNG files of "
    "what they draw take another time to encode than faces do.",
    "Naive is benchmarks/references/inference.py, a pipeline as one would first write it: eager PyTorch in "
    "float32, NCHW, one step after the other, Pillow's default PNG. Eager separable is the training network "
    "in its place.",
    "Network is latents to pixels in memory; end to end is latents to PNG files in a folder, pgsr-generate's "
    "own path. Both are timed in the same rounds, on the same images; their ratio is the last column. "
    "Other outputs are of the fastest way.",
    "Ratios are medians of the rounds' ratios, not ratios of medians.",
    "Multiply-adds are those of the network as written; GFLOP/s and shares of the peak count what is really "
    "computed, after the rewrites, two operations a multiply-add. The peak is a "
    "matrix product of 2048 x 2048 on as many threads: numpy's in float32, PyTorch's in bfloat16 and int8.",
    f"Encode and write are of {ENCODED} pictures on one thread.",
)


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    widths: Widths = field(default_factory=Widths)
    batch: int = 8  # images a call of the generator
    large_batch: int = 4  # of the upscaler and of the chain
    images: int = 8  # of an end-to-end call
    shipped_images: int = 1000  # of the model that ships
    rounds: int = 5
    model: Path | None = None  # a bundle to measure as well; None: the shipped one
    threads: int = 0  # of arithmetic; 0: one a usable core
    device: str = "cpu"  # or cuda, cuda:N
    precisions: tuple[str, ...] = ()  # none: fp32, and what the processor has instructions for; fp16 on a GPU
    backends: tuple[str, ...] = ()  # none: every one that is installed

    def __post_init__(self) -> None:
        for name in ("batch", "large_batch"):  # the runtime fills smaller batches up
            if getattr(self, name) < 2:
                option = name.replace("_", "-")
                raise PgsrError(f"--{option} is {getattr(self, name)}, but must be at least 2")
        for name in ("images", "shipped_images", "rounds"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise PgsrError(f"--{option} is {getattr(self, name)}, but must be at least 1")
        for precision in self.precisions:
            check_choice("--precision", precision, PRECISIONS)
        if self.threads < 0:
            raise PgsrError(f"--threads is {self.threads}, but must be at least 0")
        if self.device == "auto":
            raise PgsrError("--device auto: name cpu or cuda, so that the report says what was measured")
        chosen_device(self.device)
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        widths = values.pop("widths")
        return {**widths, **values, "model": None if self.model is None else self.model.name}


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data.

    Raises PgsrError if a graph does not compute what its network does, or the model cannot be opened.
    """
    report("timing the peak")
    machine = describe(settings.threads)
    with tempfile.TemporaryDirectory(prefix="pgsr-bench-") as name, torch_threads(settings.threads):
        bench = Bench(settings, machine, Path(name), report)
        systems = [bench.system(convolution) for convolution in CONVOLUTIONS]
        rows = [row for stage in (GENERATOR, UPSCALER) for row in bench.stage(systems, stage)]
        rows += bench.chains(systems)
        rows += bench.shipped_stages()
        rows += bench.shipped_outputs(rows)
        rows += bench.files()
    return {
        "benchmark": "throughput",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**machine.as_dict(), "device": device_name(settings.device)},
        "peaks": bench.peaks,
        "bandwidth_gbs": bench.bandwidth,
        "settings": settings.as_dict(),
        "rows": rows,
        "equation_3": _equation_3(settings.widths, systems),
        "notes": [*NOTES, *bench.notes],
    }


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Execution:
    """How an exported graph is run."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class Entry:
    """A contender and what its row says."""

    system: str  # vanilla, separable or the model's name
    way: str
    stage: str
    images: int  # a call
    call: Callable[[], object]
    multiply_adds: int = 0  # of an image, by the network as written
    graph_adds: int = 0  # after the rewrites, where that is what runs
    traffic: float = 0.0  # bytes an image that its layers read and write, where that was counted

    @property
    def key(self) -> str:
        return f"{self.system}, {self.way}, {self.stage}"


class Bench:
    """A measurement under way."""

    def __init__(self, settings: Settings, machine: Machine, scratch: Path, report: Report) -> None:
        self.settings, self.machine, self.scratch, self.report = settings, machine, scratch, report
        self.notes: list[str] = []
        self.device = settings.device
        self.bandwidth: float | None = None  # GB/s, of a GPU
        if self.device == "cpu":
            fast = tuple(precision for precision in FAST if machine.is_fast_in(precision))
            self.precisions = settings.precisions or ("fp32", *fast)
            self.peaks = {"fp32": machine.peak_gflops}
            for precision in FAST:
                if precision in self.precisions:
                    self.peaks[precision] = low_peak_gflops(precision, settings.threads)
        else:
            self.precisions = settings.precisions or ("fp32", "fp16")
            self.peaks = {p: gpu_peak_gflops(self.device, GPU_TYPES[p]) for p in GPU_TYPES}
            self.bandwidth = gpu_bandwidth_gbs(self.device)
        names = settings.backends or candidates(RunnerSettings(self.device))
        self.ways = [Execution(backend, precision) for backend in names for precision in self.precisions]
        self._folders = 0

    def system(self, convolution: str) -> System:
        self.report(f"exporting the {convolution} networks")
        folder = self.scratch / convolution
        result = new_system(self.settings.widths, convolution, folder, self.precisions, self.device)
        self._add_engines(result.bundle)
        return result

    def _add_engines(self, model: Bundle) -> None:
        """Builds engines for each TensorRT that can run here."""
        for library in LIBRARIES:
            if any(way.backend == library for way in self.ways):
                usual = self.settings.large_batch
                add_engines(model, library, Profile(1, usual, max(usual, LARGEST_BATCH)), (), self.report)

    # ------------------------------------------------------------------------
    # Generator and upscaler: the same inputs through both systems' networks, eager and on every backend.

    def stage(self, systems: Sequence[System], stage: str) -> list[dict[str, Any]]:
        batch = self.settings.batch if stage == GENERATOR else self.settings.large_batch
        x = inputs(self.settings.widths, GRAPHS[stage], batch)
        entries: list[Entry] = []
        with contextlib.ExitStack() as stack:
            for system in systems:
                adds = system.multiply_adds[stage]
                eager = _bound(system.eager, stage, x)
                entries.append(Entry(system.convolution, _eager_way(system), stage, batch, eager, adds))
                expected = eager()
                for way in self.ways:
                    call = self._runner_call(stack, system.bundle, way, stage, batch, x.numpy())
                    if call is None:
                        continue
                    self._check(stage, system, way, expected, call())
                    graph = system.bundle.graph(GRAPHS[stage], way.precision)
                    done, traffic = graph.multiply_adds, self._traffic(system.bundle, graph, batch)
                    entries.append(
                        Entry(system.convolution, way.name, stage, batch, call, adds, done, traffic)
                    )
            return self._measured(entries, stage)

    def _traffic(self, model: Bundle, graph: Graph, batch: int) -> float:
        """Bytes an image; on a CPU caches hold too much of it for the number to say anything."""
        return traffic(model.path(graph).read_bytes(), batch) if self.bandwidth else 0.0

    def _runner_call(
        self,
        stack: contextlib.ExitStack,
        model: Bundle,
        way: Execution,
        stage: str,
        batch: int,
        values: NDArray[np.float32],
    ) -> Callable[[], Any] | None:
        """A call of the graph, or None, noted, where the backend cannot run it."""
        try:
            runner = stack.enter_context(
                open_runner(
                    model,
                    self.device,
                    way.precision,
                    way.backend,
                    GRAPHS[stage],
                    self.settings.threads,
                    batch,
                )
            )
            runner.run(values)
        except PgsrError as error:
            self._note(way, error)
            return None
        return _bound(runner.run, values)

    def _check(
        self, stage: str, system: System, way: Execution, eager: NDArray[Any], graph: NDArray[Any]
    ) -> None:
        """Raises PgsrError if a graph does other work than its network."""
        if way.precision == "fp32":
            checked_difference(stage, system, eager, graph)
            return
        parity = compare(pictures(eager), pictures(graph))
        require(parity, way.precision, f"{system.convolution} {stage}")
        self.notes.append(f"{way.name}, {system.convolution} {stage}: {parity.psnr_db:.1f} dB of eager's.")

    def _note(self, way: Execution, error: PgsrError) -> None:
        note = f"{way.name} is not measured: {error}"
        if note not in self.notes:
            self.notes.append(note)
            self.report(note)

    # ------------------------------------------------------------------------
    # Latents to pixels, and latents to files.

    def chains(self, systems: Sequence[System]) -> list[dict[str, Any]]:
        """Times the chains of both systems, naive or eager and on every backend, and the model that ships."""
        with contextlib.ExitStack() as stack:
            entries = [entry for system in systems for entry in self._chain(stack, system)]
            entries += self._shipped_chain(stack)
            return self._measured(entries, END_TO_END)

    def _chain(self, stack: contextlib.ExitStack, system: System) -> list[Entry]:
        images, batch = self.settings.images, self.settings.large_batch
        latents = inputs(self.settings.widths, "chain", images)
        adds, name, eager = system.multiply_adds["chain"], system.convolution, _eager_way(system)
        part = latents[:batch]  # eager is slow, and does one batch after the other anyway
        entries = [
            Entry(name, eager, NETWORK, len(part), _bound(system.eager, "chain", part), adds),
            Entry(name, eager, END_TO_END, len(part), self._plain_files(system, part), adds),
        ]
        expected = system.eager("chain", part)
        for way in self.ways:
            synthesizer = self._open_synthesizer(stack, system.bundle, way, batch)
            if synthesizer is not None:
                self._check("chain", system, way, expected, synthesizer.render(part.numpy()))
                entries += self._both(synthesizer, name, way, images, adds)
        return entries

    @cached_property
    def model(self) -> Bundle | None:
        """The one named, or that which comes with the package, if any does; copied, to have engines beside
        it."""
        folder = self.settings.model or bundle.shipped()
        if self.settings.model is None and not (folder / bundle.MANIFEST).is_file():
            return None
        bundle.read(folder)
        copied = bundle.read(Path(shutil.copytree(folder, self.scratch / "model")))
        self._add_engines(copied)
        return copied

    def _shipped_chain(self, stack: contextlib.ExitStack) -> list[Entry]:
        if self.model is None:
            self.notes.append(
                "No model comes with this copy of the package, so none was measured: name one with --model."
            )
            return []
        entries: list[Entry] = []
        for way in self.ways:
            synthesizer = self._open_synthesizer(stack, self.model, way, 0)
            if synthesizer is not None:
                adds, count = synthesizer.graph.multiply_adds, self.settings.shipped_images
                entries += self._both(synthesizer, self.model.name, way, count, adds)
        return entries

    def shipped_stages(self) -> list[dict[str, Any]]:
        """The generator and the upscaler of the model that ships, on every backend."""
        model = self.model
        multiply_adds = {(g.name, g.precision): g.multiply_adds for g in model.graphs} if model else {}
        entries, batch = [], self.settings.batch
        with contextlib.ExitStack() as stack:
            for stage in (GENERATOR, UPSCALER):
                for way in self.ways:
                    if model is None or (stage, way.precision) not in multiply_adds:
                        continue
                    call = self._runner_call(stack, model, way, stage, batch, _example(model, stage, batch))
                    if call is not None:
                        adds = multiply_adds[stage, way.precision]
                        entries.append(Entry(model.name, way.name, stage, batch, call, adds))
            return self._measured(entries, "the model's stages") if entries else []

    def shipped_outputs(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The model that ships into everything that pgsr-generate writes, the fastest way of these rows."""
        model = self.model
        rows_of_network = [
            row for row in rows if model and (row["system"], row["stage"]) == (model.name, NETWORK)
        ]
        if model is None or not rows_of_network:  # no backend could run it, which is noted
            return []
        name = max(rows_of_network, key=lambda row: float(row["images_per_second"]))["way"]
        way = next(way for way in self.ways if way.name == name)
        images = self.settings.shipped_images
        with contextlib.ExitStack() as stack:
            synthesizer = self._open_synthesizer(stack, model, way, 0)
            if synthesizer is None:
                return []
            entries = [Entry(model.name, way.name, NETWORK, images, _pixels(synthesizer, images))]
            for stage, (ending, format) in OUTPUTS.items():
                if installed(format):
                    call = self._files(synthesizer, images, ending, format)
                    entries.append(Entry(model.name, way.name, stage, images, call))
            return self._measured(entries, "outputs")[1:]

    def _open_synthesizer(
        self, stack: contextlib.ExitStack, model: Bundle, way: Execution, batch: int
    ) -> Synthesizer | None:
        """Opens the chain; None, with a note, where the backend cannot run it. A batch of 0 is found by
        measuring."""
        try:
            synthesizer = Synthesizer(
                model.folder, self.device, way.precision, way.backend, batch, self.settings.threads
            )
            synthesizer.tune()
        except PgsrError as error:
            self._note(way, error)
            return None
        return stack.enter_context(synthesizer)

    def _both(
        self, synthesizer: Synthesizer, system: str, way: Execution, images: int, adds: int
    ) -> list[Entry]:
        done = synthesizer.graph.multiply_adds
        return [
            Entry(system, way.name, NETWORK, images, _pixels(synthesizer, images), adds, done),
            Entry(system, way.name, END_TO_END, images, self._files(synthesizer, images), adds, done),
        ]

    def _plain_files(self, system: System, latents: Tensor) -> Callable[[], int]:
        batch = self.settings.large_batch
        return lambda: plain.write_images(system.generator, system.upscaler, latents, batch, self._folder())

    def _files(
        self, synthesizer: Synthesizer, images: int, ending: str = "", format: str = "png"
    ) -> Callable[[], int]:
        """pgsr-generate to a folder, an archive in one or, where the ending is -, to nowhere."""

        def call() -> int:
            out = Path("-") if ending == "-" else Path(f"{self._folder()}{ending}")
            job = Job(out, images, encoding=Encoding(format), threads=self.settings.threads)
            with open(os.devnull, "wb") as nowhere:
                return generate(synthesizer, job, stream=nowhere).made

        return call

    def _folder(self) -> Path:
        """A new one for every call, so that nothing in it is there already."""
        self._folders += 1
        return make_folder(self.scratch / "files" / str(self._folders))

    # ------------------------------------------------------------------------
    # Encoders and files.

    def files(self) -> list[dict[str, Any]]:
        """Pictures to bytes by every encoder that is installed, and bytes to files."""
        pictures = self._pictures()
        entries = [Entry("Pillow's defaults", "png", ENCODE, len(pictures), _encoded(pictures, _naive_png))]
        for name in ENCODERS:
            for encoder in installed(name):
                quality = FORMATS[name].quality
                call = _encoded(pictures, _encoding(open_encoder(name, encoder).encode, quality))
                entries.append(Entry(encoder, name, ENCODE, len(pictures), call))
        data = open_encoder("png").encode(pictures[0], None, {})
        entries.append(
            Entry(f"{len(data) / 1e3:.0f} kB", "whole or not", WRITE, ENCODED, self._written(data))
        )
        return self._measured(entries, ENCODE)

    def _pictures(self) -> list[NDArray[np.uint8]]:
        """Faces of the model, or noise without one."""
        if self.model is None:
            return list(np.random.default_rng(0).integers(0, 256, (ENCODED, 256, 256, 3), dtype=np.uint8))
        way = self.ways[0]
        folder, threads = self.model.folder, self.settings.threads
        with Synthesizer(folder, self.device, "fp32", way.backend, 4, threads) as synthesizer:
            return list(synthesizer.images(count=ENCODED))

    def _written(self, data: bytes) -> Callable[[], None]:
        def call() -> None:
            folder = self._folder()
            for i in range(ENCODED):
                write_bytes(folder / f"{i}.png", data, durable=False)

        return call

    # ------------------------------------------------------------------------
    # Timings -> rows.

    def _measured(self, entries: Sequence[Entry], what: str) -> list[dict[str, Any]]:
        rounds = self.settings.rounds
        contenders = [Contender(entry.key, entry.images, entry.call) for entry in entries]
        timings = measure(
            contenders,
            rounds,
            report=lambda round_number: self.report(f"{what}: round {round_number} of {rounds}"),
        )
        return [self._row(entry, entries, timings) for entry in entries]

    def _row(self, entry: Entry, entries: Sequence[Entry], timings: Mapping[str, Timing]) -> dict[str, Any]:
        timing = timings[entry.key]

        def ratio(other: Entry | None) -> float | None:
            return None if other is None else timing.ratio_to(timings[other.key])

        naive = _find(entries, way=NAIVE, stage=entry.stage)
        network = _find(entries, system=entry.system, way=entry.way, stage=NETWORK)
        return {
            "stage": entry.stage,
            "system": entry.system,
            "way": entry.way,
            "multiply_adds": entry.multiply_adds,
            "graph_multiply_adds": entry.graph_adds or entry.multiply_adds,
            **self._speed(timing, entry),
            "ratio_to_naive": ratio(naive),
            "share_of_network": ratio(network) if entry.stage in (END_TO_END, *OUTPUTS) else None,
        }

    def _speed(self, timing: Timing, entry: Entry) -> dict[str, Any]:
        """A timing with the arithmetic it stands for."""
        gflops = 2e-9 * (entry.graph_adds or entry.multiply_adds) * timing.images_per_second
        peak = self.peaks.get(entry.way.rpartition(" ")[2], self.peaks["fp32"])
        share = gflops / peak if entry.multiply_adds else None
        gigabytes_per_second = entry.traffic * timing.images_per_second / 1e9
        of_bandwidth = gigabytes_per_second / self.bandwidth if self.bandwidth and entry.traffic else None
        return {
            **timing.as_dict(),
            "gflops": gflops,
            "share_of_peak": share,
            "share_of_bandwidth": of_bandwidth,
        }


def _find(entries: Sequence[Entry], **criteria: str) -> Entry | None:
    """The first entry with these values."""
    matches = (e for e in entries if all(getattr(e, name) == value for name, value in criteria.items()))
    return next(matches, None)


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call with its arguments, which a lambda in a loop would look up too late."""
    return lambda: function(*arguments)


def _eager_way(system: System) -> str:
    return NAIVE if system.convolution == "vanilla" else EAGER


def _pixels(synthesizer: Synthesizer, images: int) -> Callable[[], None]:
    def call() -> None:
        for _ in synthesizer.batches(0, range(images)):
            pass

    return call


def _example(model: Bundle, stage: str, batch: int) -> NDArray[np.float32]:
    """Latents [N, L], or images [N, 3, R, R] for the upscaler."""
    if stage == GENERATOR:
        return draws.latents(0, range(batch), model.latent_size)
    side = model.resolution
    return np.clip(draws.latents(0, range(batch), 3 * side**2), -1, 1).reshape(batch, 3, side, side)


def _encoded(
    pictures: list[NDArray[np.uint8]], encode: Callable[[NDArray[np.uint8]], bytes]
) -> Callable[[], None]:
    def call() -> None:
        for picture in pictures:
            encode(picture)

    return call


def _encoding(encode: Callable[..., bytes], quality: int | None) -> Callable[[NDArray[np.uint8]], bytes]:
    return lambda picture: encode(picture, quality, {"seed": 0, "index": 0})


def _naive_png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def checked_difference(stage: str, system: System, eager: NDArray[Any], graph: NDArray[Any]) -> float:
    """The largest difference between network and graph. Raises PgsrError if they do not compute the same."""
    a, b = eager.astype(np.float64), graph.astype(np.float64)
    difference = float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
    limit = STEPS_LIMIT if eager.dtype == np.uint8 else RELATIVE_LIMIT * max(1.0, float(np.abs(a).max()))
    if not difference <= limit:
        raise PgsrError(
            f"the {system.convolution} {stage} graph is {difference:.2g} away from its network, more than "
            f"{limit:.2g}: nothing was measured"
        )
    return difference


def _equation_3(widths: Widths, systems: list[System]) -> dict[str, dict[str, float]]:
    """Separable multiply-adds over vanilla ones: counted, and by paper 1's equation 3."""
    vanilla, separable = systems
    return {
        stage: {
            "counted": separable.multiply_adds[stage] / vanilla.multiply_adds[stage],
            "predicted": saving.ratio,
        }
        for stage, saving in predicted(widths, vanilla).items()
    }
