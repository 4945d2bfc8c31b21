"""Other projects' generators and upscalers, as files of their layout and as functions of their tensors.

Each is written from what its project documents, in the plainest form, to be independent of the importers.
Weights and biases are random numbers of about the sizes that training leaves.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]


class Draw:
    """Random tensors of one type."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int, deviation: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return (drawn * deviation).to(self.dtype)


def on_sphere(x: Tensor) -> Tensor:
    return x / ((x**2).mean(1, keepdim=True) + 1e-8).sqrt()


normalised = on_sphere


def bent(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def he(weight: Tensor) -> float:
    return math.sqrt(2 / weight[0].numel())


# ----------------------------------------------------------------------------
# akanimax/pro_gan_pytorch and akanimax/BMSG-GAN.


def akanimax_tensors(
    draw: Draw, latent: int, widths: list[int], early: bool = False, colours: int = 3
) -> Tensors:
    start, later = ("initial_block", 0) if early else ("layers.0", 1)
    t = {
        f"{start}.conv_1.weight": draw(latent, widths[0], 4, 4),
        f"{start}.conv_1.bias": draw(widths[0], deviation=0.3),
        f"{start}.conv_2.weight": draw(widths[0], widths[0], 3, 3),
        f"{start}.conv_2.bias": draw(widths[0], deviation=0.3),
    }
    for i, (a, b) in enumerate(itertools.pairwise(widths), later):
        t |= {
            f"layers.{i}.conv_1.weight": draw(b, a, 3, 3),
            f"layers.{i}.conv_1.bias": draw(b, deviation=0.3),
        }
        t |= {
            f"layers.{i}.conv_2.weight": draw(b, b, 3, 3),
            f"layers.{i}.conv_2.bias": draw(b, deviation=0.3),
        }
    for i, w in enumerate(widths):
        t[f"rgb_converters.{i}.weight"] = draw(colours, w, 1, 1)
        t[f"rgb_converters.{i}.bias"] = draw(colours, deviation=0.3)
    return t


def akanimax(
    t: Tensors, z: Tensor, levels: int, early: bool = False, normalize: bool = True, equalized: bool = True
) -> Tensor:
    """The image of the last of so many levels."""

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        w = t[f"{name}.weight"]
        return F.conv2d(x, w * (he(w) if equalized else 1), t[f"{name}.bias"], padding=padding)

    start, later = ("initial_block", 0) if early else ("layers.0", 1)
    x = z[:, :, None, None]
    x = on_sphere(x) if normalize else x
    w = t[f"{start}.conv_1.weight"]
    scale = math.sqrt(2 / z.shape[1]) if equalized else 1
    x = bent(F.conv_transpose2d(x, w * scale, t[f"{start}.conv_1.bias"]))
    x = on_sphere(bent(conv(x, f"{start}.conv_2")))
    for i in range(later, levels - 1 + later):
        x = on_sphere(bent(conv(doubled(x), f"layers.{i}.conv_1")))
        x = on_sphere(bent(conv(x, f"layers.{i}.conv_2")))
    return conv(x, f"rgb_converters.{levels - 1}", 0)


def akanimax_file(generator: Tensors, shadow: Tensors | None, **conf: Any) -> dict[str, Any]:
    conf = {"depth": 4, "num_channels": 3, "latent_size": 8, "use_eql": True, **conf}
    saved: dict[str, Any] = {"generator": {"conf": conf, "state_dict": OrderedDict(generator)}}
    saved["discriminator"] = {"conf": conf, "state_dict": OrderedDict(a=torch.zeros(3))}
    saved["gen_optim"] = {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.003}]}
    if shadow is not None:
        saved["shadow_generator"] = {"conf": conf, "state_dict": OrderedDict(shadow)}
    return saved


# ----------------------------------------------------------------------------
# facebookresearch/pytorch_GAN_zoo.


