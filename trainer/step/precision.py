"""In which precision networks compute while they train, and the scale that float16 needs.

Weights, averages and losses are float32 whatever the networks compute in (float64 apart).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pgsr.errors import check_choice
from pgsr.machine import multiplies_bfloat16

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

WORTHWHILE = 1.3  # times as fast as float32 must float16 be, to be chosen: less does not pay for its range


def chosen_precision(
    wish: str, device: torch.device, half_is_worthwhile: Callable[[], bool] | None = None
) -> torch.dtype:
    """The recipe's wish made concrete.

    "auto" is bfloat16 where the device multiplies it in hardware: CPUs that say so, and GPUs from compute
    capability 8.0 on. On other GPUs it is float16 where that is measured to be worthwhile, else float32.
    The environment's PGSR_PRECISION says what "auto" means. Raises PgsrError if it names none.
    """
    if wish == "auto":
        wish = os.environ.get("PGSR_PRECISION") or "auto"
        check_choice("PGSR_PRECISION", wish, ("auto", *PRECISIONS))
    if wish != "auto":
        return PRECISIONS[wish]
    if device.type != "cuda":
        return torch.bfloat16 if multiplies_bfloat16() else torch.float32
    if gpu_multiplies_bfloat16(device):
        return torch.bfloat16
    worthwhile = half_is_worthwhile or partial(measured_worthwhile, device)
    return torch.float16 if worthwhile() else torch.float32


def gpu_multiplies_bfloat16(device: torch.device) -> bool:
    """Returns whether a GPU has bfloat16 in hardware. PyTorch emulates it on others, which is slow."""
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def measured_worthwhile(device: torch.device) -> bool:
    """Returns whether float16 is enough faster than float32 on this device, measured in some milliseconds."""
    half, single = (seconds_of_convolutions(device, dtype) for dtype in (torch.float16, torch.float32))
    return single >= WORTHWHILE * half


def seconds_of_convolutions(
    device: torch.device, dtype: torch.dtype, maps: int = 256, side: int = 32
) -> float:
    """Times a vanilla convolution and a pointwise one, forwards and backwards, as networks have them: the
    least of five passes over 16 images, after one to warm up."""
    x = torch.ones(16, maps, side, side, device=device, dtype=dtype, requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    weights = [torch.ones(maps, maps, k, k, device=device, dtype=dtype, requires_grad=True) for k in (3, 1)]

    def synchronized() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    seconds = []
    for _ in range(6):
        began = synchronized()
        y = F.conv2d(F.conv2d(x, weights[0], padding=1), weights[1])
        torch.autograd.grad(y.sum(), [x, *weights])
        seconds.append(synchronized() - began)
    return min(seconds[1:])


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which networks compute in a precision."""
    if precision not in (torch.bfloat16, torch.float16):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


# ----------------------------------------------------------------------------
# float16 has 5 bits of exponent: gradients below 6e-8 are lost, and above 65504 infinite. So losses are
# multiplied by a scale before they are differentiated. It is halved where a gradient is not finite, and that
# step is left out; it doubles after 2,000 steps without (Micikevicius et al. 2018, section 3.2).

SMALLEST = 2.0**-10  # of a scale: at a smaller one it is not the scale that makes gradients infinite


class LossScale:
    """Differentiates losses and lets optimizers step; with a scale in float16 alone."""

    def __init__(self, device: torch.device, precision: torch.dtype) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients, scaled."""
        scaled: Tensor = self.scaler.scale(loss)
        scaled.backward()

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Takes the scale out of the optimizers' gradients, and lets each step whose gradients are finite."""
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def watched(self, norm: Tensor) -> Tensor:
        """A gradients' norm as it is logged: 0 where it is not finite for the scale's sake, since that step
        was left out."""
        if not self.scaler.is_enabled():
            return norm
        left_out = ~torch.isfinite(norm) & (self.scaler.get_scale() >= SMALLEST)
        return torch.where(left_out, torch.zeros_like(norm), norm)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, nothing where there is no scale: scalars."""
        state = self.scaler.state_dict()
        return {name: torch.tensor(state[key]) for name, key in _STATE.items() if key in state}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `tensors()`; with a new scale where the checkpoint is of another precision."""
        if self.scaler.is_enabled() and tensors.keys() >= _STATE.keys():
            state = {key: tensors[name].item() for name, key in _STATE.items()}
            self.scaler.load_state_dict(self.scaler.state_dict() | state)


_STATE = {"scale": "scale", "steps": "_growth_tracker"}  # a checkpoint's names: those of GradScaler's state
