"""Whether what was sampled over time stays where it was.

The first fifth of the samples is left out: caches fill, allocators settle. The rest is cut into blocks of as
many samples each, of which the median counts, so that one high sample moves nothing. Their slope is Theil and
Sen's, the median of the slopes between all pairs of blocks, with the interval that Kendall's statistic gives
(Sen, Journal of the American Statistical Association 63, 1968, section 3). It is flat where even the upper
end of the interval is within the limit, and growing where the lower end is above zero and the slope above the
limit. What is neither cannot be told from so short a time.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WARMING_UP = 0.2  # of the samples
BLOCKS = 16
NORMAL_95 = 1.96  # standard deviations of a normal distribution within which 95% lie
HOUR = 3600.0


@dataclass(frozen=True)
class Slope:
    """How much a series grows in an hour, and how surely."""

    median: float  # of the series
    an_hour: float
    lower: float  # of the 95% interval
    upper: float
    limit: float  # above which an hour's growth counts

    @property
    def verdict(self) -> str:
        """flat, grows or unclear."""
        if self.upper <= self.limit:
            return "flat"
        return "grows" if self.lower > 0 and self.an_hour > self.limit else "unclear"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def slope_of(times: Sequence[float], values: Sequence[float], share: float, least: float) -> Slope | None:
    """The slope of what was sampled at times in seconds; None of fewer samples than two a block.

    The limit is `share` of the series' median an hour, or `least` if that is more.
    """
    points = _blocks(times, values)
    if points is None:
        return None
    slopes = sorted(
        (b[1] - a[1]) / (b[0] - a[0]) * HOUR for a, b in itertools.combinations(points, 2) if b[0] > a[0]
    )
    spread = NORMAL_95 * math.sqrt(BLOCKS * (BLOCKS - 1) * (2 * BLOCKS + 5) / 18)
    low = max(0, int((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    median = statistics.median(value for _, value in points)
    limit = max(least, share * median)
    return Slope(median, statistics.median(slopes), slopes[low], slopes[high], limit)


def _blocks(times: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]] | None:
    """Median time and value of each block behind the warming up."""
    first = int(WARMING_UP * len(times))
    ends = [first + (len(times) - first) * number // BLOCKS for number in range(BLOCKS + 1)]
    if len(times) - first < 2 * BLOCKS:
        return None
    return [
        (statistics.median(times[start:end]), statistics.median(values[start:end]))
        for start, end in itertools.pairwise(ends)
    ]
