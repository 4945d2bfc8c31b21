"""Exact algebra on trained networks: named rewrites, each a small function from module to module.

    network, applied = rewritten(network)                   # a changed copy, and the names of what applied
    network, applied = rewritten(network, choose_rewrites("openvino", without=["fold-batch-norm"]))

A rewrite changes a network in place and says whether it found anything to change. Most are rules on the
sequences of steps that export/lowering.py makes of a network: what stands in place i, and what may stand
there instead. REWRITES lists them in the order they are applied; where several are forms of one thing, the
first that is chosen finds it and the others find nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.networks.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    PlacedBiasFirstLayer,
    SeparableConv2d,
    SeparableFirstLayer,
    VanillaFirstLayer,
    fold_equalized,
)

from ..lowering import Crop, DividingNorm, Fade, Grown, NormBehind, Phases, PixelNorm, Steps, as_steps

__all__ = ["REWRITES", "TARGETS", "Grown", "choose_rewrites", "rewritten"]

# (steps, i) -> how many steps from place i go, and what comes there instead; None if the rule does not apply.
Rule = Callable[[Steps, int], tuple[int, Steps] | None]


@dataclass(frozen=True)
class Rewrite:
    """What a name of --rewrite stands for."""

    apply: Callable[[nn.Module], bool]
    what: str


def apply_rule(network: nn.Module, rule: Rule) -> bool:
    """A rule everywhere in a network's sequences, until it applies nowhere."""
    any_change = False
    for sequence in [m for m in network.modules() if type(m) is nn.Sequential]:
        steps, i = list(sequence), 0
        while i < len(steps):
            match = rule(steps, i)
            if match is None:
                i += 1
                continue
            count, instead = match
            steps[i : i + count] = instead
            i, any_change = max(0, i - 1), True  # what came there may suit the step before it
        sequence._modules = {str(i): step for i, step in enumerate(steps)}
    return any_change


# ----------------------------------------------------------------------------
# Equalized learning rate: a constant of every layer, into its weight.


def fold_gains(network: nn.Module) -> bool:
    any_layer = fold_equalized(network)
    return apply_rule(network, _plain_layer) | any_layer


