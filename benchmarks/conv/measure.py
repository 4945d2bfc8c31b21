"""pgsr-bench conv: vanilla beside separable, one convolution at a time.

Every cell is timed A B C A B C: vanilla, separable, and vanilla once more, opened anew. The last is the
control: its ratio to the first must come out near one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError, check_choice
from pgsr.machine import usable_cores

from ..harness.machine import FAST, Machine
from ..harness.noise import Watch, spread
from ..harness.provenance import provenance
from ..harness.resume import Kept
from ..harness.roof import Roof, roof_of, survey
from ..harness.timing import Timing
from ..throughput.measure import torch_threads
from .backends import LIBRARIES, Call, installed
from .cases import CONVOLUTIONS, FORMS, LAYOUTS, PRECISIONS, Case, cases

Report = Callable[[str], None]

CONTROL = "control"  # vanilla once more

NOTES = (
    "Vanilla is one 3 x 3 convolution, separable a depthwise 3 x 3 and a pointwise 1 x 1, with as many "
    "maps out as in; up is a nearest-neighbour enlargement by 2 before either. Biases are in, activations "
    "are not.",
    "Bytes are what each layer reads and writes and its weights once; between depthwise and pointwise "
    "maps are written and read.",
    "Ratios are medians of the rounds' ratios. Shares of the bandwidth are of a copy that touches as many "
    "bytes.",
    "A round's time is its median call's. Where other processes run, calls longer than the system's time "
    "slice are interrupted and shorter ones are not: ratios of long vanilla calls to short separable ones "
    "are too high then.",
)


@dataclass(frozen=True)
class Settings:
    """The grid, and how it is timed. Raises PgsrError for values out of range."""

    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    resolutions: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    batch: int = 1
    forms: tuple[str, ...] = FORMS
    layouts: tuple[str, ...] = LAYOUTS
    precisions: tuple[str, ...] = ()  # none: fp32, and what the processor has instructions for
    backends: tuple[str, ...] = ()  # none: all that are installed
    rounds: int = 7
    call_seconds: float = 0.005  # the least that all calls of a round should take
    most_multiply_adds: float = 1e10  # of a call's vanilla convolution; larger cells are left out
    threads: int = 0  # 0: one a usable core

    def __post_init__(self) -> None:
        for name, values, least in (("channels", self.channels, 1), ("resolutions", self.resolutions, 2)):
            if not values or min(values) < least or len(set(values)) < len(values):
                raise PgsrError(f"--{name} must be different numbers from {least} on, such as 16,32,64")
        if "up" in self.forms and any(side % 2 for side in self.resolutions):
            raise PgsrError("--resolutions must be even where --form up is measured: it enlarges by 2")
        for option, values_, choices in (
            ("--form", self.forms, FORMS),
            ("--layout", self.layouts, LAYOUTS),
            ("--precision", self.precisions, PRECISIONS),
            ("--backend", self.backends, tuple(LIBRARIES)),
        ):
            for value in values_:
                check_choice(option, value, choices)
        for name in ("batch", "rounds"):
            if getattr(self, name) < 1:
                raise PgsrError(f"--{name} is {getattr(self, name)}, but must be at least 1")
        if not self.call_seconds > 0 or not self.most_multiply_adds > 0:
            raise PgsrError("--call-seconds and --most-multiply-adds must be above 0")
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def ways(self, machine: Machine) -> list[Way]:
        """Every backend, layout and precision that is wanted and can be had."""
        fast = ("fp32", *(precision for precision in FAST if machine.is_fast_in(precision)))
        precisions = self.precisions or fast
        return [
            Way(name, layout, precision)
            for name in self.backends or installed()
            for precision in LIBRARIES[name].precisions
            if precision in precisions
            for layout in LIBRARIES[name].layouts
            if layout in self.layouts
        ]


@dataclass(frozen=True)
class Way:
    """How a convolution is computed."""

    backend: str
    layout: str
    precision: str

    @property
    def key(self) -> str:
        return f"{self.backend} {self.precision} {self.layout}"


QUICK = Settings(
    channels=(16, 64, 256),
    resolutions=(8, 32, 128),
    rounds=5,
    call_seconds=0.002,
    most_multiply_adds=1.5e9,
)


def run(settings: Settings, report: Report, kept_in: Path | None = None) -> dict[str, Any]:
    """The whole measurement as JSON data; rows that a file holds already are not measured again.

    Raises PgsrError if that file was made with other settings, or a backend cannot convolve.
    """
    began = provenance()
    report("timing the matrix product and the memory")
    machine, roof = survey(settings.threads)
    ways = settings.ways(machine)
    if not ways:
        raise PgsrError("no --backend here can do any --precision in any --layout that was named")
    kept = Kept(kept_in, _measured_with(settings, machine))
    roof = roof_of(kept.get("roof") or kept.add("roof", roof.as_dict()))
    todo, left_out = _todo(settings)
    with Watch() as watch, torch_threads(settings.threads):
        rows = list(_rows(settings, ways, todo, roof, kept, report))
    return {
        "benchmark": "conv",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "provenance": began,
        "roof": roof.as_dict(),
        "settings": asdict(settings),
        "noise": watch.as_dict([ratio for row in rows for ratio in row["controls"]]),
        "rows": rows,
        "pays_from": pays_from(rows),
        "notes": [*NOTES, *_left_out(left_out, settings), *_absent(ways, settings)],
    }


def _measured_with(settings: Settings, machine: Machine) -> dict[str, Any]:
    """What decides a row beside its key."""
    return {
        "cpu": machine.cpu,
        "packages": machine.packages,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "call_seconds": settings.call_seconds,
    }


def _todo(settings: Settings) -> tuple[list[Case], list[Case]]:
    """The cases to measure, and those that would take too long."""
    todo = cases(settings.forms, settings.channels, settings.resolutions, settings.batch)
    most = settings.most_multiply_adds

    def fits(case: Case) -> bool:
        return case.batch * case.multiply_adds("vanilla") <= most

    return [case for case in todo if fits(case)], [case for case in todo if not fits(case)]


def _left_out(cases_left_out: Sequence[Case], settings: Settings) -> list[str]:
    if not cases_left_out:
        return []
    return [
        f"{len(cases_left_out)} cases of more than {settings.most_multiply_adds / 1e9:g} G multiply-adds a "
        "call are left out (--most-multiply-adds)."
    ]


def _absent(ways: Sequence[Way], settings: Settings) -> list[str]:
    """What a backend that was measured cannot do, once each."""
    names = dict.fromkeys(way.backend for way in ways)
    return [LIBRARIES[name].note for name in names if LIBRARIES[name].note]


# ----------------------------------------------------------------------------
# Cells.


def _rows(
    settings: Settings, ways: Sequence[Way], todo: Sequence[Case], roof: Roof, kept: Kept, report: Report
) -> Iterator[dict[str, Any]]:
    for way in ways:
        for number, case in enumerate(todo, 1):
            key = f"{way.key}, {case.key}"
            row = kept.get(key)
            if row is None:
                report(f"{way.key}: {number} of {len(todo)}, {case.key}")
                row = kept.add(key, _row(way, case, roof, timed(settings, way, case)))
            yield row


def timed(settings: Settings, way: Way, case: Case) -> dict[str, Timing]:
    """Vanilla, separable and the control in turn; a round's time is that of its median call."""
    calls = {}
    for name in (*CONVOLUTIONS, CONTROL):
        convolution = CONVOLUTIONS[0] if name == CONTROL else name
        calls[name] = LIBRARIES[way.backend].open(
            case, convolution, way.layout, way.precision, settings.threads
        )
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(settings.rounds):
        for name, call in calls.items():
            seconds[name].append(steady_seconds(call, settings.call_seconds))
    return {name: Timing(case.batch, tuple(values)) for name, values in seconds.items()}


