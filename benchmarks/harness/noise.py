"""Whether a measurement was disturbed: a control pair of equals, and the load of other processes.

with Watch() as watch:
    ...                       # what is measured
watch.as_dict(controls)       # {"disturbed": true, "why": ["..."], ...}
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# A share of the usable cores' time that others may take before a measurement counts as disturbed.
TOLERATED_LOAD = 0.05
# A control pair may differ by this much without a word: a clock's steps and caches differ as well.
TOLERATED_CONTROL = 0.03


class Watch:
    """What else ran on the cores that this process may use, from entering to leaving."""

    def __init__(self, statistics_file: Path = Path("/proc/stat")) -> None:
        self._file = statistics_file
        self.seconds, self.busy_seconds, self.own_seconds, self.cores = 0.0, 0.0, 0.0, 1

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._busy, self._own = busy_seconds(self._file), own_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        self.busy_seconds = busy_seconds(self._file) - self._busy
        self.own_seconds = own_seconds() - self._own
        self.cores = len(os.sched_getaffinity(0))

    @property
    def other_load(self) -> float:
        """The share of the usable cores' time that went to other processes, or to other virtual machines."""
        others = self.busy_seconds - self.own_seconds
        return max(0.0, min(1.0, others / max(1e-9, self.seconds * self.cores)))

    def as_dict(self, controls: Sequence[float] = ()) -> dict[str, Any]:
        """A report's account of it; `controls` are ratios of two equal contenders, one a round or more."""
        return {
            "seconds": self.seconds,
            "other_load": self.other_load,
            "control": spread(controls) if controls else None,
            **judged(controls, self.other_load),
        }


def judged(controls: Sequence[float], other_load: float) -> dict[str, Any]:
    """Returns whether a measurement was disturbed, and by what, in sentences."""
    why = []
    if controls:
        control = spread(controls)
        away, allowed = abs(control["median"] - 1), max(TOLERATED_CONTROL, control["half_width"])
        if away > allowed:
            why.append(f"two equal contenders differ by {away:.1%}, more than their spread of ±{allowed:.1%}")
    if other_load > TOLERATED_LOAD:
        why.append(load_words(other_load))
    return {"disturbed": bool(why), "why": why}


def load_words(other_load: float) -> str:
    """Says what other processes took, and how much longer that may have made everything."""
    stretched = 1 / max(0.01, 1 - other_load)
    return (
        f"other processes took {other_load:.0%} of the cores' time, so times may be up to {stretched:.1f} "
        "times too long and shares of the peaks as much too low"
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the quartiles around it, and how far it may be off: 1.25 standard errors, from quartiles.

    The median of n normal values has a standard error of 1.253 s / sqrt(n), and s is the distance of the
    quartiles over 1.349.
    """
    median = statistics.median(values)
    low, high = (median, median) if len(values) < 2 else quartiles(values)
    half_width = 2 * 1.253 * (high - low) / 1.349 / len(values) ** 0.5  # two standard errors
    return {"median": median, "low": low, "high": high, "half_width": half_width, "count": len(values)}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and third quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def own_seconds() -> float:
    """Processor time of this process and its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def busy_seconds(file: Path) -> float:
    """Time that the usable cores were not idle since the machine began, time stolen by others included.

    0 where the system does not tell (proc_stat(5): user nice system idle iowait irq softirq steal).
    """
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0.0
    wanted = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in lines:
        name, *counts = line.split()
        if name in wanted:
            ticks += sum(int(count) for i, count in enumerate(counts[:8]) if i not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")
