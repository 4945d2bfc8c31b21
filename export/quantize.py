"""A float32 graph -> an int8 one: QDQ nodes in front of convolutions and matrix products, by ONNX Runtime's
quantizer; layers that would hurt stay in float32, by measurement.

Symmetric, weights by output map, activations by the largest value that calibration images reach, biases in
float32 (TensorRT takes no other form).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from .to_onnx import finished

Array = NDArray[Any]

OPERATIONS = ("Conv", "Gemm")  # that are quantized
KEEP_BELOW_DB = 28.0  # layers whose own output would be noisier stay in float32
PART = 4  # images at a time


@dataclass(frozen=True)
class Layer:
    """A layer that may be quantized, and what its output would suffer."""

    name: str
    snr_db: float  # of its output with quantized input and weight, against its own in float32


def quantized(model: bytes, calibration: Array, kept: Collection[str], note: str) -> bytes:
    """The graph in int8 but for the layers `kept`; calibration holds inputs [N, ...]."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    proto = onnx.load_from_string(model)
    before = [node.name for node in proto.graph.node if node.op_type in OPERATIONS]
    with tempfile.TemporaryDirectory(prefix="pgsr-int8-") as folder, _quiet():
        source, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(shape_inference.infer_shapes(proto), source)
        quantize_static(
            source,
            made,
            _Reader(proto.graph.input[0].name, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATIONS),
            nodes_to_quantize=[name for name in before if name not in kept],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(OPERATIONS),
            },
        )
        return finished(onnx.load(made), note)


class _Reader:
    """Calibration inputs, a few at a time (ONNX Runtime's CalibrationDataReader)."""

    def __init__(self, name: str, values: Array) -> None:
        self._parts = iter([{name: values[i : i + PART]} for i in range(0, len(values), PART)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._parts, None)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, Array]:
        return next(self._parts)

    def __len__(self) -> int:
        return 1


# ----------------------------------------------------------------------------
# Between the halves of a separable convolution nothing is bent: what the one divides a map by, the other can
# multiply it with. One int8 scale for all maps loses least when they are of like size (cross-layer
# equalization, Nagel et al. 2019, section 4.1; here by the root of what each map measures on images).

BALANCE = "balance-separable"  # its name among the rewrites


def balanced(model: onnx.ModelProto, inputs: Array) -> tuple[onnx.ModelProto, bool]:
    """The graph with depthwise maps of like size, and whether there are any."""
    pairs = _separable(model)
    if not pairs:
        return model, False
    values = _values(model, [deep.output[0] for deep, _ in pairs], inputs)
    sizes = [
        np.sqrt(np.square(values[deep.output[0]], dtype=np.float64).mean((0, 2, 3))) for deep, _ in pairs
    ]
    return divided(model, [np.sqrt(size / size.mean() + 1e-3) for size in sizes]), True


def divided(model: onnx.ModelProto, factors: list[Array]) -> onnx.ModelProto:
    """The graph with the maps of each depthwise convolution divided by its factors [C], and the next weights
    multiplied: the same function."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    for (deep, point), factor in zip(_separable(model), factors, strict=True):
        _scale(tensors[deep.input[1]], 1 / factor.reshape(-1, 1, 1, 1))
        if len(deep.input) > 2:
            _scale(tensors[deep.input[2]], 1 / factor)
        _scale(tensors[point.input[1]], factor.reshape(1, -1, 1, 1))
    return changed


def _scale(tensor: onnx.TensorProto, factor: Array) -> None:
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))


def _separable(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Depthwise convolutions, each with the one pointwise convolution that reads it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = []
    for deep in (n for n in model.graph.node if n.op_type == "Conv" and _attribute(n, "group") > 1):
        after = readers.get(deep.output[0], [])
        weight = constants.get(after[0].input[1]) if len(after) == 1 and after[0].op_type == "Conv" else None
        alone = all(len(readers[name]) == 1 for name in deep.input[1:])  # no weight that others share
        if (
            alone
            and weight is not None
            and list(weight.dims[2:]) == [1, 1]
            and len(readers[weight.name]) == 1
        ):
            found.append((deep, after[0]))
    return [pair for pair in found if _attribute(pair[1], "group") in (0, 1)]


# ----------------------------------------------------------------------------
# Which layers hurt: each by itself, on what really comes in.


def sensitivities(model: bytes, inputs: Array) -> list[Layer]:
    """What int8 does to the output of each layer, the others as they are."""
    proto = onnx.load_from_string(model)
    graph = proto.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = [n for n in graph.node if n.op_type in OPERATIONS and n.input[1] in weights]
    values = _values(proto, [n.input[0] for n in layers] + [n.output[0] for n in layers], inputs)
    return [Layer(n.name, _snr(n, values, weights, proto.opset_import[0].version)) for n in layers]


def _values(proto: onnx.ModelProto, names: list[str], inputs: Array) -> dict[str, Array]:
    """What the graph holds under these names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    given = {value.name for value in graph.input}
    wanted = [name for name in dict.fromkeys(names) if name not in given]
    present = {value.name for value in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    results = _session(copy).run(wanted, {graph.input[0].name: inputs})
    return {graph.input[0].name: inputs, **dict(zip(wanted, results, strict=True))}


def _snr(node: onnx.NodeProto, values: dict[str, Array], weights: dict[str, Array], opset: int) -> float:
    """Signal to noise in dB of a layer's output."""
    x, weight, expected = values[node.input[0]], weights[node.input[1]], values[node.output[0]]
    rows = 1 if node.op_type == "Gemm" and not _attribute(node, "transB") else 0  # which axis outputs are
    rounded = {"x": _rounded(x, None), "w": _rounded(weight, rows)}
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.input[:], single.output[:] = ["x", "w"], ["y"]
    if len(node.input) > 2 and node.input[2]:
        single.input.append("b")
        rounded["b"] = weights[node.input[2]]
    info = onnx.helper.make_tensor_value_info
    ports = [info(name, onnx.TensorProto.FLOAT, value.shape) for name, value in rounded.items()]
    out = info("y", onnx.TensorProto.FLOAT, expected.shape)
    graph = onnx.helper.make_graph([single], "layer", ports, [out])
    alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    noise = _session(alone).run(None, rounded)[0].astype(np.float64) - expected
    power = float(np.mean(noise**2))
    return 999.0 if power == 0 else 10 * math.log10(float(np.mean(expected.astype(np.float64) ** 2)) / power)


def _rounded(values: Array, axis: int | None) -> Array:
    """Through int8 and back: symmetric, one scale or one for each index of an axis."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.maximum(np.abs(values).max(axis=others, keepdims=True), 1e-12) / 127
    result: Array = (np.clip(np.rint(values / scale), -127, 127) * scale).astype(np.float32)
    return result


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises a preprocessing that these graphs do not need, through the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
