"""A float32 graph -> an int8 one: QDQ nodes in front of convolutions and matrix products, by ONNX Runtime's
quantizer; as many layers at low resolutions stay in float32 as it takes for pictures that are near enough.

Symmetric, weights by output map, activations with the scale that errs least on calibration inputs, biases in
float32 (TensorRT takes no other form).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from .onnx_file import finished
from .parity import compare, in_parts, pictures, session_of
from .sessions import open_session

Array = NDArray[Any]

OPERATIONS = ("Conv", "Gemm")  # that are quantized
AIM_DB = 37.0  # of pictures against the float32 graph's: 2 dB above what export accepts
JUDGED = 8  # calibration inputs that the aim is judged on
PART = 2  # calibration inputs looked at together
SAMPLED = 50_000  # values of an activation that its scale is found on, of every part
SHARES = np.linspace(0.3, 1.0, 57)  # of the largest value that a scale may reach to


def quantized(
    model: bytes, calibration: Array, balance: bool, note: str, aim_db: float = AIM_DB
) -> tuple[bytes, bool, list[str]]:
    """The graph in int8; whether balancing found anything; the layers that stay in float32.

    Layers at low resolutions cost least and harm most: all later ones build on them. So they are kept first,
    as few as reach `aim_db` (or all but the last). calibration: inputs [N, ...].
    """
    proto, balanced_any = onnx.load_from_string(model), False
    if balance:
        proto, balanced_any = balanced(proto, calibration[:PART])
    model = proto.SerializeToString()
    scales = activation_scales(proto, calibration)
    judged = calibration[:JUDGED]
    expected = pictures(in_parts(session_of(model), judged, PART))
    layers = smallest_first(proto, calibration[:1])
    models: dict[int, bytes] = {}

    def near_enough(count: int) -> bool:
        models[count] = with_scales(proto, scales, calibration[:1], layers[:count], note)
        return (
            compare(expected, pictures(in_parts(session_of(models[count]), judged, PART))).psnr_db >= aim_db
        )

    count = fewest(near_enough, len(layers) - 1)
    if count not in models:
        near_enough(count)
    return models[count], balanced_any, layers[:count]


def fewest(enough: Callable[[int], bool], most: int) -> int:
    """The smallest count that is enough, by halving; `most` if none is."""
    low, high = 0, max(most, 0)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def with_scales(
    proto: onnx.ModelProto, scales: dict[str, float], example: Array, float_layers: Collection[str], note: str
) -> bytes:
    """The graph in int8 with these scales of activations, but for the layers `kept`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    todo = [node for node in _layers(proto) if node.name not in float_layers]
    input_scales = {node.input[0]: scales[node.input[0]] for node in todo}
    zero = np.array(0, np.int8)
    with tempfile.TemporaryDirectory(prefix="pgsr-int8-") as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(shape_inference.infer_shapes(proto), source)
        quantize_static(
            source,
            target,
            _Reader(proto.graph.input[0].name, example),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATIONS),
            nodes_to_quantize=[node.name for node in todo],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,  # asked for, but the scales given stand in its place
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(OPERATIONS),
                "TensorQuantOverrides": weight_ranges(proto, todo)
                | {
                    name: [{"scale": np.array(scale, np.float32), "zero_point": zero}]
                    for name, scale in input_scales.items()
                },
            },
        )
        return finished(onnx.load(target), note)


