"""Tensors by their peer's names, with account of every one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgsr.errors import PgsrError

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile


def unwrapped(tensors: Any) -> dict[str, Tensor]:
    """The tensors and arrays of a dict by name, without what wrappers put before the names."""
    result: dict[str, Tensor] = {}
    if isinstance(tensors, Mapping):
        for name, value in tensors.items():
            if isinstance(name, str) and isinstance(value, (Tensor, np.ndarray)):
                result[WRAPPERS.sub("", name)] = torch.as_tensor(value)
    return result


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

    def count(self, pattern: str) -> int:
        """Returns how many there are of "layers.{}.weight", numbered from 0 without a gap."""
        n = 0
        while pattern.format(n) in self.tensors:
            n += 1
        return n

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
