"""Sources -> a bundle folder (contract 2), written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pgsr import __version__, bundle, draws
from pgsr.bundle import MOST_UPSCALERS, UPSCALERS, Bundle, Graph, Port, upscaler_name
from pgsr.errors import PgsrError
from pgsr.files import write_bytes
from pgsr.truncation import typical_direction

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
from .shapes import activation_bytes
from .sides import Padded, Sides
from .source import Source

PARITY_SEED = 2**32 + 1  # far from the seeds people use, so that parity is on latents nobody looked at
CALIBRATION_SEED = 2**32 + 2  # of what int8's ranges are found on: not the latents it is judged on
SAMPLES, CALIBRATION_SAMPLES = 64, 32
PART = 8  # pictures computed together while graphs are compared
# Numbers of pictures are those of 256 x 256. Of larger ones fewer show as many pixels, and fit into memory.
COUNTED_SIDE, FEWEST = 256, 8


def of_side(count: int, side: int, fewest: int = FEWEST) -> int:
    """The number of pictures of a side that stands for `count` of 256 x 256: as many pixels."""
    return min(count, max(fewest, count * COUNTED_SIDE**2 // max(1, side) ** 2))


TRACED = (23, 29)  # sides of the images that upscalers are traced with,
TRACED_MULTIPLES = (5, 7)  # or how many times what they have to be multiples of
OTHER_SIDES = ((1, 19, 37), (3, 46, 28))  # images, height and width that their graphs are tried with besides


@dataclass(frozen=True)
class Plan:
    """One graph to be: which networks it chains and what goes in and out."""

    name: str  # one of pgsr.bundle.GRAPHS
    networks: tuple[nn.Module, ...]  # as trained
    pixels: bool  # uint8 out
    input: Port
    output: Port
    dynamic: dict[int, str]
    sides: Sides = ANY_SIDES  # of the images that an upscaler's network takes
    scale: int = 1
    made_side: int = 0  # of what the chain makes up to here; 0 of an upscaler alone

    @property
    def part(self) -> int:
        """Pictures that are computed together."""
        return of_side(PART, self.made_side, 1)

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
    samples: int = 0,  # 0: 64, or as many pixels of larger pictures
    choice: Choice | None = None,
    truncation: float = 1.0,  # 0 to 1: of its faces, unless their user says another
) -> Bundle:
    """Writes the bundle of a generator, an upscaler, or a generator and upscalers one behind the other.

    An upscaler that cannot be traced for images of any size is exported for one size, in which a runtime
    takes pictures tile by tile.
    Raises PgsrError if the sources do not make a chain, a graph fails parity, or `out` is something else;
    then nothing is left behind and a bundle that stood there is untouched.
    """
    by_name = named(sources)
    wishes = (precisions, name, licence, samples, choice or Choice(), truncation)
    try:
        return _exported(by_name, out, *wishes)
    except SidesError:
        return _exported(_of_one_size(by_name), out, *wishes)


def named(sources: Sequence[Source]) -> dict[str, Source]:
    """The sources by the names of their graphs, in the order of the chain.

    Raises PgsrError for two generators, too many upscalers, or several without a generator.
    """
    generators = [source for source in sources if source.kind == "generator"]
    upscalers = [source for source in sources if source.kind == "upscaler"]
    if len(generators) > 1:
        raise PgsrError("name at most one generator to export; upscalers may be several")
    if len(upscalers) > 1 and not generators:
        raise PgsrError(
            "several upscalers make a chain behind a generator: name one too, or a single upscaler"
        )
    if len(upscalers) > MOST_UPSCALERS:
        raise PgsrError(f"{len(upscalers)} upscalers are too many: a chain has at most {MOST_UPSCALERS}")
    chain = {upscaler_name(place): source for place, source in enumerate(upscalers)}
    return {"generator": generators[0], **chain} if generators else chain


class SidesError(PgsrError):
    """A graph that is not right for images of all sizes."""


FIXED_SIDE = 128  # of the images of an upscaler that takes one size, if no generator says which


def _of_one_size(by_name: dict[str, Source]) -> dict[str, Source]:
    """Upscalers for the images alone that come to them, or for tiles; the generator stays itself."""
    result, side = {}, 0
    for name, source in by_name.items():
        if source.kind == "generator":
            side = source.resolution
        else:
            side = side or Sides(source.multiple, source.least).of(FIXED_SIDE)
            source = dataclasses.replace(source, network=_fitted(source, side), input_size=side)
            side *= source.scale
        result[name] = source
    return result


def _exported(
    by_name: dict[str, Source],
    out: Path,
    precisions: Sequence[str],
    name: str,
    licence: str,
    samples: int,
    selection: Choice,
    truncation: float,
) -> Bundle:
    check_replaceable(out)
    centre = _centre(by_name.get("generator"), truncation)
    with replacing_bundle(out) as folder:
        inputs = _Inputs(by_name, samples)
        trials = [_trial(plan, inputs) for plan in plans(by_name)]
        note = _note(name, licence, by_name)
        floats: Floats = {}
        graphs = [
            _write_graph(trial, precision, selection, note, folder, floats)
            for precision in precisions
            for trial in trials
        ]
        generator, scales = by_name.get("generator"), _scales(by_name)
        result = Bundle(
            folder=folder,
            name=name,
            version=__version__,
            latent_size=generator.latent_size if generator else 0,
            resolution=generator.resolution if generator else 0,
            scale=math.prod(scales),
            graphs=tuple(graphs),
            licence=licence,
            provenance={kind: source.provenance for kind, source in sorted(by_name.items())},
            scales=scales if len(scales) > 1 else (),
            truncation=truncation,
            centre=centre,
        )
        bundle.write(result)
    return bundle.read(out)


def _centre(generator: Source | None, truncation: float) -> tuple[float, ...]:
    """Where truncation turns latents, [L], to seven digits: found now, so that no run has to; nothing at 1.

    Raises PgsrError for a truncation without a generator.
    """
    if truncation == 1.0:
        return ()
    if generator is None:
        raise PgsrError(f"--truncation {truncation:g} is a generator's: name one too, or leave it out")
    network = torch_function(Grown(generator.generator, generator.resolution))
    direction = typical_direction(network, generator.latent_size, of_side(PART, generator.resolution, 1))
    return tuple(float(f"{number:.7g}") for number in direction)


def _scales(by_name: dict[str, Source]) -> tuple[int, ...]:
    return tuple(by_name[name].scale for name in UPSCALERS if name in by_name)


def plans(by_name: dict[str, Source]) -> list[Plan]:
    """The graphs that a bundle of these sources, in the chain's order, holds: each part, then the chain.

    Raises PgsrError if an upscaler takes images of another size than those that come to it.
    """
    generator = by_name.get("generator")
    upscalers = {name: source for name, source in by_name.items() if source.kind == "upscaler"}
    if generator is None:
        return [_upscaler(name, source, 0) for name, source in upscalers.items()]
    side = generator.resolution
    grown = Grown(generator.generator, side)
    latents = Port("latents", ("n", generator.latent_size), "float32", "standard normal")
    output = Port("images", ("n", 3, side, side), "float32", "[-1, 1]")
    result = [Plan("generator", (grown,), False, latents, output, {0: "n"}, made_side=side)]
    networks: list[nn.Module] = [grown]
    for name, source in upscalers.items():
        result.append(_upscaler(name, source, side))
        networks.append(_fitted(source, side))
        side *= source.scale
    pixels = Port("pixels", ("n", side, side, 3), "uint8", "[0, 255]")
    result.append(Plan("chain", tuple(networks), True, latents, pixels, {0: "n"}, made_side=side))
    return result


def _upscaler(name: str, source: Source, side: int) -> Plan:
    """The graph of an upscaler, which the chain gives images of this side; 0: whoever runs it alone does."""
    if source.input_size:
        return _fixed_upscaler(name, source, side)
    scale = source.scale
    images = Port("images", ("n", 3, "height", "width"), "float32", "[-1, 1]")
    larger = Port("upscaled", ("n", 3, f"{scale}*height", f"{scale}*width"), "float32", "[-1, 1]")
    dynamic, sides = {0: "n", 2: "height", 3: "width"}, Sides(source.multiple, source.least)
    return Plan(name, (source.network,), False, images, larger, dynamic, sides, scale, side * scale)


def _fitted(upscaler: Source, side: int) -> nn.Module:
    """An upscaler's network for images of one side, padded to what it takes."""
    sides = Sides(upscaler.multiple, upscaler.least)
    return upscaler.network if sides.of(side) == side else Padded(upscaler.network, sides, upscaler.scale)


