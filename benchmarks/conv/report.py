"""A measurement of convolutions as text, Markdown and one heat map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pgsr.files import make_folder, write_text

from ..harness.report import Row, aligned, machine_lines, markdown_table
from ..harness.svg import HEAD, WIDTH, Panel, bar, factor, line, path, sheet, text
from .backends import LIBRARIES

COMMAND = "pgsr-bench conv --out REPORT_DIR"
FORM_NAMES = {"plain": "3×3", "up": "×2 and 3×3"}

Way = tuple[str, str, str, str]  # backend, layout, precision, form


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """conv.json, .md and .svg in a folder. Raises PgsrError if they cannot be written."""
    make_folder(folder)
    write_text(folder / "conv.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "conv.md", markdown(result))
    write_text(folder / "conv.svg", sheet(heat_maps(result)) + "\n")


# ----------------------------------------------------------------------------
# Words.


def way_name(row: Row) -> str:
    """Returns a backend, precision and layout as a person says them."""
    return f"{LIBRARIES[row['backend']].name}, {row['precision']}, {row['layout']}"


def pays_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The answer as a table: from how many maps on separable is faster, by resolution."""
    sides = [str(side) for side in result["settings"]["resolutions"]]
    lines = [["by", "form", *(f"{side}²" for side in sides), "at all"]]
    for row in result["pays_from"]:
        widths = [_width(row["by_resolution"].get(side, 0)) for side in sides]
        lines.append([way_name(row), FORM_NAMES[row["form"]], *widths, _width(row["everywhere"])])
    return lines


def _width(width: int | None) -> str:
    return "never" if width is None else str(width or "")