def zoo_tensors(
    draw: Draw, latent: int, widths: list[int], module: str = ".module", colours: int = 3
) -> Tensors:
    def layer(name: str, *shape: int) -> Tensors:
        return {f"{name}{module}.weight": draw(*shape), f"{name}{module}.bias": draw(shape[0], deviation=0.7)}

    t = {**layer("formatLayer", 16 * widths[0], latent), **layer("groupScale0.0", widths[0], widths[0], 3, 3)}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        t |= {**layer(f"scaleLayers.{i}.0", b, a, 3, 3), **layer(f"scaleLayers.{i}.1", b, b, 3, 3)}
    for i, w in enumerate(widths):
        t |= layer(f"toRGBLayers.{i}", colours, w, 1, 1)
    return t


def zoo(
    t: Tensors,
    z: Tensor,
    levels: int,
    module: str = ".module",
    tanh: bool = False,
    equalized: bool = True,
    **settings: Any,
) -> Tensor:
    def on_sphere(x: Tensor) -> Tensor:
        return normalised(x) if settings.get("perChannelNormalization", True) else x

    def bent(x: Tensor) -> Tensor:
        return F.leaky_relu(x, settings.get("leakyReluLeak", 0.2))

    def he(weight: Tensor) -> float:
        return math.sqrt(2 / weight[0].numel()) if equalized else 1.0

    def parts(name: str) -> tuple[Tensor, Tensor]:
        return t[f"{name}{module}.weight"], t[f"{name}{module}.bias"]

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        w, b = parts(name)
        return F.conv2d(x, w, b, padding=padding) * he(w)

    w, b = parts("formatLayer")
    x = bent((on_sphere(z) @ w.T + b) * he(w)).reshape(len(z), -1, 4, 4)
    x = on_sphere(bent(conv(on_sphere(x), "groupScale0.0")))
    for i in range(levels - 1):
        x = on_sphere(bent(conv(doubled(x), f"scaleLayers.{i}.0")))
        x = on_sphere(bent(conv(x, f"scaleLayers.{i}.1")))
    x = conv(x, f"toRGBLayers.{levels - 1}", 0)
    return torch.tanh(x) if tanh else x


class BaseConfig:
    """Saved as models.utils.config.BaseConfig."""


def zoo_file(average: Tensors, trained: Tensors, **settings: Any) -> dict[str, Any]:
    config = BaseConfig()
    defaults = {"alpha": 0, "lossCriterion": "WGANGP", "equalizedlR": True, "perChannelNormalization": True}
    vars(config).update({**defaults, "leakyReluLeak": 0.2, "attribKeysOrder": None, **settings})
    return {
        "config": config,
        "netG": OrderedDict(trained),
        "netD": OrderedDict(w=torch.zeros(2)),
        "avgG": OrderedDict(average),
    }


# ----------------------------------------------------------------------------
# rosinality/progressive-gan-pytorch: the whole module is saved, with a hook on each convolution.


class EqualLR:
    """The hook: before each pass it writes the weight that the convolution computes with."""

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        w = module.weight_orig
        module.weight = w * math.sqrt(2 / (w.shape[1] * w.shape[2] * w.shape[3]))  # type: ignore[assignment]


class EqualConv2d(nn.Module):
    def __init__(self, draw: Draw, inputs: int, outputs: int, kernel: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding)
        del self.conv._parameters["weight"]
        self.conv.register_parameter("weight_orig", nn.Parameter(draw(outputs, inputs, kernel, kernel)))
        self.conv.bias = nn.Parameter(draw(outputs, deviation=0.3))
        self.conv.register_forward_pre_hook(EqualLR())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PixelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return on_sphere(x)


class ConvBlock(nn.Module):
    def __init__(self, draw: Draw, inputs: int, outputs: int, kernel: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            EqualConv2d(draw, inputs, outputs, kernel, padding),
            PixelNorm(),
            nn.LeakyReLU(0.2),
            EqualConv2d(draw, outputs, outputs, 3, 1),
            PixelNorm(),
            nn.LeakyReLU(0.2),
        )


