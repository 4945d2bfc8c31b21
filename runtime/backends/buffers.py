"""Buffers of a fixed batch, for the runners that place their own memory on the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pgsr.bundle import Graph, Port
from pgsr.errors import PgsrError


@dataclass(frozen=True)
class Buffer:
    """One input or output of a fixed batch, on the host and on the device."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def size(self) -> int:
        """The buffer's size in bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def is_fixed(graph: Graph) -> bool:
    """Returns whether only the batch is open; an upscaler takes pictures of any size."""
    return all(isinstance(side, int) for side in graph.inputs[0].shape[1:])


def plan(graph: Graph, rows: int) -> tuple[Buffer, Buffer]:
    """The input's and the output's buffers. Raises PgsrError for a graph of pictures of any size."""
    return _buffer(graph.inputs[0], rows), _buffer(graph.outputs[0], rows)


def _buffer(port: Port, rows: int) -> Buffer:
    rest = [side for side in port.shape[1:] if isinstance(side, int)]
    if len(rest) != len(port.shape) - 1:
        raise PgsrError(
            "TensorRT needs a graph of one picture size; this one takes any: use another --backend"
        )
    return Buffer(port.name, (rows, *rest), port.dtype)
