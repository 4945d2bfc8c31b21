"""NVIDIA's ProGAN generators (tkarras/progressive_growing_of_gans) -> `ProGANGenerator`.

A file is a pickle of the networks G, D and Gs, the average.
Dense weights are [in, out], convolutions [k, k, in, out]; one fused with the upsampling before it is a
transposed convolution's [k, k, out, in], which is the plain one upside down. Everything else is as here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgsr.errors import PgsrError

from .imported import NO_HINTS, Hints, Imported
from .plain import Record
from .progan import ROOT2, Layer, Layers, he
from .taking import Taker, unwrapped

NVIDIA = "tkarras/progressive_growing_of_gans"
ASSUMED = {"tanh_at_end": None, "use_batchnorm": False}  # settings without a counterpart here


def nvidia(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """The last generator among the networks in the file; the average comes after the one that trained."""
    networks = tree if isinstance(tree, (list, tuple)) else [tree]
    generators = [n for n in networks if isinstance(n, Record) and _is_generator(n)]
    if not generators:
        return None
    network = generators[-1]
    settings = network.get("static_kwargs") or network.get("build_func_spec") or {}
    for name, value in ASSUMED.items():
        if settings.get(name, value) != value:
            raise PgsrError(
                f"it is a network of {NVIDIA} with {name} = {settings[name]!r}; {value!r} can be imported"
            )
    equalized = bool(settings.get("use_wscale", True))
    if network.get("variables") is not None:
        taker = Taker(NVIDIA, unwrapped({k: np.asarray(v) for k, v in network.get("variables")}))
        lod = float(taker.take("lod")) if "lod" in taker else 0.0
        layers = _nvidia_layers(taker, equalized)
        taker.finish()
    else:
        lod = float((network.get("toplevel_params") or {}).get("cur_lod", 0.0))
        layers = _theano_layers(network.get("param_values"), equalized)
    options = layers.options(
        labels=int(settings.get("label_size", 0)),
        normalize_latents=bool(settings.get("normalize_latents", True)),
        normalization="pixel" if settings.get("use_pixelnorm", True) else "none",
        activation="leaky" if settings.get("use_leakyrelu", True) else "relu",
        epsilon=float(settings.get("pixelnorm_epsilon", 1e-8)),
    )
    return Imported.of_network(
        NVIDIA, options, layers.state(), max(4, options["resolution"] >> math.ceil(lod))
    )


def _is_generator(network: Record) -> bool:
    variables = network.get("variables")
    if variables is not None:
        names = [v[0] for v in variables if isinstance(v, tuple)]
        return "4x4/Dense/weight" in names and "ToRGB_lod0/weight" in names
    spec = network.get("build_func_spec") or {}
    return str(spec.get("func", "")).startswith("G_") and network.get("param_values") is not None


def _nvidia_layers(taker: Taker, equalized: bool) -> Layers:
    def biased(name: str, weight: Tensor, gain: float) -> Layer:
        return Layer(weight * he(weight, equalized, gain), taker.take(f"{name}/bias", None))

    def convolution(name: str, inputs: int, kernel: int = 3, gain: float = ROOT2) -> Layer:
        weight = taker.take(f"{name}/weight", kernel, kernel, inputs, None)
        return biased(name, weight.permute(3, 2, 0, 1), gain)

    def upwards(place: str, inputs: int) -> Layer:
        if f"{place}/Conv0_up/weight" not in taker:
            return convolution(f"{place}/Conv0", inputs)
        weight = taker.take(f"{place}/Conv0_up/weight", 3, 3, None, inputs)
        return biased(f"{place}/Conv0_up", weight.flip(0, 1).permute(2, 3, 0, 1), ROOT2)

    dense = taker.take("4x4/Dense/weight", None, None)
    first = biased("4x4/Dense", dense.T, ROOT2 / 4)
    widths = [dense.shape[1] // 16]
    blocks = []
    levels = taker.count("ToRGB_lod{}/weight")
    for i in range(1, levels):
        place = f"{4 << i}x{4 << i}"
        one = upwards(place, widths[-1])
        widths.append(one.weight.shape[0])
        blocks.append((one, convolution(f"{place}/Conv1", widths[-1])))
    return Layers(
        first=first,
        convolution=convolution("4x4/Conv", widths[0]),
        blocks=blocks,
        rgb=[convolution(f"ToRGB_lod{levels - 1 - i}", w, 1, 1.0) for i, w in enumerate(widths)],
    )


def _theano_layers(values: Sequence[Any], equalized: bool) -> Layers:
    """The files of the implementation before, in Theano: every layer's weight, constant and bias in a row.

    Its convolutions are [out, in, k, k] and turn their kernels over, the first layer's apart, which is kept
    as [out, in, 4, 4] and seen as it stands; RGB layers' weights are [in, out], the highest resolution first.
    """
    left = [torch.as_tensor(v).double() for v in values]

    def layer(axes: int) -> Layer:
        count = 3 if equalized else 2
        if len(left) < count or left[0].dim() != axes:
            raise PgsrError(f"its {len(values)} arrays are not those of {NVIDIA}'s generator")
        weight = left.pop(0)
        scale = float(left.pop(0)) if equalized else 1.0
        return Layer(weight * scale, left.pop(0))

    def flipped_kernel(layer: Layer) -> Layer:
        return Layer(layer.weight.flip(2, 3), layer.bias)

    whole = layer(4)
    first = Layer(whole.weight.permute(0, 2, 3, 1).reshape(-1, whole.weight.shape[1]), whole.bias)
    convolutions = []
    while left and left[0].dim() == 4:
        convolutions.append(flipped_kernel(layer(4)))
    rgb = []
    while left:
        dense = layer(2)
        rgb.append(Layer(dense.weight.T[:, :, None, None], dense.bias))
    if len(convolutions) != 2 * len(rgb) - 1:
        raise PgsrError(f"its {len(values)} arrays are not those of {NVIDIA}'s generator")
    pairs = list(zip(convolutions[1::2], convolutions[2::2], strict=True))
    return Layers(first, convolutions[0], pairs, rgb[::-1])
