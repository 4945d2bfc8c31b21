"""How far pictures are from each other: by a network's activations, as paper 2's Figure 10, or by pixels.

    compare = comparison("lite0")         # or "pixels", or the path of VGG19's weights
    to_queries = compare(queries)         # uint8 [Q, S, S, 3]
    to_queries(photographs)               # uint8 [N, S, S, 3] -> float64 [Q, N]

Activations are compared as Chen and Koltun (2017) do, whom the paper follows: mean absolute differences of a
few layers, added up. There weights make the layers' contributions equal; here each layer is divided by its
mean absolute activation of the queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgsr.files import sha256
from pgsr.networks.efficientnet import load_lite0
from pgsr.networks.vgg import load_vgg19

from .feature_network import LITE0, resized

Pixels = NDArray[np.uint8]  # [N, S, S, 3]
ToQueries = Callable[[Pixels], NDArray[np.float64]]  # photographs [N, S, S, 3] -> distances [Q, N]

PIXELS = "pixels"  # in the place of a network
SIDE = 96  # pixels that crops are resized to for a network
VGG_LAYERS = (2, 4, 6, 10, 14)  # conv1_2 to conv5_2, counted from 1 (Chen and Koltun 2017, section 3)
CHUNK_BYTES = 2**20  # of photographs compared at a time: they and the differences stay in a processor's cache


@dataclass(frozen=True)
class Comparison:
    """A way to compare pictures."""

    name: str  # "pixels", "lite0" or "vgg19"
    sha256: str | None  # of the network's weights
    start: Callable[[Pixels], ToQueries]  # of queries

    def __call__(self, queries: Pixels) -> ToQueries:
        return self.start(queries)


def comparison(features: str, device: torch.device | str = "cpu") -> Comparison:
    """The comparison by "pixels", by "lite0", or by the VGG19 whose weights lie at a path.

    Raises PgsrError if lite0's weights are not installed, or the file is absent or no VGG19.
    """
    if features == PIXELS:
        return Comparison(PIXELS, None, lambda queries: lambda pictures: pixel_distances(queries, pictures))
    if features == str(LITE0):
        lite0 = load_lite0().to(device)
        return Comparison(features, lite0.digest, _by_layers(lite0.pyramid, device))
    vgg = load_vgg19(Path(features)).to(device)
    layers = _by_layers(lambda images: vgg.layers(images, VGG_LAYERS), device)
    return Comparison("vgg19", sha256(Path(features)), layers)


def pixel_distances(queries: Pixels, pictures: Pixels) -> NDArray[np.float64]:
    """Mean absolute differences of values, 0 to 255: [Q, N]."""
    return np.stack([_differences(query, pictures) for query in queries])


def _differences(query: NDArray[np.uint8], pictures: Pixels) -> NDArray[np.float64]:
    """[N], without a copy that is wider than the pictures."""
    apart = np.maximum(pictures, query)
    apart -= np.minimum(pictures, query)
    means: NDArray[np.float64] = apart.reshape(len(apart), -1).sum(axis=1, dtype=np.uint32) / query.size
    return means


def _by_layers(
    network: Callable[[Tensor], list[Tensor]], device: torch.device | str
) -> Callable[[Pixels], ToQueries]:
    """A comparison by the layers that a network gives of images [N, 3, SIDE, SIDE] in [-1, 1]."""

    @torch.no_grad()
    def layers(pictures: Pixels) -> list[Tensor]:
        images = torch.from_numpy(resized(pictures, SIDE, "bicubic")).to(device)
        return [x.flatten(1) for x in network(images.permute(0, 3, 1, 2).float() / 127.5 - 1)]

    def start(queries: Pixels) -> ToQueries:
        asked = layers(queries)  # [Q, values] a layer
        scales = [float(layer.abs().mean()) for layer in asked]

        def to_queries(pictures: Pixels) -> NDArray[np.float64]:
            found = layers(pictures)  # [N, values] a layer
            total = torch.zeros(len(queries), len(pictures), dtype=torch.float64)
            for ours, theirs, scale in zip(asked, found, scales, strict=True):
                total += (torch.cdist(ours, theirs, p=1) / (ours.shape[1] * scale)).cpu()
            return total.numpy()

        return to_queries

    return start
