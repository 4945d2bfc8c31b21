"""pgsr-train --plot: a run's curves as a picture, or several runs over each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgsr.errors import PgsrError, missing_package
from pgsr.files import make_folder, replacing

from ..step.recipe import of_run
from . import metrics_log as record
from .evaluate import AVERAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {  # keys of metrics.jsonl that begin so -> the title they are drawn under
    "loss/": "losses",
    "learning_rate/": "learning rate",
    "watch/gradient norm ": "gradient norms",
    "swd/": "sliced Wasserstein distance × 1000 of the averaged generator (--eval-every)",
    "stability/": "mean squared change of fixed samples from epoch to epoch",
    "stability L2/": "the same as L2 distance of the two grids of samples (paper 4, Figure 2)",
}
HOUR = 3600.0


@dataclass(frozen=True)
class Curve:
    """What a run logged."""

    folder: Path
    recipe: str
    lines: list[dict[str, Any]]  # of steps
    hours: list[float]  # of training, at each line

    @property
    def name(self) -> str:
        return f"{self.folder.name or self.folder} ({self.recipe})"

    def points(self, key: str) -> tuple[list[int], list[float], list[float]]:
        """Images shown, hours and values where a key was logged."""
        found = [
            (x["images_shown"], t, x[key]) for x, t in zip(self.lines, self.hours, strict=True) if key in x
        ]
        images, hours, values = (list(part) for part in zip(*found, strict=True)) if found else ([], [], [])
        return images, hours, values

    def beginnings(self) -> list[tuple[int, float]]:
        """Images shown and hours where the first line of each resolution but the first stands."""
        first: dict[int, tuple[int, float]] = {}
        for line, hours in zip(self.lines, self.hours, strict=True):
            first.setdefault(line["resolution"], (line["images_shown"], hours))
        return list(first.values())[1:]


def curve_of(run: Path) -> Curve:
    """Raises PgsrError if the folder is no run's or has nothing logged."""
    name = of_run(run).name
    lines = [line for line in record.read(run / "metrics.jsonl") if "step" in line]
    if not lines:
        raise PgsrError(f"{run} has nothing logged yet")
    return Curve(run, name, lines, [s / HOUR for s in record.seconds_of_training(lines)])


def new_figure(width: float, height: float) -> Figure:
    """Raises PgsrError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("--plot", "bench", error) from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_of(runs: Sequence[Path], out: Path | None = None) -> tuple[dict[str, Any], str]:
    """Draws one run's curves.png (losses, alpha, stability, gradient norms), or runs.png: all of them over
    each other.

    The picture goes to a folder, that of the first run unless `out` is another. Raises PgsrError if a folder
    is no run's or has nothing logged, matplotlib is not installed, or the picture cannot be written.
    """
    curves = [curve_of(run) for run in runs]
    figure = _one(curves[0]) if len(curves) == 1 else over_each_other(curves)
    path = make_folder(runs[0] if out is None else out) / ("curves.png" if len(curves) == 1 else "runs.png")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return {"file": str(path)}, str(path)


# ----------------------------------------------------------------------------
# One run.


def _one(curve: Curve) -> Figure:
    """A panel for each sort of curve that the run has logged, and above them alpha where it fades."""
    found = {
        title: keys
        for sort, title in CURVES.items()
        if (keys := sorted({key for line in curve.lines for key in line if key.startswith(sort)}))
    }
    if len({line["alpha"] for line in curve.lines}) > 1 or not found:
        found = {"alpha, and where resolutions begin": ["alpha"], **found}
    figure = new_figure(10, 0.5 + 2.1 * len(found))
    figure.suptitle(curve.recipe)
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, keys) in zip(panels, found.items(), strict=True):
        for key in keys:
            _draw(axes, curve, key, re.sub(r".*(/|gradient norm )", "", key))
        axes.set_title(title)
        if keys != ["alpha"]:
            _readable_scale(axes, losses=keys[0].startswith("loss/"))
        for beginning, _ in curve.beginnings():
            axes.axvline(beginning, color="0.85", zorder=0)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panels[-1].xaxis.set_major_formatter(lambda images, _: f"{images:,.0f}")
    panels[-1].set_xlabel("real images shown")
    return figure


def _readable_scale(axes: Axes, losses: bool) -> None:
    """Logarithmic where values differ by more than a power of ten, with numbers as one writes them."""
    values = np.abs([y for line in axes.get_lines() for y in np.asarray(line.get_ydata(), dtype=float)])
    if not len(values) or values.max() < 10 * values.min():
        return
    axes.set_yscale("symlog" if losses else "log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}" if f"{value:.0e}"[0] in "25" else "")


def _draw(axes: Axes, curve: Curve, key: str, label: str) -> None:
    images, _, values = curve.points(key)
    axes.plot(images, values, label=label, linewidth=1, marker="." if len(values) < 30 else None)


# ----------------------------------------------------------------------------
# Several runs.

ROWS = {  # key -> title; rows that no run has logged are left out
    "images_per_second": "images a second",
    AVERAGE: "sliced Wasserstein distance × 1000, average of levels (--eval-every)",
    "loss/critic": "loss of the critic",
    "loss/generator": "loss of the generator",
}


def over_each_other(curves: Sequence[Curve]) -> Figure:
    """Every run in a colour: over images shown at the left, over hours of training at the right. Above all,
    how long the images took; dashes mark where a run doubles its resolution."""
    keys = [key for key in ROWS if any(key in line for curve in curves for line in curve.lines)]
    figure = new_figure(12, 3.2 * (1 + len(keys)))
    grid = figure.subplots(1 + len(keys), 2, squeeze=False)
    for number, curve in enumerate(curves):
        colour = f"C{number}"
        images = [line["images_shown"] for line in curve.lines]
        grid[0, 0].plot(images, curve.hours, color=colour, label=curve.name)
        grid[0, 1].plot(curve.hours, images, color=colour, label=curve.name)
        for row, key in enumerate(keys, start=1):
            shown, hours, values = curve.points(key)
            marker = "." if len(values) < 30 else None
            grid[row, 0].plot(shown, values, color=colour, linewidth=1, marker=marker)
            grid[row, 1].plot(hours, values, color=colour, linewidth=1, marker=marker)
        for at_images, at_hours in curve.beginnings():
            for axes, place in zip(grid.T, (at_images, at_hours), strict=True):
                for panel in axes:
                    panel.axvline(place, color=colour, linewidth=0.6, linestyle="--", alpha=0.5, zorder=0)
    grid[0, 0].set_title("hours of training")
    grid[0, 1].set_title("real images shown")
    for row, key in enumerate(keys, start=1):
        for axes in grid[row]:
            axes.set_title(ROWS[key])
            _readable_scale(axes, losses=key.startswith("loss/"))
    for column, words in enumerate(("real images shown", "hours of training")):
        grid[-1, column].set_xlabel(words)
        grid[0, column].legend(fontsize="small")
    return figure
