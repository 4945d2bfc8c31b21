"""The last steps of a separable SRResNet, which a kernel of ours computes in place of OpenVINO.

    cut = split(openvino, model, bf16=False)   # None: the graph ends otherwise, or there is no kernel
    if cut:
        trunk, tail = cut                      # the graph up to its last PixelShuffle, and what follows

The kernel (tail_kernel.py) is used wherever it fits, so that pixels do not depend on a measurement of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE, REACH, OUTPUTS = 9, 4, 3
LANES, STRIP = 16, 32  # maps of a vector, columns of a strip (tail_kernel.py)

# Operations from a graph's end, without conversions of type: of images, and of pixels.
IMAGES = ("Add", "Convolution", "GroupConvolution", "PRelu", "DepthToSpace")
PIXELS = ("Transpose", "Minimum", "Maximum", "Round", "Multiply", "Add")
PIXEL_CONSTANTS = {
    "Transpose": [0, 2, 3, 1],
    "Minimum": [255],
    "Maximum": [0],
    "Multiply": [127.5],
    "Add": [1],
}


@dataclass(frozen=True)
class Weights:
    """What follows the last PixelShuffle: PReLU, depthwise 9 x 9, pointwise to 3 maps, perhaps pixels."""

    slope: float  # of the PReLU
    depthwise: NDArray[np.float32]  # [C, 9, 9]
    pointwise: NDArray[np.float32]  # [3, C]
    bias: NDArray[np.float32]  # [3]
    pixels: bool  # uint8 [N, H, W, 3], else float32 [N, 3, H, W]


class Tail:
    """[N, H, W, 4 C] before PixelShuffle -> images or pixels at twice the size."""

    def __init__(self, weights: Weights, bf16: bool, kernel: Callable[..., None]) -> None:
        self._weights, self._kernel = weights, kernel
        self._depthwise = (_paired if bf16 else _lanes_last)(weights.depthwise)
        blocks = weights.pointwise.reshape(OUTPUTS, -1, LANES)
        self._pointwise = np.ascontiguousarray(blocks.transpose(1, 0, 2))
        self._value = np.uint16 if bf16 else np.float32

    def buffers(self) -> list[NDArray[np.float32]]:
        """What one caller at a time computes in: the ring of rows, and the sums of two."""
        maps = len(self._weights.depthwise)
        ring, sums = 16 * (STRIP + 2 * REACH) * maps, 2 * STRIP * OUTPUTS * LANES
        return [np.empty(ring, np.float32), np.empty(sums, np.float32)]

    def run(self, x: NDArray[Any], buffers: list[NDArray[np.float32]]) -> NDArray[Any]:
        """bfloat16 comes in whatever type of 16 bits."""
        x = np.ascontiguousarray(x).view(self._value)
        n, height, width, _ = x.shape
        padded = -(-2 * width // STRIP) * STRIP
        pixels = self._weights.pixels
        shape = (n, 2 * height, padded, OUTPUTS) if pixels else (n, OUTPUTS, 2 * height, padded)
        out = np.empty(shape, np.uint8 if pixels else np.float32)
        constants = [self._depthwise, self._pointwise, self._weights.bias]
        for image, result in zip(x, out, strict=True):
            arrays = [image, *buffers, *constants, result]
            self._kernel(*(a.ctypes.data for a in arrays), self._weights.slope, height, width, padded)
        return out[:, :, : 2 * width] if pixels else out[..., : 2 * width]


def _lanes_last(depthwise: NDArray[np.float32]) -> NDArray[np.float32]:
    """[C, 9, 9] -> [C / 16, 81, 16]."""
    return np.ascontiguousarray(depthwise.reshape(-1, LANES, SIDE**2).transpose(0, 2, 1))


def _paired(depthwise: NDArray[np.float32]) -> NDArray[np.uint32]:
    """[C, 9, 9] -> [C / 16, 2, 5, 9, 16]: the weights of five pairs of input rows for each of two output
    rows, in bfloat16, the upper row's in the lower half; 0 for a row that the output row does not see."""
    bits = to_bf16(depthwise).astype(np.uint32).reshape(-1, LANES, SIDE, SIDE)
    pairs = np.zeros((len(bits), 2, 5, SIDE, LANES), np.uint32)
    for row in range(2):
        for place in range(row, row + SIDE):
            pairs[:, row, place // 2] |= bits[:, :, place - row].transpose(0, 2, 1) << 16 * (place % 2)
    return pairs


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# ----------------------------------------------------------------------------
# Where a graph is cut.


def split(openvino: Any, model: Any, bf16: bool) -> tuple[Any, Tail] | None:
    """The model up to its last PixelShuffle and the rest; None if it ends otherwise, or llvmlite or the
    processor's instructions are missing."""
    try:
        from . import tail_kernel
    except ImportError:
        return None
    if not tail_kernel.usable(bf16):
        return None
    found = _read(model)
    if found is None:
        return None
    shuffle, weights = found
    kernel = tail_kernel.compiled(len(weights.depthwise), bf16, weights.pixels)
    ops = openvino.opset13
    source = ops.transpose(shuffle.input_value(0), np.array([0, 2, 3, 1], np.int64))
    trunk = ops.convert(source, "bf16" if bf16 else "f32")
    return openvino.Model([trunk], model.get_parameters(), "trunk"), Tail(weights, bf16, kernel)


def _read(model: Any) -> tuple[Any, Weights] | None:
    """The last PixelShuffle and the weights behind it."""
    if len(model.outputs) != 1:
        return None
    made = model.outputs[0].get_element_type().get_type_name()
    if made not in ("u8", "f32"):
        return None
    pixels = made == "u8"
    kinds = (*PIXELS, *IMAGES) if pixels else IMAGES
    steps = [step for step, _ in zip(_upwards(model.get_results()[0]), kinds, strict=False)]
    if tuple(step.get_type_name() for step in steps) != kinds:
        return None
    if pixels and not all(map(_makes_pixels, steps[: len(PIXELS)])):
        return None
    add, pointwise, depthwise, prelu, shuffle = steps[-len(IMAGES) :]
    values = [value for step in (add, pointwise, depthwise, prelu) if (value := _constant(step)) is not None]
    if len(values) < 4 or not _fits(pointwise, depthwise, shuffle, values):
        return None
    bias, point, deep, slope = values
    maps = deep.size // SIDE**2
    deep, point = deep.reshape(maps, SIDE, SIDE), point.reshape(OUTPUTS, maps)
    return shuffle, Weights(float(slope[0]), deep, point, bias, pixels)


def _upwards(node: Any) -> Iterator[Any]:
    """The nodes above, each time by the input that is no constant; conversions of type are left out."""
    while True:
        above = [value.get_node() for value in node.input_values()]
        above = [n for n in above if _value(n) is None]
        if len(above) != 1:
            return
        node = above[0]
        if node.get_type_name() != "Convert":
            yield node


def _value(node: Any) -> NDArray[np.float32] | None:
    """A constant's values in a row, through changes of its type and shape."""
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return np.asarray(node.get_data(dtype=np.float32)).reshape(-1)


def _constant(step: Any) -> NDArray[np.float32] | None:
    """The one constant of an operation."""
    values = [_value(value.get_node()) for value in step.input_values()]
    known = [value for value in values if value is not None]
    return known[0] if len(known) == 1 else None


def _makes_pixels(step: Any) -> bool:
    """Whether an operation is [-1, 1] -> 0 ... 255's, with its constant."""
    kind = step.get_type_name()
    if kind == "Round":
        return bool(step.get_attributes().get("mode") == "half_to_even")
    value = _constant(step)
    return value is not None and value.tolist() == PIXEL_CONSTANTS[kind]


def _fits(pointwise: Any, depthwise: Any, shuffle: Any, values: list[NDArray[np.float32]]) -> bool:
    """Whether the kernel computes just these: shapes, pads, strides, the order of the maps."""
    bias, _, _, slope = values
    maps = shuffle.output(0).get_partial_shape()[1]
    if maps.is_dynamic or maps.get_length() % LANES:
        return False
    shapes = [list(layer.input_value(1).get_shape()) for layer in (pointwise, depthwise)]
    count = maps.get_length()
    order: Mapping[str, Any] = shuffle.get_attributes()
    return (
        shapes == [[OUTPUTS, count, 1, 1], [count, 1, 1, SIDE, SIDE]]
        and (bias.size, slope.size) == (OUTPUTS, 1)
        and (order["mode"], order["block_size"]) == ("blocks_first", 2)
        and all(_plain(layer, reach) for layer, reach in ((pointwise, 0), (depthwise, REACH)))
    )


def _plain(layer: Any, reach: int) -> bool:
    about = layer.get_attributes()
    pads = [*about["pads_begin"], *about["pads_end"]]
    return set(pads) == {reach} and {*about["strides"], *about["dilations"]} == {1}
