"""Parity: a written graph against the network it came from, on fresh latents.

The reference is the trained network itself in float32, before any rewrite. A graph of half precision is
judged twice, since ONNX Runtime's CPU provider computes whole subgraphs in float32 and would hide an
overflow: by the graph in ONNX Runtime, and by the same module with every intermediate result stored in
half, as GPUs store it. For bfloat16 that provider has no convolutions at all: there the first judge runs the
graph's own nodes and weights widened to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pgsr.errors import PgsrError
from pgsr.images import to_uint8

from .graphs import Chain
from .sessions import open_session

Array = NDArray[Any]

# The least PSNR in dB of the uint8 pictures against float32 torch, by precision.
LIMITS_DB = {"fp32": 60.0, "fp16": 45.0, "bf16": 32.0, "int8": 35.0}
LARGEST_STEP = {"fp32": 1, "fp16": 255, "bf16": 255, "int8": 255}  # of 255, of any one value
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}  # that the second judge stores in


@dataclass(frozen=True)
class Parity:
    """How far a graph is from its network; differences in steps of 1/255 of the picture's range."""

    samples: int
    max_steps: float
    mean_steps: float
    psnr_db: float  # of the uint8 pictures; 999 if they are equal

    def as_dict(self) -> dict[str, Any]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def pictures(result: Array) -> Array:
    """Returns what a graph gave as uint8."""
    return result if result.dtype == np.uint8 else to_uint8(result)


def compare(reference: Array, result: Array) -> Parity:
    """Two sets of uint8 pictures of the same shape."""
    difference = np.abs(reference.astype(np.float64) - result.astype(np.float64))
    mse = float(np.mean(difference**2))
    psnr = 999.0 if mse == 0 else 10 * math.log10(255.0**2 / mse)
    return Parity(len(reference), float(difference.max()), float(difference.mean()), psnr)


def worse(a: Parity, b: Parity) -> Parity:
    """Returns the worse of two parities."""
    return a if a.psnr_db <= b.psnr_db else b


def require(parity: Parity, precision: str, graph: str) -> None:
    """Raises PgsrError if a graph is too far from its network."""
    if parity.psnr_db < LIMITS_DB[precision] or parity.max_steps > LARGEST_STEP[precision]:
        raise PgsrError(
            f"the {graph} graph in {precision} does not match its network: PSNR {parity.psnr_db:.1f} dB and "
            f"largest difference {parity.max_steps:.0f} of 255; the limits are "
            f"{LIMITS_DB[precision]:.0f} dB and {LARGEST_STEP[precision]}; nothing was written"
        )


# A network whose numbers overflowed agrees with its graph: both give the same black pictures.


def finite(function: Callable[[Array], Array], graph: str, what: str) -> Callable[[Array], Array]:
    """The function, which raises PgsrError if it gives a number that is not finite."""

    def run(x: Array) -> Array:
        result = function(x)
        if not np.isfinite(result).all():
            _refuse_numbers(graph, what)
        return result

    return run


def require_finite(chain: Chain, graph: str, what: str) -> Chain:
    """A chain that raises PgsrError if its last network gives a number that is not finite: pixels hide it."""

    def check(network: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not torch.isfinite(output).all():
            _refuse_numbers(graph, what)

    chain.networks[-1].register_forward_hook(check)
    return chain


def _refuse_numbers(graph: str, what: str) -> None:
    raise PgsrError(
        f"the {graph} cannot be exported: {what} gives numbers that are not finite (its weights are damaged, "
        "or too large for the precision); nothing was written"
    )


def require_variety(reference: Array, graph: str) -> None:
    """Raises PgsrError if all pictures of a network, [N, ...], are the same."""
    if (reference == reference[:1]).all():
        raise PgsrError(
            f"the {graph} cannot be exported: its network gives the same picture for every input; nothing "
            "was written"
        )


def session_of(model: bytes) -> Callable[[Array], Array]:
    """The graph as a function, in ONNX Runtime on the CPU."""
    session = open_session(model)
    name = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        try:
            return np.asarray(session.run(None, {name: x})[0])
        except Exception as error:  # ONNX Runtime's own, of several kinds
            text = " ".join(str(error).split())[:200]
            sides = "x".join(map(str, x.shape))
            raise PgsrError(f"the graph cannot be run with an input of {sides}: {text}") from error

    return run


class Storage(TorchDispatchMode):
    """Inside it, every operation on tensors of `dtype` computes in float32 and rounds its result to it.

    That is what tensor cores do, it overflows where they do, and it is far faster than half arithmetic
    on a CPU.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stored = [t for t in tree_leaves((args, kwargs)) if _is(t, self.dtype)]
        if not stored or func is torch.ops.aten._to_copy.default:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(lambda t: t.float() if _is(t, self.dtype) else t, (args, kwargs or {}))
        return tree_map(lambda t: t.to(self.dtype) if _is(t, torch.float32) else t, func(*args, **kwargs))


def _is(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype


def stored_function(module: nn.Module, dtype: torch.dtype) -> Callable[[Array], Array]:
    """A module of a low precision as a function, every intermediate result stored in it."""
    compute = torch_function(module)

    def run(x: Array) -> Array:
        with Storage(dtype):
            return compute(x)

    return run


def widened(model: bytes) -> bytes:
    """A bfloat16 graph with its weights, rounded as they are, in float32, and all arithmetic too."""
    from onnx import TensorProto, load_from_string, numpy_helper

    proto = load_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    wide: bytes = proto.SerializeToString()
    return wide


def torch_function(module: nn.Module) -> Callable[[Array], Array]:
    """A module as a function from array to array."""

    def run(x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(x)).numpy())

    return run


def in_parts(function: Callable[[Array], Array], inputs: Array, part: int = 8) -> Array:
    """The function over all inputs, a few at a time."""
    return np.concatenate([function(inputs[i : i + part]) for i in range(0, len(inputs), part)])
