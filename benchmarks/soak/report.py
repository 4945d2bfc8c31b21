"""A soak as text, JSON and a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgsr.files import make_folder, write_bytes, write_text

from ..harness.report import aligned
from .judge import WARMING_UP

HEADINGS = ["", "median", "an hour", "95% interval", "limit", ""]
NAMES = {
    "resident_bytes": "resident memory, MiB",
    "anonymous_bytes": "of it not of files, MiB",
    "handles": "handles",
    "threads": "threads",
    "temporary_files": "temporary files",
    "temporary_bytes": "their size, MiB",
}
UNITS = {"serve": "requests", "generate": "faces", "resume": "resumes"}


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows of what was judged, under their headings."""
    rows = [list(HEADINGS)]
    for name, slope in result["slopes"].items():
        median, growth, lower, upper, limit = (
            slope[key] / _unit(name) for key in ("median", "an_hour", "lower", "upper", "limit")
        )
        interval = f"{lower:+.2f} to {upper:+.2f}"
        rows.append(
            [NAMES[name], f"{median:.1f}", f"{growth:+.2f}", interval, f"{limit:.2f}", slope["verdict"]]
        )
    return rows


def _unit(name: str) -> float:
    return 2.0**20 if name.endswith("_bytes") else 1.0


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the table does not say."""
    unit, told = UNITS[result["what"]], result["told"]
    lines = [f"{result['done']:,} {unit} in {result['minutes']:g} min"]
    growth = result["slopes"].get("anonymous_bytes")
    if growth is not None and result["done"]:
        each = growth["an_hour"] * result["minutes"] / 60 / result["done"]
        lines.append(f"{each:+.1f} bytes a piece of work, by that slope")
    if told:
        lines.append(
            f"answers {told['answers']}, {told['reloads']} reloads, failures {told['failures'] or 0}"
        )
    lines.append(f"{result['machine']['cpu']}, {result['machine']['cores']} core(s), {result['date']}")
    return lines


def text(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    return "\n".join([aligned(table(result), 1), *notes(result)])


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """soak-WHAT.json and .png. Raises PgsrError if they cannot be written."""
    make_folder(folder)
    write_text(folder / f"soak-{result['what']}.json", json.dumps(result) + "\n")
    write_bytes(folder / f"soak-{result['what']}.png", picture(result))


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG: what was sampled over minutes, a panel each; grey is the warming up, which is not judged."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    minutes = [sample["seconds"] / 60 for sample in result["samples"]]
    figure = Figure(figsize=(10, 9), dpi=100, layout="constrained")
    figure.suptitle(f"{result['what']}: {notes(result)[0]}")
    panels = {**NAMES, "done": UNITS[result["what"]]}
    del panels["temporary_bytes"]
    for ax, (name, title) in zip(figure.subplots(3, 2).flat, panels.items(), strict=True):
        values = [sample[name] / _unit(name) for sample in result["samples"]]
        ax.plot(minutes, values, linewidth=1, color="#2a6fb5")
        ax.set_ylim(0, max(1.0, 1.15 * max(values)))
        ax.axvspan(0, minutes[int(WARMING_UP * len(minutes))], color="0.93", zorder=0)
        slope = result["slopes"].get(name)
        words = (
            "" if slope is None else f": {slope['verdict']}, {slope['an_hour'] / _unit(name):+.2f} an hour"
        )
        ax.set_title(f"{title}{words}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("minutes", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
