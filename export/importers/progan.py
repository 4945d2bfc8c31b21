"""ProGAN's generators of PyTorch implementations -> `ProGANGenerator`; NVIDIA's are in nvidia.py.

What a layer computes with is what is carried over: its weight times its run-time constant, taken in float64
and rounded once. So the networks are built without equalized learning rate. Where an implementation differs
(constants, places of normalisations, biases) is said at each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.networks.progan import feature_maps

from .imported import Imported
from .plain import Record
from .taking import Taker, unwrapped

ROOT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class Layer:
    """What a layer computes with, in float64."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Layers:
    """A generator's layers from 4 x 4 upwards, convolutions as [out, in, k, k]."""

    first: Layer  # [16 maps, latent_size (+ labels)]; bias [maps] or [16 maps]
    convolution: Layer  # at 4 x 4
    blocks: Sequence[tuple[Layer, Layer]]  # at 8 x 8, 16 x 16, ...
    rgb: Sequence[Layer]  # at 4 x 4, 8 x 8, ...

    def state(self) -> dict[str, Tensor]:
        layers = {"blocks.0.first": self.first, "blocks.0.conv": self.convolution}
        for i, (first, second) in enumerate(self.blocks, 1):
            layers |= {f"blocks.{i}.conv1": first, f"blocks.{i}.conv2": second}
        layers |= {f"to_rgb.{i}": _coloured(layer) for i, layer in enumerate(self.rgb)}
        return {
            f"{name}.{part}": getattr(layer, part)
            for name, layer in layers.items()
            for part in ("weight", "bias")
        }

    def options(self, **others: Any) -> dict[str, Any]:
        """Raises PgsrError for widths that no base and maximum describe."""
        widths = [self.convolution.weight.shape[0], *(second.weight.shape[0] for _, second in self.blocks)]
        resolution = 4 << len(self.blocks)
        base, most = widths[-1] * resolution, max(widths)
        if [feature_maps(4 << i, base, most) for i in range(len(widths))] != widths:
            raise PgsrError(
                f"its widths from 4x4 up are {', '.join(map(str, widths))}; they have to be equal and then "
                "halve with every doubling of the resolution"
            )
        return {
            "kind": "progan",
            "resolution": resolution,
            "latent_size": self.first.weight.shape[1] - others.get("labels", 0),
            "feature_base": base,
            "feature_max": most,
            "equalized": False,
            **others,
        }


def _coloured(layer: Layer) -> Layer:
    """Grey is three equal colours."""
    if layer.weight.shape[0] == 1:
        return Layer(layer.weight.repeat(3, 1, 1, 1), layer.bias.repeat(3))
    return layer


def he(weight: Tensor, equalized: bool, gain: float = ROOT2) -> float:
    """Gain / sqrt(fan-in) of a weight whose first side is its outputs."""
    return gain / math.sqrt(math.prod(weight.shape[1:])) if equalized else 1.0


def _rgb_maps(taker: Taker, name: str) -> int:
    """3 or, of grey pictures, 1."""
    maps = int(taker.tensors[name].shape[0]) if name in taker else 3
    if maps not in (1, 3):
        raise PgsrError(
            f"{taker.peer}'s generator draws pictures of {maps} channels; 1 and 3 can be imported"
        )
    return maps


# ----------------------------------------------------------------------------
# akanimax/pro_gan_pytorch and akanimax/BMSG-GAN. All constants are sqrt(2 / fan-in), those of RGB layers too.
# The first layer is a transposed convolution [in, out, 4, 4] of fan-in `in`, and its values are not
# normalised. Latents are put on the hypersphere, in some versions in the network, in others by the caller.

AKANIMAX = "akanimax/pro_gan_pytorch"
BMSG = "akanimax/BMSG-GAN"


def akanimax(tree: Any) -> Imported | None:
    """Imports pro_gan_pytorch's and BMSG-GAN's generators; None if the tree holds none."""
    saved = _first_of(tree, "shadow_generator", "generator")
    saved_generator = saved if isinstance(saved, Mapping) and "state_dict" in saved else {"state_dict": tree}
    tensors = unwrapped(saved_generator["state_dict"])
    conf = saved_generator.get("conf") if isinstance(saved_generator.get("conf"), Mapping) else {}
    assert isinstance(conf, Mapping)
    if "initial_block.conv_1.deconv.weight" in tensors:
        raise PgsrError(
            f"it is of an early version of {AKANIMAX}, which kept the constants of its layers out of its "
            "files: load it there and save each weight times its layer's scale"
        )
    early = "initial_block.conv_1.weight" in tensors
    if "rgb_converters.0.weight" not in tensors or not (early or "layers.0.conv_1.weight" in tensors):
        return None
    peer = AKANIMAX if early or saved is not None else BMSG
    taker = Taker(peer, tensors)
    equalized = bool(conf.get("use_eql", True))
    layers = _akanimax_layers(taker, early, equalized)
    taker.finish()
    return Imported.of_network(
        peer, layers.options(first_normalized=False), layers.state(), 4 << len(layers.blocks)
    )


