"""Arithmetic whose result must not depend on the networks' precision is done in float32 at least."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which nothing is computed in half precision; tensors without contents know none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
