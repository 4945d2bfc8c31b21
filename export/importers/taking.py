"""Tensors by their peer's names, with account of every one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgsr.errors import PgsrError

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile
# Counters that AveragedModel and profilers (thop) leave among a network's buffers.
COUNTERS = re.compile(r"(.*\.)?(n_averaged|total_ops|total_params)")


def unwrapped(tensors: Any) -> dict[str, Tensor]:
    """The tensors and arrays of a dict by name, without what wrappers put before names and beside them."""
    result: dict[str, Tensor] = {}
    if isinstance(tensors, Mapping):
        for name, value in tensors.items():
            named = isinstance(name, str) and not COUNTERS.fullmatch(name)
            if named and isinstance(value, (Tensor, np.ndarray)):
                result[WRAPPERS.sub("", name)] = torch.as_tensor(value)
    return result


# ----------------------------------------------------------------------------
# Where a file keeps its network. Training programs put it under names of their own ("model_state_dict",
# "g_ema") or before the tensors' names ("netG.module.conv.weight"), often beside others.

AVERAGES = frozenset("avg avgg average averaged ema shadow smooth running gs".split())
USUAL = "g gen generator net netg network model models module params weights student state dict statedict"
ENCLOSING = AVERAGES | frozenset(f"{USUAL} sr srresnet srgan orig mod".split())
MOST_ENCLOSED = 5  # names above one another


def candidates(tree: Any, depth: int = MOST_ENCLOSED) -> Iterator[Any]:
    """Yields what may be a network's tensors: the tree, then what it holds under enclosing names.

    Averages come first. A name encloses if all its words are usual ones, or if what it holds is all that
    there is.
    """
    yield tree
    if not isinstance(tree, Mapping) or depth == 0:
        return
    dicts = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, Mapping) and unwrapped(v)}
    dicts |= {k: v for k, v in tree.items() if isinstance(k, str) and _holds_dicts(v)}
    prefixes: dict[str, dict[str, Tensor]] = {}
    for name, tensor in unwrapped(tree).items():
        first, _, rest = name.partition(".")
        prefixes.setdefault(first, {})[rest] = tensor
    inner = [*_enclosed(dicts), *_enclosed(prefixes)]
    for name, held in sorted(inner, key=lambda pair: not AVERAGES.intersection(_words(pair[0]))):
        if name and "" not in held:
            yield from candidates(held, depth - 1)


def _holds_dicts(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())


def _enclosed(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    alone = len(found) == 1
    return [(name, held) for name, held in found.items() if alone or _words(name) <= ENCLOSING]


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_]", name.lower())) - {""}


def shortened_list(names: list[str], count: int = 4) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


class Taker:
    """Gives a file's tensors out by name, in float64, and knows which nobody took."""

    def __init__(self, peer: str, tensors: Mapping[str, Tensor]) -> None:
        self.peer, self.tensors = peer, tensors
        self.left = dict.fromkeys(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def count(self, pattern: str, first: int = 0) -> int:
        """Returns how many there are of "layers.{}.weight", numbered from `first` without a gap."""
        n = first
        while pattern.format(n) in self.tensors:
            n += 1
        return n - first

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor of this shape; None stands for any side. Raises PgsrError if it is absent or other."""
        if name not in self.tensors:
            raise PgsrError(f"of {self.peer}'s tensors {name} is missing")
        tensor = self.tensors[name]
        fits = len(tensor.shape) == len(shape) and all(
            s is None or s == f for s, f in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            description = ", ".join("any" if s is None else str(s) for s in shape)
            raise PgsrError(f"{self.peer}'s {name} is of shape {list(tensor.shape)}, not [{description}]")
        self.left.pop(name, None)
        return tensor.detach().double()

    def finish(self) -> None:
        """Raises PgsrError, with their names, if tensors are left over."""
        left = list(self.left)
        if left:
            raise PgsrError(
                f"{len(left)} of {self.peer}'s tensors have no place in the network: {shortened_list(left)}"
            )