def _first_of(tree: Any, *names: str) -> Any:
    return next((tree[n] for n in names if n in tree), None) if isinstance(tree, Mapping) else None


def _akanimax_layers(taker: Taker, early: bool, equalized: bool) -> Layers:
    def layer(name: str, outputs: int | None, inputs: int | None, kernel: int) -> Layer:
        weight = taker.take(f"{name}.weight", outputs, inputs, kernel, kernel)
        bias = taker.take(f"{name}.bias", weight.shape[0])
        return Layer(weight * he(weight, equalized), bias)

    start = "initial_block" if early else "layers.0"
    weight = taker.take(f"{start}.conv_1.weight", None, None, 4, 4)  # [in, out, 4, 4]
    inputs, maps = weight.shape[:2]
    scale = ROOT2 / math.sqrt(inputs) if equalized else 1.0
    first = Layer(
        weight.permute(1, 2, 3, 0).reshape(16 * maps, inputs) * scale,
        taker.take(f"{start}.conv_1.bias", maps),
    )
    blocks: list[tuple[Layer, Layer]] = []
    widths = [maps]
    offset = 0 if early else 1
    colours = _rgb_maps(taker, "rgb_converters.0.weight")
    for i in range(taker.count("rgb_converters.{}.weight") - 1):
        one = layer(f"layers.{i + offset}.conv_1", None, widths[-1], 3)
        widths.append(one.weight.shape[0])
        blocks.append((one, layer(f"layers.{i + offset}.conv_2", widths[-1], widths[-1], 3)))
    return Layers(
        first=first,
        convolution=layer(f"{start}.conv_2", maps, maps, 3),
        blocks=blocks,
        rgb=[layer(f"rgb_converters.{i}", colours, width, 1) for i, width in enumerate(widths)],
    )


# ----------------------------------------------------------------------------
# rosinality/progressive-gan-pytorch. Normalisation stands between convolution and activation; the first layer
# is a 4 x 4 convolution with a border of 3 round the 1 x 1 latent, which sees its kernel upside down; RGB
# layers have no constant. The latent is normalised, then a row of a table is put behind it, its label's: for
# one label that is a bias, another at each of the 4 x 4 places.

ROSINALITY = "rosinality/progressive-gan-pytorch"


def rosinality(tree: Any, label: int | None = None) -> Imported | None:
    """Imports progressive-gan-pytorch's generator; None if the tree holds none."""
    tensors = unwrapped(tree)
    for name in ("g_running", "generator"):
        nested = unwrapped(tree.get(name)) if isinstance(tree, Mapping) else {}
        tensors = tensors or nested
    if "progression.0.conv.0.conv.weight_orig" not in tensors or "label_embed.weight" not in tensors:
        return None
    taker = Taker(ROSINALITY, tensors)
    table = taker.take("label_embed.weight", None, None)
    number = label_of(len(table), label, required=len(table) > 1)
    layers = _rosinality_layers(taker, table[number])
    taker.finish()
    options = layers.options(normalization="pixel-before", first_bias="place")
    return Imported.of_network(ROSINALITY, options, layers.state(), options["resolution"], takes_label=True)


def label_of(labels: int, label: int | None, required: bool) -> int:
    """Raises PgsrError for a label that is needed and not given, or that there is not."""
    if label is None and not required:
        return 0
    if label is None or not 0 <= label < labels:
        raise PgsrError(f"it draws pictures of {labels} labels: name one with --label, from 0")
    return label


