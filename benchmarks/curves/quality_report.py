"""Quality over images and hours as text, Markdown and curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgsr.files import write_text

from ..harness.report import Row, aligned, plain_page, write_report_files
from ..harness.svg import (
    HEAD,
    WIDTH,
    Linear,
    Panel,
    dot,
    factor,
    frame,
    line,
    names_of_lines,
    path,
    sheet,
)
from .quality import AXES, HIGHER_IS_BETTER, SEPARABLE, VANILLA, WIDE

COLOURS = {VANILLA: "vanilla", SEPARABLE: "separable", WIDE: "wide"}  # classes of figures.css
MINUTE = 60.0


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """quality-curves.json, .md and .svg in a folder. Raises PgsrError if they cannot be written."""
    title = f"What separable convolutions cost in quality, {result['date']}"
    tables = [(lines(result), 2), (crossing_lines(result), 2)]
    page = plain_page(title, tables, [*answers(result), *legend(result)], ("quality", "quality-curves.svg"))
    write_report_files(folder, "quality-curves", result, page)
    write_text(folder / "quality-curves.svg", sheet(curves(result), 2) + "\n")


def text_of(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    tables = [aligned(lines(result), 2), "", aligned(crossing_lines(result), 2), ""]
    return "\n".join([*tables, *answers(result), "", *legend(result)])


# ----------------------------------------------------------------------------
# Words.


def main_score(result: Mapping[str, Any]) -> str:
    """The score that sentences speak of: the Fréchet distance where there is a network, else SWD."""
    names = list(dict.fromkeys(row["score"] for row in result["comparisons"]))
    return next((name for name in names if name in ("FD", "FID")), "SWD")


def plus_minus(summary: Row) -> str:
    """A mean and its deviation over seeds."""
    deviation = summary["deviation"]
    return score_words(summary["mean"]) + ("" if deviation is None else f" ± {score_words(deviation, 2)}")


def score_words(value: float, digits: int = 3) -> str:
    """A number in so many digits, without a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def answers(result: Mapping[str, Any]) -> list[str]:
    """What the comparisons say, in sentences: equal images, equal time, equal parameters, the crossover."""
    kinds = {kind["name"]: kind for kind in result["kinds"]}
    score, minutes = main_score(result), MINUTE * result["hours"]
    found = {(row["kind"], row["axis"]): row for row in result["comparisons"] if row["score"] == score}
    maps, images = kinds[SEPARABLE]["maps"], result["settings"]["images"]
    wide = f"{kinds[WIDE]['maps']} maps for vanilla's {kinds[VANILLA]['maps']}"
    cases = [
        (f"With equal images ({images:,}) and {maps} maps each", found[SEPARABLE, "images"]),
        (f"With equal time ({score_words(minutes, 2)} minutes)", found[SEPARABLE, "hours"]),
        (f"With equal parameters ({wide}) and equal images", found[WIDE, "images"]),
        ("With equal parameters and equal time", found[WIDE, "hours"]),
    ]
    told = [
        f"{case}, separable's {score} is {plus_minus(row['separable'])} and vanilla's "
        f"{plus_minus(row['vanilla'])}: {verdict(row)}."
        for case, row in cases
    ]
    return [*told, crossover_words(result, SEPARABLE), crossover_words(result, WIDE), cost_words(result)]


def verdict(row: Row) -> str:
    """Which of two is better, if the seeds let one say."""
    if row["better"] == "unclear":
        return "no difference that the seeds let one see"
    return f"{'vanilla' if row['better'] == VANILLA else 'separable'} is better"


def crossover_words(result: Mapping[str, Any], kind: str) -> str:
    """Where a kind's curve crosses vanilla's over time."""
    score, seeds = main_score(result), result["settings"]["seeds"]
    row = next(
        r for r in result["crossovers"] if (r["score"], r["axis"], r["kind"]) == (score, "hours", kind)
    )
    crossed = [MINUTE * at for at in row["at"] if at is not None]
    who = "separable" if kind == SEPARABLE else "separable of vanilla's parameters"
    ahead = f"is ahead at the end with {row['ahead_at_the_end']} of {seeds} seeds"
    if not crossed:
        return f"Over time, {who} never changes sides with vanilla in {score}: it {ahead}."
    deviation = f" ± {statistics.stdev(crossed):.2g}" if len(crossed) > 1 else ""
    return (
        f"Over time, {who} and vanilla last cross in {score} after {statistics.mean(crossed):.2g}{deviation} "
        f"minutes ({len(crossed)} of {seeds} seeds cross); separable {ahead}."
    )


def cost_words(result: Mapping[str, Any]) -> str:
    """What an image costs at the last resolution."""
    side = str(result["settings"]["resolution"])
    costs = {kind: row[side]["median"] for kind, row in result["seconds_an_image"].items()}
    narrow, wide = (costs[VANILLA] / costs[kind] for kind in (SEPARABLE, WIDE))
    return (
        f"At {side}² a training image of separable is {factor(narrow)} as fast as vanilla's with as many "
        f"maps, and {factor(wide)} with as many parameters."
    )


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """Every score of every comparison, headings first."""
    table = [["score", "equal", "separable", "vanilla", "difference", "standard error", "better"]]
    for row in result["comparisons"]:
        equal = AXES[row["axis"]].removeprefix("equal ")
        equal += ", parameters" * (row["kind"] == WIDE)
        error = "-" if row["error"] is None else score_words(row["error"], 2)
        both = (plus_minus(row["separable"]), plus_minus(row["vanilla"]))
        better = "unclear" if row["better"] == "unclear" else row["better"].removesuffix(", wide")
        table.append(
            [
                row["score"],
                equal,
                *both,
                _signed(row["difference"]),
                error,
                better,
            ]
        )
    return table


