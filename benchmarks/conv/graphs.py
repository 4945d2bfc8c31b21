"""One convolution as an ONNX graph, in float32, or in 8 bits from its input to its output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .cases import Case

OPSET = 20


class Builder:
    """A graph under construction."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def enlarged(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self.node("Resize", [x, "", scales], **modes)

    def convolution(self, x: str, inputs: int, outputs: int, kernel: int, groups: int = 1) -> str:
        """A convolution that keeps the size, with biases; its inputs and outputs in 8 bits, if all are."""
        shape = (outputs, inputs // groups, kernel, kernel)
        weights = self._random.standard_normal(shape).astype(np.float32) / (shape[1] * kernel**2) ** 0.5
        bias = self.constant(np.full(outputs, 0.1, np.float32))
        attributes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "group": groups}
        if not self.int8:
            return self.node("Conv", [x, self.constant(weights), bias], **attributes)
        y = self.node("Conv", [self._real(x), self._stored(weights), bias], **attributes)
        return self.node("QuantizeLinear", [y, *self._scale()])

    def _scale(self) -> list[str]:
        """Activations around 128 in steps of 1/20."""
        return [self.constant(np.float32(0.05)), self.constant(np.uint8(128))]

    def _real(self, x: str) -> str:
        return self.node("DequantizeLinear", [x, *self._scale()])

    def _stored(self, weights: NDArray[np.float32]) -> str:
        """Weights in 8 bits with a scale for each map, symmetric."""
        scales = (np.abs(weights).max((1, 2, 3)) / 127).astype(np.float32)
        integers = np.round(weights / scales[:, None, None, None]).astype(np.int8)
        zeros = self.constant(np.zeros(len(scales), np.int8))
        inputs = [self.constant(integers), self.constant(scales), zeros]
        return self.node("DequantizeLinear", inputs, axis=0)


def graph(case: Case, convolution: str, int8: bool) -> bytes:
    """The case as an ONNX file of fixed shape: NCHW, float32 or uint8 in and out."""
    builder = Builder(int8)
    x = builder.enlarged("x") if case.form == "up" else "x"
    if convolution == "separable":
        x = builder.convolution(x, case.channels, case.channels, case.kernel, case.channels)
        y = builder.convolution(x, case.channels, case.maps, 1)
    else:
        y = builder.convolution(x, case.channels, case.maps, case.kernel)
    kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    ports = (("x", case.channels, case.input_side), (y, case.maps, case.resolution))
    x_info, y_info = (
        helper.make_tensor_value_info(name, kind, [case.batch, maps, side, side])
        for name, maps, side in ports
    )
    proto = helper.make_model(
        helper.make_graph(builder.nodes, "convolution", [x_info], [y_info], builder.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())
