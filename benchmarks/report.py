"""A throughput measurement as text, Markdown and one picture; and what the other reports share."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgsr.files import make_folder, write_bytes, write_text

HEADINGS = (
    "stage",
    "convolution",
    "multiply-adds",
    "eager img/s",
    "ONNX Runtime img/s",
    "ratio",
    "to plain",
    "share of peak",
)
LEFT = 2  # columns of words

COMMAND = "pgsr-bench throughput --out REPORT_DIR"
COLOURS = {"eager": "#b3b8c0", "onnxruntime": "#2a6fb5"}
LABELS = {"eager": "eager PyTorch", "onnxruntime": "exported graph, ONNX Runtime"}

Row = Mapping[str, Any]


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """throughput.json, .md and .png in a folder. Raises PgsrError if they cannot be written."""
    make_folder(folder)
    write_text(folder / "throughput.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "throughput.md", markdown(result))
    write_bytes(folder / "throughput.png", picture(result))


# ----------------------------------------------------------------------------
# Words.


def cells(row: Row) -> list[str]:
    """A row of the table."""
    graph, eager = row["onnxruntime"], row["eager"]
    return [
        row["stage"],
        row["convolution"],
        f"{row['multiply_adds'] / 1e6:.1f} M",
        "-" if eager is None else rate(eager["images_per_second"]),
        rate(graph["images_per_second"]),
        times(row["ratio"]),
        times(row["ratio_to_plain"]),
        f"{graph['share_of_peak']:.0%}",
    ]


def rate(images_per_second: float) -> str:
    return f"{images_per_second:.2f}" if images_per_second < 10 else f"{images_per_second:.1f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def table(rows: Sequence[Row]) -> str:
    """Aligned with spaces."""
    return aligned([list(HEADINGS), *[cells(row) for row in rows]], LEFT)


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of one width, the first `left` of them words."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(_padded(line, widths, left)).rstrip() for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [
        text.ljust(width) if i < left else text.rjust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def markdown_table(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """The same in Markdown, line by line."""
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """What was measured on."""
    instructions = ", ".join(machine["instruction_sets"]) or "instruction sets unknown"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        f"{machine['cpu']}; {instructions}; {machine['memory_bytes'] / 2**30:.1f} GiB; "
        f"usable cores: {machine['cores']}, threads: {machine['threads']}",
        f"{machine['system']}, Python {machine['python']}; {packages}",
    ]


def legend(result: Mapping[str, Any]) -> list[str]:
    """What the table's columns and the machine are."""
    machine, settings = result["machine"], result["settings"]
    return [
        *machine_lines(machine),
        f"float32 matrix product: {machine['peak_gflops']:.0f} GFLOP/s",
        f"batch {settings['batch']} (generator), {settings['large_batch']} (upscaler, chain); "
        f"{settings['images']} images end to end; medians of {settings['rounds']} rounds",
        "ratio: ONNX Runtime to eager, same convolution; to plain: to the eager vanilla of the same stage",
    ]


def equation_lines(result: Mapping[str, Any]) -> list[str]:
    """Equation 3 of paper 1 beside what was counted."""
    return [
        f"separable / vanilla multiply-adds, {stage}: counted {ratio['counted']:.4f}, "
        f"by equation 3 {ratio['predicted']:.4f}"
        for stage, ratio in result["equation_3"].items()
    ]


def text(result: Mapping[str, Any]) -> str:
    """What the command prints."""
    return "\n".join([table(result["rows"]), "", *equation_lines(result), "", *legend(result)])


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = [list(HEADINGS), *[cells(row) for row in result["rows"]]]
    bullets = [*legend(result), *equation_lines(result), *result["notes"]]
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
    """A PNG of bars: images a second of every row, both ways."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    rows = result["rows"]
    figure = Figure(figsize=(9, 1.6 + 0.62 * len(rows)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for way, offset in (("eager", -0.2), ("onnxruntime", 0.2)):
        held = [(i, row[way]["images_per_second"]) for i, row in enumerate(rows) if row[way] is not None]
        places, speeds = [i + offset for i, _ in held], [speed for _, speed in held]
        bars = axes.barh(places, speeds, height=0.38, color=COLOURS[way], label=LABELS[way])
        axes.bar_label(bars, [rate(speed) for speed in speeds], padding=3, fontsize=9)
    axes.set_yticks(range(len(rows)), [f"{row['stage']}\n{row['convolution']}" for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("images a second")
    axes.set_title(f"{result['machine']['cpu']}, threads: {result['machine']['threads']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
