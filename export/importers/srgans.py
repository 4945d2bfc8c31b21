"""SRResNet as leftthomas/SRGAN, sgrvinod's tutorial and PyTorch-GAN name its layers -> `SRResNet`.

They differ in the range that images have before the first layer, whose borders are padded with zeros
there, and in what follows the last. So the network stands between steps that change ranges.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgsr.networks.srgan import SRResNet

from .imported import NO_HINTS, Hints, Imported
from .taking import Taker, unwrapped

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, in [0, 1]
BATCH_NORM = 1e-5  # PyTorch's epsilon


@dataclass(frozen=True)
class Names:
    """A project's names of SRResNet's layers; {} is a number."""

    head: str
    head_slope: str
    block: tuple[str, str, str, str, str]  # convolution, norm, slope, convolution, norm
    trunk: tuple[str, str]  # convolution, norm
    step: tuple[str, str, str]  # convolution, norm (of some), slope
    tail: str  # {}: how many steps there are
    first_block: int = 0
    per_step: int = 1  # numbers that a step takes


LEFTTHOMAS = Names(
    head="block1.0",
    head_slope="block1.1",
    block=("block{}.conv1", "block{}.bn1", "block{}.prelu", "block{}.conv2", "block{}.bn2"),
    trunk=("block7.0", "block7.1"),
    step=("block8.{}.conv", "", "block8.{}.prelu"),
    tail="block8.{}",
    first_block=2,
)
SGRVINOD = Names(
    head="conv_block1.conv_block.0",
    head_slope="conv_block1.conv_block.1",
    block=(
        "residual_blocks.{}.conv_block1.conv_block.0",
        "residual_blocks.{}.conv_block1.conv_block.1",
        "residual_blocks.{}.conv_block1.conv_block.2",
        "residual_blocks.{}.conv_block2.conv_block.0",
        "residual_blocks.{}.conv_block2.conv_block.1",
    ),
    trunk=("conv_block2.conv_block.0", "conv_block2.conv_block.1"),
    step=("subpixel_convolutional_blocks.{}.conv", "", "subpixel_convolutional_blocks.{}.prelu"),
    tail="conv_block3.conv_block.0",
)
ERIKLINDERNOREN = Names(
    head="conv1.0",
    head_slope="conv1.1",
    block=tuple(f"res_blocks.{{}}.conv_block.{i}" for i in range(5)),  # type: ignore[arg-type]
    trunk=("conv2.0", "conv2.1"),
    step=("upsampling.{}", "upsampling.{}", "upsampling.{}"),
    tail="conv3.0",
    per_step=4,
)


def leftthomas(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports leftthomas/SRGAN's generator; None if the tree holds none. Images are in [0, 1]; at its end is
    a tanh, brought to [0, 1]."""
    tensors = unwrapped(tree)
    if not {"block1.0.weight", "block7.1.running_mean", "block8.0.conv.weight"} <= set(tensors):
        return None
    taker = Taker("leftthomas/SRGAN", tensors)
    return _imported(taker, LEFTTHOMAS, before=[PerColour([0.5] * 3, [0.5] * 3)], after=[nn.Tanh()])


