"""A bundle -> a model repository of Triton: a folder a model, with config.pbtxt and a version 1.

write_repository(bundle.read(folder), out, ["fp32", "fp16"], "onnxruntime", Serving())

generator, upscaler, chain        the graphs, by Triton's ONNX Runtime backend or by Python and pgsr.runtime
chain_fp16                        in other precisions than fp32
chain_plan                        TensorRT's engines, where they lie beside the graph
latents                           (seed, index) -> latents, in Python with numpy alone
faces, faces_fp16, faces_plan     (seed, index) -> pixels: latents and one of the chains
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pgsr import draws, sphere
from pgsr.bundle import GRAPHS, MANIFEST, PRECISIONS, UPSCALERS, Bundle, Graph
from pgsr.errors import PgsrError, check_choice
from pgsr.files import (
    cannot_write,
    ending_cleanly,
    make_folder,
    remove_leftovers,
    temporary_beside,
    write_text,
)
from pgsr.tensorrt.engines import Engine
from pgsr.tensorrt.sidecars import read_sidecar, why_stale

from .config import Message, Serving, faces_model, graph_model, latents_model, text

BACKENDS = ("onnxruntime", "python")
LATENTS, FACES = "latents", "faces"
USUAL_SIDE = 64  # pixels of a picture, to warm up an upscaler that has no generator

MODEL_OF_THE_RUNTIME = '''"""pgsr's runtime in Triton's Python backend. Its Python needs pgsr[cpu]."""

from pgsr.runtime.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

Put = Callable[[Path], object]  # writes a model's files into the folder of its version


@dataclass(frozen=True)
class Model:
    """A model of the repository."""

    config: Message
    put: Put

    @property
    def name(self) -> str:
        """Its folder's name."""
        return str(self.config["name"])

    def summary(self) -> dict[str, Any]:
        """The model as JSON data, for --json."""
        sides = {side: {t["name"]: [t["data_type"], t["dims"]] for t in self.config[side]} for side in SIDES}
        kind = self.config.get("platform") or self.config["backend"]
        return {"name": self.name, "kind": kind, "max_batch_size": self.config["max_batch_size"], **sides}

    def line(self) -> str:
        """The model in one line, for a person to read."""
        told = self.summary()
        source, result = (
            ", ".join(f"{name} {kind[5:]} {dims}" for name, (kind, dims) in told[side].items())
            for side in SIDES
        )
        return f"{self.name:<16} {told['kind']:<17} {source} -> {result}, batch {told['max_batch_size']}"


SIDES = ("input", "output")


def write_repository(
    bundle: Bundle,
    out: Path,
    precisions: Sequence[str],  # of pgsr.bundle.PRECISIONS
    backend: str,  # one of BACKENDS
    serving: Serving,
    report: Callable[[str], None] = lambda line: None,  # called with what was left out
) -> list[Model]:
    """Writes the whole repository or nothing, and returns its models.

    Raises PgsrError if the bundle lacks a precision, a file of it is damaged, or something stands at `out`.
    """
    check_choice("--backend", backend, BACKENDS)
    out = Path(os.path.realpath(out))
    _check_empty(out)
    models = list(_models(bundle, precisions, backend, serving, report))
    with _becoming(out) as new:
        for model in models:
            version = make_folder(new / model.name / "1")
            model.put(version)
            write_text(version.parent / "config.pbtxt", text(model.config))
    return models


def chosen_precisions(words: str) -> list[str]:
    """fp32,fp16 -> each once, in the order of PRECISIONS. Raises PgsrError."""
    names = [word.strip() for word in words.split(",")]
    for name in names:
        check_choice("--precision", name, PRECISIONS)
    return [name for name in PRECISIONS if name in names]


# ----------------------------------------------------------------------------
# Which models there are.


def _models(
    bundle: Bundle,
    precisions: Sequence[str],
    backend: str,
    serving: Serving,
    report: Callable[[str], None],
) -> Iterator[Model]:
    chains: list[Message] = []
    for graph in _graphs(bundle, precisions):
        for model in _of_graph(bundle, graph, backend, serving, report):
            yield model
            if graph.name == "chain":
                chains.append(model.config)
    if chains:
        yield Model(latents_model(LATENTS, chains[0]), partial(_put_latents, bundle))
    for chain in chains:
        yield Model(faces_model(FACES + chain["name"].removeprefix("chain"), LATENTS, chain), _put_ensemble)


def _graphs(bundle: Bundle, precisions: Sequence[str]) -> list[Graph]:
    names = {graph.name for graph in bundle.graphs}
    return [bundle.graph(name, precision) for precision in precisions for name in GRAPHS if name in names]


