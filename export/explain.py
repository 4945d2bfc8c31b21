"""A bundle's graph as a table and a drawing: what each layer is, makes, costs, and computes in.

pgsr-export --explain bundle --graph chain --out chain.svg
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from pgsr.bundle import UPSCALERS, Bundle, Graph
from pgsr.errors import PgsrError
from pgsr.files import write_bytes

from .rewrites.table import REWRITES
from .shapes import activation_bytes, shapes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SIDE = 64  # of an upscaler's images, where any size will do
PRECISIONS = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
}


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product, and what follows it up to the next."""

    name: str
    kind: str  # "3 x 3, 512 to 256"
    shape: tuple[int, ...]  # of what leaves it, for one image
    multiply_adds: int
    share: float  # of the graph's multiply-adds
    weights: int
    precision: str  # of the weights
    then: tuple[str, ...]  # operations that follow
    sources: tuple[int, ...]  # layers whose results come in, by number; -1: the input


def explained(bundle: Bundle, name: str | None = None, precision: str = "fp32") -> dict[str, Any]:
    """One graph as JSON data. Raises PgsrError if the bundle does not hold it."""
    if name is None:
        names = [graph.name for graph in bundle.graphs]
        name = "chain" if "chain" in names else names[0] if names else "chain"
    graph = bundle.graph(name, precision)
    try:
        model = onnx.load(bundle.path(graph))
        _check_texts(model)
        layers = read_layers(model, side_of(bundle, graph))
        held = activation_bytes(model, side_of(bundle, graph))
    except PgsrError:
        raise
    except Exception as error:  # protobuf's own errors have no common base, nor has onnx's inference
        raise PgsrError(f"{graph.file} cannot be read as ONNX: {error or type(error).__name__}") from error
    return {
        "bundle": str(bundle.folder),
        "graph": graph.name,
        "precision": graph.precision,
        "opset": graph.opset,
        "note": model.doc_string,
        "nodes": len(model.graph.node),
        "operations": _histogram(model),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "weights": sum(layer.weights for layer in layers),
        "bytes": (bundle.folder / graph.file).stat().st_size,
        "activation_bytes": held,
        "rewrites": {n: REWRITES[n].what if n in REWRITES else "" for n in graph.rewrites},
        "parity": dict(graph.parity),
        "input": _ports(graph),
        "layers": [asdict(layer) for layer in layers],
    }


def _check_texts(model: onnx.ModelProto) -> None:
    """Raises ValueError for a name that is not UTF-8: protobuf lets it pass, as bytes."""
    texts: list[object] = [model.doc_string]
    for node in model.graph.node:
        texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
    for text in texts:
        if isinstance(text, bytes):
            raise ValueError(f"{text[:50]!r} is not UTF-8")


def _ports(graph: Graph) -> str:
    port = graph.inputs[0]
    return f"{port.name}, {port.dtype} [{', '.join(map(str, port.shape))}]"


def _histogram(model: onnx.ModelProto) -> dict[str, int]:
    kinds = sorted(node.op_type for node in model.graph.node)
    return {kind: len(list(group)) for kind, group in groupby(kinds)}


# ----------------------------------------------------------------------------
# Reading.


def side_of(bundle: Bundle, graph: Graph) -> int:
    """Returns the side of the images to explain an upscaler with: of those that the chain gives it."""
    place = UPSCALERS.index(graph.name) if graph.name in UPSCALERS else 0
    return bundle.side_before(place) or SIDE


def read_layers(model: onnx.ModelProto, side: int) -> list[Layer]:
    """The layers in their order; sizes are those of one image."""
    shapes = shapes_of(model, side)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    groups: list[list[onnx.NodeProto]] = [[]]
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            groups.append([])
        groups[-1].append(node)
    made_by = {value: i - 1 for i, group in enumerate(groups) for node in group for value in node.output}
    values = _dequantized(model)
    costs = [_multiply_adds(group[0], shapes) if i else 0 for i, group in enumerate(groups)]
    total = max(1, sum(costs))
    layers = []
    for i, group in enumerate(groups[1:]):
        head = group[0]
        weight = constants.get(values.get(head.input[1], head.input[1]))
        inputs = {value for node in group for value in node.input if value and value not in constants}
        sources = {made_by.get(value, -1) for value in inputs} - {i}
        layers.append(
            Layer(
                name=head.name,
                kind=_kind(head, shapes),
                shape=shapes.get(group[-1].output[0], ()),
                multiply_adds=costs[i + 1],
                share=costs[i + 1] / total,
                weights=int(np.prod(weight.dims)) if weight is not None else 0,
                precision=PRECISIONS.get(weight.data_type, "?") if weight is not None else "float32",
                then=_then(group[1:]),
                sources=tuple(sorted(sources)),
            )
        )
    return layers


def _dequantized(model: onnx.ModelProto) -> dict[str, str]:
    """Value that a DequantizeLinear makes -> what it was made of."""
    return {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}


