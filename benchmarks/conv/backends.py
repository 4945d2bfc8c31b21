"""The libraries that convolve. Each gives a call that computes one case, its input and output in memory that
the library need not convert: so the convolution is timed, and what the library does around it by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pgsr.privacy import silence_onnxruntime, silent_openvino

from .cases import Case
from .graphs import graph

Call = Callable[[], object]


@dataclass(frozen=True)
class Library:
    """A library, and what it can be told."""

    module: str
    name: str  # as people know it
    layouts: tuple[str, ...]
    precisions: tuple[str, ...]
    open: Callable[[Case, str, str, str, int], Call]  # case, convolution, layout, precision, threads
    note: str  # why something is missing; empty if nothing is


# ----------------------------------------------------------------------------
# PyTorch, eager.


class Convolution(nn.Module):
    """[N, C, H, W] -> [N, M, H, W], or twice as large."""

    def __init__(self, case: Case, convolution: str) -> None:
        super().__init__()
        c, k = case.channels, case.kernel
        self.up = case.form == "up"
        if convolution == "separable":
            depthwise = nn.Conv2d(c, c, k, padding=k // 2, groups=c)
            self.layers = nn.Sequential(depthwise, nn.Conv2d(c, case.maps, 1))
        else:
            self.layers = nn.Sequential(nn.Conv2d(c, case.maps, k, padding=k // 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return torch.as_tensor(self.layers(x))


def open_pytorch(case: Case, convolution: str, layout: str, precision: str, threads: int) -> Call:
    """Eager PyTorch, weights and maps in one layout and data type."""
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    network = Convolution(case, convolution).to(dtype).requires_grad_(False)
    network = network.to(memory_format=memory)  # type: ignore[call-overload]
    x = torch.from_numpy(_noise(case)).to(dtype=dtype, memory_format=memory)
    return lambda: network(x)


# ----------------------------------------------------------------------------
# Graphs.


def open_onnxruntime(case: Case, convolution: str, _layout: str, precision: str, threads: int) -> Call:
    """ONNX Runtime, with its input in its own memory; it blocks the layout as it likes."""
    silence_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = graph(case, convolution, precision == "int8")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    x = onnxruntime.OrtValue.ortvalue_from_numpy(_values(case, precision))
    binding.bind_ortvalue_input("x", x)
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding)


def open_openvino(case: Case, convolution: str, layout: str, precision: str, threads: int) -> Call:
    """OpenVINO, with input and output in the precision computed in, and in the layout that it is told."""
    with silent_openvino():
        import openvino
        from openvino.preprocess import PrePostProcessor

    from pgsr.runtime.backends.openvino import one_core

    core = one_core(openvino)
    model = core.read_model(graph(case, convolution, precision == "int8"))
    around = PrePostProcessor(model)
    for port in (around.input(), around.output()):
        if precision == "bf16":
            port.tensor().set_element_type(openvino.Type.bf16)
        if layout == "NHWC":
            port.model().set_layout(openvino.Layout("NCHW"))
            port.tensor().set_layout(openvino.Layout("NHWC"))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(around.build(), "CPU", options).create_infer_request()
    values = _values(case, precision)
    if layout == "NHWC":
        values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    if precision == "bf16":
        upper_halves = (values.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, rounded towards zero
        request.set_input_tensor(openvino.Tensor(upper_halves, [*values.shape], openvino.Type.bf16))
    else:
        request.set_input_tensor(openvino.Tensor(values))
    return lambda: request.infer()


def _noise(case: Case) -> NDArray[np.float32]:
    """[N, C, H, W], standard normal."""
    shape = (case.batch, case.channels, case.input_side, case.input_side)
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def _values(case: Case, precision: str) -> NDArray[Any]:
    noise = _noise(case)
    return np.clip(noise * 20 + 128, 0, 255).astype(np.uint8) if precision == "int8" else noise


LIBRARIES = {
    "pytorch": Library(
        "torch",
        "PyTorch",
        ("NCHW", "NHWC"),
        ("fp32", "bf16"),
        open_pytorch,
        "Eager PyTorch has no 8-bit convolution for ordinary tensors.",
    ),
    "onnxruntime": Library(
        "onnxruntime",
        "ONNX Runtime",
        ("NCHW",),
        ("fp32", "int8"),
        open_onnxruntime,
        "ONNX Runtime's CPU has no bf16 kernels, and takes NCHW alone (it blocks channels by itself).",
    ),
    "openvino": Library(
        "openvino", "OpenVINO", ("NCHW", "NHWC"), ("fp32", "bf16", "int8"), open_openvino, ""
    ),
}


def installed() -> tuple[str, ...]:
    """The names of LIBRARIES that are there."""
    return tuple(name for name, library in LIBRARIES.items() if find_spec(library.module) is not None)
