"""VGG19's convolutions (Simonyan and Zisserman 2015), whose features SRGAN compares; for inference alone.

features = load_vgg19(Path("vgg19-dcbb9e9d.pth"))   # the weights of torchvision, or the same as .safetensors
features(images, depth=16)                          # [N, 3, H, W] in [-1, 1] -> [N, 512, H / 16, W / 16]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError

# Numbers of the convolutions in torchvision's `features`, and which of them 2 x 2 maxima follow.
LAYERS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
POOLED = (2, 4, 8, 12)  # counted from 1; the last pool, after 16, is beyond any depth
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for RGB in [0, 1]


class VGG19(nn.Module):
    """16 convolutions of 3 x 3; widths are those of the weights given."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(w, requires_grad=False) for w, _ in weights])
        self.biases = nn.ParameterList([nn.Parameter(b, requires_grad=False) for _, b in weights])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor, depth: int = len(LAYERS)) -> Tensor:
        """The output of convolution `depth` after its ReLU and before a pool: 16 is SRGAN's VGG54."""
        return self.layers(images, (depth,))[0]

    def layers(self, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """The outputs of several convolutions, in rising order of their depths."""
        x, outputs = ((images + 1) / 2 - self.mean) / self.std, []
        for i in range(max(depths)):
            if i in POOLED:
                x = F.max_pool2d(x, 2)
            x = F.relu(F.conv2d(x, self.weights[i], self.biases[i], padding=1))
            if i + 1 in depths:
                outputs.append(x)
        return outputs


def load_vgg19(path: Path) -> VGG19:
    """The network of a weights file: a state dict with `features.0.weight` and so on; more is ignored.

    Raises PgsrError if the file cannot be read or is of another network.
    """
    tensors = _read(path)
    weights = []
    for number in LAYERS:
        pair = tensors.get(f"features.{number}.weight"), tensors.get(f"features.{number}.bias")
        if not isinstance(pair[0], Tensor) or not isinstance(pair[1], Tensor):
            raise PgsrError(
                f"{path} has no features.{number}.weight or .bias: it is not VGG19 of torchvision"
            )
        if not (_is_plain(pair[0]) and _is_plain(pair[1])):
            raise PgsrError(
                f"{path}: features.{number} is no plain tensor, or larger than what is stored of it"
            )
        weights.append((pair[0].float(), pair[1].float()))
    widths = [3, *[bias.numel() for _, bias in weights]]
    for number, (inputs, outputs), (weight, bias) in zip(LAYERS, pairwise(widths), weights, strict=True):
        if weight.shape != (outputs, inputs, 3, 3) or bias.dim() != 1:
            raise PgsrError(
                f"features.{number}.weight of {path} has shape {tuple(weight.shape)} where VGG19 has "
                f"{(outputs, inputs, 3, 3)}"
            )
    return VGG19(weights)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is what it is stored as: not sparse, elsewhere, or repeated by strides of 0."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read(path: Path) -> Mapping[str, Tensor]:
    """Reads a weights file as tensors by name; no code in the file runs."""
    if not path.is_file():
        raise PgsrError(f"no file of VGG19's weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader raises nearly any for a pickle that is damaged
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PgsrError(f"{path} cannot be read as weights: {first}") from error
    if not isinstance(tensors, Mapping):
        raise PgsrError(f"{path} holds a {type(tensors).__name__}, not the tensors of a network by name")
    return tensors
