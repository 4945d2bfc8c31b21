"""The comparison with an afternoon's work as text and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgsr.files import make_folder, write_text

from ..harness.report import aligned, machine_lines, markdown_table, rate, times
from .measure import OURS, THEIRS

COMMAND = "pgsr-bench opponent --out REPORT_DIR"
COLUMNS = (
    "convolution",
    "precision",
    "stage",
    "theirs, img/s",
    "ours, img/s",
    "ratio",
    "control",
    "PSNR theirs",
    "ours",
)
NOTES = (
    "Theirs is benchmarks/references/afternoon.py: torch.onnx.export of the networks as they are trained, "
    "OpenVINO with asynchronous requests and the fastest of a few batches, bfloat16 by its hint, int8 by "
    "NNCF's defaults, PNG files by OpenCV on threads.",
    "Ours is what pgsr-export and pgsr-generate do, on the same OpenVINO. Weights are random.",
    "Ratios are medians of the rounds' ratios. Control is theirs against itself in the same rounds: what it "
    "is away from 1 no ratio of its line should be trusted to.",
)


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """opponent.json and .md in a folder. Raises PgsrError if they cannot be written."""
    make_folder(folder)
    write_text(folder / "opponent.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "opponent.md", markdown(result))


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The table, with its head."""
    return [list(COLUMNS), *([*_names(row), *_figures(row)] for row in result["rows"])]


def _names(row: Mapping[str, Any]) -> list[str]:
    return [row["convolution"], row["precision"], row["stage"]]


def _figures(row: Mapping[str, Any]) -> list[str]:
    timings, psnr = row["timings"], row["psnr_db"]
    speeds = [rate(timings[name]["images_per_second"]) for name in (THEIRS, OURS)]
    return [
        *speeds,
        times(row["ratio"]),
        times(row["control"]),
        *(f"{psnr[n]:.1f} dB" for n in (THEIRS, OURS)),
    ]


def text(result: Mapping[str, Any]) -> str:
    """What the command prints."""
    return "\n".join([*machine_lines(result["machine"]), "", aligned(lines(result), 3), "", *NOTES])


def markdown(result: Mapping[str, Any]) -> str:
    """The report."""
    head = ["# Beside an afternoon's work", "", f"`{COMMAND}`, {result['date']}", ""]
    machine = [f"- {line}" for line in machine_lines(result["machine"])]
    return "\n".join([*head, *machine, "", *markdown_table(lines(result), 3), "", *NOTES, ""])
