"""A measurement of training steps as text, Markdown and one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..harness.report import Row, aligned, machine_lines, markdown_table, png, rate, times, write_report_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes


HEADINGS = (
    "resolution",
    "contender",
    "precision",
    "images/s [min, max]",
    "to reference vanilla",
    "to reference separable",
    "memory peak, MiB",
    "multiply-adds a step",
    "share of peak",
)
LEFT = 3  # columns of words

COMMAND = "pgsr-bench training --out REPORT_DIR"
COLOURS = {True: "#b3b8c0", False: "#2a6fb5"}  # reference, ours


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """training.json, .md and .png in a folder. Raises PgsrError if they cannot be written."""
    write_report_files(folder, "training", result, markdown(result), picture(result))


# ----------------------------------------------------------------------------
# Words.


def cells(row: Row) -> list[str]:
    """A row of the table."""
    least, most = (rate(row[f"images_per_second_{end}"]) for end in ("min", "max"))
    return [
        str(row["resolution"]),
        row["contender"],
        row["precision"],
        f"{rate(row['images_per_second'])} [{least}, {most}]",
        times(row["ratio_to_vanilla"]),
        times(row["ratio_to_separable"]),
        f"{row['memory_peak_mib']:,.0f}",
        f"{row['multiply_adds'] / 1e6:,.0f} M",
        f"{row['share_of_peak']:.1%}",
    ]


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns what was measured, and on what."""
    machine, settings = result["machine"], result["settings"]
    device = [] if machine["device"] == "cpu" else [f"device: {machine['device']}"]
    return [
        *device,
        *machine_lines(machine),
        f"{machine['peak_of']}: {machine['peak_gflops']:,.0f} GFLOP/s",
        f"batch {_batches(result)}; latent {settings['latent_size']}, maps {settings['feature_base']} / "
        f"resolution, at most {settings['feature_max']}; medians of {settings['rounds']} rounds",
        *[f"ours with {setting}" for setting in settings["overrides"]],
    ]


def _batches(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{batch} at {side}" for side, batch in _batch_of(result).items())


def _batch_of(result: Mapping[str, Any]) -> dict[int, int]:
    return {row["resolution"]: row["batch"] for row in result["rows"]}


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    lines = [list(HEADINGS), *[cells(row) for row in result["rows"]]]
    return "\n".join([aligned(lines, LEFT), "", *legend(result)])


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page, a table for each resolution."""
    page = [f"# Training steps, {result['date']}", ""]
    for side, batch in _batch_of(result).items():
        lines = [list(HEADINGS), *[cells(row) for row in result["rows"] if row["resolution"] == side]]
        page += [
            f"## {side} x {side}, batch {batch}",
            "",
            *markdown_table([line[1:] for line in lines], LEFT - 1),
            "",
        ]
    return "\n".join(
        [
            *page,
            "![images a second](training.png)",
            "",
            *[f"- {line}" for line in (*legend(result), *result["notes"])],
            "",
            f"Made by `{COMMAND}`; every round's seconds are in `training.json`.",
            "",
        ]
    )


# ----------------------------------------------------------------------------
# The picture.


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG of bars: how many times as fast as the vanilla reference, a panel for each resolution."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    panels = {
        side: [row for row in result["rows"] if row["resolution"] == side] for side in _batch_of(result)
    }
    height = sum(0.9 + 0.28 * len(rows) for rows in panels.values())
    figure = Figure(figsize=(9, 0.6 + height), dpi=120, layout="constrained")
    places = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, height_ratios=[len(rows) for rows in panels.values()]
    )
    for axes, (side, rows) in zip(places[:, 0], panels.items(), strict=True):
        _panel(axes, f"{side} x {side}, batch {rows[0]['batch']}", rows)
    places[-1, 0].set_xlabel("times as fast as the vanilla reference (images a second beside each bar)")
    machine = result["machine"]
    name = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    figure.suptitle(f"Training steps on {name}, threads: {machine['threads']}", fontsize=10)
    return png(figure)


def _panel(axes: Axes, title: str, rows: list[Row]) -> None:
    ratios = [row["ratio_to_vanilla"] for row in rows]
    bars = axes.barh(range(len(rows)), ratios, height=0.75, color=[COLOURS[row["reference"]] for row in rows])
    axes.bar_label(bars, [rate(row["images_per_second"]) for row in rows], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [row["contender"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
