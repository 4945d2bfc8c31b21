"""ProGAN's generators of PyTorch implementations -> `ProGANGenerator`; NVIDIA's are in nvidia.py.

What a layer computes with is what is carried over: its weight times its run-time constant, taken in float64
and rounded once. So the networks are built without equalized learning rate. Where an implementation differs
(constants, places of normalisations, biases) is said at each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.networks.progan import feature_maps

from ..source import checked_label
from .imported import NO_HINTS, Hints, Imported
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
        """Returns what describes the network; widths that no base and maximum give are named one by one."""
        widths = [self.convolution.weight.shape[0], *(second.weight.shape[0] for _, second in self.blocks)]
        resolution = 4 << len(self.blocks)
        base, most = widths[-1] * resolution, max(widths)
        regular = [feature_maps(4 << i, base, most) for i in range(len(widths))] == widths
        return {
            "kind": "progan",
            "resolution": resolution,
            "latent_size": self.first.weight.shape[1] - others.get("labels", 0),
            "feature_base": base,
            "feature_max": most,
            **({} if regular else {"maps": widths}),
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
    return gain / math.sqrt(max(1, fan_in(weight))) if equalized else 1.0


# Equalized learning rate leaves weights near a deviation of 1; He's initialisation starts them near
# 1 / sqrt(fan-in), and training changes either by small factors. So how far the logarithm of the deviation
# is on the way from the one to the other tells which it was.
EQUALIZED, ORDINARY = 0.35, 0.55  # of the way: below the one it was equalized, above the other it was not


def is_equalized(taker: Taker, pattern: str, hints: Hints, says: bool | None) -> bool:
    """Whether a file's layers have equalized learning rate: as the user says, the file, or else its weights.

    Raises PgsrError if the weights of the layers that `pattern` matches do not tell.
    """
    if hints.equalized is not None or says is not None:
        return bool(says if hints.equalized is None else hints.equalized)
    named = [t for name, t in taker.tensors.items() if re.fullmatch(pattern, name) and t.dim() > 1]
    weights = [t.double() for t in named if fan_in(t) > 1]  # a fan-in of 1 looks the same either way
    ways = sorted(-math.log(max(float(w.std()), 1e-30)) / math.log(fan_in(w) ** 0.5) for w in weights)
    way = ways[len(ways) // 2] if ways else 0.0
    if EQUALIZED <= way <= ORDINARY:
        raise PgsrError(
            f"it does not say whether its layers have equalized learning rate (use_eql), and weights of "
            f"deviation {float(weights[0].std()):.2g} do not tell: say --equalized yes or --equalized no"
        )
    return not way > ORDINARY  # weights that are no numbers are refused by their names, later


def told_by_weights(equalized: bool) -> tuple[str, ...]:
    """Returns the note that it was the weights, or the user, that decided."""
    words = "have" if equalized else "do not have"
    return (f"its layers {words} equalized learning rate, by the spread of their weights (--equalized)",)


def fan_in(weight: Tensor) -> int:
    """Returns how many values each output of a layer sums; its weight's first side is its outputs."""
    return math.prod(weight.shape[1:])


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
EITHER = "akanimax/pro_gan_pytorch or BMSG-GAN"  # bare state dicts have the same names


def akanimax(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
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
    peer = AKANIMAX if early or "conf" in saved_generator else EITHER
    taker = Taker(peer, tensors)
    says = bool(conf["use_eql"]) if "use_eql" in conf else None
    equalized = is_equalized(taker, r"(layers\.\d+|initial_block)\.conv_\d\.weight", hints, says)
    layers = _akanimax_layers(taker, early, equalized)
    taker.finish()
    options = layers.options(first_normalized=False)
    return Imported.of_network(
        peer,
        options,
        layers.state(),
        options["resolution"],
        takes_equalized=True,
        notes=told_by_weights(equalized) if says is None else (),
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
    scale = ROOT2 / math.sqrt(max(1, inputs)) if equalized else 1.0
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


def rosinality(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports progressive-gan-pytorch's generator; None if the tree holds none."""
    tensors = unwrapped(tree)
    for name in ("g_running", "generator"):
        nested = unwrapped(tree.get(name)) if isinstance(tree, Mapping) else {}
        tensors = tensors or nested
    if "progression.0.conv.0.conv.weight_orig" not in tensors or "label_embed.weight" not in tensors:
        return None
    taker = Taker(ROSINALITY, tensors)
    table = taker.take("label_embed.weight", None, None)
    number = 0
    if len(table) > 1 or hints.label is not None:
        number = checked_label(hints.label, len(table), "it")
    layers = _rosinality_layers(taker, table[number])
    taker.finish()
    options = layers.options(normalization="pixel-before", first_bias="place")
    return Imported.of_network(ROSINALITY, options, layers.state(), options["resolution"], takes_label=True)


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


def gan_zoo(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports pytorch_GAN_zoo's generator; None if the tree holds none."""
    tensors = unwrapped(_first_of(tree, "avgG", "netG") or tree)
    tensors = {k.replace(".module.", "."): v for k, v in tensors.items()}  # earlier versions write none
    if "formatLayer.weight" not in tensors or "groupScale0.0.weight" not in tensors:
        return None
    config = _Config(tree.get("config") if isinstance(tree, Mapping) else None)
    taker = Taker(GAN_ZOO, tensors)
    says = config("equalizedlR", None)
    equalized = is_equalized(taker, r"(groupScale0|scaleLayers)\..*\.weight", hints, says)
    layers = _gan_zoo_layers(taker, equalized)
    taker.finish()
    slope = config("leakyReluLeak", 0.2)
    if slope not in (0.2, 0, 0.0):
        raise PgsrError(f"its slope is {slope} (leakyReluLeak); slopes of 0.2 and 0 can be imported")
    attributes = config("attribKeysOrder", None) or {}
    labels = int(config("categoryVectorDim", 0) or 0)
    if labels and len(attributes) > 1:
        raise PgsrError(
            f"it is conditioned on {len(attributes)} kinds of attributes; one kind can be imported"
        )
    normalized = bool(config("perChannelNormalization", True))  # without it, latents are not, either
    options = layers.options(
        labels=labels,
        first_bias="place",
        normalization="pixel" if normalized else "none",
        normalize_latents=normalized,
        activation="leaky" if slope else "relu",
        output="tanh" if config("lossCriterion", "WGANGP") in ("MSE", "DCGAN") else "linear",
    )
    side, alpha = options["resolution"], config("alpha", 0)
    notes = told_by_weights(equalized) if says is None else ()
    if alpha and side > 4:
        notes += (
            f"it was fading {side}x{side} in (its alpha of {alpha:.2g} goes to 0), so "
            f"{side // 2}x{side // 2} is exported",
        )
        side //= 2
    return Imported.of_network(GAN_ZOO, options, layers.state(), side, takes_equalized=True, notes=notes)


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
