"""How many images at a time are fastest: found by trying, once on a machine.

    batch = fastest_batch(lambda batch: open_runner(bundle, batch=batch), latent_size)

Small batches stay in a CPU's caches, large ones fill a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pgsr import draws

from .backends import Runner

FIRST, FIRST_ON_GPU = 8, 32  # also what is taken where nobody has measured
LEAST, MOST = 2, 64  # a batch of one is computed as two
BETTER = 1.02  # by less than that, sizes are as good as one another
CALLS = 4  # of each size; the quickest counts, since others may use the machine
SECONDS = 4.0  # for all of it


def fastest_batch(
    opened: Callable[[int], Runner],
    latent_size: int,
    first: int = FIRST,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """From `first` on halves, or doubles if halving was no use, while images get quicker and time is left.

    Raises PgsrError if the graph cannot be run.
    """
    until = clock() + seconds
    best, speed = first, _speed(opened, first, latent_size, until, clock)
    for factor in (0.5, 2.0):
        began_with = best
        while LEAST <= (size := int(best * factor)) <= MOST and clock() < until:
            found = _speed(opened, size, latent_size, until, clock)
            if found < BETTER * speed:
                break
            best, speed = size, found
        if best != began_with:
            break
    return best


def _speed(
    opened: Callable[[int], Runner], size: int, latent_size: int, until: float, clock: Callable[[], float]
) -> float:
    """Images a second of the quickest call, behind one to warm up."""
    latents = draws.latents(0, range(size), latent_size)
    with opened(size) as runner:
        runner.run(latents)
        quickest = float("inf")
        for _ in range(CALLS):
            began = clock()
            runner.run(latents)
            quickest = min(quickest, clock() - began)
            if clock() > until:
                break
    return size / max(quickest, 1e-9)
