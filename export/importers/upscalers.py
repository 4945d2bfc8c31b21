"""SRResNet and SRGAN of Lornatang/SRGAN-PyTorch, and BasicSR's MSRResNet.

Both see and make images in [0, 1], and pad the borders of their first layer with zeros, which there is
black. So the first layer is given [0, 1] here too, and the step back to [-1, 1] is in the last layer's
weights. Where they cut values outside [0, 1] off, it is done here as everywhere: when images become pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError

from .imported import NO_HINTS, Hints, Imported
from .taking import Taker, unwrapped

LORNATANG = "Lornatang/SRGAN-PyTorch"
BASICSR = "BasicSR's MSRResNet"


def stretched(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A last layer that makes [-1, 1] of one that makes [0, 1]: 2 y - 1."""
    return 2 * weight, 2 * bias - 1


# ----------------------------------------------------------------------------
# Lornatang: keys of 2022 ("conv_block1") and since ("conv1"). Convolutions before a norm have no bias.


def lornatang(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports SRGAN-PyTorch's generator; None if the tree holds none."""
    nested = tree.get("state_dict") if isinstance(tree, Mapping) else None
    tensors = unwrapped(nested) or unwrapped(tree)
    if "trunk.0.rcb.0.weight" not in tensors:
        return None
    taker = Taker(LORNATANG, tensors)
    names = ("conv_block1", "conv_block2", "conv_block3") if "conv_block1.0.weight" in taker else ()
    head, trunk, tail = names or ("conv1", "conv2", "conv3")
    blocks, steps = taker.count("trunk.{}.rcb.0.weight"), taker.count("upsampling.{}.upsample_block.0.weight")
    weight = taker.take(f"{head}.0.weight", None, 3, 9, 9)
    maps = weight.shape[0]
    state = {"head.weight": weight, "head.bias": taker.take(f"{head}.0.bias", maps)}
    state["head_prelu.weight"] = taker.take(f"{head}.1.weight", 1)
    for i in range(blocks):
        there, here = f"trunk.{i}.rcb", f"blocks.{i}"
        state |= _normed(taker, f"{there}.0", f"{there}.1", f"{here}.conv1", f"{here}.bn1", maps)
        state[f"{here}.prelu.weight"] = taker.take(f"{there}.2.weight", 1)
        state |= _normed(taker, f"{there}.3", f"{there}.4", f"{here}.conv2", f"{here}.bn2", maps)
    state |= _normed(taker, f"{trunk}.0", f"{trunk}.1", "trunk", "trunk_bn", maps)
    for i in range(steps):
        there, here = f"upsampling.{i}.upsample_block", f"upsampling.{3 * i}"
        state[f"{here}.weight"] = taker.take(f"{there}.0.weight", 4 * maps, maps, 3, 3)
        state[f"{here}.bias"] = taker.take(f"{there}.0.bias", 4 * maps)
        state[f"upsampling.{3 * i + 2}.weight"] = taker.take(f"{there}.2.weight", 1)
    last = stretched(taker.take(f"{tail}.weight", 3, maps, 9, 9), taker.take(f"{tail}.bias", 3))
    state["tail.weight"], state["tail.bias"] = last
    taker.finish()
    options = {"kind": "srresnet", "scale": 2**steps, "features": maps, "blocks": blocks, "unit_inputs": True}
    return Imported.of_network(LORNATANG, options, state)


def _normed(taker: Taker, there: str, there_norm: str, here: str, norm: str, maps: int) -> dict[str, Tensor]:
    """A convolution without a bias, and its norm."""
    return {
        f"{here}.weight": taker.take(f"{there}.weight", maps, maps, 3, 3),
        f"{here}.bias": torch.zeros(maps, dtype=torch.float64),
        f"{norm}.weight": taker.take(f"{there_norm}.weight", maps),
        f"{norm}.bias": taker.take(f"{there_norm}.bias", maps),
        f"{norm}.running_mean": taker.take(f"{there_norm}.running_mean", maps),
        f"{norm}.running_var": taker.take(f"{there_norm}.running_var", maps),
        f"{norm}.num_batches_tracked": taker.take(f"{there_norm}.num_batches_tracked"),
    }


# ----------------------------------------------------------------------------
# BasicSR. Slope 0.1; no norms; the layers make what bilinear interpolation misses.


class MSRResNet(nn.Module):
    """SRResNet without norms, as BasicSR modifies it: [N, 3, H, W] -> [N, 3, sH, sW], around [-1, 1]."""

    def __init__(self, scale: int, features: int, blocks: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.ModuleList([_Residual(features) for _ in range(blocks)])
        factors = (2, 2) if scale == 4 else (scale,)
        self.upsampling = nn.ModuleList([nn.Conv2d(features, features * f**2, 3, padding=1) for f in factors])
        self.factors = factors
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv_first((x + 1) / 2), 0.1)
        for block in self.body:
            y = block(y)
        for layer, factor in zip(self.upsampling, self.factors, strict=True):
            y = F.leaky_relu(F.pixel_shuffle(layer(y), factor), 0.1)
        y = self.conv_last(F.leaky_relu(self.conv_hr(y), 0.1))
        return y + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)


class _Residual(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def basicsr(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports BasicSR's MSRResNet; None if the tree holds none."""
    nested = (
        next((tree[k] for k in ("params_ema", "params") if k in tree), None)
        if isinstance(tree, Mapping)
        else None
    )
    tensors = unwrapped(nested) or unwrapped(tree)
    names = (
        "conv_first.weight",
        "upconv1.weight",
        "conv_hr.weight",
        "conv_last.weight",
        "body.0.conv1.weight",
    )
    if any(name not in tensors for name in names):
        return None
    taker = Taker(BASICSR, tensors)
    state: dict[str, Tensor] = {}

    def layer(there: str, here: str, outputs: int | None, inputs: int) -> int:
        state[f"{here}.weight"] = weight = taker.take(f"{there}.weight", outputs, inputs, 3, 3)
        state[f"{here}.bias"] = taker.take(f"{there}.bias", weight.shape[0])
        return weight.shape[0]

    maps = layer("conv_first", "conv_first", None, 3)
    blocks = taker.count("body.{}.conv1.weight")
    for i in range(blocks):
        for part in ("conv1", "conv2"):
            layer(f"body.{i}.{part}", f"body.{i}.{part}", maps, maps)
    expanded = layer("upconv1", "upsampling.0", None, maps)
    scale = {4 * maps: 2, 9 * maps: 3}.get(expanded, 0)
    if "upconv2.weight" in taker:
        layer("upconv2", "upsampling.1", 4 * maps, maps)
        scale = 4 if scale == 2 else 0
    if not scale:
        raise PgsrError(f"{BASICSR}'s upconv1.weight has {expanded} maps of {maps}: no scale of 2, 3 or 4")
    layer("conv_hr", "conv_hr", maps, maps)
    layer("conv_last", "conv_last", 3, maps)
    taker.finish()
    # The picture that is added is in [-1, 1] already, so the layers' part is doubled and not shifted.
    state["conv_last.weight"], state["conv_last.bias"] = (
        2 * state["conv_last.weight"],
        2 * state["conv_last.bias"],
    )
    options = {"kind": "msrresnet", "scale": scale, "features": maps, "blocks": blocks}
    return Imported(
        peer=BASICSR,
        make=lambda: MSRResNet(scale, maps, blocks),
        state=state,
        options=options,
        scale=scale,
    )
