"""What the parts that train say and show: time by resolution, growing or not, and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..curves import convolutions as by_resolution
from ..curves import growing as grown
from ..curves import quality_report
from ..curves.quality import WIDE
from ..harness.report import Row
from ..harness.svg import HEAD, WIDTH, Linear, Panel, dot, factor, frame, line, names_of_lines, path
from .panels import Bar, bars
from .shown import Figure, Measure, Shown, Table

BOTH = ("vanilla", "separable")
PLOT, AXIS, LEGEND = 178, 38, 20
MINUTE, DAY = 60.0, 86400.0

# ----------------------------------------------------------------------------
# Training by resolution (paper 1, Figure 2).


def convolutions(result: Row) -> Shown:
    """What an image costs at each resolution, and what the paper's phases would take."""
    cost, hours = result["seconds_an_image"], result["paper_hours"]
    ratios = {side: cost["vanilla"][side] / cost["separable"][side] for side in cost["vanilla"]}
    last = list(ratios)[-1]
    whole = hours["vanilla"][last] / hours["separable"][last]
    best = max(ratios, key=lambda side: ratios[side])
    slower = [f"{side}²" for side, ratio in ratios.items() if ratio < 1]
    maps = result["settings"]["maps"]
    lead = (
        f"With {maps} maps, a training to {last}² in the paper's phases takes {hours['separable'][last]:.0f} "
        f"hours with separable convolutions and {hours['vanilla'][last]:.0f} with vanilla ones, at the "
        f"speeds measured here: {factor(whole)} (the paper says about 2×)."
    )
    told = f"The gain is largest at {best}² ({factor(ratios[best])})"
    told += f"; separable is slower at {', '.join(slower)}." if slower else "; it is slower nowhere."
    rows = [
        (
            f"{side}²: {factor(ratio)}",
            [Bar(name, 1000 * cost[name][side], f"{1000 * cost[name][side]:.1f}") for name in BOTH],
        )
        for side, ratio in ratios.items()
    ]
    totals = [
        (f"to {side}²", [Bar(name, hours[name][side], f"{hours[name][side]:.1f}") for name in BOTH])
        for side in hours["vanilla"]
    ]
    return Shown(
        [lead, told],
        [
            Figure(
                "Two runs that grow from 4², by their own clocks: what 1,000 real images cost at each "
                "resolution, and the hours until each is trained with 800,000 images a phase.",
                [
                    bars("1,000 images", "seconds; behind the resolution, vanilla over separable", rows),
                    bars("the paper's phases", "hours from the beginning, at these speeds", totals),
                ],
            )
        ],
        [Table("By resolution", by_resolution.lines(result), 1)],
        by_resolution.legend(result),
    )


def convolutions_measures(result: Row) -> list[Measure]:
    """None: each run's clock is read once, without a spread."""
    return []


# ----------------------------------------------------------------------------
# Growing or not (paper 2, Figure 4).


def growing(result: Row) -> Shown:
    """Distances over time without growing and with it; images over days to 1024²."""
    final = result["settings"]["final"]
    both = {"vanilla": result["throughput"], "separable": result["separable_throughput"]}
    ends = {name: part["speedup"][-1] for name, part in both.items()}
    first = both["vanilla"]["speedup"][0]
    least = {row["name"]: row["best"] for row in result["runs"].values()}
    lead = (
        f"To {final}² and {ends['vanilla']['images'] / 1e6:.1f} million images, growing takes "
        f"{_days(ends['vanilla']['grown'])} on this machine with vanilla convolutions and "
        f"{_days(ends['separable']['grown'])} with separable ones; without growing it would be "
        f"{_days(ends['vanilla']['plain'])} and {_days(ends['separable']['plain'])}."
    )
    answers = [
        lead,
        f"So growing is {factor(ends['vanilla']['ratio'])} as fast as not growing with vanilla convolutions "
        f"and {factor(ends['separable']['ratio'])} with separable ones, and with growing separable is "
        f"{factor(ends['vanilla']['grown'] / ends['separable']['grown'])} as fast as vanilla. At "
        f"{first['images'] / 1e6:.1f} million images growing is {factor(first['ratio'])} as fast; the paper "
        f"says {grown.PAPER_SPEEDUP}×, of a schedule that it does not give.",
        "The least average distance: "
        + "; ".join(
            f"{name} {look['swd/average']:.0f}, after {look['seconds'] / MINUTE:.1f} minutes"
            for name, look in least.items()
        )
        + ".",
    ]
    panels = [distances(result), images_over_days(both, final), seconds_by_resolution(both)]
    return Shown(
        answers,
        [
            Figure(
                "Small trainings at " + f"{result['settings']['resolution']}², by distance; and images over "
                "days, by steps that were timed and, beyond what fits, by their multiply-adds.",
                panels,
            )
        ],
        [
            Table("The small trainings", grown.lines(result), 1),
            Table("Vanilla, to the last resolution", grown.speedups(result), 0),
            Table(
                "Separable, to the last resolution",
                grown.speedups({"throughput": result["separable_throughput"]}),
                0,
            ),
        ],
        [
            *grown.legend(result),
            f"separable, (c): {result['separable_throughput']['how']}",
            "with either convolution the networks are those of progan-1024, with at most "
            f"{result['settings']['final_maps']} maps",
        ],
    )


