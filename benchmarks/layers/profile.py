"""Every operation of a running network with its time, in PyTorch, ONNX Runtime and OpenVINO.

Times are the libraries' own, taken inside the running graph; so caches are as they are there, and what a
library puts between layers (reorders, conversions) is seen. Multiply-adds and bytes follow from the shapes
that it ran.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pgsr.privacy import silence_onnxruntime, silent_openvino

Shape = tuple[int, ...]

LAYER, CONVERSION, OTHER = "layer", "conversion", "other"  # kinds of operations


@dataclass(frozen=True)
class Operation:
    """One operation as a library ran it, for a whole batch."""

    name: str  # the library's
    kind: str  # LAYER (of convolutions and matrix products), CONVERSION (of layouts and types), OTHER
    what: str  # such as "depthwise 3x3" or "Reorder"
    shape: Shape  # of its output
    precision: str  # that it computed in
    multiply_adds: int
    moved_bytes: int  # inputs, output and weights, once each
    seconds: float  # the median of the runs'

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}


def layer_name(weights: Shape, output: Shape, depthwise: bool) -> str:
    """Says which kind of layer weights [outputs, inputs, k, k] are."""
    if len(weights) < 4:
        return "product"
    side = f"{weights[-2]}×{weights[-1]}"
    if depthwise:
        return f"depthwise {side}"
    return "pointwise" if side == "1×1" else f"convolution {side}"


# ----------------------------------------------------------------------------
# PyTorch.

NOTHING = ("view", "expand", "reshape", "unsqueeze", "slice", "detach", "alias", "select", "t", "permute")
COPIES = ("_to_copy", "clone", "copy_", "contiguous")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "mkldnn_convolution")
TORCH_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.uint8: "int8", torch.int8: "int8"}


class Clocks(TorchDispatchMode):
    """Times every operation that computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - began
        name = func.overloadpacket.__name__
        if name.strip("_") not in NOTHING and isinstance(result, Tensor):
            self.operations.append(_torch_operation(name, args, result, seconds))
        return result


def _torch_operation(name: str, args: Sequence[Any], result: Tensor, seconds: float) -> Operation:
    tensors = [value for value in args if isinstance(value, Tensor)]
    moved = sum(value.nelement() * value.element_size() for value in (*tensors, result))
    precision = TORCH_PRECISIONS.get(result.dtype, "fp32")
    shape = tuple(result.shape)
    if name not in PRODUCTS:
        kind = CONVERSION if name in COPIES else OTHER
        return Operation(name, kind, name.strip("_"), shape, precision, 0, moved, seconds)
    if "convolution" in name:
        weights, transposed = tuple(args[1].shape), bool(args[6]) if name == "convolution" else False
        places = args[0].nelement() if transposed else result.nelement()
        adds = places * math.prod(weights[1:])
        depthwise = weights[1] == 1 and args[0].shape[1] > 1
    else:
        weights = tuple(tensors[-1].shape)
        adds, depthwise = result.nelement() * weights[-2], False
    what = layer_name(weights, shape, depthwise)
    return Operation(name, LAYER, what, shape, precision, adds, moved, seconds)


def profile_pytorch(call: Callable[[], object], runs: int) -> list[Operation]:
    """The operations of a call in eager PyTorch, in their order."""
    call()
    recorded = []
    for _ in range(runs):
        with torch.no_grad(), Clocks() as clocks:
            call()
        recorded.append(clocks.operations)
    return merged(recorded)


def merged(recorded: Sequence[Sequence[Operation]]) -> list[Operation]:
    """The operations of several equal runs, each with the median of its times."""
    return [
        Operation(**{**vars(same[0]), "seconds": statistics.median(op.seconds for op in same)})
        for same in zip(*recorded, strict=True)
    ]


# ----------------------------------------------------------------------------
# ONNX Runtime.

ORT_LAYERS = {  # operator -> where its weights stand among its inputs
    "Conv": 1,
    "FusedConv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "FusedGemm": 1,
    "MatMul": 1,
    "FusedMatMul": 1,
    "QLinearConv": 3,
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
}
ORT_CONVERSIONS = ("ReorderInput", "ReorderOutput", "Transpose", "Cast", "QuantizeLinear", "DequantizeLinear")
ITEM_BYTES = {
    "float": 4,
    "int32": 4,
    "uint8": 1,
    "int8": 1,
    "int64": 8,
    "bool": 1,
    "float16": 2,
    "bfloat16": 2,
}


def profile_onnxruntime(
    model: Path, x: NDArray[np.float32], threads: int, runs: int, folder: Path
) -> list[Operation]:
    """The nodes of a graph as ONNX Runtime's profiler tells them; its file goes into `folder`."""
    silence_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for _ in range(runs + 1):
        session.run(None, {session.get_inputs()[0].name: x})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    count = len(kernels) // (runs + 1)  # nodes of a run; the first run is a warm-up
    chunks = [kernels[i * count : (i + 1) * count] for i in range(1, runs + 1)]
    weights = _weight_shapes(folder / "optimized.onnx")
    return merged([[_ort_operation(event, weights) for event in chunk] for chunk in chunks])


