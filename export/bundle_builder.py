"""Sources -> a bundle folder (contract 2), written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from pgsr.files import write_bytes

from .bundle_folder import check_replaceable, replacing_bundle
from .graphs import Chain
from .int8 import BALANCE, quantized
from .lowering import Grown
from .onnx_file import ANY_SIDES, opset_of, to_onnx
from .parity import (
    STORED,
    Array,
    Parity,
    compare,
    finite,
    in_parts,
    pictures,
    require,
    require_finite,
    require_variety,
    session_of,
    stored_function,
    torch_function,
    widened,
    worse,
)
from .rewrites.table import choose_rewrites, rewritten
from .sides import Padded, Sides
from .source import Source

PARITY_SEED = 2**32 + 1  # far from the seeds people use, so that parity is on latents nobody looked at
CALIBRATION_SEED = 2**32 + 2  # of what int8's ranges are found on: not the latents it is judged on
CALIBRATION_SAMPLES = 32


TRACED = (23, 29)  # sides of the images that upscalers are traced with,
TRACED_MULTIPLES = (5, 7)  # or how many times what they have to be multiples of
OTHER_SIDES = ((1, 19, 37), (3, 46, 28))  # images, height and width that their graphs are tried with besides


@dataclass(frozen=True)
class Plan:
    """One graph to be: which networks it chains and what goes in and out."""

    name: str  # "generator", "upscaler", "chain"
    networks: tuple[nn.Module, ...]  # as trained
    pixels: bool  # uint8 out
    input: Port
    output: Port
    dynamic: dict[int, str]
    sides: Sides = ANY_SIDES  # of the images that an upscaler's network takes
    scale: int = 1

    def whole(self, module: nn.Module) -> nn.Module:
        """The module as its graph is: for images of any size."""
        return module if self.sides.free else Padded(module, self.sides, self.scale)

    def traced(self, example: Tensor) -> Tensor:
        """Returns what the graph is traced with: where sides are dynamic, such as no window and no stride
        divides by accident, other down than across."""
        if 2 not in self.dynamic:
            return example
        height, width = (self.sides.of(self.sides.multiple * count) for count in self._counts())
        return nn.functional.interpolate(example, size=(height, width))

    def _counts(self) -> tuple[int, int]:
        return TRACED if self.sides.multiple == 1 else TRACED_MULTIPLES


@dataclass(frozen=True)
class Choice:
    """Which rewrites are made: a target's, more, less."""

    target: str = "onnxruntime"
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises PgsrError for names that are not there."""
        self.names("fp32")

    def names(self, precision: str) -> tuple[str, ...]:
        return choose_rewrites(self.target, self.also, self.without, precision)


def export_bundle(
    sources: Sequence[Source],
    out: Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    name: str,
    licence: str,
    samples: int = 64,
    choice: Choice | None = None,
) -> Bundle:
    """Writes the bundle of one generator, one upscaler or both.

    An upscaler that cannot be traced for images of any size is exported for one size, in which a runtime
    takes pictures tile by tile.
    Raises PgsrError if the sources do not make a chain, a graph fails parity, or `out` is something else;
    then nothing is left behind and a bundle that stood there is untouched.
    """
    by_kind = {source.kind: source for source in sources}
    if len(by_kind) != len(sources):
        raise PgsrError("name at most one generator and one upscaler to export")
    wishes = (precisions, name, licence, samples, choice or Choice())
    try:
        return _exported(by_kind, out, *wishes)
    except SidesError:
        return _exported({kind: _of_one_size(s, by_kind) for kind, s in by_kind.items()}, out, *wishes)


class SidesError(PgsrError):
    """A graph that is not right for images of all sizes."""


FIXED_SIDE = 128  # of the images of an upscaler that takes one size, if no generator says which


def _of_one_size(source: Source, by_kind: dict[str, Source]) -> Source:
    """An upscaler for the generator's images alone, or for tiles; a generator stays itself."""
    if source.kind == "generator":
        return source
    sides = Sides(source.multiple, source.least)
    side = by_kind["generator"].resolution if "generator" in by_kind else sides.of(FIXED_SIDE)
    return dataclasses.replace(source, network=_fitted(source, side), input_size=side)


def _exported(
    by_kind: dict[str, Source],
    out: Path,
    precisions: Sequence[str],
    name: str,
    licence: str,
    samples: int,
    selection: Choice,
) -> Bundle:
    check_replaceable(out)
    with replacing_bundle(out) as folder:
        inputs = _Inputs(by_kind, samples)
        trials = [_trial(plan, inputs) for plan in plans(by_kind)]
        note = _note(name, licence, by_kind)
        floats: Floats = {}
        graphs = [
            _write_graph(trial, precision, selection, note, folder, floats)
            for precision in precisions
            for trial in trials
        ]
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
    return bundle.read(out)


