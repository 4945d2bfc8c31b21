"""Targets that are networks in a bundle, whose hash is right: who makes a bundle makes its hashes, too.

The libraries that run a graph are native, and no reader of ours stands between: what they raise has to become
one line. That a graph names no other file is looked for here by onnx's own parser, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import bundles as tiny
from pgsr import bundle as bundles
from pgsr.bundle import Bundle, Graph
from pgsr.export import explain
from pgsr.files import sha256
from pgsr.runtime.backends import open_runner

from .harness import Defect, Target, put, work


@functools.cache
def _valid() -> Bundle:
    return bundles.read(tiny.write_bundle(work() / "bundle"))


def _with(data: bytes) -> tuple[Bundle, Graph]:
    """A bundle whose chain is these bytes."""
    valid = _valid()
    path = put("bundle/chain.onnx", data)
    graph = replace(valid.graphs[0], sha256=sha256(path))
    return replace(valid, graphs=(graph,)), graph


def read_file(data: bytes) -> None:
    bundle, graph = _with(data)
    bundle.path(graph)
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # nobody could read it, other files' names included
        return
    if any(entry.key == "location" for tensor in _tensors(model) for entry in tensor.external_data):
        raise Defect("a graph with weights in another file is let in")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a model, wherever it stands."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if hasattr(value, "ListFields") else value:
            if hasattr(inner, "ListFields"):
                yield from _tensors(inner)


def read_to_run(data: bytes) -> None:
    """As pgsr-generate does."""
    bundle, _ = _with(data)
    with open_runner(bundle, "cpu", "fp32", "onnxruntime", threads=1) as runner:
        pixels = runner.run(np.ones((2, tiny.LATENT), np.float32))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, tiny.SIZE, tiny.SIZE, 3))


def read_to_explain(data: bytes) -> None:
    """As pgsr-export explain does."""
    bundle, _ = _with(data)
    assert explain.text(explain.explained(bundle))


# ----------------------------------------------------------------------------


def models() -> list[bytes]:
    return [tiny.chain_model().SerializeToString()]


@st.composite
def built_models(draw: Callable[..., Any]) -> bytes:
    """Networks whose nodes, weights or ports are others, in a file that is whole."""
    model = tiny.chain_model()
    graph = model.graph
    side = st.sampled_from([0, -1, 1, 3, 5, 8, 2**31, 2**40, 2**62])
    for _ in range(draw(st.integers(1, 3))):
        node = graph.node[draw(st.integers(0, len(graph.node) - 1))] if graph.node else graph.node.add()
        weight = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
        port = [*graph.input, *graph.output][draw(st.integers(0, 1))]
        match draw(st.integers(0, 10)):
            case 0:
                node.op_type = draw(
                    st.sampled_from(["Conv", "Loop", "If", "Nothing", "Cast", "Gemm", "", "Scan"])
                )
            case 1:
                graph.node.remove(node)
            case 2 if node.input:
                place = draw(st.integers(0, len(node.input) - 1))
                node.input[place] = draw(st.sampled_from(["latents", "rgb", "nowhere", "", "pixels"]))
            case 3:
                weight.dims[:] = draw(st.lists(side, max_size=5))
            case 4:
                weight.raw_data = weight.raw_data[: draw(st.integers(0, len(weight.raw_data)))]
            case 5:
                weight.data_type = draw(st.integers(0, 30))
            case 6:
                port.name = draw(st.sampled_from(["x", "", "latents"]))
            case 7:
                dims = port.type.tensor_type.shape.dim
                dims[draw(st.integers(0, len(dims) - 1))].dim_value = draw(side)
            case 8:
                entry = weight.external_data.add()
                entry.key = draw(st.sampled_from(["location", "offset", "length", "x"]))
                entry.value = draw(st.sampled_from(["/etc/passwd", "other", "0", ""]))
                weight.data_location = draw(st.sampled_from([0, 1]))
            case 9:
                attribute = node.attribute.add(
                    name=draw(st.sampled_from(["pads", "perm", "to", "alpha", "body", "x"]))
                )
                attribute.type = draw(st.integers(0, 14))
                attribute.ints.extend(draw(st.lists(side, max_size=4)))
            case _:
                model.opset_import[0].version = draw(st.sampled_from([0, 1, 7, 13, 25, 99, 2**40]))
    return bytes(model.SerializeToString())


def built() -> SearchStrategy[bytes]:
    return built_models()


TARGETS = [
    Target("graph-file", read_file, models, built),
    Target("graph-to-run", read_to_run, models, built),
    Target("graph-to-explain", read_to_explain, models, built),
]