def sgrvinod(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports the generator of sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution; None if the tree holds none.

    It sees colours less ImageNet's mean, over their deviation, and ends in a tanh in [-1, 1].
    """
    tensors = unwrapped(tree)
    names = {"conv_block1.conv_block.0.weight", "residual_blocks.0.conv_block1.conv_block.0.weight"}
    if not names <= set(tensors):
        return None
    taker = Taker("sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution", tensors)
    return _imported(taker, SGRVINOD, before=[_of_imagenet()], after=[nn.Tanh()])


def eriklindernoren(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports PyTorch-GAN's SRGAN generator; None if the tree holds none.

    Since 2018 it has PReLU, an epsilon of 0.8 in the norms of its trunk, and colours less ImageNet's mean,
    over their deviation, on both sides of it; before, ReLU and [-1, 1].
    """
    tensors = unwrapped(tree)
    if not {"res_blocks.0.conv_block.0.weight", "conv2.1.running_mean", "conv3.0.weight"} <= set(tensors):
        return None
    taker = Taker("eriklindernoren/PyTorch-GAN", tensors)
    if "conv1.1.weight" not in taker:
        return _imported(taker, ERIKLINDERNOREN, before=[], after=[nn.Tanh()])
    back = PerColour([2 * d for d in DEVIATION], [2 * m - 1 for m in MEAN])
    return _imported(taker, ERIKLINDERNOREN, [_of_imagenet()], [nn.Tanh(), back], epsilon=0.8)


class PerColour(nn.Module):
    """Each colour times a number, plus another: [N, 3, H, W] -> [N, 3, H, W]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _of_imagenet() -> PerColour:
    """[-1, 1] -> less ImageNet's mean, over its deviation."""
    pairs = list(zip(MEAN, DEVIATION, strict=True))
    return PerColour([0.5 / d for _, d in pairs], [(0.5 - m) / d for m, d in pairs])


# ----------------------------------------------------------------------------
# The layers.


def _imported(
    taker: Taker,
    names: Names,
    before: Sequence[nn.Module],
    after: Sequence[nn.Module],
    epsilon: float = BATCH_NORM,  # of the norms in the trunk
) -> Imported:
    state = _state(taker, names, epsilon)
    taker.finish()
    steps = sum(name.endswith(".weight") and name.startswith("upsampling.") for name in state) // 2
    blocks = sum(name.endswith(".conv1.weight") for name in state)
    options = {"scale": 2**steps, "features": state["head.weight"].shape[0], "blocks": blocks}
    others = {f"before.{k}": v for k, v in nn.Sequential(*before).state_dict().items()}
    others |= {f"after.{k}": v for k, v in nn.Sequential(*after).state_dict().items()}

    def make() -> nn.Module:
        parts = {
            "before": nn.Sequential(*before),
            "network": SRResNet(**options),
            "after": nn.Sequential(*after),
        }
        return nn.Sequential(OrderedDict(parts))

    return Imported(
        peer=taker.peer,
        make=make,
        state={**others, **{f"network.{k}": v for k, v in state.items()}},
        options={"kind": "srresnet", **options},
        scale=options["scale"],
    )


def _state(taker: Taker, names: Names, epsilon: float) -> dict[str, Tensor]:
    state = _convolution(taker, names.head, "head", None, 3, 9)
    maps = state["head.weight"].shape[0]
    state |= _slope(taker, names.head_slope, "head_prelu")
    for i in range(taker.count(f"{names.block[0]}.weight", names.first_block)):
        first, first_norm, slope, second, second_norm = (n.format(i + names.first_block) for n in names.block)
        state |= _convolution(taker, first, f"blocks.{i}.conv1", maps, maps)
        state |= _norm(taker, first_norm, f"blocks.{i}.bn1", maps, epsilon)
        state |= _slope(taker, slope, f"blocks.{i}.prelu")
        state |= _convolution(taker, second, f"blocks.{i}.conv2", maps, maps)
        state |= _norm(taker, second_norm, f"blocks.{i}.bn2", maps, epsilon)
    state |= _convolution(taker, names.trunk[0], "trunk", maps, maps)
    state |= _norm(taker, names.trunk[1], "trunk_bn", maps, epsilon)
    steps = 0
    while f"{names.step[0].format(steps * names.per_step)}.weight" in taker:
        at = steps * names.per_step
        here = f"upsampling.{3 * steps}"
        layer = _convolution(taker, names.step[0].format(at), here, 4 * maps, maps)
        if names.step[1]:
            norm = _norm(taker, names.step[1].format(at + 1), "n", 4 * maps, BATCH_NORM)
            layer = _folded(layer, norm, here)
        state |= layer
        slope = names.step[2].format(at + 3 if names.per_step > 1 else at)
        state |= _slope(taker, slope, f"upsampling.{3 * steps + 2}")
        steps += 1
    return state | _convolution(taker, names.tail.format(steps), "tail", 3, maps, 9)


def _convolution(
    taker: Taker, there: str, here: str, outputs: int | None, inputs: int, kernel: int = 3
) -> dict[str, Tensor]:
    weight = taker.take(f"{there}.weight", outputs, inputs, kernel, kernel)
    return {f"{here}.weight": weight, f"{here}.bias": taker.take(f"{there}.bias", weight.shape[0])}


def _norm(taker: Taker, there: str, here: str, maps: int, epsilon: float) -> dict[str, Tensor]:
    """A norm with PyTorch's epsilon that does what one with another does."""
    if f"{there}.num_batches_tracked" in taker:  # not in files of PyTorch before 0.4.1
        taker.take(f"{there}.num_batches_tracked")
    return {
        f"{here}.weight": taker.take(f"{there}.weight", maps),
        f"{here}.bias": taker.take(f"{there}.bias", maps),
        f"{here}.running_mean": taker.take(f"{there}.running_mean", maps),
        f"{here}.running_var": taker.take(f"{there}.running_var", maps) + (epsilon - BATCH_NORM),
        f"{here}.num_batches_tracked": torch.tensor(0),
    }


def _folded(layer: Mapping[str, Tensor], norm: Mapping[str, Tensor], here: str) -> dict[str, Tensor]:
    """A convolution with the norm behind it in its weights."""
    factor = norm["n.weight"] / (norm["n.running_var"] + BATCH_NORM).sqrt()
    bias = (layer[f"{here}.bias"] - norm["n.running_mean"]) * factor + norm["n.bias"]
    return {f"{here}.weight": layer[f"{here}.weight"] * factor.view(-1, 1, 1, 1), f"{here}.bias": bias}


def _slope(taker: Taker, there: str, here: str) -> dict[str, Tensor]:
    """A PReLU; where the file holds none it is a ReLU."""
    name = f"{there}.weight"
    slope = taker.take(name, 1) if name in taker else torch.zeros(1, dtype=torch.float64)
    return {f"{here}.weight": slope}