def weight_ranges(
    proto: onnx.ModelProto, layers: Sequence[onnx.NodeProto]
) -> dict[str, list[dict[str, Any]]]:
    """The range of each map's weights, so wide that no processor's sums end at 16 bits.

    Without VNNI two products are added in 16 bits, of activations of 8 bits without a sign and of weights of
    neighbouring inputs (Intel, VPMADDUBSW): 255 (|w1| + |w2|) must stay below 2**15. So a map's range reaches
    to the largest sum of two neighbours of one sign, in place of the largest weight: most maps lose nothing
    or little by it, and none more than one bit.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    ranges = {}
    for node in layers:
        axis = 0 if node.op_type == "Conv" or _attribute(node, "transB") else 1
        weights = np.moveaxis(numpy_helper.to_array(tensors[node.input[1]]), axis, 0)  # [maps, inputs, ...]
        most = largest_pairs(weights)
        ranges[node.input[1]] = [{"axis": axis, "rmin": -float(x), "rmax": float(x)} for x in most]
    return ranges


def largest_pairs(weights: Array) -> Array:
    """Of each map, the largest sum of two neighbouring inputs' weights of one sign, or weight: [maps]."""
    if weights.shape[1] % 2:
        weights = np.concatenate([weights, np.zeros_like(weights[:, :1])], 1)
    signed = np.stack([np.maximum(weights, 0), np.maximum(-weights, 0)])
    pairs = signed[:, :, 0::2] + signed[:, :, 1::2]
    most: Array = pairs.max(tuple(axis for axis in range(pairs.ndim) if axis != 1))
    return most


def _layers(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes that may be quantized: their weight is a constant."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [n for n in proto.graph.node if n.op_type in OPERATIONS and n.input[1] in constants]


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
# Between the halves of a separable convolution there is no activation: what the one divides a map by, the
# other can multiply it with. One int8 scale for all maps loses least when they are of like size (cross-
# layer equalization, Nagel et al. 2019, section 4.1; here by the root of what each map measures on images).

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
    names = []
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
            names.append((deep, after[0]))
    return [pair for pair in names if _attribute(pair[1], "group") in (0, 1)]


# ----------------------------------------------------------------------------
# What the layers read, and what they cost.


def activation_scales(proto: onnx.ModelProto, inputs: Array) -> dict[str, float]:
    """Finds, for every value that a layer reads, the scale that rounds it to int8 with the least mean
    square."""
    names = list(dict.fromkeys(node.input[0] for node in _layers(proto)))
    samples: dict[str, list[Array]] = {name: [] for name in names}
    largest = dict.fromkeys(names, 0.0)
    for start in range(0, len(inputs), PART):
        values = _values(proto, names, inputs[start : start + PART])
        for name in names:
            flat = values[name].ravel()
            largest[name] = max(largest[name], float(np.abs(flat).max()))
            samples[name].append(flat[:: max(1, len(flat) // SAMPLED)])
    return {name: best_scale(np.concatenate(samples[name]), largest[name]) for name in names}


def best_scale(values: Array, largest: float) -> float:
    """The step of a symmetric int8 grid on which values are off least; it need not reach to the largest."""
    steps = [share * max(largest, 1e-12) / 127 for share in SHARES]
    errors = [np.square(rounded(values, step) - values, dtype=np.float64).mean() for step in steps]
    return float(steps[int(np.argmin(errors))])


def rounded(values: Array, step: float) -> Array:
    """Through int8 and back."""
    result: Array = np.clip(np.rint(values / step), -127, 127) * step
    return result


def smallest_first(proto: onnx.ModelProto, inputs: Array) -> list[str]:
    """Names of the layers by the pixels of what they make, then by multiply-adds, then as in the graph.

    Not by multiply-adds alone: a depthwise layer has few, but in float32 between int8 ones it costs time.
    """
    layers: Sequence[onnx.NodeProto] = _layers(proto)
    values = _values(proto, [node.output[0] for node in layers], inputs)
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in proto.graph.initializer}
    pixels = {node.name: int(np.prod(values[node.output[0]].shape[2:])) for node in layers}
    costs = {node.name: (pixels[node.name], weights[node.input[1]]) for node in layers}
    return sorted(costs, key=lambda name: costs[name])


def _values(proto: onnx.ModelProto, names: list[str], inputs: Array) -> dict[str, Array]:
    """Returns what the graph holds under these names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    inputs_present = {value.name for value in graph.input}
    outputs = [name for name in dict.fromkeys(names) if name not in inputs_present]
    present = {value.name for value in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in present)
    results = []
    if outputs:
        results = open_session(copy.SerializeToString()).run(outputs, {graph.input[0].name: inputs})
    return {graph.input[0].name: inputs, **dict(zip(outputs, results, strict=True))}


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


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
