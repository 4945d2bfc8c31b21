"""Side-by-side timing: A B C A B C ..., so that what disturbs the machine disturbs all alike.

timings = measure([Contender("a", 8, run_a), Contender("b", 8, run_b)], rounds=5)
speedup = timings["b"].ratio_to(timings["a"])
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgsr.errors import PgsrError


@dataclass(frozen=True)
class Contender:
    """Something to be timed."""

    name: str
    images: int  # that one call makes
    call: Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What the calls of one contender took."""

    images: int  # a call
    seconds: tuple[float, ...]  # of each round's call

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        """The speed of the median call."""
        return self.images / self.median_seconds

    def ratio_to(self, baseline: Timing) -> float:
        """Returns how many times as fast as `baseline`, an image: the median of the rounds' ratios."""
        pairs = zip(self.seconds, baseline.seconds, strict=True)
        ratios = [(theirs / baseline.images) / (mine / self.images) for mine, theirs in pairs]
        return statistics.median(ratios)

    def as_dict(self) -> dict[str, Any]:
        least, most = min(self.seconds), max(self.seconds)
        return {
            "images_per_call": self.images,
            "seconds": list(self.seconds),
            "seconds_median": self.median_seconds,
            "seconds_min": least,
            "seconds_max": most,
            "images_per_second": self.images_per_second,
            "images_per_second_min": self.images / most,
            "images_per_second_max": self.images / least,
        }


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[int], None] = lambda round_number: None,  # gets how many rounds are done
) -> dict[str, Timing]:
    """Calls each once to warm up, then one after the other in every round.

    Raises PgsrError if there is nothing to measure, or two contenders have one name.
    """
    if rounds < 1 or not contenders:
        raise PgsrError("nothing to measure: at least one round and one contender")
    if len({c.name for c in contenders}) != len(contenders):
        raise PgsrError("two contenders have the same name")
    for contender in contenders:
        contender.call()
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for round_number in range(1, rounds + 1):
        for contender in contenders:
            began = clock()
            contender.call()
            seconds[contender.name].append(clock() - began)
        report(round_number)
    return {c.name: Timing(c.images, tuple(seconds[c.name])) for c in contenders}
