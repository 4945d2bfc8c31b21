"""What an ONNX graph holds while it computes one image: the shape of every value, and the memory of all.

shapes = shapes_of(model, side=64)          # an upscaler of any size is looked at with images of 64 x 64
memory = activation_bytes(model, side=64)   # of those values that have to be held at the same time
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper, shape_inference

Shapes = dict[str, tuple[int, ...]]


def shapes_of(model: onnx.ModelProto, side: int) -> Shapes:
    """The shape of every value, for one image."""
    inferred = _inferred(model, side)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _inferred(model: onnx.ModelProto, side: int) -> onnx.GraphProto:
    """The graph with the types of all its values, for one image."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        for place, dimension in enumerate(value.type.tensor_type.shape.dim):
            if value in copy.graph.output:
                dimension.Clear()
            elif not dimension.HasField("dim_value"):
                dimension.dim_value = side if place > 1 else 1
    return shape_inference.infer_shapes(copy, data_prop=True).graph


def activation_bytes(model: onnx.ModelProto, side: int) -> int:
    """The most memory that the values of one image take together, in the order of the graph.

    A value is held from the node that makes it to the last one that reads it. Libraries fuse nodes and
    compute some in place, which takes less, and lay values out anew, which takes more.
    """
    graph = _inferred(model, side)
    sizes = _sizes(graph)
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    last |= dict.fromkeys((value.name for value in graph.output), len(graph.node))
    held = sum(sizes.get(value.name, 0) for value in graph.input)
    most = held
    for place, node in enumerate(graph.node):
        held += sum(sizes.get(name, 0) for name in node.output)
        most = max(most, held)
        done = {name for name in (*node.input, *node.output) if last.get(name, place) <= place}
        held -= sum(sizes.get(name, 0) for name in done)
    return most


def _sizes(graph: onnx.GraphProto) -> Mapping[str, int]:
    """The bytes of every value that is no constant."""
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        count = math.prod(dimension.dim_value for dimension in kind.shape.dim)
        sizes[value.name] = count * _item_bytes(kind.elem_type)
    return sizes


def _item_bytes(kind: int) -> int:
    return 2 if kind == TensorProto.BFLOAT16 else int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
