"""A module -> the bytes of one ONNX file: nothing outside it, no path of this machine, the same each time."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from pgsr import __version__
from pgsr.errors import PgsrError

from .sides import Sides, add_padding

ANY_SIDES = Sides()
OPSET = 20  # the newest that both ONNX Runtime and TensorRT 10 read
OPSETS = {"bf16": 22}  # the first whose Conv knows bfloat16


def opset_of(precision: str) -> int:
    """Returns the ONNX operator set that a precision needs."""
    return OPSETS.get(precision, OPSET)


def to_onnx(
    module: nn.Module,
    example: Tensor,  # an input of at least two images
    input_name: str,
    output_name: str,
    dynamic: dict[int, str],  # dimensions of the input that may change, by name
    opset: int = OPSET,
    note: str = "",  # provenance and licence, for who opens the file
    sides: Sides = ANY_SIDES,  # of the images that the module takes; the graph takes any
    scale: int = 1,  # how many times as large they become
) -> bytes:
    """Raises PgsrError if the exporter or the checker refuses the module."""
    shapes = {d: torch.export.Dim(name) for d, name in dynamic.items()}
    if sides.multiple > 1:
        shapes |= {d: sides.multiple * shapes[d] for d in (2, 3)}
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=(shapes,),
                external_data=False,
            )
        assert program is not None
        model = program.model_proto
        if not sides.free:
            add_padding(model, sides, scale)
        return finished(model, note)
    except torch.onnx.OnnxExporterError as error:
        raise PgsrError(f"the network cannot be exported to ONNX: {error}") from error


def finished(model: onnx.ModelProto, note: str) -> bytes:
    """A clean, named and checked graph as bytes. Raises PgsrError if the checker refuses it."""
    _prune(model.graph)
    _clean(model, note)
    _name(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise PgsrError(f"the network cannot be exported to ONNX: {error}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _prune(graph: onnx.GraphProto) -> None:
    """Takes out nodes and initializers that no output needs."""
    names = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if names.intersection(node.output):
            nodes.append(node)
            names.update(node.input)
    initializers = [tensor for tensor in graph.initializer if tensor.name in names]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(initializers)


def _clean(model: onnx.ModelProto, note: str) -> None:
    """Removes the source paths and traces that the exporter leaves; says who wrote the file, from what."""
    model.producer_name, model.producer_version = "pgsr", __version__
    model.doc_string = note
    del model.metadata_props[:]
    graph = model.graph
    graph.name = "pgsr"
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del graph.value_info[:]  # shapes of inner values; onnx can infer them
    used = {node.domain for node in graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:], model.functions[:]
    model.opset_import.extend(opsets)


# What the inputs of a node are, for the names of its constants.
ROLES = {
    "Conv": ("x", "weight", "bias"),
    "ConvTranspose": ("x", "weight", "bias"),
    "Gemm": ("x", "weight", "bias"),
    "PRelu": ("x", "slope"),
    "DequantizeLinear": ("values", "scale", "zero"),
    "QuantizeLinear": ("x", "scale", "zero"),
}


def _name(graph: onnx.GraphProto) -> None:
    """Names by place and kind, whatever the exporter calls things: conv_7, conv_7.weight."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    names[""] = ""
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type.lower()}_{place}"
        roles = ROLES.get(node.op_type, ())
        for i, value in enumerate(node.input):
            if value in constants and value not in names:
                names[value] = f"{node.name}.{roles[i] if i < len(roles) else i}"
        for i, value in enumerate(node.output):
            names.setdefault(value, f"{node.name}_out{i or ''}")
        node.input[:] = [names[value] for value in node.input]
        node.output[:] = [names[value] for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress; errors still raise."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sink = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