def _fixed_upscaler(name: str, source: Source, given: int) -> Plan:
    """The graph of an upscaler that takes images of one size."""
    side = source.input_size
    if given and given != side:
        raise PgsrError(
            f"{name} takes images of {side}x{side}, but those that come to it are "
            f"{given}x{given}: name another one, or export it alone"
        )
    large = side * source.scale
    images = Port("images", ("n", 3, side, side), "float32", "[-1, 1]")
    larger = Port("upscaled", ("n", 3, large, large), "float32", "[-1, 1]")
    return Plan(name, (source.network,), False, images, larger, {0: "n"}, scale=source.scale, made_side=large)


class _Inputs:
    """What parity is measured on: latents, and for upscalers the images of the networks before them."""

    def __init__(self, by_name: dict[str, Source], samples: int) -> None:
        self.samples = samples  # 0: by the pictures' size
        self.generator = by_name.get("generator")
        self.upscalers = {name: source for name, source in by_name.items() if source.kind == "upscaler"}

    def count(self, plan: Plan) -> int:
        """The number of inputs for a plan."""
        return self.samples or of_side(SAMPLES, plan.made_side)

    def latents(self, seed: int, count: int) -> Array:
        assert self.generator is not None
        return draws.latents(seed, range(count), self.generator.latent_size)

    def images(self, name: str, seed: int, count: int) -> Array:
        """Images as they come to an upscaler of the chain."""
        source = self.upscalers[name]
        if self.generator is None:  # smooth noise, since there is nothing to draw faces with
            rows = draws.latents(seed, range(count), 3 * 6 * 6).reshape(-1, 3, 6, 6)
            coarse = torch.from_numpy(rows).clamp(-2, 2) / 2
            smooth = nn.functional.interpolate(coarse, size=source.input_size or 24, mode="bicubic")
            return np.asarray(smooth.clamp(-1, 1).numpy())
        side = self.generator.resolution
        images = in_parts(torch_function(Grown(self.generator.generator, side)), self.latents(seed, count))
        for before, upscaler in self.upscalers.items():
            if before == name:
                break
            part = of_side(PART, side * upscaler.scale, 1)
            images = in_parts(torch_function(_fitted(upscaler, side)), images, part)
            side *= upscaler.scale
        return np.clip(images, -1, 1)

    def of(self, plan: Plan, seed: int, count: int) -> Array:
        latents = plan.input.name == "latents"
        return self.latents(seed, count) if latents else self.images(plan.name, seed, count)