LEAST_CALLS = 5  # of which a median is taken


def steady_seconds(call: Call, least_seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median of single calls, as many as take so long in all.

    Calls that were interrupted, for another process perhaps, do not count while they are fewer than half.
    """
    taken: list[float] = []
    while len(taken) < LEAST_CALLS or sum(taken) < least_seconds:
        began = clock()
        call()
        taken.append(clock() - began)
    return statistics.median(taken)


def _row(way: Way, case: Case, roof: Roof, timings: Mapping[str, Timing]) -> dict[str, Any]:
    return {
        **asdict(way),
        "form": case.form,
        "channels": case.channels,
        "resolution": case.resolution,
        "batch": case.batch,
        **compared(way, case, roof, timings),
    }


def compared(way: Way, case: Case, roof: Roof, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Both sides of a case, and how many times as fast the second is."""
    vanilla = timings["vanilla"]
    return {
        **{name: _side(name, way, case, roof, timings[name]) for name in CONVOLUTIONS},
        "speedup": spread(ratios(timings["separable"], vanilla)),
        "controls": ratios(timings[CONTROL], vanilla),
    }


def ratios(mine: Timing, baseline: Timing) -> list[float]:
    """How many times as fast as `baseline`, an image, in each round."""
    pairs = zip(mine.seconds, baseline.seconds, strict=True)
    return [(theirs / baseline.images) / (ours / mine.images) for ours, theirs in pairs]


def _side(convolution: str, way: Way, case: Case, roof: Roof, timing: Timing) -> dict[str, Any]:
    """One convolution's time with the arithmetic and the bytes that it stands for, of a batch."""
    adds = case.batch * case.multiply_adds(convolution)
    moved = case.moved_bytes(convolution, way.precision)
    seconds = spread([case.batch * s / timing.images for s in timing.seconds])
    arithmetic, memory = roof.seconds(adds, moved, way.precision)
    return {
        "multiply_adds": adds,
        "moved_bytes": moved,
        "seconds": seconds,
        "share_of_peak": arithmetic / seconds["median"],
        "share_of_bandwidth": memory / seconds["median"],
    }


# ----------------------------------------------------------------------------
# From which width on separable pays.


def pays_from(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each way and form: at each resolution the least number of maps from which on separable is faster,
    and the least that holds at all of them; None where the widest does not pay.

    Faster is by the median of the rounds' ratios, and at the least width itself by their first quartile, too.
    """
    groups: dict[tuple[str, ...], dict[int, dict[int, Mapping[str, float]]]] = {}
    for row in rows:
        key = (row["backend"], row["layout"], row["precision"], row["form"])
        groups.setdefault(key, {}).setdefault(row["resolution"], {})[row["channels"]] = row["speedup"]
    result = []
    for (backend, layout, precision, form), sides in groups.items():
        by_side = {side: _least(speedups) for side, speedups in sides.items()}
        widths = [width for width in by_side.values() if width is not None]
        everywhere = max(widths) if len(widths) == len(by_side) else None
        result.append(
            {
                "backend": backend,
                "layout": layout,
                "precision": precision,
                "form": form,
                "by_resolution": {str(side): width for side, width in by_side.items()},
                "everywhere": everywhere,
            }
        )
    return result


def _least(speedups: Mapping[int, Mapping[str, float]]) -> int | None:
    """The least width that pays clearly, and such that all wider ones pay."""
    least = None
    for width in sorted(speedups, reverse=True):
        if not speedups[width]["median"] > 1:
            break
        if speedups[width]["low"] > 1:
            least = width
    return least
