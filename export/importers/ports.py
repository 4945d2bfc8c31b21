"""ProGAN generators of genforce and of MMGeneration -> `ProGANGenerator`. Both compute as NVIDIA's does.

In both, layers that enlarge may be fused with the enlargement: transposed convolutions, [in, out, 3, 3],
which are the plain ones upside down. Where a layer has as many inputs as outputs its shape does not show
which it is; then the others' do, or else it is what the project makes unless it is told otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .imported import NO_HINTS, Hints, Imported
from .progan import ROOT2, Layer, Layers, he, is_equalized, told_by_weights
from .taking import Taker, unwrapped

GENFORCE = "genforce/genforce"
MMGENERATION = "open-mmlab/mmgeneration"
MMGENERATION_EPSILON = 1e-12  # there 1e-6 is added to the root, which is as large where all maps are 0


def genforce(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports genforce's PGGAN generator; None if the tree holds none. Every convolution has a normalisation
    before it, the first too, so that all is as if they stood behind the activations."""
    tensors = unwrapped(tree)
    if not {"layer0.weight", "layer1.weight", "output0.weight"} <= set(tensors):
        return None
    taker = Taker(GENFORCE, tensors)
    equalized = is_equalized(taker, r"layer\d+\.weight", hints, None)
    levels = taker.count("output{}.weight")
    fused = _fused([_shape(taker, f"layer{2 * i}.weight") for i in range(1, levels)], usually=False)

    def layer(name: str, kernel: int, gain: float = ROOT2, turned: bool = False) -> Layer:
        weight = taker.take(f"{name}.weight", None, None, kernel, kernel)
        weight = weight.permute(1, 0, 2, 3).flip(2, 3) if turned else weight
        return Layer(weight * he(weight, equalized, gain), taker.take(f"{name}.bias", weight.shape[0]))

    whole = layer("layer0", 4)  # with a border of 3 round the 1 x 1 latent, which sees its kernel upside down
    dense = whole.weight.flip(2, 3).permute(0, 2, 3, 1).reshape(16 * len(whole.weight), -1)
    layers = Layers(
        first=Layer(dense, whole.bias),
        convolution=layer("layer1", 3),
        blocks=[
            (layer(f"layer{2 * i}", 3, turned=fused), layer(f"layer{2 * i + 1}", 3)) for i in range(1, levels)
        ],
        rgb=[layer(f"output{i}", 1, 1.0) for i in range(levels)],
    )
    lod = float(taker.take("lod")) if "lod" in taker else 0.0
    taker.finish()
    options = layers.options()
    grown = max(4, options["resolution"] >> math.ceil(lod))
    notes = told_by_weights(equalized)
    return Imported.of_network(GENFORCE, options, layers.state(), grown, takes_equalized=True, notes=notes)


def mmgeneration(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports MMGeneration's PGGAN generator; None if the tree holds none. The constant of a fused layer
    counts its outputs, not its inputs."""
    tensors = unwrapped(tree)
    if not {"noise2feat.linear.weight_orig", "conv_blocks.0.conv.weight_orig"} <= set(tensors):
        return None
    taker = Taker(MMGENERATION, tensors)
    levels = taker.count("torgb_layers.{}.conv.weight_orig")
    ups = [f"conv_blocks.{2 * i - 1}.conv" for i in range(1, levels)]
    fused = _fused([_shape(taker, f"{name}.weight_orig") for name in ups], usually=True)

    def layer(name: str, kernel: int = 3, gain: float = ROOT2, turned: bool = False) -> Layer:
        weight = taker.take(f"{name}.weight_orig", None, None, kernel, kernel)
        scale = he(weight, True, gain)  # of a fused layer [in, out, 3, 3] by its outputs
        weight = weight.permute(1, 0, 2, 3).flip(2, 3) if turned else weight
        return Layer(weight * scale, taker.take(f"{name}.bias", weight.shape[0]))

    dense = taker.take("noise2feat.linear.weight_orig", None, None)
    bias = taker.take("noise2feat.bias", 1, dense.shape[0] // 16, 1, 1).flatten()
    layers = Layers(
        first=Layer(dense * he(dense, True, ROOT2 / 4), bias),
        convolution=layer("conv_blocks.0.conv"),
        blocks=[
            (layer(name, turned=fused), layer(f"conv_blocks.{2 * i}.conv")) for i, name in enumerate(ups, 1)
        ],
        rgb=[layer(f"torgb_layers.{i}.conv", 1, 1.0) for i in range(levels)],
    )
    taker.finish()
    options = layers.options(epsilon=MMGENERATION_EPSILON)
    return Imported.of_network(MMGENERATION, options, layers.state(), options["resolution"])


def _shape(taker: Taker, name: str) -> tuple[int, ...]:
    """A layer's first two sides, and how many maps come from the level below."""
    tensor: Tensor = taker.take(name, None, None, 3, 3)
    return tuple(tensor.shape[:2])


def _fused(shapes: list[tuple[int, ...]], usually: bool) -> bool:
    """Whether layers from one level to the next are [in, out] rather than [out, in].

    Widths fall with the resolution, so the larger side is the inputs'.
    """
    return next((a > b for a, b in shapes if a != b), usually)
