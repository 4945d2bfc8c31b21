"""How many images at a time are fastest: found by trying, once on a machine.

    batch = fastest_batch(lambda batch: open_runner(bundle, batch=batch), latent_size)

Small batches stay in a CPU's caches, large ones fill a GPU, and leave Python more time for encoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pgsr import draws
from pgsr.batches import LEAST, MOST

from .backends import Runner
from .pipeline import in_turn

FIRST, FIRST_ON_GPU = 16, 32  # also what is taken where nobody has measured
ENOUGH = {2.0: 0.97, 0.5: 1.05}  # how many times as fast twice and half the size must be to be taken
IMAGES = 64  # to compute for each size; two calls, if that is more
ROUNDS = 2  # of which the quicker one counts, since others may use the machine
SECONDS = 4.0  # for all of it


def fastest_batch(
    open_at: Callable[[int], Runner],
    latent_size: int,
    first: int = FIRST,
    limit: int = MOST,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Doubles the batch from `first` on, or halves it if doubling was no use, while that is faster and time
    is left.

    Raises PgsrError if the graph cannot be run.
    """
    until = clock() + seconds
    best, speed = first, _speed(open_at, first, latent_size, until, clock)
    for factor, enough in ENOUGH.items():
        began_with = best
        while LEAST <= (size := int(best * factor)) <= limit and clock() < until:
            speed_at_size = _speed(open_at, size, latent_size, until, clock)
            if speed_at_size < enough * speed:
                break
            best, speed = size, max(speed, speed_at_size)
        if best != began_with:
            break
    return best


def _speed(
    open_at: Callable[[int], Runner], size: int, latent_size: int, until: float, clock: Callable[[], float]
) -> float:
    """Images a second of the quicker round; if no time is left for one, of the call before, to warm up."""
    latents = draws.latents(0, range(size), latent_size)
    with open_at(size) as runner:
        began = clock()
        runner.run(latents)
        calls, quickest = max(2, IMAGES // size), clock() - began
        for _ in range(ROUNDS):
            if clock() + calls * quickest > until:
                break
            began = clock()
            for _ in in_turn(runner.run, [latents] * calls, runner.calls):
                pass
            quickest = min(quickest, (clock() - began) / calls)
    return size / max(quickest, 1e-9)
