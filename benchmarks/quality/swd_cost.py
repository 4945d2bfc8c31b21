"""What the sliced Wasserstein distance costs: seconds and memory by the number of images.

    pgsr-bench swd --images 1000,4096,16384 --resolution 64

Random bytes serve as well as photographs. Every number of images is measured in a process of its own, whose
peak of memory is then its alone; what the imports take is told apart.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.trainer.metrics.swd import distance_between, pyramid_levels

from ..harness.report import aligned
from ..training.contender import memory_bytes

BATCH = 64


def run(images: Sequence[int], resolution: int, threads: int, device: str) -> dict[str, Any]:
    """A row for each number of images. Raises PgsrError for a resolution that SWD does not take."""
    pyramid_levels(resolution)
    if min(images, default=0) < 1:
        raise PgsrError("--images needs numbers above 0")
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for count in images:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows.append(pool.submit(measured, count, resolution, threads, device).result())
    return {"resolution": resolution, "threads": threads or torch.get_num_threads(), "rows": rows}


def measured(count: int, resolution: int, threads: int, device: str) -> dict[str, Any]:
    """SWD of two sets of `count` images in this process."""
    if threads:
        torch.set_num_threads(threads)
    before, began = memory_bytes("VmRSS"), time.perf_counter()
    first, second = (noise(count, resolution, seed) for seed in (0, 1))
    average = distance_between(first, second, resolution, 0, device).average
    seconds = time.perf_counter() - began
    cuda = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    return {
        "images": count,
        "seconds": round(seconds, 2),
        "memory_bytes": max(0, memory_bytes("VmHWM") - before),
        "cuda_bytes": cuda,
        "swd": average,
    }


def noise(count: int, resolution: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yields `count` images of noise, uint8 [N, resolution, resolution, 3], a batch at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        yield rng.integers(0, 256, (min(BATCH, count - start), resolution, resolution, 3), np.uint8)


def text(result: dict[str, Any]) -> str:
    """Returns what the command prints."""
    lines = [["images of either set", "seconds", "memory, MiB"]]
    for row in result["rows"]:
        memory_bytes = row["cuda_bytes"] or row["memory_bytes"]
        lines.append([f"{row['images']:,}", f"{row['seconds']:.1f}", f"{memory_bytes / 2**20:,.0f}"])
    side = result["resolution"]
    return (
        f"{aligned(lines, 0)}\n{side}x{side}, threads: {result['threads']}; memory beyond the program's own"
    )