def _weight_shapes(optimized: Path) -> dict[str, Shape]:
    """Node -> the shape of its weights: the profile leaves out those that were packed for the processor."""
    graph = onnx.load(str(optimized)).graph
    shapes = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ORT_LAYERS]
    return {
        node.name: shapes[node.input[ORT_LAYERS[node.op_type]]]
        for node in layers
        if node.input[ORT_LAYERS[node.op_type]] in shapes
    }


def _ort_operation(event: Mapping[str, Any], weight_shapes: Mapping[str, Shape]) -> Operation:
    told = event["args"]
    kind, inputs = told["op_name"], [_ort_value(value) for value in told["input_type_shape"]]
    outputs = [_ort_value(value) for value in told["output_type_shape"]]
    shape = outputs[0][1] if outputs else ()
    name = event["name"].removesuffix("_kernel_time")
    moved = sum(ITEM_BYTES.get(item, 4) * math.prod(s) for item, s in (*inputs, *outputs))
    seconds = 1e-6 * event["dur"]
    if kind not in ORT_LAYERS:
        group = CONVERSION if kind in ORT_CONVERSIONS else OTHER
        return Operation(name, group, kind, shape, "fp32", 0, moved, seconds)
    item, first = inputs[0]
    weights = weight_shapes.get(name) or inputs[ORT_LAYERS[kind]][1]
    if len(inputs) <= ORT_LAYERS[kind]:  # packed weights are not among its inputs
        moved += ITEM_BYTES.get(item, 4) * math.prod(weights)
    if kind == "ConvTranspose":
        adds = math.prod(first) * math.prod(weights[1:])
    elif len(weights) == 4:
        adds = math.prod(shape) * math.prod(weights[1:])
    else:
        adds = math.prod(shape) * first[-1]
    depthwise = len(weights) == 4 and weights[1] == 1 and weights[0] > 1
    precision = "int8" if item in ("int8", "uint8") else "fp32"
    return Operation(
        name, LAYER, layer_name(weights, shape, depthwise), shape, precision, adds, moved, seconds
    )


def _ort_value(value: Mapping[str, Sequence[int]]) -> tuple[str, Shape]:
    """{"float": [1, 3, 8, 8]} -> its parts."""
    ((item, shape),) = value.items()
    return item, tuple(shape)


# ----------------------------------------------------------------------------
# OpenVINO.

OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")
OPENVINO_CONVERSIONS = ("Reorder", "Convert", "Transpose", "FakeQuantize", "Quantize")
OPENVINO_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
OPENVINO_BYTES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2, "i8": 1, "u8": 1, "i64": 8}


def profile_openvino(
    model: Path, x: NDArray[np.float32], precision: str, threads: int, runs: int
) -> list[Operation]:
    """The nodes of the graph that OpenVINO executes, in their order, as its counters tell them."""
    with silent_openvino():
        import openvino

    from pgsr.runtime.backends.openvino import HINTS, one_core, read_model

    core = one_core(openvino)
    hint = HINTS[precision]
    read = read_model(openvino, core, str(model), hint)
    read.reshape([*x.shape])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    compiled = core.compile_model(read, "CPU", options)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    request.infer()
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        request.infer()
        for node in request.profiling_info:
            times.setdefault(node.node_name, []).append(node.real_time.total_seconds())
    nodes = sorted(compiled.get_runtime_model().get_ops(), key=lambda node: int(_told(node, "execOrder")))
    return [
        _openvino_operation(node, statistics.median(times[node.get_friendly_name()]))
        for node in nodes
        if _told(node, "execTimeMcs") != "not_executed" and node.get_friendly_name() in times
    ]


def _told(node: Any, key: str) -> str:
    """What the executed graph says of a node."""
    value = node.rt_info[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)


def _openvino_operation(node: Any, seconds: float) -> Operation:
    kind, shape = _told(node, "layerType"), tuple(node.output(0).shape)
    sources = [port.get_source_output() for port in node.inputs()]
    inputs = [tuple(source.shape) for source in sources]
    item = _told(node, "runtimePrecision").lower()
    precision = OPENVINO_PRECISIONS.get(item, "fp32")
    moved = _openvino_bytes(node, shape) + sum(
        _openvino_bytes(source.get_node(), s) for source, s in zip(sources, inputs, strict=True)
    )
    name = _told(node, "originalLayersNames") or node.get_friendly_name()
    if kind not in OPENVINO_LAYERS or len(inputs) < 2:
        group = CONVERSION if kind in OPENVINO_CONVERSIONS else OTHER
        return Operation(name, group, kind, shape, precision, 0, moved, seconds)
    weights = inputs[1]
    grouped = len(weights) == len(shape) + 1  # [groups, outputs / groups, inputs / groups, k, k]
    if kind == "Deconvolution":
        adds = math.prod(inputs[0]) * math.prod(weights[1 + grouped :])
    elif len(shape) == 4:
        adds = math.prod(shape) * math.prod(weights[1 + grouped :])
    else:
        adds = math.prod(shape) * inputs[0][-1]
    depthwise = grouped and weights[1] == 1 and weights[2] == 1
    return Operation(
        name, LAYER, layer_name(weights[grouped:], shape, depthwise), shape, precision, adds, moved, seconds
    )


def _openvino_bytes(node: Any, shape: Shape) -> int:
    item = _told(node, "outputPrecisions").split(",")[0].lower()
    return OPENVINO_BYTES.get(item, 4) * math.prod(shape)
