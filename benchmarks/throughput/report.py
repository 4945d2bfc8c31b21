"""A throughput measurement as text, Markdown and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..harness.report import Row, aligned, machine_lines, markdown_table, png, rate, times, write_report_files

HEADINGS = (
    "stage",
    "system",
    "by",
    "multiply-adds",
    "images/s",
    "least",
    "most",
    "GFLOP/s",
    "of peak",
    "to naive",
    "of network",
)
LEFT = 3  # columns of words

COMMAND = "pgsr-bench throughput --out REPORT_DIR"
PICTURED = ("generator", "upscaler", "end to end")  # a panel each
COLOURS = ("#c8622b", "#1c7a8c", "#3d7a3f", "#8a5fb0")  # of systems, in their order
EAGER = "eager PyTorch"
NAMES = {"naive": EAGER, "eager": EAGER}  # ways that are one, of vanilla and of separable
BAR = 0.25  # of the distance of two ways


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """throughput.json, .md and .png in a folder. Raises PgsrError if they cannot be written."""
    write_report_files(folder, "throughput", result, markdown(result), picture(result))


# ----------------------------------------------------------------------------
# Words.


def cells(row: Row) -> list[str]:
    """A row of the table."""
    adds = row["multiply_adds"]
    return [
        row["stage"],
        row["system"],
        row["way"],
        f"{adds / 1e6:.1f} M" if adds else "-",
        rate(row["images_per_second"]),
        rate(row["images_per_second_min"]),
        rate(row["images_per_second_max"]),
        f"{row['gflops']:.1f}" if adds else "-",
        percent(row["share_of_peak"]),
        times(row["ratio_to_naive"]),
        percent(row["share_of_network"]),
    ]


def percent(share: float | None) -> str:
    """Formats a share as per cent; a dash where there is none."""
    return "-" if share is None else f"{share:.0%}"


def table(rows: Sequence[Row]) -> str:
    """Aligned with spaces."""
    return aligned([list(HEADINGS), *[cells(row) for row in rows]], LEFT)


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns what the table's columns and the machine are."""
    settings = result["settings"]
    peaks = ", ".join(f"{peak:.0f} GFLOP/s in {name}" for name, peak in result["peaks"].items())
    device = result["machine"]["device"]
    return [
        *machine_lines(result["machine"]),
        *([] if device == "cpu" else [f"on {device}"]),
        f"matrix product: {peaks}",
        f"batch {settings['batch']} (generator), {settings['large_batch']} (upscaler, chain; that of the "
        f"shipped model is measured); {settings['images']} images a call of a chain (of an eager one, a "
        f"batch), {settings['shipped_images']} of the shipped one; medians of {settings['rounds']} rounds, "
        "least and most beside them",
        "to naive: to the plain eager vanilla chain of the same stage; of network: end to end to it alone",
    ]


def bandwidth_lines(result: Mapping[str, Any]) -> list[str]:
    """Tells how much of what a GPU's memory can move the layers' inputs, outputs and weights are."""
    if not result["bandwidth_gbs"]:
        return []
    rows = [row for row in result["rows"] if row["share_of_bandwidth"]]
    return [
        f"memory: {result['bandwidth_gbs']:.0f} GB/s copied; layers move at least "
        + ", ".join(
            f"{percent(row['share_of_bandwidth'])} of it ({row['system']} {row['stage']}, {row['way']})"
            for row in rows
        )
    ]


def equation_lines(result: Mapping[str, Any]) -> list[str]:
    """Equation 3 of paper 1 beside what was counted."""
    return [
        f"separable / vanilla multiply-adds, {stage}: counted {ratio['counted']:.4f}, "
        f"by equation 3 {ratio['predicted']:.4f}"
        for stage, ratio in result["equation_3"].items()
    ]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    more = [*equation_lines(result), *bandwidth_lines(result)]
    return "\n".join([table(result["rows"]), "", *more, "", *legend(result)])


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = [list(HEADINGS), *[cells(row) for row in result["rows"]]]
    bullets = [*legend(result), *equation_lines(result), *bandwidth_lines(result), *result["notes"]]
    return "\n".join(
        [
            f"# Throughput, {result['date']}",
            "",
            *markdown_table(lines, LEFT),
            "",
            "![images a second](throughput.png)",
            "",
            *[f"- {line}" for line in bullets],
            "",
            f"Made by `{COMMAND}`; every round's seconds are in `throughput.json`.",
            "",
        ]
    )


# ----------------------------------------------------------------------------
# The picture.


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG of images a second: a panel a stage, a group of bars a way, a colour a system. Logarithmic."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    rows = [{**row, "way": NAMES.get(row["way"], row["way"])} for row in result["rows"]]
    rows = [row for row in rows if row["stage"] in PICTURED]
    ways, systems = (list(dict.fromkeys(row[key] for row in rows)) for key in ("way", "system"))
    figure = Figure(figsize=(12, 1.4 + 0.6 * len(ways)), dpi=120, layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(PICTURED), sharey=True), PICTURED, strict=True):
        for number, system in enumerate(systems):
            own = [row for row in rows if (row["stage"], row["system"]) == (stage, system)]
            places = [ways.index(row["way"]) + BAR * (number - (len(systems) - 1) / 2) for row in own]
            speeds = [row["images_per_second"] for row in own]
            colour = COLOURS[number % len(COLOURS)]
            bars = axes.barh(places, speeds, height=0.9 * BAR, color=colour, label=system)
            axes.bar_label(bars, [rate(speed) for speed in speeds], padding=3, fontsize=8)
        axes.set_yticks(range(len(ways)), ways)
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.02)
        axes.set_title(stage, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()  # of all panels: they share it
    axes.legend(fontsize="small", frameon=False, loc="upper right")
    machine = result["machine"]
    where = f"{machine['cpu']}, threads: {machine['threads']}"
    figure.suptitle(where if machine["device"] == "cpu" else machine["device"], fontsize=10)
    figure.supxlabel("images a second", fontsize=10)
    return png(figure)