def _multiply_adds(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Counts the multiply-adds of one image: each output value (of a transposed convolution, input) times its
    weights."""
    weight, out = shapes.get(node.input[1], ()), shapes.get(node.output[0], ())
    if node.op_type == "Conv":
        return int(np.prod(out)) * int(np.prod(weight[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(shapes.get(node.input[0], ()))) * int(np.prod(weight[1:]))
    inner = shapes.get(node.input[0], (0,))[-1]
    return int(np.prod(out)) * inner


def _kind(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> str:
    weight, x = shapes.get(node.input[1], ()), shapes.get(node.input[0], ())
    out = shapes.get(node.output[0], ())
    maps = f"{x[1]} to {out[1]}" if len(x) > 1 and len(out) > 1 else "?"
    if len(weight) != 4:
        return f"dense, {maps}"
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    sides = f"{weight[2]} x {weight[3]}"
    depthwise = "depthwise " if groups > 1 and groups == x[1] else ""
    transposed = "transposed " if node.op_type == "ConvTranspose" else ""
    return f"{transposed}{depthwise}{sides}, {maps}"


PLUMBING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity")
NORM = ("Mul", "ReduceMean", "Add", "Sqrt", "Div")  # as DividingNorm is exported


def _then(nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Names of operations, PixelNorm as one, repetitions once."""
    names = [node.op_type for node in nodes if node.op_type not in PLUMBING]
    words: list[str] = []
    while names:
        if tuple(names[: len(NORM)]) == NORM:
            words.append("PixelNorm")
            names = names[len(NORM) :]
        else:
            words.append(names.pop(0))
    return tuple(name for name, _ in groupby(words))


# ----------------------------------------------------------------------------
# Words.

HEADINGS = ("layer", "kind", "result", "multiply-adds", "share", "weights", "precision", "then")


def text(explanation: Mapping[str, Any]) -> str:
    """The table, and what is known of the graph."""
    lines = [list(HEADINGS), *[_cells(layer) for layer in explanation["layers"]]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    right = (3, 4, 5)
    table = "\n".join(
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    parity = explanation["parity"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in explanation["operations"].items())
    facts = [
        f"{explanation['graph']} in {explanation['precision']}, opset {explanation['opset']}, "
        f"{explanation['bytes'] / 1e6:.1f} MB; in: {explanation['input']}",
        f"{explanation['multiply_adds'] / 1e6:.1f} M multiply-adds an image, "
        f"{explanation['weights'] / 1e6:.2f} M weights, {explanation['nodes']} operations: {kinds}",
        f"{explanation['activation_bytes'] / 2**20:.1f} MiB of activations an image at most",
        *[f"rewrite {name}: {what}" for name, what in explanation["rewrites"].items()],
    ]
    if parity:
        facts.append(
            f"parity on {parity['samples']} samples: PSNR {parity['psnr_db']:.1f} dB, largest difference "
            f"{parity['max_steps']:.0f} of 255"
        )
    return "\n".join([table, "", *facts, *([explanation["note"]] if explanation["note"] else [])])


def _cells(layer: Mapping[str, Any]) -> list[str]:
    return [
        layer["name"],
        layer["kind"],
        " x ".join(map(str, layer["shape"][1:])) or "?",
        f"{layer['multiply_adds'] / 1e6:.2f} M",
        f"{layer['share']:.1%}",
        str(layer["weights"]),
        layer["precision"],
        ", ".join(layer["then"]),
    ]


# ----------------------------------------------------------------------------
# The drawing: layers from top to bottom, edges, and each layer's share as a bar.

COLOURS = {"float32": "#2a6fb5", "float16": "#5b9f6b", "bfloat16": "#b58a2a", "int8": "#b5482a"}


def draw(explanation: Mapping[str, Any], path: Path) -> None:
    """An SVG or PNG, by the name. Raises PgsrError for another name, or if it cannot be written."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("svg", "png"):
        raise PgsrError(f"--out {path}: the drawing is .svg or .png")
    import matplotlib
    from matplotlib.figure import Figure

    layers = explanation["layers"]
    figure = Figure(figsize=(11, 1.2 + 0.34 * (len(layers) + 1)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _boxes(left, explanation)
    places = [i + 1 for i in range(len(layers))]
    bars = right.barh(
        places,
        [100 * layer["share"] for layer in layers],
        height=0.7,
        color=[COLOURS.get(layer["precision"], "#888") for layer in layers],
    )
    right.bar_label(bars, [f"{layer['share']:.1%}" for layer in layers], padding=3, fontsize=8)
    right.set_xlabel("share of multiply-adds, %")
    right.margins(x=0.18)
    right.spines[["top", "right", "left"]].set_visible(False)
    right.tick_params(left=False)
    figure.suptitle(
        f"{explanation['graph']} in {explanation['precision']}: "
        f"{explanation['multiply_adds'] / 1e6:.1f} M multiply-adds, "
        f"{explanation['weights'] / 1e6:.2f} M weights",
        fontsize=11,
    )
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "pgsr"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, buffer.getvalue())


def _boxes(axes: Axes, explanation: Mapping[str, Any]) -> None:
    """One box a layer; an arrow from the one before, an arc from those farther up."""
    from matplotlib.patches import FancyArrowPatch

    layers = explanation["layers"]
    labels = [explanation["input"]]
    labels += [
        f"{layer['kind']} → {' x '.join(map(str, layer['shape'][1:]))}"
        + (f"   ({', '.join(layer['then'])})" if layer["then"] else "")
        for layer in layers
    ]
    colours = ["#dddddd", *[COLOURS.get(layer["precision"], "#888") for layer in layers]]
    for place, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        axes.text(
            0.02,
            place,
            label if len(label) <= 92 else f"{label[:91]}…",
            va="center",
            fontsize=7.5,
            bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour},
        )
    for place, layer in enumerate(layers, start=1):
        for source in layer["sources"]:
            near = source + 1 == place - 1
            arrow = FancyArrowPatch(
                (0.0, source + 1),
                (0.0, place),
                arrowstyle="-|>",
                mutation_scale=7,
                connectionstyle=f"arc3,rad={0.0 if near else 0.25}",
                color="#555" if near else "#c07",
                linewidth=0.8,
                shrinkA=4,
                shrinkB=4,
            )
            axes.add_patch(arrow)
    axes.set_xlim(-0.12, 1)
    axes.set_ylim(len(layers) + 0.6, -0.6)
    axes.axis("off")