def plans(by_kind: dict[str, Source]) -> list[Plan]:
    """The graphs that a bundle of these sources holds."""
    generator, upscaler = by_kind.get("generator"), by_kind.get("upscaler")
    result: list[Plan] = []
    scale = upscaler.scale if upscaler else 1
    images = Port("images", ("n", 3, "height", "width"), "float32", "[-1, 1]")
    if upscaler and upscaler.input_size:
        result.append(_fixed_upscaler(upscaler, generator))
    elif upscaler:
        larger = Port("upscaled", ("n", 3, f"{scale}*height", f"{scale}*width"), "float32", "[-1, 1]")
        dynamic = {0: "n", 2: "height", 3: "width"}
        sides = Sides(upscaler.multiple, upscaler.least)
        result.append(Plan("upscaler", (upscaler.network,), False, images, larger, dynamic, sides, scale))
    if generator:
        side = generator.resolution
        grown = Grown(generator.generator, side)
        latents = Port("latents", ("n", generator.latent_size), "float32", "standard normal")
        output = Port("images", ("n", 3, side, side), "float32", "[-1, 1]")
        result.insert(0, Plan("generator", (grown,), False, latents, output, {0: "n"}))
        pixels = Port("pixels", ("n", side * scale, side * scale, 3), "uint8", "[0, 255]")
        networks = (grown, _fitted(upscaler, side)) if upscaler else (grown,)
        result.append(Plan("chain", networks, True, latents, pixels, {0: "n"}))
    return result


def _fitted(upscaler: Source, side: int) -> nn.Module:
    """An upscaler's network for images of one side, padded to what it takes."""
    sides = Sides(upscaler.multiple, upscaler.least)
    return upscaler.network if sides.of(side) == side else Padded(upscaler.network, sides, upscaler.scale)


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

    def latents(self, seed: int = PARITY_SEED) -> Array:
        assert self.generator is not None
        return draws.latents(seed, range(self.samples), self.generator.latent_size)

    def images(self, seed: int = PARITY_SEED) -> Array:
        if self.generator is None:  # smooth noise, since there is nothing to draw faces with
            rows = draws.latents(seed, range(self.samples), 3 * 6 * 6).reshape(-1, 3, 6, 6)
            coarse = torch.from_numpy(rows).clamp(-2, 2) / 2
            smooth = nn.functional.interpolate(coarse, size=self.side or 24, mode="bicubic")
            return np.asarray(smooth.clamp(-1, 1).numpy())
        function = torch_function(Grown(self.generator.generator, self.generator.resolution))
        return np.clip(in_parts(function, self.latents(seed)), -1, 1)

    def of(self, plan: Plan, seed: int = PARITY_SEED) -> Array:
        return self.latents(seed) if plan.input.name == "latents" else self.images(seed)


@dataclass(frozen=True)
class Trial:
    """A graph to be, and what every precision of it is measured on."""

    plan: Plan
    inputs: Array
    reference: Array  # uint8 pictures of the trained networks in float32
    calibration: Array  # other inputs


def _trial(plan: Plan, inputs: _Inputs) -> Trial:
    x = inputs.of(plan)
    calibration = inputs.of(plan, CALIBRATION_SEED)[:CALIBRATION_SAMPLES]
    reference = pictures(in_parts(_trained(plan), x))
    require_variety(reference, plan.name)
    return Trial(plan, x, reference, calibration)


def _trained(plan: Plan) -> Callable[[Array], Array]:
    """The networks of a plan as they were trained, which refuse to give numbers that are not finite."""
    chain = require_finite(Chain(list(plan.networks), "fp32", plan.pixels), plan.name, "its network")
    return torch_function(plan.whole(chain))


def _note(name: str, licence: str, by_kind: dict[str, Source]) -> str:
    """Returns what a graph's doc string says: provenance and licence."""
    of = [
        f"{kind}: {source.provenance.get('recipe', {}).get('generator', {}).get('kind', 'imported')}, "
        f"{source.provenance.get('images_shown', 'unknown')} images shown"
        for kind, source in sorted(by_kind.items())
    ]
    return f"{name}, made by pgsr {__version__}. {'; '.join(of)}. Licence of the weights: {licence}."


def _write_graph(
    trial: Trial, precision: str, choice: Choice, note: str, folder: Path, floats: Floats
) -> Graph:
    name, example = trial.plan.name, torch.from_numpy(trial.inputs[:2])
    if precision == "int8":
        names = tuple(n for n in choice.names("int8") if n != BALANCE)
        exact = floats.get((name, names)) or with_names(trial.plan, "fp32", example, names, note)
        graph, float_layers = in_int8(exact, trial.calibration, BALANCE in choice.names("int8"), note)
    else:
        with _sides_tried(trial.plan):
            graph = convert(trial.plan, precision, example, choice, note)
        float_layers = []
    if precision == "fp32":
        floats[name, choice.names("fp32")] = graph
        with _sides_tried(trial.plan):
            _try_other_sides(trial, graph)
    parity = _measure(trial, graph, precision)
    require(parity, precision, trial.plan.name)
    write_bytes(folder / graph.graph.file, graph.model)
    more = {"kept_in_fp32": float_layers} if precision == "int8" else {}
    return dataclasses.replace(graph.graph, parity={**parity.as_dict(), **more})