def _of_graph(
    bundle: Bundle, graph: Graph, backend: str, serving: Serving, report: Callable[[str], None]
) -> Iterator[Model]:
    name = graph.name if graph.precision == "fp32" else f"{graph.name}_{graph.precision}"
    side = _side(bundle, graph)
    if backend == "python":
        told = {"graph": graph.name, "precision": graph.precision, "backend": "onnxruntime"}
        parameters = [{"key": key, "value": {"string_value": value}} for key, value in told.items()]
        kind: Message = {"backend": "python", "parameters": parameters}
        yield Model(graph_model(name, graph, kind, serving, side), partial(_put_bundle, bundle, graph))
        return
    kind = {"platform": "onnxruntime_onnx"}
    yield Model(graph_model(name, graph, kind, serving, side), partial(_put_graph, bundle, graph))
    engines = _engines(bundle, graph, report)
    if engines:
        yield _plan(f"{name}_plan", graph, engines, serving, side)


def _side(bundle: Bundle, graph: Graph) -> int:
    """Pixels along each side of what an upscaler is warmed up with: what comes to it in the chain, if any."""
    place = UPSCALERS.index(graph.name) if graph.name in UPSCALERS else 0
    return bundle.side_before(place) or USUAL_SIDE


# ----------------------------------------------------------------------------
# Engines.


def _engines(bundle: Bundle, graph: Graph, report: Callable[[str], None]) -> list[Engine]:
    """Returns TensorRT's engines of a graph, one for each compute capability; tells of those left out."""
    found: dict[str, Engine] = {}
    for path in sorted(bundle.folder.glob(f"{glob.escape(Path(graph.file).stem)}.tensorrt*.engine.json")):
        engine = read_sidecar(path)
        reason = _why_unfit(engine, graph)
        if engine is None or reason:
            report(f"{path.name.removesuffix('.json')} is left out: {reason}")
            continue
        found |= dict.fromkeys(engine.key.compute_capabilities, engine)
    return list(found.values())


def _why_unfit(engine: Engine | None, graph: Graph) -> str | None:
    """Why an engine cannot serve in Triton; None if it can."""
    if engine is None:
        return "its sidecar is damaged: build the engine again"
    if engine.key.library != "tensorrt":
        return f"Triton has no backend for {engine.key.library}"
    if engine.key.profile.min > 1:
        return f"its profile {engine.key.profile} does not take a batch of 1"
    return why_stale(
        engine, dataclasses.replace(engine.key, onnx_sha256=graph.sha256, precision=graph.precision)
    )


def _plan(name: str, graph: Graph, engines: Sequence[Engine], serving: Serving, side: int) -> Model:
    batch = min(serving.batch, *(engine.key.profile.max for engine in engines))
    files = [
        {"key": capability, "value": engine.path.name}
        for engine in engines
        for capability in engine.key.compute_capabilities
    ]
    kind = {"platform": "tensorrt_plan", "cc_model_filenames": files}
    limits = dataclasses.replace(serving, batch=batch, device="cuda")
    return Model(graph_model(name, graph, kind, limits, side), partial(_put_engines, engines))


# ----------------------------------------------------------------------------
# Files.


def _put_graph(bundle: Bundle, graph: Graph, version: Path) -> None:
    shutil.copyfile(bundle.path(graph), version / "model.onnx")


def _put_bundle(bundle: Bundle, graph: Graph, version: Path) -> None:
    """The manifest and the one graph of it, and the model that runs that."""
    shutil.copyfile(bundle.path(graph), version / graph.file)
    shutil.copyfile(bundle.folder / MANIFEST, version / MANIFEST)
    (version / "model.py").write_text(MODEL_OF_THE_RUNTIME)


def _put_engines(engines: Sequence[Engine], version: Path) -> None:
    for engine in engines:
        (version / engine.path.name).write_bytes(engine.load())


def _put_latents(bundle: Bundle, version: Path) -> None:
    shutil.copyfile(Path(__file__).with_name("latents_model.py"), version / "model.py")
    for module in (draws, sphere):
        shutil.copy(str(module.__file__), version)
    if bundle.truncation < 1.0:
        told = {"truncation": bundle.truncation, "centre": bundle.centre}
        write_text(version / "truncation.json", json.dumps(told) + "\n")


def _put_ensemble(version: Path) -> None:
    """An ensemble's version may be an empty folder, but object stores have none."""
    (version / "README").write_text("config.pbtxt is all of this model.\n")


def _check_empty(out: Path) -> None:
    """Raises PgsrError if anything but an empty folder stands at `out`."""
    if out.is_dir() and not os.listdir(out):
        return
    if out.exists() or out.is_symlink():
        raise PgsrError(f"{out} exists and is not an empty folder: name another, or remove it")


@contextmanager
def _becoming(out: Path) -> Iterator[Path]:
    """Gives a folder that becomes `out` in one step; if the block fails, nothing is left of it.

    Raises PgsrError if it cannot be written.
    """
    new = temporary_beside(out)
    remove_leftovers(make_folder(out.parent), of=out)
    with ending_cleanly():
        try:
            yield make_folder(new)
            os.rename(new, out)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError):
                raise cannot_write(out, error) from error
            raise