def _rosinality_layers(taker: Taker, row: Tensor) -> Layers:
    def layer(name: str, outputs: int | None, inputs: int | None, kernel: int) -> Layer:
        weight = taker.take(f"{name}.conv.weight_orig", outputs, inputs, kernel, kernel)
        bias = taker.take(f"{name}.conv.bias", weight.shape[0])
        return Layer(weight * he(weight, True), bias)

    whole = layer("progression.0.conv.0", None, None, 4)
    maps = whole.weight.shape[0]
    dense = whole.weight.flip(2, 3).permute(0, 2, 3, 1).reshape(16 * maps, -1)  # [16 maps, latent + row]
    latent_size = dense.shape[1] - len(row)
    if latent_size < 1:
        raise PgsrError(f"{taker.peer}'s label_embed.weight is wider than the first layer")
    placed = whole.bias.repeat_interleave(16) + dense[:, latent_size:] @ row
    levels = taker.count("to_rgb.{}.weight")
    blocks: list[tuple[Layer, Layer]] = []
    widths = [maps]
    for i in range(1, levels):
        one = layer(f"progression.{i}.conv.0", None, widths[-1], 3)
        widths.append(one.weight.shape[0])
        blocks.append((one, layer(f"progression.{i}.conv.3", widths[-1], widths[-1], 3)))
    rgb = [
        Layer(taker.take(f"to_rgb.{i}.weight", 3, width, 1, 1), taker.take(f"to_rgb.{i}.bias", 3))
        for i, width in enumerate(widths)
    ]
    return Layers(
        Layer(dense[:, :latent_size], placed), layer("progression.0.conv.3", maps, maps, 3), blocks, rgb
    )


# ----------------------------------------------------------------------------
# facebookresearch/pytorch_GAN_zoo, PGAN. All constants are sqrt(2 / fan-in), and multiply the bias as well.
# The first layer has one bias at each of the 4 x 4 places. Its alpha is 1 at the beginning of a fade.

GAN_ZOO = "facebookresearch/pytorch_GAN_zoo"


def gan_zoo(tree: Any, label: int | None = None) -> Imported | None:
    """Imports pytorch_GAN_zoo's generator; None if the tree holds none."""
    tensors = unwrapped(_first_of(tree, "avgG", "netG") or tree)
    tensors = {k.replace(".module.", "."): v for k, v in tensors.items()}  # earlier versions write none
    if "formatLayer.weight" not in tensors or "groupScale0.0.weight" not in tensors:
        return None
    config = _Config(tree.get("config") if isinstance(tree, Mapping) else None)
    taker = Taker(GAN_ZOO, tensors)
    layers = _gan_zoo_layers(taker, config("equalizedlR", True))
    taker.finish()
    if not config("perChannelNormalization", True) or config("leakyReluLeak", 0.2) != 0.2:
        raise PgsrError(f"{GAN_ZOO}'s networks without normalisation or with another slope are not imported")
    attributes = config("attribKeysOrder", None) or {}
    labels = int(config("categoryVectorDim", 0) or 0)
    if labels and len(attributes) > 1:
        raise PgsrError(
            f"it is conditioned on {len(attributes)} kinds of attributes; one kind can be imported"
        )
    grown = 4 << len(layers.blocks)
    options = layers.options(
        labels=labels,
        first_bias="place",
        output="tanh" if config("lossCriterion", "WGANGP") in ("MSE", "DCGAN") else "linear",
    )
    return Imported.of_network(
        GAN_ZOO, options, layers.state(), grown // 2 if config("alpha", 0) and grown > 4 else grown
    )


class _Config:
    """What the file says of a setting, or the peer's default."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, name: str, default: Any) -> Any:
        return self.config.get(name, default) if isinstance(self.config, (Record, Mapping)) else default


def _gan_zoo_layers(taker: Taker, equalized: bool) -> Layers:
    def layer(name: str, *shape: int | None) -> Layer:
        weight = taker.take(f"{name}.weight", *shape)
        scale = he(weight, equalized)
        return Layer(weight * scale, taker.take(f"{name}.bias", weight.shape[0]) * scale)

    convolution = layer("groupScale0.0", None, None, 3, 3)
    widths = [convolution.weight.shape[0]]
    blocks: list[tuple[Layer, Layer]] = []
    for i in range(taker.count("scaleLayers.{}.0.weight")):
        one = layer(f"scaleLayers.{i}.0", None, widths[-1], 3, 3)
        widths.append(one.weight.shape[0])
        blocks.append((one, layer(f"scaleLayers.{i}.1", widths[-1], widths[-1], 3, 3)))
    colours = _rgb_maps(taker, "toRGBLayers.0.weight")
    return Layers(
        first=layer("formatLayer", 16 * widths[0], None),
        convolution=convolution,
        blocks=blocks,
        rgb=[layer(f"toRGBLayers.{i}", colours, width, 1, 1) for i, width in enumerate(widths)],
    )