def in_int8(
    converted: Converted, calibration: Array, balance: bool, note: str
) -> tuple[Converted, list[str]]:
    """A float32 graph in int8, and the names of its layers that stay in float32."""
    model, balanced, float_layers = quantized(converted.model, calibration, balance, note)
    rewrites = (*converted.graph.rewrites, *([BALANCE] if balanced else []))
    file = f"{converted.graph.name}.int8.onnx"
    graph = dataclasses.replace(converted.graph, precision="int8", file=file, rewrites=rewrites)
    return dataclasses.replace(converted, graph=graph).with_model(model), float_layers


@dataclass(frozen=True)
class Converted:
    """A plan made into ONNX, not yet measured."""

    module: Chain  # after the rewrites, in the graph's precision
    model: bytes
    graph: Graph  # without parity

    def with_model(self, model: bytes) -> Converted:
        graph = dataclasses.replace(self.graph, sha256=hashlib.sha256(model).hexdigest())
        return dataclasses.replace(self, model=model, graph=graph)


Floats = dict[tuple[str, tuple[str, ...]], Converted]  # by name and rewrites, of which int8 graphs are made


def convert(
    plan: Plan, precision: str, example: Tensor, choice: Choice | None = None, note: str = ""
) -> Converted:
    """Rewrites and exports a plan; `example` is an input of two images. Of int8, the float32 graph."""
    return with_names(plan, precision, example, (choice or Choice()).names(precision), note)


def with_names(
    plan: Plan, precision: str, example: Tensor, names: Sequence[str], note: str = ""
) -> Converted:
    """Converts with these rewrites and no others."""
    networks, applied = _rewritten_networks(plan.networks, names)
    module = Chain(networks, precision, plan.pixels)
    opset = opset_of(precision)
    ports = (plan.input.name, plan.output.name)
    model = to_onnx(module, plan.traced(example), *ports, plan.dynamic, opset, note, plan.sides, plan.scale)
    graph = Graph(
        name=plan.name,
        precision=precision,
        file=f"{plan.name}.onnx" if precision == "fp32" else f"{plan.name}.{precision}.onnx",
        sha256=hashlib.sha256(model).hexdigest(),
        opset=opset,
        inputs=(plan.input,),
        outputs=(plan.output,),
        rewrites=applied,
        multiply_adds=multiply_adds(plan.whole(Chain(networks, "fp32", False)), example[:1]),
        parity={},
    )
    return Converted(module, model, graph)


def _rewritten_networks(
    networks: Sequence[nn.Module], rewrites: Sequence[str]
) -> tuple[list[nn.Module], tuple[str, ...]]:
    results = [rewritten(network, rewrites) for network in networks]
    names = dict.fromkeys(name for _, applied in results for name in applied)
    return [network for network, _ in results], tuple(names)


def _measure(trial: Trial, graph: Converted, precision: str) -> Parity:
    x, reference, plan = trial.inputs, trial.reference, trial.plan
    parity = compare(reference, pictures(in_parts(_written(plan, graph, precision), x)))
    if precision in STORED:
        module = require_finite(graph.module, plan.name, f"its graph in {precision}")
        stored = pictures(in_parts(stored_function(plan.whole(module), STORED[precision]), x))
        parity = worse(parity, compare(reference, stored))
    return parity


def _written(plan: Plan, graph: Converted, precision: str) -> Callable[[Array], Array]:
    """A written graph as a function, which refuses to give numbers that are not finite."""
    model = widened(graph.model) if precision == "bf16" else graph.model
    return finite(session_of(model), plan.name, f"its graph in {precision}")


@contextmanager
def _sides_tried(plan: Plan) -> Iterator[None]:
    """Whatever goes wrong in it with a graph for images of all sizes is a SidesError."""
    try:
        yield
    except PgsrError as error:
        if 2 in plan.dynamic:
            raise SidesError(str(error)) from error
        raise


def _try_other_sides(trial: Trial, graph: Converted) -> None:
    """Raises PgsrError if an upscaler's float32 graph is right for the size alone that it was traced with."""
    if 2 not in trial.plan.dynamic:
        return
    trained, written = _trained(trial.plan), _written(trial.plan, graph, "fp32")
    for count, height, width in OTHER_SIDES:
        some = torch.from_numpy(trial.inputs[:2]).repeat(2, 1, 1, 1)[:count]
        x = np.asarray(nn.functional.interpolate(some, size=(height, width)).numpy())
        parity = compare(pictures(trained(x)), pictures(written(x)))
        require(parity, "fp32", f"upscaler (tried with images of {height}x{width})")


def multiply_adds(module: nn.Module, example: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for this input."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return int(counter.get_total_flops()) // 2


def summary(result: Bundle) -> dict[str, Any]:
    """Returns what the command reports."""
    return {
        "bundle": str(result.folder),
        "graphs": [
            {"name": g.name, "precision": g.precision, "multiply_adds": g.multiply_adds, "parity": g.parity}
            for g in result.graphs
        ],
    }