def _days(hours: float) -> str:
    return f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:,.1f} hours"


def distances(result: Row) -> Panel:
    """The average distance over minutes, without growing and with it."""
    curves = {
        row["name"]: [(look["seconds"] / MINUTE, look["swd/average"]) for look in row["looks"]]
        for row in result["runs"].values()
    }
    every = [point for curve in curves.values() for point in curve]
    highest = max(value for _, value in every)
    x, y = _scales(max(at for at, _ in every), 0.0, 1.05 * highest)
    kinds = ("roof", "separable")
    plain = [name.removeprefix("(a) ").removeprefix("(b) ") for name in curves]
    names = list(zip(kinds, plain, strict=True))
    parts = [*names_of_lines(names, HEAD + 5), *frame(x, y, "minutes of training →")]
    for kind, (name, curve) in zip(kinds, curves.items(), strict=True):
        parts.append(path([(x(at), y(value)) for at, value in curve], kind))
        for at, value in curve:
            mark = "separable" if kind == "separable" else "hollow ink"
            parts.append(dot(x(at), y(value), 2.6, mark, f"{name}: {value:.1f} after {at:.1f} minutes"))
    return Panel("SWD × 1000, average of the levels", "lower is better", "".join(parts), _bottom())


def images_over_days(both: Mapping[str, Row], final: int) -> Panel:
    """Millions of images shown over days: solid with growing, dashed without."""
    runs = {name: [(0.0, 0.0), *_grown_points(part)] for name, part in both.items()}
    most = max(points[-1][1] for points in runs.values())
    days = max(points[-1][0] for points in runs.values())
    x, y = _scales(days, 0.0, 1.05 * most)
    names = [("vanilla", "vanilla, growing"), ("separable", "separable, growing")]
    parts = [*names_of_lines(names, HEAD + 5), *frame(x, y, "days of training →")]
    for name, points in runs.items():
        last = list(both[name]["seconds_an_image"].values())[-1]
        reached = min(most, days * DAY / last / 1e6)
        parts.append(_dashed(x(0.0), y(0.0), x(reached * 1e6 * last / DAY), y(reached), name))
        parts.append(path([(x(at), y(millions)) for at, millions in points], name))
        for at, millions in points[1:]:
            parts.append(dot(x(at), y(millions), 2.2, name, f"{name}: {millions:.1f} M after {at:.1f} days"))
    subtitle = f"millions of images, to {final}²; dashed: without growing"
    return Panel("Images over days", subtitle, "".join(parts), _bottom())


def _grown_points(part: Row) -> list[tuple[float, float]]:
    return [(row["hours"] / 24, row["images"] / 1e6) for row in part["phases"]]


def _dashed(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return line(x1, y1, x2, y2, f"{kind} dashed")


def seconds_by_resolution(both: Mapping[str, Row]) -> Panel:
    """Seconds of an image by resolution: a bar each on a logarithmic scale would have no zero, so numbers
    stand beside bars of the ratio."""
    costs = {name: part["seconds_an_image"] for name, part in both.items()}
    rows = []
    for side, vanilla in costs["vanilla"].items():
        separable = costs["separable"][side]
        said = f"{side}²: {_seconds(vanilla)} and {_seconds(separable)}"
        ratio = vanilla / separable
        kind = "separable" if ratio >= 1 else "vanilla"
        rows.append((said, [Bar(kind, ratio, factor(ratio))]))
    return bars("Separable, as fast as vanilla", "by resolution; seconds an image of either", rows)


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"


def _scales(right: float, low: float, high: float) -> tuple[Linear, Linear]:
    top = HEAD + LEGEND
    return Linear(0.0, 1.02 * right, AXIS, WIDTH), Linear(low, high, top + PLOT, top)


def _bottom() -> float:
    return HEAD + LEGEND + PLOT + 36


def growing_measures(result: Row) -> list[Measure]:
    """None: steps are timed until they fit a budget, without a spread."""
    return []


# ----------------------------------------------------------------------------
# What it costs in quality.


def quality_curves(result: Row) -> Shown:
    """Scores over images and over time, and where they cross."""
    return Shown(
        quality_report.answers(result),
        [
            Figure(
                "Means over seeds, upright strokes their deviations. Dashed: separable with as many "
                "parameters as vanilla. A cheaper network goes on until it has taken vanilla's time.",
                quality_report.curves(result),
            )
        ],
        [
            Table("Equal images, time, parameters", quality_report.lines(result), 2, folded=False),
            Table("Where curves cross", quality_report.crossing_lines(result), 4),
        ],
        quality_report.legend(result),
    )


def quality_curves_measures(result: Row) -> list[Measure]:
    """Scores of either kind at equal images; by the deviation over seeds."""
    return [
        Measure(
            f"{row['score']}, {side}{', equal parameters' * (row['kind'] == WIDE)}",
            *_around(row[side]),
        )
        for row in result["comparisons"]
        if row["axis"] == "images"
        for side in BOTH
    ]


def _around(summary: Mapping[str, Any]) -> Sequence[float]:
    mean, deviation = summary["mean"], summary["deviation"] or 0.0
    return mean, mean - deviation, mean + deviation