class Generator(nn.Module):
    """rosinality's."""

    def __init__(self, draw: Draw, code: int, labels: int, widths: list[int]) -> None:
        super().__init__()
        self.label_embed = nn.Embedding(labels, labels)
        self.label_embed.weight = nn.Parameter(draw(labels, labels))
        blocks = [ConvBlock(draw, code + labels, widths[0], 4, 3)]
        blocks += [ConvBlock(draw, a, b, 3, 1) for a, b in itertools.pairwise(widths)]
        self.progression = nn.ModuleList(blocks)
        self.to_rgb = nn.ModuleList([nn.Conv2d(w, 3, 1) for w in widths])
        for layer in self.to_rgb:
            layer.weight, layer.bias = (
                nn.Parameter(draw(*p.shape, deviation=0.3)) for p in layer.parameters()
            )

    def forward(self, z: Tensor, label: Tensor, step: int) -> Tensor:
        x = torch.cat([on_sphere(z), self.label_embed(label)], 1)[:, :, None, None]
        for i in range(step + 1):
            x = self.progression[i].conv(doubled(x) if i else x)
        return self.to_rgb[step](x)


# ----------------------------------------------------------------------------
# tkarras/progressive_growing_of_gans.

Arrays = dict[str, Any]


class Network:
    """Saved as tfutil.Network or, from Theano, network.Network."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def nvidia_arrays(
    draw: Draw, latent: int, widths: list[int], fused: bool, lod: float, colours: int = 3
) -> Arrays:
    t = {"4x4/Dense/weight": draw(latent, 16 * widths[0])}
    t |= {
        "4x4/Dense/bias": draw(widths[0], deviation=0.3),
        "4x4/Conv/weight": draw(3, 3, widths[0], widths[0]),
    }
    t["4x4/Conv/bias"] = draw(widths[0], deviation=0.3)
    for i, (a, b) in enumerate(itertools.pairwise(widths), 1):
        place = f"{4 << i}x{4 << i}"
        up, shape = ("Conv0_up", (3, 3, b, a)) if fused else ("Conv0", (3, 3, a, b))
        t |= {f"{place}/{up}/weight": draw(*shape), f"{place}/{up}/bias": draw(b, deviation=0.3)}
        t |= {f"{place}/Conv1/weight": draw(3, 3, b, b), f"{place}/Conv1/bias": draw(b, deviation=0.3)}
    for i, w in enumerate(widths):
        lod_name = f"ToRGB_lod{len(widths) - 1 - i}"
        t |= {f"{lod_name}/weight": draw(1, 1, w, colours), f"{lod_name}/bias": draw(colours, deviation=0.3)}
    return {"lod": np.float32(lod), **{name: value.numpy() for name, value in t.items()}}


def nvidia(arrays: Arrays, z: Tensor, levels: int, of: int, **settings: Any) -> Tensor:
    """The image of level `levels` of `of`; a fused layer as the transposed convolution it is computed by."""
    t = {name: torch.as_tensor(value) for name, value in arrays.items()}
    epsilon = settings.get("pixelnorm_epsilon", 1e-8)

    def to_sphere(x: Tensor) -> Tensor:
        return x / ((x**2).mean(1, keepdim=True) + epsilon).sqrt()

    def on_sphere(x: Tensor) -> Tensor:
        return to_sphere(x) if settings.get("use_pixelnorm", True) else x

    def bent(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2 if settings.get("use_leakyrelu", True) else 0.0)

    def scale(gain: float, fan_in: int) -> float:
        return gain / math.sqrt(fan_in) if settings.get("use_wscale", True) else 1.0

    def conv(x: Tensor, name: str, gain: float = math.sqrt(2)) -> Tensor:
        w = t[f"{name}/weight"]
        w = w * scale(gain, w.shape[0] * w.shape[1] * w.shape[2])
        return F.conv2d(x, w.permute(3, 2, 0, 1), t[f"{name}/bias"], padding=w.shape[0] // 2)

    def up(x: Tensor, place: str) -> Tensor:
        if f"{place}/Conv0/weight" in t:
            return conv(doubled(x), f"{place}/Conv0")
        w = t[f"{place}/Conv0_up/weight"]
        w = F.pad(w * scale(math.sqrt(2), 9 * x.shape[1]), (0, 0, 0, 0, 1, 1, 1, 1))
        w = w[1:, 1:] + w[:-1, 1:] + w[1:, :-1] + w[:-1, :-1]  # [4, 4, out, in]
        return F.conv_transpose2d(x, w.permute(3, 2, 0, 1), t[f"{place}/Conv0_up/bias"], stride=2, padding=1)

    w = t["4x4/Dense/weight"]
    z = to_sphere(z) if settings.get("normalize_latents", True) else z
    x = (z @ w * scale(math.sqrt(2) / 4, len(w))).reshape(len(z), -1, 4, 4)
    x = on_sphere(bent(x + t["4x4/Dense/bias"][:, None, None]))
    x = on_sphere(bent(conv(x, "4x4/Conv")))
    for i in range(1, levels):
        place = f"{4 << i}x{4 << i}"
        x = on_sphere(bent(up(x, place)))
        x = on_sphere(bent(conv(x, f"{place}/Conv1")))
    return conv(x, f"ToRGB_lod{of - levels}", gain=1.0)


HARMFUL = "import pathlib\npathlib.Path({path!r}).write_text('ran')\n"


def nvidia_networks(
    arrays: Arrays, average: Arrays, source: str = "", **settings: Any
) -> tuple[Network, ...]:
    """(G, D, Gs)."""

    def network(name: str, variables: Arrays) -> Network:
        return Network(
            {
                "version": 2,
                "name": name,
                "static_kwargs": {"num_channels": 3, "label_size": 0, "fused_scale": True, **settings},
                "build_module_src": source,
                "build_func_name": f"{name[0]}_paper",
                "variables": list(variables.items()),
            }
        )

    critic = {"FromRGB_lod0/weight": np.zeros((1, 1, 3, 2), np.float32)}
    return network("G", arrays), network("D", critic), network("Gs", average)


def theano_network(draw: Draw, latent: int, widths: list[int]) -> tuple[Network, Arrays]:
    """The earlier files: rows of weight, constant and bias; and the same as the later names."""
    rows: list[np.ndarray] = []
    later: Arrays = {"lod": np.float32(0)}

    def add(name: str, w: Tensor, as_later: Tensor) -> None:
        scale, bias = 0.1 + draw(1).abs()[0], draw(w.shape[1] if w.dim() == 2 else w.shape[0], deviation=0.3)
        rows.extend([w.numpy(), np.asarray(scale.numpy()), bias.numpy()])
        fan_in = as_later.numel() // as_later.shape[-1]
        gain = 1.0 if "RGB" in name else math.sqrt(2) / (4 if "Dense" in name else 1)
        later[f"{name}/weight"] = (as_later * scale / (gain / math.sqrt(fan_in))).numpy()
        later[f"{name}/bias"] = bias.numpy()

    w = draw(widths[0], latent, 4, 4)
    add("4x4/Dense", w, w.permute(1, 0, 2, 3).reshape(latent, -1))
    layers = [("4x4/Conv", widths[0], widths[0])]
    for i, (a, b) in enumerate(itertools.pairwise(widths), 1):
        layers += [(f"{4 << i}x{4 << i}/Conv0", a, b), (f"{4 << i}x{4 << i}/Conv1", b, b)]
    for name, a, b in layers:
        w = draw(b, a, 3, 3, deviation=0.3)
        add(name, w, w.permute(2, 3, 1, 0).flip(0, 1))
    for lod, width in enumerate(reversed(widths)):
        w = draw(width, 3, deviation=0.3)
        add(f"ToRGB_lod{lod}", w, w[None, None])
    spec = {"func": "G_paper", "num_channels": 3, "use_wscale": True, "normalize_latents": True}
    state = {"build_func_spec": spec, "build_module_src": "", "param_values": rows}
    return Network({**state, "toplevel_params": {"cur_lod": np.float32(0.0)}}), later


# ----------------------------------------------------------------------------
# genforce and MMGeneration: modules with their names.


def enlarged(x: Tensor, weight: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """An enlargement and a convolution, or the transposed convolution of [in, out, 3, 3] that is both."""
    if not fused:
        return F.conv2d(doubled(x), weight, bias, padding=1)
    w = F.pad(weight, (1, 1, 1, 1))
    w = w[..., 1:, 1:] + w[..., :-1, 1:] + w[..., 1:, :-1] + w[..., :-1, :-1]
    return F.conv_transpose2d(x, w, bias, stride=2, padding=1)


def genforce_tensors(draw: Draw, latent: int, widths: list[int], fused: bool, lod: float = 0.0) -> Tensors:
    t = {"lod": torch.tensor(lod), "layer0.weight": draw(widths[0], latent, 4, 4)}
    for i, w in enumerate(widths):
        if i:
            below = widths[i - 1]
            t[f"layer{2 * i}.weight"] = draw(*((below, w) if fused else (w, below)), 3, 3)
        t[f"layer{2 * i}.bias"] = draw(w, deviation=0.3)
        t |= {f"layer{2 * i + 1}.weight": draw(w, w, 3, 3), f"layer{2 * i + 1}.bias": draw(w, deviation=0.3)}
        t |= {f"output{i}.weight": draw(3, w, 1, 1), f"output{i}.bias": draw(3, deviation=0.3)}
    return t


def genforce(t: Tensors, z: Tensor, levels: int, fused: bool) -> Tensor:
    def scaled(name: str, gain: float, inputs: int) -> tuple[Tensor, Tensor]:
        w = t[f"{name}.weight"]
        return w * (gain / math.sqrt(inputs * w.shape[-1] ** 2)), t[f"{name}.bias"]

    x = (on_sphere(z) * math.sqrt(z.shape[1]))[:, :, None, None]
    root = math.sqrt(2)
    for i in range(levels):
        x = on_sphere(x)
        w, b = scaled(f"layer{2 * i}", root, x.shape[1])
        x = bent(enlarged(x, w, b, fused) if i else F.conv2d(x, w, b, padding=3))
        w, b = scaled(f"layer{2 * i + 1}", root, x.shape[1])
        x = bent(F.conv2d(on_sphere(x), w, b, padding=1))
    w, b = scaled(f"output{levels - 1}", 1.0, x.shape[1])
    return F.conv2d(on_sphere(x), w, b)


def mmgeneration_tensors(draw: Draw, latent: int, widths: list[int], fused: bool) -> Tensors:
    def layer(name: str, *shape: int, maps: int) -> Tensors:
        return {f"{name}.conv.weight_orig": draw(*shape), f"{name}.conv.bias": draw(maps, deviation=0.3)}

    t = {"noise2feat.linear.weight_orig": draw(16 * widths[0], latent)}
    t["noise2feat.bias"] = draw(1, widths[0], 1, 1, deviation=0.3)
    for i, w in enumerate(widths):
        if i:
            sides = (widths[i - 1], w) if fused else (w, widths[i - 1])
            t |= layer(f"conv_blocks.{2 * i - 1}", *sides, 3, 3, maps=w)
        t |= layer(f"conv_blocks.{2 * i}", w, w, 3, 3, maps=w)
        t |= layer(f"torgb_layers.{i}", 3, w, 1, 1, maps=3)
    return t


def mmgeneration(t: Tensors, z: Tensor, levels: int, fused: bool) -> Tensor:
    def on_sphere(x: Tensor) -> Tensor:
        norm = torch.linalg.norm(x, ord=2, dim=1, keepdim=True) / math.sqrt(x.shape[1])
        return x / (norm + 1e-6)

    def scaled(name: str, gain: float = math.sqrt(2)) -> tuple[Tensor, Tensor]:
        w = t[f"{name}.conv.weight_orig"]
        return w * gain / math.sqrt(w[0].numel()), t[f"{name}.conv.bias"]

    w = t["noise2feat.linear.weight_orig"]
    x = (on_sphere(z) @ w.T * (math.sqrt(2) / 4 / math.sqrt(w.shape[1]))).reshape(len(z), -1, 4, 4)
    x = on_sphere(bent(x + t["noise2feat.bias"]))
    for i in range(levels):
        x = on_sphere(bent(enlarged(x, *scaled(f"conv_blocks.{2 * i - 1}"), fused))) if i else x
        x = on_sphere(bent(F.conv2d(x, *scaled(f"conv_blocks.{2 * i}"), padding=1)))
    return F.conv2d(x, *scaled(f"torgb_layers.{levels - 1}", 1.0))


# ----------------------------------------------------------------------------
# odegeasslbc/Progressive-GAN-pytorch.


def bilinear_tensors(draw: Draw, latent: int, widths: list[int], normalized: bool) -> Tensors:
    def layer(name: str, *shape: int, maps: int) -> Tensors:
        return {f"{name}.conv.weight_orig": draw(*shape), f"{name}.conv.bias": draw(maps, deviation=0.3)}

    t = layer("input_layer.0", latent, widths[0], 4, 4, maps=widths[0])
    for i, (a, b) in enumerate(itertools.pairwise([widths[0], *widths])):
        t |= layer(f"progression_{4 << i}.conv.0", b, a, 3, 3, maps=b)
        t |= layer(f"progression_{4 << i}.conv.{3 if normalized else 2}", b, b, 3, 3, maps=b)
        if i:
            t |= layer(f"to_rgb_{4 << i}", 3, b, 1, 1, maps=3)
    return t


def bilinear(t: Tensors, z: Tensor, levels: int, normalized: bool) -> Tensor:
    def scaled(name: str) -> tuple[Tensor, Tensor]:
        w = t[f"{name}.conv.weight_orig"]
        return w * math.sqrt(2 / w[0].numel()), t[f"{name}.conv.bias"]

    def bent(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    def norm(x: Tensor) -> Tensor:
        return on_sphere(x) if normalized else x

    x = bent(on_sphere(F.conv_transpose2d(z[:, :, None, None], *scaled("input_layer.0"))))
    for i in range(levels):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if i else x
        for number in (0, 3 if normalized else 2):
            x = bent(norm(F.conv2d(x, *scaled(f"progression_{4 << i}.conv.{number}"), padding=1)))
    return F.conv2d(x, *scaled(f"to_rgb_{4 << levels - 1}"))


# ----------------------------------------------------------------------------
# Upscalers. All of images in [0, 1].


def lornatang_tensors(draw: Draw, maps: int, blocks: int, steps: int, names: tuple[str, ...]) -> Tensors:
    def norm(name: str) -> Tensors:
        return {
            f"{name}.weight": 1 + draw(maps, deviation=0.2),
            f"{name}.bias": draw(maps, deviation=0.2),
            f"{name}.running_mean": draw(maps, deviation=0.2),
            f"{name}.running_var": 0.5 + draw(maps).abs(),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }

    def slope() -> Tensor:
        return draw(1, deviation=0.1) + 0.25

    head, trunk, tail = names
    t = {f"{head}.0.weight": draw(maps, 3, 9, 9, deviation=0.1), f"{head}.0.bias": draw(maps, deviation=0.1)}
    t[f"{head}.1.weight"] = slope()
    for i in range(blocks):
        t[f"trunk.{i}.rcb.0.weight"] = draw(maps, maps, 3, 3, deviation=0.2)
        t |= norm(f"trunk.{i}.rcb.1")
        t[f"trunk.{i}.rcb.2.weight"] = slope()
        t[f"trunk.{i}.rcb.3.weight"] = draw(maps, maps, 3, 3, deviation=0.2)
        t |= norm(f"trunk.{i}.rcb.4")
    t[f"{trunk}.0.weight"] = draw(maps, maps, 3, 3, deviation=0.2)
    t |= norm(f"{trunk}.1")
    for i in range(steps):
        up = f"upsampling.{i}.upsample_block"
        t |= {f"{up}.0.weight": draw(4 * maps, maps, 3, 3, deviation=0.2), f"{up}.0.bias": draw(4 * maps)}
        t[f"{up}.2.weight"] = slope()
    return t | {f"{tail}.weight": draw(3, maps, 9, 9, deviation=0.02), f"{tail}.bias": draw(3, deviation=0.1)}


def lornatang(t: Tensors, x: Tensor, blocks: int, steps: int, names: tuple[str, ...]) -> Tensor:
    """Without the last cut to [0, 1]."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-5)

    head, trunk, tail = names
    x = first = F.prelu(
        F.conv2d(x, t[f"{head}.0.weight"], t[f"{head}.0.bias"], padding=4), t[f"{head}.1.weight"]
    )
    for i in range(blocks):
        y = norm(F.conv2d(x, t[f"trunk.{i}.rcb.0.weight"], padding=1), f"trunk.{i}.rcb.1")
        y = F.prelu(y, t[f"trunk.{i}.rcb.2.weight"])
        x = x + norm(F.conv2d(y, t[f"trunk.{i}.rcb.3.weight"], padding=1), f"trunk.{i}.rcb.4")
    x = first + norm(F.conv2d(x, t[f"{trunk}.0.weight"], padding=1), f"{trunk}.1")
    for i in range(steps):
        up = f"upsampling.{i}.upsample_block"
        x = F.pixel_shuffle(F.conv2d(x, t[f"{up}.0.weight"], t[f"{up}.0.bias"], padding=1), 2)
        x = F.prelu(x, t[f"{up}.2.weight"])
    return F.conv2d(x, t[f"{tail}.weight"], t[f"{tail}.bias"], padding=4)


