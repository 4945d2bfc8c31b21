"""The fastest a GPU multiplies and moves memory, measured."""

from __future__ import annotations

from collections.abc import Callable

import torch

CALLS = 20


def device_name(device: str) -> str:
    """cpu, or the GPU's name."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def gpu_peak_gflops(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """GFLOP/s of a matrix product of size x size; float32 as PyTorch's convolutions do it, in TF32."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        seconds = _seconds(device, lambda: torch.matmul(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * size**3 / seconds / 1e9


def gpu_bandwidth_gbs(device: str, size: int = 2**30) -> float:
    """GB/s, read and written, of copying `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / _seconds(device, lambda: target.copy_(source)) / 1e9


def _seconds(device: str, call: Callable[[], object]) -> float:
    """Times one call, after a warm-up. Events belong to the current GPU: that is the one asked for."""
    with torch.cuda.device(device):
        call()
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        for _ in range(CALLS):
            call()
        ended.record()
        ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3 / CALLS
