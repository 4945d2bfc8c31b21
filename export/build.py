"""Sources -> a bundle folder (contract 2), written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pgsr import __version__, bundle, draws
from pgsr.bundle import Bundle, Graph, Port
from pgsr.errors import PgsrError
from pgsr.files import make_folder, write_bytes
from pgsr.images import to_uint8

from .graphs import Chain
from .parity import (
    Array,
    Parity,
    compare,
    half_function,
    in_parts,
    require,
    session_of,
    torch_function,
    worse,
)
from .rewrites import Grown, rewritten
from .source import Source
from .to_onnx import OPSET, to_onnx

PARITY_SEED = 2**32 + 1  # far from the seeds people use, so that parity is on latents nobody looked at
HALF_SAMPLES = 16


@dataclass(frozen=True)
class Plan:
    """One graph to be: which networks it chains and what goes in and out."""

    name: str  # "generator", "upscaler", "chain"
    networks: tuple[nn.Module, ...]  # as trained
    pixels: bool  # uint8 out
    input: Port
    output: Port
    dynamic: dict[int, str]


def export_bundle(
    sources: Sequence[Source],
    out: Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    name: str,
    licence: str,
    samples: int = 64,
) -> Bundle:
    """Writes the bundle of one generator, one upscaler or both.

    Raises PgsrError if the sources do not make a chain, a graph fails parity, or `out` is something else;
    then nothing is left behind and a bundle that stood there is untouched.
    """
    by_kind = {source.kind: source for source in sources}
    if len(by_kind) != len(sources):
        raise PgsrError("name at most one generator and one upscaler to export")
    if out.exists() and not (out / bundle.MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise PgsrError(f"{out} exists and is not a bundle: name another folder")
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = make_folder(Path(scratch) / "bundle")
        inputs = _Inputs(by_kind, samples)
        trials = [_trial(plan, inputs) for plan in plans(by_kind)]
        graphs = [_write_graph(trial, precision, folder) for precision in precisions for trial in trials]
        generator, upscaler = by_kind.get("generator"), by_kind.get("upscaler")
        result = Bundle(
            folder=folder,
            name=name,
            version=__version__,
            latent_size=generator.latent_size if generator else 0,
            resolution=generator.resolution if generator else 0,
            scale=upscaler.scale if upscaler else 1,
            graphs=tuple(graphs),
            licence=licence,
            provenance={kind: source.provenance for kind, source in sorted(by_kind.items())},
        )
        bundle.write(result)
        _replace_folder(folder, out)
    return bundle.read(out)


def plans(by_kind: dict[str, Source]) -> list[Plan]:
    """The graphs that a bundle of these sources holds."""
    generator, upscaler = by_kind.get("generator"), by_kind.get("upscaler")
    found: list[Plan] = []
    scale = upscaler.scale if upscaler else 1
    images = Port("images", ("n", 3, "height", "width"), "float32", "[-1, 1]")
    if upscaler and upscaler.input_size:
        found.append(_fixed_upscaler(upscaler, generator))
    elif upscaler:
        larger = Port("upscaled", ("n", 3, f"{scale}*height", f"{scale}*width"), "float32", "[-1, 1]")
        sides = {0: "n", 2: "height", 3: "width"}
        found.append(Plan("upscaler", (upscaler.network,), False, images, larger, sides))
    if generator:
        side = generator.resolution
        grown = Grown(generator.network, side)
        latents = Port("latents", ("n", generator.latent_size), "float32", "standard normal")
        made = Port("images", ("n", 3, side, side), "float32", "[-1, 1]")
        found.insert(0, Plan("generator", (grown,), False, latents, made, {0: "n"}))
        pixels = Port("pixels", ("n", side * scale, side * scale, 3), "uint8", "[0, 255]")
        networks = (grown, upscaler.network) if upscaler else (grown,)
        found.append(Plan("chain", networks, True, latents, pixels, {0: "n"}))
    return found


def _fixed_upscaler(upscaler: Source, generator: Source | None) -> Plan:
    """The graph of an upscaler that takes images of one size."""
    side = upscaler.input_size
    if generator and generator.resolution != side:
        raise PgsrError(f"the upscaler takes {side}x{side}, but the generator makes {generator.resolution}")
    large = side * upscaler.scale
    images = Port("images", ("n", 3, side, side), "float32", "[-1, 1]")
    larger = Port("upscaled", ("n", 3, large, large), "float32", "[-1, 1]")
    return Plan("upscaler", (upscaler.network,), False, images, larger, {0: "n"})


class _Inputs:
    """What parity is measured on: latents, and for the upscaler the generator's own images."""

    def __init__(self, by_kind: dict[str, Source], samples: int) -> None:
        self.samples = samples
        self.generator = by_kind.get("generator")
        self.side = by_kind["upscaler"].input_size if "upscaler" in by_kind else 0

    def latents(self) -> Array:
        assert self.generator is not None
        return draws.latents(PARITY_SEED, range(self.samples), self.generator.latent_size)

    def images(self) -> Array:
        if self.generator is None:  # smooth noise, since there is nothing to draw faces with
            rows = draws.latents(PARITY_SEED, range(self.samples), 3 * 6 * 6).reshape(-1, 3, 6, 6)
            coarse = torch.from_numpy(rows).clamp(-2, 2) / 2
            smooth = nn.functional.interpolate(coarse, size=self.side or 24, mode="bicubic")
            return np.asarray(smooth.clamp(-1, 1).numpy())
        made = torch_function(Grown(self.generator.network, self.generator.resolution))
        return np.clip(in_parts(made, self.latents()), -1, 1)

    def of(self, plan: Plan) -> Array:
        return self.latents() if plan.input.name == "latents" else self.images()


