"""The roof over a convolution: what memory and the multipliers of this machine can do at most.

Williams, Waterman and Patterson, *Roofline: An Insightful Visual Performance Model* (2009): a layer that
computes f operations and moves b bytes takes at least max(f / peak, b / bandwidth) seconds. The bandwidth is
that of the cache which holds all that the layer touches, so it is measured by size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgsr.privacy import silence_onnxruntime

from .machine import FAST, Machine, describe, peak_gflops

# Bytes that a copy reads and writes: within most processors' second level, third level, and neither.
SIZES = (2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28)


@dataclass(frozen=True)
class Roof:
    """A machine's peaks."""

    peaks: Mapping[str, float]  # GFLOP/s of a matrix product, by precision; two operations a multiply-add
    bandwidths: Mapping[int, float]  # GB/s of a copy, by the bytes that it reads and writes

    def bandwidth(self, touched_bytes: float) -> float:
        """GB/s for a layer that touches so many bytes: between the sizes measured, on logarithmic scales."""
        sizes = sorted(self.bandwidths)
        speeds = [math.log(self.bandwidths[size]) for size in sizes]
        position = math.log(max(1.0, touched_bytes))
        return float(math.exp(np.interp(position, [math.log(size) for size in sizes], speeds)))

    @property
    def memory_gbs(self) -> float:
        """GB/s of what fits no cache: of the largest copy."""
        return self.bandwidths[max(self.bandwidths)]

    def peak(self, precision: str) -> float:
        """GFLOP/s; those of float32 where the precision's own were not measured."""
        return self.peaks.get(precision, self.peaks["fp32"])

    def seconds(self, multiply_adds: float, moved_bytes: float, precision: str) -> tuple[float, float]:
        """The least time for the arithmetic, and for the bytes."""
        arithmetic = 2e-9 * multiply_adds / self.peak(precision)
        return arithmetic, 1e-9 * moved_bytes / self.bandwidth(moved_bytes)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bandwidths": {str(k): v for k, v in self.bandwidths.items()}}


def roof_of(data: Mapping[str, Any]) -> Roof:
    """The roof that `as_dict` described."""
    return Roof(data["peaks"], {int(size): speed for size, speed in data["bandwidths"].items()})


@cache
def survey(threads: int) -> tuple[Machine, Roof]:
    """Describes this machine and measures its roof, once in a process."""
    machine = describe(threads)
    return machine, measured_roof(machine, threads)


PRODUCTS = (512, 1024, 2048)  # sides of the matrices; small ones fit between two interruptions


def measured_roof(machine: Machine, threads: int, rounds: int = 15) -> Roof:
    """Measures memory, and products in the precisions that the processor has instructions for: some seconds.

    A roof is the best that was seen: what interrupts a round says nothing of the machine.
    """
    import torch

    torch.set_num_threads(threads)
    numpy = max(machine.peak_gflops, peak_gflops(threads, PRODUCTS[0], 4 * rounds))
    peaks = {"fp32": max(numpy, product_gflops("fp32", threads, rounds))}
    for precision in FAST:
        if machine.is_fast_in(precision):
            peaks[precision] = product_gflops(precision, threads, rounds)
    return Roof(peaks, {size: copy_gbs(size, rounds) for size in SIZES})


def product_gflops(precision: str, threads: int, rounds: int = 15) -> float:
    """GFLOP/s of the fastest square matrix product in PyTorch or, in float32, in ONNX Runtime.

    On some processors PyTorch's and numpy's libraries use half of the float32 multipliers.
    """
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    best = 0.0
    for side in PRODUCTS:
        integers = torch.randint(-127, 128, (2, side, side), generator=torch.Generator().manual_seed(0))
        a, b = integers.to(dtype)
        calls = [partial(torch._int_mm if precision == "int8" else torch.matmul, a, b)]
        if precision == "fp32":
            calls.append(_onnxruntime_product(a.numpy(), b.numpy(), threads))
        for call in calls:
            call()
        seconds = min(_seconds(call) for call in calls for _ in range(rounds))
        best = max(best, 2e-9 * side**3 / seconds)
    return best


def _onnxruntime_product(a: NDArray[np.float32], b: NDArray[np.float32], threads: int) -> partial[Any]:
    """A call of a graph that multiplies by a constant."""
    silence_onnxruntime()
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name in "xy")
    node = helper.make_node("MatMul", ["x", "b"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(b, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return partial(session.run, None, {"x": a})


def copy_gbs(size: int, rounds: int = 15, call_seconds: float = 0.002) -> float:
    """GB/s read and written by the fastest copy that touches `size` bytes, on PyTorch's threads."""
    import torch

    source = torch.ones(size // 8, dtype=torch.float32)
    target = torch.empty_like(source)

    def copies(count: int) -> None:
        for _ in range(count):
            target.copy_(source)

    copies(2)
    count = max(1, round(call_seconds / max(1e-7, _seconds(lambda: copies(1)))))
    return 1e-9 * size * count / min(_seconds(lambda: copies(count)) for _ in range(rounds))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