def _signed(difference: float) -> str:
    return f"{'+' * (difference > 0)}{score_words(difference, 2)}"


def crossing_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """Where curves cross, headings first."""
    table = [["score", "over", "kind", "last crossing, seed by seed", "separable ahead at the end"]]
    seeds = result["settings"]["seeds"]
    for row in result["crossovers"]:
        time_like = row["axis"] == "hours"
        points = [
            "never" if at is None else f"{MINUTE * at:.2f} min" if time_like else f"{at:,.0f}"
            for at in row["at"]
        ]
        table.append(
            [
                row["score"],
                "time" if time_like else "images",
                row["kind"],
                "; ".join(points),
                f"{row['ahead_at_the_end']} of {seeds}",
            ]
        )
    return table


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns how the numbers were made."""
    settings = result["settings"]
    kinds = "; ".join(f"{k['name']}: {k['maps']} maps, {k['parameters']:,}" for k in result["kinds"])
    against = "photographs held out" if settings["held_out"] else "the photographs that are trained on"
    floor = result["photographs"]
    told = "" if floor is None else ", ".join(f"{name} {score_words(value)}" for name, value in floor.items())
    return [
        f"{result['device']}, {result['threads']} thread(s); {settings['recipe']} at "
        f"{settings['resolution']}², batch 16, float32, {settings['seeds']} seed(s); maps, and parameters of "
        f"generator and critic: {kinds}",
        f"scores of {settings['scored']:,} images of the averaged generator against as many {against}"
        + (f", features of {settings['features'][:16]}" if "features" in settings else "")
        + "; ± is the deviation over seeds; better: by more than two standard errors of the difference",
        *([f"photographs that are trained on score {told}"] if told else []),
        "time: images shown times the seconds of an image at each resolution, medians of "
        f"{settings['rounds']} rounds in turns, by the processor's clock on a CPU",
        "these are short trainings of small networks: what they show is the beginning of a run",
        *[f"all with {setting}" for setting in settings["overrides"]],
    ]


# ----------------------------------------------------------------------------
# The curves.

PLOT, AXIS, LEGEND = 178, 38, 20


@dataclass(frozen=True)
class Point:
    """The looks of all seeds at one number of images."""

    x: float
    mean: float
    deviation: float


def curves(result: Mapping[str, Any]) -> list[Panel]:
    """A panel a score and axis: means over seeds, with their deviations."""
    names = list(dict.fromkeys(row["score"] for row in result["comparisons"]))
    return [curve_panel(result, name, axis) for name in names for axis in AXES]


def points(result: Mapping[str, Any], kind: str, name: str, axis: str) -> list[Point]:
    """A kind's curve."""
    at: dict[int, list[Mapping[str, float]]] = {}
    for row in result["runs"]:
        if row["kind"] == kind:
            for look in row["looks"]:
                at.setdefault(look["images"], []).append(look)
    scale = MINUTE if axis == "hours" else 1.0
    return [
        Point(
            scale * looks[0][axis],
            statistics.mean(look[name] for look in looks),
            statistics.stdev(look[name] for look in looks) if len(looks) > 1 else 0.0,
        )
        for _, looks in sorted(at.items())
    ]


def curve_panel(result: Mapping[str, Any], name: str, axis: str) -> Panel:
    """One score over images, or over minutes of training."""
    drawn = {kind: points(result, kind, name, axis) for kind in COLOURS}
    every = [point for curve in drawn.values() for point in curve]
    ends = [p.mean + sign * p.deviation for p in every for sign in (-1, 1)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.1 * abs(max(ends)) or 1.0
    top, bottom = HEAD + LEGEND, HEAD + LEGEND + PLOT
    first, last = min(p.x for p in every), max(p.x for p in every)
    x = Linear(first - 0.04 * (last - first), last + 0.04 * (last - first), AXIS, WIDTH)
    y = Linear(max(0.0, min(ends) - margin), max(ends) + margin, bottom, top)
    names = [(COLOURS[kind["name"]], f"{kind['convolution']} {kind['maps']}") for kind in result["kinds"]]
    unit = "minutes of training →" if axis == "hours" else "images shown →"
    parts = [*names_of_lines(names, HEAD + 5), *frame(x, y, unit)]
    for kind, curve in drawn.items():
        parts += _curve(curve, kind, x, y, name)
    better = "higher is better" if name in HIGHER_IS_BETTER else "lower is better"
    title = f"{NAMES.get(name, name)} over {'time' if axis == 'hours' else 'images'}"
    return Panel(title, f"{better}; beside a name its maps", "".join(parts), bottom + 36)


NAMES = {"SWD": "SWD × 1000", "FD": "Fréchet distance", "precision": "Precision", "recall": "Recall"}


def _curve(curve: Sequence[Point], kind: str, x: Linear, y: Linear, name: str) -> list[str]:
    colour = COLOURS[kind]
    parts = [path([(x(p.x), y(p.mean)) for p in curve], colour)]
    for p in curve:
        said = f"{kind}: {NAMES.get(name, name)} {score_words(p.mean, 4)} ± {score_words(p.deviation, 2)}"
        low, high = y(max(y.low, p.mean - p.deviation)), y(p.mean + p.deviation)
        parts.append(line(x(p.x), low, x(p.x), high, f"{colour} thin"))
        parts.append(dot(x(p.x), y(p.mean), 2.6, colour.replace("wide", "separable"), said))
    return parts