def basicsr_tensors(draw: Draw, maps: int, blocks: int, scale: int) -> Tensors:
    def layer(name: str, outputs: int, inputs: int) -> Tensors:
        return {
            f"{name}.weight": draw(outputs, inputs, 3, 3, deviation=0.2),
            f"{name}.bias": draw(outputs, deviation=0.1),
        }

    t = layer("conv_first", maps, 3)
    for i in range(blocks):
        t |= layer(f"body.{i}.conv1", maps, maps) | layer(f"body.{i}.conv2", maps, maps)
    t |= layer("upconv1", maps * (9 if scale == 3 else 4), maps)
    if scale == 4:
        t |= layer("upconv2", 4 * maps, maps)
    return t | layer("conv_hr", maps, maps) | layer("conv_last", 3, maps)


def basicsr(t: Tensors, x: Tensor, blocks: int, scale: int) -> Tensor:
    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], padding=1)

    y = F.leaky_relu(conv(x, "conv_first"), 0.1)
    for i in range(blocks):
        y = y + conv(F.relu(conv(y, f"body.{i}.conv1")), f"body.{i}.conv2")
    for name in ("upconv1", "upconv2") if scale == 4 else ("upconv1",):
        y = F.leaky_relu(F.pixel_shuffle(conv(y, name), 3 if scale == 3 else 2), 0.1)
    y = conv(F.leaky_relu(conv(y, "conv_hr"), 0.1), "conv_last")
    return y + F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


