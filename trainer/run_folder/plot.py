"""pgsr-train --plot RUN: a run's curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError, missing_package
from pgsr.files import replacing

from ..step.recipe import of_run
from . import metrics_log as record

CURVES = {  # keys of metrics.jsonl that begin so -> the title they are drawn under
    "loss/": "losses",
    "learning_rate/": "learning rate",
    "watch/gradient norm ": "gradient norms",
    "swd/": "sliced Wasserstein distance × 1000 of the averaged generator (--eval-every)",
    "stability/": "mean squared change of fixed samples from epoch to epoch (paper 4, Figure 2)",
}


def plot_of(run: Path) -> tuple[dict[str, Any], str]:
    """Draws RUN/curves.png: losses, alpha and resolution, stability of each resolution, gradient norms.

    Raises PgsrError if the folder is no run's or has nothing logged, or matplotlib is not installed.
    """
    name = of_run(run).name
    lines = [line for line in record.read(run / "metrics.jsonl") if "step" in line]
    if not lines:
        raise PgsrError(f"{run} has nothing logged yet")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("--plot", "bench", error) from error
    figure = Figure(figsize=(10, 12), layout="constrained")
    figure.suptitle(name)
    top, *others = figure.subplots(len(CURVES) + 1, 1, sharex=True)
    _draw(top, lines, "alpha", "alpha")
    top.set_title("alpha, and where resolutions begin")
    for axes, (sort, title) in zip(others, CURVES.items(), strict=True):
        for key in sorted({key for line in lines for key in line if key.startswith(sort)}):
            _draw(axes, lines, key, key.removeprefix(sort))
        axes.set_title(title)
        axes.set_yscale("symlog" if sort == "loss/" else "log")
    for axes in (top, *others):
        for beginning in _beginnings(lines):
            axes.axvline(beginning, color="0.85", zorder=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", loc="upper left")
    others[-1].set_xlabel("real images shown")
    path = run / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return {"file": str(path)}, str(path)


def _draw(axes: Any, lines: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    points = [(line["images_shown"], line[key]) for line in lines if key in line]
    axes.plot(*zip(*points, strict=True), label=label, linewidth=1, marker="." if len(points) < 30 else None)


def _beginnings(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Images shown where the first line of each resolution but the first stands."""
    first: dict[int, float] = {}
    for line in lines:
        first.setdefault(line["resolution"], line["images_shown"])
    return list(first.values())[1:]
