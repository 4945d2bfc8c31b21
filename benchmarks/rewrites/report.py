"""The measurement of rewrites as text, Markdown and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..harness.report import aligned, machine_lines, markdown_table, png, rate, times, write_report_files
from .measure import AS_WRITTEN, CHOSEN, EAGER, PLAIN, best

COMMAND = "pgsr-bench rewrites --out REPORT_DIR"
CLEARLY = 1.03  # a difference that counts as one

COUNTS = ("convolution", "resolution", "multiply-adds", "after", "saved", "operations", "after")
SPEEDS = ("convolution", "graph", "backend", "img/s", "to eager", "to plain", "to chosen", "PSNR")
NOTES = (
    "Weights are random: speed does not depend on them, int8's PSNR does.",
    "Eager is the training network in PyTorch float32 without gradients, in the same run, in turns; plain "
    "is the same network written from the papers with ordinary modules, NCHW "
    "(benchmarks/references/training.py).",
    "Operations are those that PyTorch dispatches for an image, views left out.",
    "A form of one 2 x 2 convolution computes a rim that is cropped: a little more than 16/36.",
)


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """rewrites.json, .md and .png in a folder. Raises PgsrError if they cannot be written."""
    drawn = picture(result) if result["speeds"] else b""
    write_report_files(folder, "rewrites", result, markdown(result), drawn)


def count_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """Makes the table of multiply-adds and operations."""
    lines = [list(COUNTS)]
    for row in result["counts"]:
        before, after = row[AS_WRITTEN], row["onnxruntime"]
        lines.append(
            [
                row["convolution"],
                str(row["resolution"]),
                f"{before['multiply_adds'] / 1e6:.0f} M",
                f"{after['multiply_adds'] / 1e6:.0f} M",
                f"{1 - after['multiply_adds'] / before['multiply_adds']:.1%}",
                str(before["operations"]),
                str(after["operations"]),
            ]
        )
    return lines


def speed_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """Makes the table of images a second."""
    lines = [list(SPEEDS)]
    for speeds in result["speeds"]:
        head = f"{speeds['convolution']} {speeds['resolution']}"
        eager = speeds[EAGER]["images_per_second"]
        plain, to_eager = speeds[PLAIN]["images_per_second"], speeds[PLAIN]["to_eager"]
        lines.append(
            [head, "eager PyTorch float32", "-", rate(eager), "1.00x", times(1 / to_eager), "-", "-"]
        )
        lines.append([head, "plain eager PyTorch", "-", rate(plain), times(to_eager), "1.00x", "-", "-"])
        for row in speeds["rows"]:
            psnr = "equal" if row["psnr_db"] >= 999 else f"{row['psnr_db']:.0f} dB"
            ratios = [times(row[key]) for key in ("to_eager", "to_plain", "to_chosen")]
            speed = rate(row["images_per_second"])
            lines.append([head, row["name"], row["backend"], speed, *ratios, psnr])
    return lines


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Returns which rewrites win where: one line a network and backend."""
    lines = []
    for speeds in result["speeds"]:
        for backend in result["backends"]:
            rows = [r for r in speeds["rows"] if r["backend"] == backend and r["rewrite"]]
            words = [_verdict(row) for row in sorted(rows, key=lambda row: row["to_chosen"])]
            if words:
                head = f"{speeds['convolution']} {speeds['resolution']} on {backend}"
                lines.append(f"{head}: {', '.join(words)}")
    return lines


def _verdict(row: Mapping[str, Any]) -> str:
    """Returns what a rewrite does to the time, whether it is among the chosen ones or not."""
    left_out = row["name"].startswith("without")
    gain = 1 / row["to_chosen"] if left_out else row["to_chosen"]
    word = "wins" if gain > CLEARLY else "loses" if gain < 1 / CLEARLY else "makes no difference"
    choice = "chosen" if left_out else "not chosen"
    return f"{row['rewrite']} {word} ({gain:.2f}x, {choice})"


def best_lines(result: Mapping[str, Any]) -> list[str]:
    """Names the fastest variant of each network."""
    lines = []
    for convolution in ("vanilla", "separable"):
        for precision in ("fp32", "int8"):
            row = best(result, convolution, precision)
            if row is not None:
                speed = rate(row["images_per_second"])
                lines.append(
                    f"best {convolution} in {precision}: {row['name']} on {row['backend']}, {speed} img/s, "
                    f"{times(row['to_eager'])} eager float32, {times(row['to_plain'])} plain"
                )
    return lines


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    parts = [aligned(count_lines(result), 1)]
    if result["speeds"]:
        parts += [aligned(speed_lines(result), 3), "\n".join([*verdicts(result), *best_lines(result)])]
    return "\n\n".join([*parts, "\n".join(machine_lines(result["machine"]))])


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    settings = result["settings"]
    lines = [f"# Rewrites, {result['date']}", "", *markdown_table(count_lines(result), 1), ""]
    if result["speeds"]:
        lines += [*markdown_table(speed_lines(result), 3), "", "![images a second](rewrites.png)", ""]
    paragraphs = [*best_lines(result), *verdicts(result), *machine_lines(result["machine"]), *NOTES]
    paragraphs.append(f"batch {settings['batch']}, medians of {settings['rounds']} rounds")
    names = [f"`{name}`: {what}" for name, what in result["rewrites"].items()]
    return "\n".join(
        [
            *lines,
            *[f"- {line}" for line in paragraphs],
            "",
            "## The rewrites",
            "",
            *[f"- {line}" for line in names],
            "",
            f"Made by `{COMMAND}`; every round's seconds are in `rewrites.json`.",
            "",
        ]
    )


COLOURS = {"onnxruntime": "#2a6fb5", "openvino": "#5b9f6b"}


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG of bars: every graph's images a second to eager's, one panel a network."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    panels: Sequence[Mapping[str, Any]] = result["speeds"]
    heights = [len(panel["rows"]) + 2 for panel in panels]
    figure = Figure(figsize=(10, 1.2 + 0.25 * sum(heights)), dpi=120, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        rows = sorted(panel["rows"], key=lambda row: (row["backend"], -row["to_eager"]))
        ratios = [row["to_eager"] for row in rows]
        bars = ax.barh(range(len(rows)), ratios, color=[COLOURS.get(r["backend"], "#888") for r in rows])
        ax.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=7)
        names = [f"{_short(row['name'])} · {row['backend']}" for row in rows]
        ax.set_yticks(range(len(rows)), names, fontsize=7)
        ax.axvline(1.0, color="#b3b8c0", linewidth=1)
        ax.invert_yaxis()
        ax.margins(x=0.1)
        ax.set_title(f"{panel['convolution']} {panel['resolution']} x {panel['resolution']}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("images a second, eager PyTorch float32 = 1")
    return png(figure)


def _short(name: str) -> str:
    """Shortens a name by "for BACKEND", which its end says."""
    return name.replace(f"{CHOSEN} for onnxruntime", CHOSEN).replace(f"{CHOSEN} for openvino", CHOSEN)