@dataclass(frozen=True)
class Trial:
    """A graph to be, and what every precision of it is measured on."""

    plan: Plan
    inputs: Array
    reference: Array  # uint8 pictures of the trained networks in float32
    calibration: Array  # other inputs


def _trial(plan: Plan, inputs: _Inputs) -> Trial:
    x = inputs.of(plan, PARITY_SEED, inputs.count(plan))
    calibrating = min(len(x), of_side(CALIBRATION_SAMPLES, plan.made_side, 4))
    calibration = inputs.of(plan, CALIBRATION_SEED, calibrating)
    reference = pictures(in_parts(_trained(plan), x, plan.part))
    require_variety(reference, plan.name)
    return Trial(plan, x, reference, calibration)


def _trained(plan: Plan) -> Callable[[Array], Array]:
    """The networks of a plan as they were trained, which refuse to give numbers that are not finite."""
    chain = require_finite(Chain(list(plan.networks), "fp32", plan.pixels), plan.name, "its network")
    return torch_function(plan.whole(chain))


def _note(name: str, licence: str, by_name: dict[str, Source]) -> str:
    """Returns what a graph's doc string says: provenance and licence."""
    of = [
        f"{kind}: {source.provenance.get('recipe', {}).get('generator', {}).get('kind', 'imported')}, "
        f"{source.provenance.get('images_shown', 'unknown')} images shown"
        for kind, source in sorted(by_name.items())
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
        activation_bytes=activation_bytes(onnx.load_from_string(model), example.shape[-1]),
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
    parity = compare(reference, pictures(in_parts(_written(plan, graph, precision), x, plan.part)))
    if precision in STORED:
        module = require_finite(graph.module, plan.name, f"its graph in {precision}")
        stored = pictures(in_parts(stored_function(plan.whole(module), STORED[precision]), x, plan.part))
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
        require(parity, "fp32", f"{trial.plan.name} (tried with images of {height}x{width})")


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
