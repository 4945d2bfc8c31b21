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

import torch
from torch import nn

from pgsr.errors import PgsrError

from ..lowering import as_steps
from .folding import dense_first, fold_gains, fold_norm, merge_first, new_branch
from .products import upsampled_nine, winograd
from .reordering import before_shuffle, blocks_first, dividing, norm_behind
from .rules import Rewrite, Rule, apply_rule
from .upsampling import (
    depthwise_four,
    depthwise_transposed,
    pointwise_first,
    upsampled_four,
    upsampled_one,
    upsampled_transposed,
)

# ----------------------------------------------------------------------------
# The table, in the order of application.


def _elsewhere(network: nn.Module) -> bool:
    """Finds nothing in a module: the rewrite is one of the written graph."""
    return False


def _by(rule: Rule) -> Callable[[nn.Module], bool]:
    return lambda network: apply_rule(network, rule)


REWRITES: dict[str, Rewrite] = {
    "remove-alpha": Rewrite(_by(new_branch), "a grown level's old branch and its alpha of 1 are left out"),
    "fold-gains": Rewrite(fold_gains, "the equalized learning rate's constants go into the weights"),
    "fold-batch-norm": Rewrite(_by(fold_norm), "fixed statistics go into the layer before them"),
    "merge-first-layer": Rewrite(_by(merge_first), "dense layer, 4 x 4 places and bias: one matrix product"),
    "dense-first-layer": Rewrite(_by(dense_first), "the same for a separable one: 16 times the weights"),
    "pointwise-before-upsampling": Rewrite(_by(pointwise_first), "1 x 1 convolutions, a quarter the work"),
    "upsample-convolution-nine": Rewrite(_by(upsampled_nine), "upsample + 3 x 3 of wide maps: nine products"),
    "upsample-convolution": Rewrite(_by(upsampled_one), "upsample + 3 x 3: one 2 x 2 with 4 times the maps"),
    "upsample-convolution-four": Rewrite(_by(upsampled_four), "upsample + 3 x 3: four 2 x 2, interleaved"),
    "upsample-convolution-transposed": Rewrite(
        _by(upsampled_transposed), "upsample + 3 x 3: 4 x 4, stride 2"
    ),
    "upsample-depthwise": Rewrite(_by(depthwise_four), "upsample + separable: in four places, interleaved"),
    "upsample-depthwise-transposed": Rewrite(
        _by(depthwise_transposed), "upsample + depthwise: 4 x 4, stride 2"
    ),
    "winograd": Rewrite(_by(winograd), "3 x 3 of wide maps: 16 products for 2 x 2 pixels, not 36"),
    "balance-separable": Rewrite(_elsewhere, "depthwise maps of like size, in int8 (export/int8.py)"),
    "convolution-before-shuffle": Rewrite(_by(before_shuffle), "9 x 9 after PixelShuffle: 5 x 5 before it"),
    "shuffle-blocks-first": Rewrite(
        _by(blocks_first), "maps before PixelShuffle in the order of their places"
    ),
    "norm-behind-rgb": Rewrite(_by(norm_behind), "the last PixelNorm divides 3 maps, not all"),
    "divide-in-norm": Rewrite(_by(dividing), "PixelNorm in 5 operations: multiply, mean, add, root, divide"),
}


_ALWAYS = (
    "remove-alpha",
    "fold-gains",
    "fold-batch-norm",
    "merge-first-layer",
    "pointwise-before-upsampling",
)


_USUAL = (
    *_ALWAYS,
    "upsample-convolution",
    "convolution-before-shuffle",
    "shuffle-blocks-first",
    "norm-behind-rgb",
    "divide-in-norm",
)


_FEWER_PRODUCTS = ("upsample-convolution-nine", "winograd")


# What wins on each backend, as `pgsr-bench rewrites` measured it (docs/export.md).
TARGETS: dict[str, tuple[str, ...]] = {
    "onnxruntime": _USUAL,
    "openvino": (*_USUAL, "upsample-depthwise-transposed", *_FEWER_PRODUCTS),
    "tensorrt": _USUAL,
}


# Not exact in half: W x may be infinite where W (x / l) is not, and sums of weights and maps are rounded.
NOT_IN_HALF = ("norm-behind-rgb", *_FEWER_PRODUCTS)


NOT_IN_BF16 = ("upsample-depthwise-transposed",)  # OpenVINO has no fast kernel: five times as slow


IN_INT8 = ("balance-separable",)  # and nowhere else


# Transposed convolutions are not quantized, and differences of maps would have scales of their own.
NOT_IN_INT8 = ("upsample-depthwise-transposed", *_FEWER_PRODUCTS)


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
    if precision == "bf16":
        names -= set(NOT_IN_BF16) - set(also)
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
