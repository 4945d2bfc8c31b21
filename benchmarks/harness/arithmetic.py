"""What separable convolutions should save of a whole network, by paper 1; and what graphs move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Saving:
    """Multiplications of one image."""

    vanilla: int
    separable: float  # by equation 3

    @property
    def ratio(self) -> float:
        return self.separable / self.vanilla

    def __add__(self, other: Saving) -> Saving:
        return Saving(self.vanilla + other.vanilla, self.separable + other.separable)


def equation_3(network: nn.Module, example: Tensor) -> Saving:
    """Every k x k convolution's multiplications (equation 1) times 1/N + 1/k**2, summed.

    1 x 1 convolutions are pointwise already. The layer of the latent stays as it is, too: the equation
    supposes an output of the input's size, and that one makes 4 x 4 of 1 x 1.
    """
    savings: list[Saving] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        k = module.kernel_size[0]
        transposed = isinstance(module, nn.ConvTranspose2d)
        positions = (inputs[0] if transposed else output)[0, 0].numel()
        vanilla = positions * module.in_channels * module.out_channels * k**2
        has_one_product = k == 1 or transposed
        savings.append(
            Saving(vanilla, vanilla * (1 if has_one_product else 1 / module.out_channels + 1 / k**2))
        )

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(savings, Saving(0, 0.0))


# ----------------------------------------------------------------------------
# Memory.

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def traffic(model: bytes, batch: int) -> float:
    """Bytes an image that the layers of an ONNX graph read and write at the least: what goes in, what comes
    out, and the weights once a batch. Everything between layers is taken to be part of them."""
    proto = onnx.load_from_string(model)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    shaped = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    sizes = {tensor.name: _bytes(tensor.dims, tensor.data_type) for tensor in shaped.initializer}
    for value in (*shaped.input, *shaped.value_info, *shaped.output):
        tensor_type = value.type.tensor_type
        sizes[value.name] = _bytes([d.dim_value for d in tensor_type.shape.dim], tensor_type.elem_type)
    layers = [node for node in shaped.node if node.op_type in LAYERS]
    return sum(sizes[name] for n in layers for name in (*n.input[:2], n.output[0])) / batch


def _bytes(dims: Sequence[int], kind: int) -> int:
    return math.prod(dims) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
