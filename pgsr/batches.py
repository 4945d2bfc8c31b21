"""How many pictures a graph may be given at a time, by the memory that they take."""

from __future__ import annotations

from .bundle import Bundle, Graph

LEAST, MOST = 2, 64  # a batch of one is computed as two; more than 64 have not been faster anywhere
PIXELS = 2**24  # of a batch's pictures at most: 48 MiB, of which a dozen may wait for their encoders
WAITING = 12  # finished batches
GPU_BYTES = 2**32  # that a batch may take on a GPU, where nobody names one

# What a picture takes of memory to the sum of the values that its graph holds at the same time. ONNX Runtime
# on the CPU lays maps out anew and rounds its blocks up: 2.5 to 3.0. OpenVINO: 1 (docs/generate.md).
HELD = 3.0


def most(size: int) -> int:
    """The largest batch of pictures with sides of `size` pixels."""
    return min(MOST, max(LEAST, PIXELS // max(1, size) ** 2))


def activation_bytes(bundle: Bundle, name: str) -> int:
    """Of one picture in the graph of that name, 0 if the bundle does not tell: the most of all precisions,
    because CPUs compute half precision partly in float32."""
    return max((graph.activation_bytes for graph in bundle.graphs if graph.name == name), default=0)


def images_that_fit(bundle: Bundle, name: str, memory: int) -> int:
    """The number of a graph's pictures that so many bytes have room for, with the finished ones that wait; 0
    if not even one fits, MOST if the bundle does not say what they take."""
    activations = activation_bytes(bundle, name)
    if not activations:
        return MOST
    return min(MOST, int(memory / (HELD * activations + WAITING * 3 * bundle.size**2)))


def images_on_gpu(bundle: Bundle, graph: Graph) -> int:
    """The largest batch on a GPU where nobody names one."""
    return min(most(bundle.size), max(1, images_that_fit(bundle, graph.name, GPU_BYTES)))