def _plain_layer(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A layer whose constant is folded, as PyTorch's own."""
    layer = steps[i]
    if type(layer) is EqualizedConv2d:
        return 1, [convolution(layer.weight, layer.bias, layer.padding)]
    if type(layer) is EqualizedLinear:
        return 1, [dense(layer.weight, layer.bias)]
    if type(layer) is SeparableConv2d:
        deep, point = layer.depthwise, layer.pointwise
        return 1, [convolution(deep.weight, None, deep.padding, len(deep.weight)), point]
    return None


def convolution(weight: Tensor, bias: Tensor | None, padding: int, groups: int = 1) -> nn.Conv2d:
    """nn.Conv2d of given values."""
    outputs, inputs, side, _ = weight.shape
    layer = nn.Conv2d(inputs * groups, outputs, side, padding=padding, groups=groups, bias=bias is not None)
    return _with(layer, weight, bias)


def dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    return _with(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)


def _with(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


# ----------------------------------------------------------------------------
# alpha: a level that is grown in has no old branch.


def _new_branch(steps: Steps, i: int) -> tuple[int, Steps] | None:
    step = steps[i]
    if isinstance(step, Fade) and step.alpha >= 1.0:
        return 1, list(step.new)
    return None


# ----------------------------------------------------------------------------
# Batch normalisation of fixed statistics is a scale and a shift: into the layer before it.


def _fold_norm(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A layer, and its norm; between them perhaps the places that a dense layer's values are given."""
    layer, between = steps[i], steps[i + 1 : i + 2]
    if not between or not _weighted(layer):
        return None
    reshapes = [step for step in between if isinstance(step, nn.Unflatten)]
    behind = i + 1 + len(reshapes)
    norm = steps[behind] if behind < len(steps) else None
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return None
    _fold_into(layer, norm)
    return 2 + len(reshapes), [layer, *reshapes]


def _weighted(layer: nn.Module) -> Any:
    """Returns where a layer's outgoing weights and bias are; None if it has none."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, EqualizedConv2d, EqualizedLinear, VanillaFirstLayer)
    if isinstance(layer, (SeparableConv2d, SeparableFirstLayer)):
        return layer.pointwise
    return layer if isinstance(layer, kinds) else None


def _fold_into(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Weights hold their output maps first, but for transposed convolutions; a dense layer whose values get
    places has several rows a map, and perhaps one bias a map."""
    weighted = _weighted(layer)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.data * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias.data - norm.running_mean * scale
    weight = weighted.weight.data
    outputs = 1 if isinstance(weighted, nn.ConvTranspose2d) else 0  # which axis of the weight they are
    shape = [-1 if axis == outputs else 1 for axis in range(weight.dim())]
    bias = weight.new_zeros(weight.shape[outputs]) if weighted.bias is None else weighted.bias.data
    rows, values = weight.shape[outputs] // len(scale), len(bias) // len(scale)
    weighted.weight.data = weight * scale.repeat_interleave(rows).view(shape)
    bias = bias * scale.repeat_interleave(values) + shift.repeat_interleave(values)
    weighted.bias = nn.Parameter(bias, requires_grad=False)


# ----------------------------------------------------------------------------
# The first layer: latents -> 4 x 4.


def _merge_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """Dense layer, places and bias as one matrix product with a bias for every place."""
    layer = steps[i]
    if not isinstance(layer, VanillaFirstLayer):
        return None
    weight = layer.scaled()
    bias = layer.bias if isinstance(layer, PlacedBiasFirstLayer) else layer.bias.repeat_interleave(16)
    return 1, [dense(weight, bias), nn.Unflatten(1, (len(weight) // 16, 4, 4))]


def _dense_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """A latent value spread over 4 x 4, then a pointwise convolution: one matrix, 16 times as large."""
    layer = steps[i]
    if not isinstance(layer, SeparableFirstLayer):
        return None
    spread, point = layer.depthwise.scaled(), layer.pointwise.scaled().flatten(1)  # [L, 4, 4], [C, L]
    weight = torch.einsum("lij,cl->cijl", spread, point).flatten(0, 2)  # [C * 16, L]
    bias = layer.pointwise.bias.repeat_interleave(16)
    return 1, [dense(weight, bias), nn.Unflatten(1, (len(point), 4, 4))]


# ----------------------------------------------------------------------------
# Nearest upsampling and a 3 x 3 convolution: each of the 2 x 2 output pixels that stem from one input pixel
# sees 2 x 2 inputs only. So it is four 2 x 2 convolutions of the low resolution, interleaved: 16
# multiply-adds where there were 36.


def _is_doubling(step: nn.Module) -> bool:
    return isinstance(step, nn.Upsample) and step.mode == "nearest" and step.scale_factor == 2.0


def _is_convolution(step: nn.Module, side: int, depthwise: bool = False) -> bool:
    """A plain one that keeps the size."""
    return (
        isinstance(step, nn.Conv2d)
        and (step.kernel_size, step.stride, step.dilation) == ((side, side), (1, 1), (1, 1))
        and step.padding == (side // 2, side // 2)
        and step.padding_mode == "zeros"
        and step.groups == (step.in_channels if depthwise else 1)
        and (not depthwise or step.out_channels == step.in_channels)
    )


def four_kernels(weight: Tensor) -> list[Tensor]:
    """[O, I, 3, 3] -> four [O, I, 2, 2], of the places (0, 0), (0, 1), (1, 0), (1, 1) among 2 x 2.

    Place 0 sees (before, here) with weights (k0, k1 + k2), place 1 (here, behind) with (k0 + k1, k2).
    """
    halves = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [place, tap, k]
    return [
        torch.einsum("oikl,ak,bl->oiab", weight, halves[a], halves[b]) for a, b in product((0, 1), (0, 1))
    ]


def four_by_four(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] -> [O, I, 4, 4]: the kernel of the transposed convolution of stride 2 and padding 1.

    Input pixel h reaches output 2h + p - (k - 1), p in (0, 1), by weight k: that is index p - k + 2.
    """
    kernel = weight.new_zeros(*weight.shape[:2], 4, 4)
    for down, right in product((0, 1), (0, 1)):
        kernel[:, :, down : down + 3, right : right + 3] += weight.flip(2, 3)
    return kernel


def _upsampled_one(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """One 2 x 2 convolution with four times the maps over the padded image: its value (p, q) holds pixel
    (2p, 2q) and what belongs to places before it, so that the interleaved image lacks no crop but its rim."""
    if not _is_upsampled(steps, i, 3):
        return None
    layer: Any = steps[i + 1]
    kernels = four_kernels(layer.weight)[::-1]  # a value's last place is its own pixel's first
    weight = torch.stack(kernels, dim=1).flatten(0, 1)  # [4 O, I, 2, 2], a map's four together
    bias = None if layer.bias is None else layer.bias.repeat_interleave(4)
    return 2, [convolution(weight, bias, 1), nn.PixelShuffle(2), Crop()]


def _upsampled_four(steps: Steps, i: int) -> tuple[int, Steps] | None:
    if not _is_upsampled(steps, i, 3):
        return None
    layer: Any = steps[i + 1]
    return 2, [Phases(convolution(k, layer.bias, 0) for k in four_kernels(layer.weight))]


def _upsampled_transposed(steps: Steps, i: int) -> tuple[int, Steps] | None:
    if not _is_upsampled(steps, i, 3):
        return None
    layer: Any = steps[i + 1]
    return 2, [_transposed(four_by_four(layer.weight).transpose(0, 1), layer.bias, 1)]


def _transposed(weight: Tensor, bias: Tensor | None, groups: int) -> nn.ConvTranspose2d:
    inputs, outputs = weight.shape[:2]
    with_bias = bias is not None
    layer = nn.ConvTranspose2d(inputs, outputs * groups, 4, 2, 1, groups=groups, bias=with_bias)
    return _with(layer, weight.contiguous(), bias)


def _is_upsampled(steps: Steps, i: int, side: int, depthwise: bool = False) -> bool:
    return i + 1 < len(steps) and _is_doubling(steps[i]) and _is_convolution(steps[i + 1], side, depthwise)


# The same for a depthwise convolution. The pointwise one behind it commutes with interleaving, and so does
# what bends or normalises single pixels: then only its maps, often half as many, are interleaved.


def _depthwise_four(steps: Steps, i: int) -> tuple[int, Steps] | None:
    if not _is_upsampled(steps, i, 3, depthwise=True):
        return None
    layer: Any = steps[i + 1]
    after: Steps = []
    for step in steps[i + 2 :]:
        if not isinstance(step, (nn.LeakyReLU, nn.ReLU)) and not (not after and _is_convolution(step, 1)):
            break
        after.append(step)
    kernels = [convolution(k, layer.bias, 0, layer.groups) for k in four_kernels(layer.weight)]
    return 2 + len(after), [Phases(kernels, after)]


def _depthwise_transposed(steps: Steps, i: int) -> tuple[int, Steps] | None:
    if not _is_upsampled(steps, i, 3, depthwise=True):
        return None
    layer: Any = steps[i + 1]
    return 2, [_transposed(four_by_four(layer.weight), layer.bias, layer.groups)]


# ----------------------------------------------------------------------------
# A 1 x 1 convolution (an RGB head of a fade, a shortcut) before the upsampling: a quarter of the work.


def _pointwise_first(steps: Steps, i: int) -> tuple[int, Steps] | None:
    replicates = isinstance(steps[i], nn.Upsample) and steps[i].mode == "nearest"  # any factor
    if replicates and i + 1 < len(steps) and _is_convolution(steps[i + 1], 1):
        return 2, [steps[i + 1], steps[i]]
    return None


# ----------------------------------------------------------------------------
# A convolution of few maps after PixelShuffle, as one of the low resolution before it: 9 x 9 of C maps to 3
# becomes 5 x 5 of 4 C to 12. It multiplies 100/81 as much, but fills 12 of a vector's 16 lanes instead of 3.

MOST_MAPS = 16  # of the result: beyond, nothing is gained


def _before_shuffle(steps: Steps, i: int) -> tuple[int, Steps] | None:
    shuffle = steps[i]
    if not isinstance(shuffle, nn.PixelShuffle):
        return None
    between = steps[i + 1 : i + 2]
    activations = [step for step in between if _is_same_activation(step)]
    if i + 1 + len(activations) >= len(steps):
        return None
    layer: Any = steps[i + 1 + len(activations)]
    factor = shuffle.upscale_factor
    side = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 0
    if side < 3 or not _is_convolution(layer, side) or layer.out_channels * factor**2 > MOST_MAPS:
        return None
    weight = unshuffled(layer.weight, factor)
    bias = None if layer.bias is None else layer.bias.repeat_interleave(factor**2)
    return 2 + len(activations), [*activations, convolution(weight, bias, weight.shape[-1] // 2), shuffle]


def _is_same_activation(step: nn.Module) -> bool:
    """Returns whether it does the same to every value (and leaves 0, which surrounds the image, as it is)."""
    return isinstance(step, (nn.LeakyReLU, nn.ReLU)) or (
        isinstance(step, nn.PReLU) and step.num_parameters == 1
    )


def unshuffled(weight: Tensor, factor: int) -> Tensor:
    """[O, I, k, k] after PixelShuffle(r) -> [O r r, I r r, k', k'] before it.

    Output place a and tap d lie at high pixel r i + (a + d - k // 2), that is place (..) mod r of low pixel
    i + (..) // r.
    """
    outputs, inputs, side, _ = weight.shape
    reach = -((side // 2) // -factor)  # low pixels to either side
    low = weight.new_zeros(outputs, factor, factor, inputs, factor, factor, 2 * reach + 1, 2 * reach + 1)
    for a, b, d, e in product(range(factor), range(factor), range(side), range(side)):
        (row, alpha), (column, beta) = divmod(a + d - side // 2, factor), divmod(b + e - side // 2, factor)
        low[:, a, b, :, alpha, beta, row + reach, column + reach] += weight[:, :, d, e]
    return low.flatten(3, 5).flatten(0, 2)


# ----------------------------------------------------------------------------
# Pixelwise normalisation.


def _norm_behind(steps: Steps, i: int) -> tuple[int, Steps] | None:
    """The division behind a pointwise convolution to fewer maps (the RGB layer): three maps to divide."""
    if i + 1 >= len(steps) or not isinstance(steps[i], (PixelNorm, DividingNorm)):
        return None
    layer: Any = steps[i + 1]
    if _is_convolution(layer, 1) and layer.out_channels < layer.in_channels:
        return 2, [NormBehind(layer)]
    return None


def _dividing(steps: Steps, i: int) -> tuple[int, Steps] | None:
    return (1, [DividingNorm()]) if isinstance(steps[i], PixelNorm) else None


# ----------------------------------------------------------------------------
# The table, in the order of application.


def _elsewhere(network: nn.Module) -> bool:
    """Finds nothing in a module: the rewrite is one of the written graph."""
    return False


def _by(rule: Rule) -> Callable[[nn.Module], bool]:
    return lambda network: apply_rule(network, rule)


REWRITES: dict[str, Rewrite] = {
    "remove-alpha": Rewrite(_by(_new_branch), "a grown level's old branch and its alpha of 1 are left out"),
    "fold-gains": Rewrite(fold_gains, "the equalized learning rate's constants go into the weights"),
    "fold-batch-norm": Rewrite(_by(_fold_norm), "fixed statistics go into the layer before them"),
    "merge-first-layer": Rewrite(_by(_merge_first), "dense layer, 4 x 4 places and bias: one matrix product"),
    "dense-first-layer": Rewrite(_by(_dense_first), "the same for a separable one: 16 times the weights"),
    "pointwise-before-upsampling": Rewrite(_by(_pointwise_first), "1 x 1 convolutions, a quarter the work"),
    "upsample-convolution": Rewrite(_by(_upsampled_one), "upsample + 3 x 3: one 2 x 2 with 4 times the maps"),
    "upsample-convolution-four": Rewrite(_by(_upsampled_four), "upsample + 3 x 3: four 2 x 2, interleaved"),
    "upsample-convolution-transposed": Rewrite(
        _by(_upsampled_transposed), "upsample + 3 x 3: 4 x 4, stride 2"
    ),
    "upsample-depthwise": Rewrite(_by(_depthwise_four), "upsample + separable: in four places, interleaved"),
    "upsample-depthwise-transposed": Rewrite(
        _by(_depthwise_transposed), "upsample + depthwise: 4 x 4, stride 2"
    ),
    "balance-separable": Rewrite(_elsewhere, "depthwise maps of like size, in int8 (export/int8.py)"),
    "convolution-before-shuffle": Rewrite(_by(_before_shuffle), "9 x 9 after PixelShuffle: 5 x 5 before it"),
    "norm-behind-rgb": Rewrite(_by(_norm_behind), "the last PixelNorm divides 3 maps, not all"),
    "divide-in-norm": Rewrite(_by(_dividing), "PixelNorm in 5 operations: multiply, mean, add, root, divide"),
}

_ALWAYS = (
    "remove-alpha",
    "fold-gains",
    "fold-batch-norm",
    "merge-first-layer",
    "pointwise-before-upsampling",
)
_USUAL = (*_ALWAYS, "upsample-convolution", "convolution-before-shuffle", "norm-behind-rgb", "divide-in-norm")

# What wins on each backend, as `pgsr-bench rewrites` measured it (docs/export.md).
TARGETS: dict[str, tuple[str, ...]] = {
    "onnxruntime": _USUAL,
    "openvino": (*_USUAL, "upsample-depthwise-transposed"),
    "tensorrt": _USUAL,
}

# Not exact in half: W x may be infinite where W (x / l) is not.
NOT_IN_HALF = ("norm-behind-rgb",)
IN_INT8 = ("balance-separable",)  # and nowhere else
NOT_IN_INT8 = ("upsample-depthwise-transposed",)  # transposed convolutions are not quantized


def choose_rewrites(
    target: str = "onnxruntime",
    also: Iterable[str] = (),
    without: Iterable[str] = (),
    precision: str = "fp32",
) -> tuple[str, ...]:
    """Names in the order of application. Raises PgsrError for a name that is not in the tables."""
    also, without = tuple(also), tuple(without)
    if target not in TARGETS:
        raise PgsrError(f"no rewrites are chosen for {target!r}: name one of {', '.join(TARGETS)}")
    for name in (*also, *without):
        if name not in REWRITES:
            raise PgsrError(f"there is no rewrite {name!r}; there are {', '.join(REWRITES)}")
    names = {*TARGETS[target], *also} - set(without)
    if precision == "fp16":
        names -= set(NOT_IN_HALF)
    if precision == "int8":
        names = names - (set(NOT_IN_INT8) - set(also)) | (set(IN_INT8) - set(without))
    return tuple(name for name in REWRITES if name in names)


def rewritten(network: nn.Module, names: Sequence[str] | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """A changed copy of a network in eval mode, and the names of the rewrites that applied."""
    names = choose_rewrites() if names is None else names
    with torch.no_grad():
        steps = as_steps(copy.deepcopy(network).eval())
        applied = tuple(name for name in REWRITES if name in names and REWRITES[name].apply(steps))
    return steps.eval().requires_grad_(False), applied