# SRResNets of other projects, as modules with their names; `of_signed` is what becomes of images in [-1, 1].

FEW, BLOCKS = 6, 5  # maps and residual blocks
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
IMAGENET_DEVIATION = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)


def steps_of(scale: int) -> range:
    return range(scale.bit_length() - 1)


class LeftthomasBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(FEW, FEW, 3, padding=1), nn.BatchNorm2d(FEW)
        self.prelu = nn.PReLU()
        self.conv2, self.bn2 = nn.Conv2d(FEW, FEW, 3, padding=1), nn.BatchNorm2d(FEW)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class SubPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(FEW, 4 * FEW, 3, padding=1), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(F.pixel_shuffle(self.conv(x), 2))


class LeftthomasGenerator(nn.Module):
    def __init__(self, scale: int) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, FEW, 9, padding=4), nn.PReLU())
        for i in range(2, 2 + BLOCKS):
            self.add_module(f"block{i}", LeftthomasBlock())
        self.block7 = nn.Sequential(nn.Conv2d(FEW, FEW, 3, padding=1), nn.BatchNorm2d(FEW))
        self.block8 = nn.Sequential(*[SubPixel() for _ in steps_of(scale)], nn.Conv2d(FEW, 3, 9, padding=4))

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.block1(x)
        for i in range(2, 8):
            y = getattr(self, f"block{i}")(y)
        return (torch.tanh(self.block8(first + y)) + 1) / 2

    def of_signed(self, x: Tensor) -> Tensor:
        return self((x + 1) / 2) * 2 - 1