def noise_line(noise: Mapping[str, Any]) -> str:
    """One sentence on the control pair and on other processes."""
    control = noise["control"]
    told = (
        f"control (equals): {control['median']:.3f}, quartiles {control['low']:.3f} to "
        f"{control['high']:.3f}; "
        if control
        else ""
    )
    verdict = f"disturbed: {'; '.join(noise['why'])}" if noise["disturbed"] else "undisturbed"
    return f"{told}other processes: {noise['other_load']:.0%} of the cores' time; {verdict}"


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns what was measured, on what, and what is missing."""
    roof, settings = result["roof"], result["settings"]
    peaks = ", ".join(f"{peak:.0f} GFLOP/s in {name}" for name, peak in roof["peaks"].items())
    sizes = ", ".join(
        f"{speed:.0f} GB/s at {int(size) / 2**20:g} MiB" for size, speed in roof["bandwidths"].items()
    )
    return [
        *machine_lines(result["machine"]),
        f"matrix product: {peaks}; copies: {sizes}",
        f"batch {settings['batch']}, medians of {settings['rounds']} rounds; {noise_line(result['noise'])}",
        *result["notes"],
    ]


def text_of(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    heading = "separable is faster from so many maps on, by resolution:"
    return "\n".join([heading, "", aligned(pays_lines(result), 2), "", *legend(result)])


HEADINGS = (
    *("by", "form", "maps", "side", "convolution", "multiply-adds", "KiB moved"),
    *("µs", "quartiles", "of peak", "of bandwidth", "speed-up"),
)


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """Every measured convolution, a line each."""
    return [
        line for row in result["rows"] for name in ("vanilla", "separable") for line in [_cells(row, name)]
    ]


def _cells(row: Row, name: str) -> list[str]:
    side, seconds = row[name], row[name]["seconds"]
    return [
        way_name(row),
        FORM_NAMES[row["form"]],
        str(row["channels"]),
        str(row["resolution"]),
        name,
        f"{side['multiply_adds'] / 1e6:.2f} M",
        f"{side['moved_bytes'] / 1024:,.0f}",
        f"{1e6 * seconds['median']:,.0f}",
        f"{1e6 * seconds['low']:,.0f}–{1e6 * seconds['high']:,.0f}",
        f"{side['share_of_peak']:.0%}",
        f"{side['share_of_bandwidth']:.0%}",
        f"{row['speedup']['median']:.2f}x" if name == "separable" else "",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    return "\n".join(
        [
            f"# One convolution at a time, {result['date']}",
            "",
            "Separable is faster from so many maps on, by resolution:",
            "",
            *markdown_table(pays_lines(result), 2),
            "",
            "![how many times as fast separable is](conv.svg)",
            "",
            *[f"- {line}" for line in legend(result)],
            "",
            *markdown_table([list(HEADINGS), *rows_of(result)], 2),
            "",
            f"Made by `{COMMAND}`; quartiles of every cell are in `conv.json`.",
            "",
        ]
    )


# ----------------------------------------------------------------------------
# The heat map.

LEFT, CELL_HEIGHT, DEEPEST = 34, 27, 3.0  # doublings at which the colour is full


def heat_maps(result: Mapping[str, Any]) -> list[Panel]:
    """A panel for each backend, precision, layout and form."""
    answers = {_way(row): row for row in result["pays_from"]}
    by_way: dict[Way, list[Row]] = {}
    for row in result["rows"]:
        by_way.setdefault(_way(row), []).append(row)
    return [heat_map(rows, answers[way], result["settings"]) for way, rows in by_way.items()]


def _way(row: Row) -> Way:
    return row["backend"], row["layout"], row["precision"], row["form"]


def heat_map(rows: Sequence[Row], answer: Row, settings: Mapping[str, Any]) -> Panel:
    """How many times as fast separable is: maps up, resolutions across, a line where it begins to pay."""
    channels, sides = sorted(settings["channels"], reverse=True), sorted(settings["resolutions"])
    cell_width = (WIDTH - LEFT) / len(sides)
    cells = {(row["channels"], row["resolution"]): row for row in rows}
    parts = []
    for i, width in enumerate(channels):
        y = HEAD + i * CELL_HEIGHT
        parts.append(text(LEFT - 6, y + CELL_HEIGHT / 2 + 4, str(width), "axis", "end"))
        for j, side in enumerate(sides):
            parts.append(_cell(LEFT + j * cell_width, y, cell_width, cells.get((width, side))))
    bottom = HEAD + len(channels) * CELL_HEIGHT
    for j, side in enumerate(sides):
        parts.append(text(LEFT + (j + 0.5) * cell_width, bottom + 15, f"{side}²", "axis", "middle"))
    parts += _stairs(answer["by_resolution"], channels, sides, cell_width)
    parts.append(text(0, bottom + 32, "maps ↑, output pixels →", "quiet"))
    title = f"{way_name(answer)}, {FORM_NAMES[answer['form']]}"
    return Panel(title, _told(answer), "".join(parts), bottom + 38)


def _told(answer: Row) -> str:
    if answer["everywhere"] is not None:
        return f"separable pays from {answer['everywhere']} maps on, at every resolution"
    never = [f"{side}²" for side, width in answer["by_resolution"].items() if width is None]
    return f"no width pays at {', '.join(never)}"


def _cell(x: float, y: float, width: float, row: Row | None) -> str:
    if row is None:
        return bar(x + 1, y + 1, width - 2, CELL_HEIGHT - 2, "empty", "not measured")
    speedup = row["speedup"]
    depth = min(1.0, abs(math.log2(speedup["median"])) / DEEPEST)
    kind = "separable" if speedup["median"] >= 1 else "vanilla"
    said = (
        f"{row['channels']} maps, {row['resolution']}²: separable {speedup['median']:.2f}× as fast "
        f"({speedup['low']:.2f} to {speedup['high']:.2f}); "
        f"{1e6 * row['vanilla']['seconds']['median']:,.0f} µs "
        f"and {1e6 * row['separable']['seconds']['median']:,.0f} µs"
    )
    rectangle = bar(x, y, width, CELL_HEIGHT, f"heat {kind}", said, f"--t:{100 * depth:.0f}%")
    ink = "small onfill" if depth > 0.5 else "small oncell"
    label = text(x + width / 2, y + CELL_HEIGHT / 2 + 4, factor(speedup["median"]), ink, "middle")
    return rectangle + label


def _stairs(
    least: Mapping[str, int | None], channels: Sequence[int], sides: Sequence[int], cell_width: float
) -> list[str]:
    """A line under the cells from which on separable pays, column by column, joined where they meet."""
    levels: list[float | None] = []
    for side in sides:
        width = least.get(str(side))
        row = None if width is None else channels.index(width) + 1
        measured = str(side) in least
        levels.append(HEAD + CELL_HEIGHT * (row or 0) if measured else None)
    parts = []
    for j, level in enumerate(levels):
        if level is not None:
            x = LEFT + j * cell_width
            parts.append(line(x, level, x + cell_width, level, "border"))
    for j, (left, right) in enumerate(pairwise(levels), 1):
        if left is not None and right is not None and left != right:
            parts.append(path([(LEFT + j * cell_width, left), (LEFT + j * cell_width, right)], "border"))
    return parts