@dataclass(frozen=True)
class Trial:
    """A graph to be, and what every precision of it is measured on."""

    plan: Plan
    inputs: Array
    reference: Array  # uint8 pictures of the trained networks in float32


def _trial(plan: Plan, inputs: _Inputs) -> Trial:
    x = inputs.of(plan)
    trained = torch_function(Chain(list(plan.networks), "fp32", plan.pixels))
    return Trial(plan, x, _pictures(in_parts(trained, x)))


def _write_graph(trial: Trial, precision: str, folder: Path) -> Graph:
    converted = convert(trial.plan, precision, torch.from_numpy(trial.inputs[:2]))
    parity = _measure(trial, converted, precision)
    require(parity, precision, trial.plan.name)
    write_bytes(folder / converted.graph.file, converted.model)
    return dataclasses.replace(converted.graph, parity=parity.as_dict())


@dataclass(frozen=True)
class Converted:
    """A plan made into ONNX, not yet measured."""

    module: Chain  # after the rewrites, in the graph's precision
    model: bytes
    graph: Graph  # without parity


def convert(plan: Plan, precision: str, example: Tensor) -> Converted:
    """Rewrites and exports a plan; `example` is an input of two images."""
    networks, applied = _rewritten_networks(plan.networks)
    module = Chain(networks, precision, plan.pixels)
    model = to_onnx(module, example, plan.input.name, plan.output.name, plan.dynamic)
    graph = Graph(
        name=plan.name,
        precision=precision,
        file=f"{plan.name}.onnx" if precision == "fp32" else f"{plan.name}.{precision}.onnx",
        sha256=hashlib.sha256(model).hexdigest(),
        opset=OPSET,
        inputs=(plan.input,),
        outputs=(plan.output,),
        rewrites=applied,
        multiply_adds=multiply_adds(Chain(networks, "fp32", False), example[:1]),
        parity={},
    )
    return Converted(module, model, graph)


def _rewritten_networks(networks: Sequence[nn.Module]) -> tuple[list[nn.Module], tuple[str, ...]]:
    results = [rewritten(network) for network in networks]
    names = dict.fromkeys(name for _, applied in results for name in applied)
    if any(isinstance(network, Grown) and network.leaves_out for network in networks):
        names["remove alpha and the layers of other resolutions"] = None
    return [network for network, _ in results], tuple(names)


def _measure(trial: Trial, converted: Converted, precision: str) -> Parity:
    x, reference = trial.inputs, trial.reference
    parity = compare(reference, _pictures(in_parts(session_of(converted.model), x)))
    if precision == "fp16":
        few = x[:HALF_SAMPLES]
        stored_in_half = _pictures(in_parts(half_function(converted.module), few))
        parity = worse(parity, compare(reference[: len(few)], stored_in_half))
    return parity


def _pictures(result: Array) -> Array:
    return result if result.dtype == np.uint8 else to_uint8(result)


def multiply_adds(module: nn.Module, example: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for this input."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return int(counter.get_total_flops()) // 2


def _replace_folder(new: Path, out: Path) -> None:
    """Puts `new` where `out` is; an older bundle there goes only when the new one stands."""
    old = new.with_name("old")
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def summary(result: Bundle) -> dict[str, Any]:
    """What the command reports."""
    return {
        "bundle": str(result.folder),
        "graphs": [
            {"name": g.name, "precision": g.precision, "multiply_adds": g.multiply_adds, "parity": g.parity}
            for g in result.graphs
        ],
    }