class SgrvinodBlock(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, norm: bool, activation: nn.Module | None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)]
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers += [activation] if activation else []
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block(x)


class SgrvinodGenerator(nn.Module):
    def __init__(self, scale: int) -> None:
        super().__init__()

        def residual() -> nn.Module:
            pair = nn.Module()
            pair.conv_block1 = SgrvinodBlock(FEW, FEW, 3, True, nn.PReLU())
            pair.conv_block2 = SgrvinodBlock(FEW, FEW, 3, True, None)
            return pair

        self.conv_block1 = SgrvinodBlock(3, FEW, 9, False, nn.PReLU())
        self.residual_blocks = nn.Sequential(*[residual() for _ in range(BLOCKS)])
        self.conv_block2 = SgrvinodBlock(FEW, FEW, 3, True, None)
        self.subpixel_convolutional_blocks = nn.Sequential(*[SubPixel() for _ in steps_of(scale)])
        self.conv_block3 = SgrvinodBlock(FEW, 3, 9, False, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.conv_block1(x)
        for pair in self.residual_blocks:
            y = y + pair.conv_block2(pair.conv_block1(y))  # type: ignore[operator]
        return self.conv_block3(self.subpixel_convolutional_blocks(first + self.conv_block2(y)))

    def of_signed(self, x: Tensor) -> Tensor:
        return self((((x + 1) / 2 - IMAGENET_MEAN.to(x)) / IMAGENET_DEVIATION.to(x)).to(x.dtype))


class LindernorenGenerator(nn.Module):
    """Of today, or of 2018 (`early`)."""

    def __init__(self, scale: int, early: bool = False) -> None:
        super().__init__()
        self.early, epsilon = early, 1e-5 if early else 0.8

        def activation() -> nn.Module:
            return nn.ReLU() if early else nn.PReLU()

        def residual() -> nn.Module:
            norms = [nn.BatchNorm2d(FEW, epsilon) for _ in range(2)]
            convolutions = [nn.Conv2d(FEW, FEW, 3, padding=1) for _ in range(2)]
            block = nn.Module()
            block.conv_block = nn.Sequential(
                convolutions[0], norms[0], activation(), convolutions[1], norms[1]
            )
            return block

        self.conv1 = nn.Sequential(nn.Conv2d(3, FEW, 9, padding=4), activation())
        self.res_blocks = nn.Sequential(*[residual() for _ in range(BLOCKS)])
        self.conv2 = nn.Sequential(nn.Conv2d(FEW, FEW, 3, padding=1), nn.BatchNorm2d(FEW, epsilon))
        upsampling: list[nn.Module] = []
        for _ in steps_of(scale):
            upsampling += [nn.Conv2d(FEW, 4 * FEW, 3, padding=1), nn.BatchNorm2d(4 * FEW), nn.PixelShuffle(2)]
            upsampling += [activation()]
        self.upsampling = nn.Sequential(*upsampling)
        self.conv3 = nn.Sequential(nn.Conv2d(FEW, 3, 9, padding=4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.conv1(x)
        for block in self.res_blocks:
            y = y + block.conv_block(y)  # type: ignore[operator]
        return self.conv3(self.upsampling(first + self.conv2(y)))

    def of_signed(self, x: Tensor) -> Tensor:
        if self.early:
            return self(x)
        mean, deviation = IMAGENET_MEAN.to(x), IMAGENET_DEVIATION.to(x)
        return 2 * (self(((x + 1) / 2 - mean) / deviation) * deviation + mean) - 1


# ----------------------------------------------------------------------------
# Files.


@contextmanager
def saved_as(**modules: list[Any]) -> Iterator[None]:
    """While it lasts, classes live in modules of other names; what is saved then cannot be loaded after."""
    homes = {cls: cls.__module__ for classes in modules.values() for cls in classes}
    for name, classes in modules.items():
        dotted = name.replace("__", ".")
        parts = dotted.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        for cls in classes:
            cls.__module__ = dotted
            setattr(sys.modules[dotted], cls.__name__, cls)
    try:
        yield
    finally:
        for cls, home in homes.items():
            cls.__module__ = home
        for name in modules:
            parts = name.split("__")
            for i in range(1, len(parts) + 1):
                sys.modules.pop(".".join(parts[:i]), None)


ROSINALITY = {"model": [Generator, ConvBlock, EqualConv2d, EqualLR, PixelNorm]}


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its strings."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[bytes] = save_bytes


def python2_pickle(value: Any) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue().replace(b"numpy._core.", b"numpy.core.")
