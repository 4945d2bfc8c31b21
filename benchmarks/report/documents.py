"""What the checkout's README and docs show of a report: pictures, and blocks of text between two marks.

    <!-- report: throughput -->
    ...
    <!-- end -->

Both are made again from report.json; what the report has no part for stays as it is.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import write_bytes, write_text

from ..conv.report import heat_maps
from ..curves import quality_report
from ..harness.report import Lines, Row, markdown_table, rate
from ..harness.svg import factor, sheet
from ..opponent.report import lines as opponent_lines
from ..throughput import report as throughput
from ..training import report as training
from . import panels
from .findings import disturbances, sentences
from .trainings import growing

TEXTS = ("README.md", "docs/benchmarks.md")
MARK = re.compile(r"<!-- report: ([a-z-]+) -->\n(.*?)<!-- end -->", re.DOTALL)

# Name -> the part that it is of, and what draws it. The widths are those of a page on GitHub.
PICTURES: dict[str, tuple[str, Callable[[Row], bytes]]] = {
    "docs/throughput.png": ("throughput", lambda result: throughput.picture(result)),
    "docs/training.png": ("training", lambda result: training.picture(result)),
    "docs/waterfall.svg": (
        "waterfall",
        lambda result: _svg(
            [panels.waterfall(a, result["labels"], result["equation_3"]) for a in result["accounts"]]
        ),
    ),
    "docs/conv.svg": ("conv", lambda result: _svg(heat_maps(result))),
    "docs/quality-curves.svg": (
        "quality-curves",
        lambda result: _svg(quality_report.curves(result), 2),
    ),
}


def _svg(drawn: list[Any], columns: int = 3) -> bytes:
    return f"{sheet(drawn, columns)}\n".encode()


def write_documents(report: Mapping[str, Any], root: Path) -> list[Path]:
    """Draws and writes what a checkout shows of a report; returns the files.

    Raises PgsrError if `root` is no checkout or a file cannot be written.
    """
    texts = {root / name: _read(root / name) for name in TEXTS}
    written = []
    for name, (part, draw) in PICTURES.items():
        if part in report["parts"]:
            write_bytes(root / name, draw(report["parts"][part]["result"]))
            written.append(root / name)
    for path, text in texts.items():
        write_text(path, filled(text, report))
        written.append(path)
    return written


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise PgsrError(f"cannot read {path}, so this is no checkout of pgsr: {error.strerror}") from error


def filled(text: str, report: Mapping[str, Any]) -> str:
    """A text with its blocks made anew. Raises PgsrError for a block of an unknown name."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in BLOCKS:
            raise PgsrError(f"<!-- report: {name} --> is none of {', '.join(BLOCKS)}")
        part, lines = BLOCKS[name]
        if part and part not in report["parts"]:
            return match[0]
        return f"<!-- report: {name} -->\n" + "\n".join(map(wrapped, lines(report))) + "\n<!-- end -->"

    return MARK.sub(block, text)


# ----------------------------------------------------------------------------
# The blocks.

WIDTH = 118  # letters of a line


def wrapped(line: str) -> str:
    """A paragraph or an item of a list in lines of the docs' width; tables and pictures are left alone."""
    if line.startswith(("|", "![")):
        return line
    indent = re.match(r"(- |\d+\. )?", line)
    assert indent is not None  # it may be empty
    return textwrap.fill(line, WIDTH, subsequent_indent=" " * indent.end(), break_on_hyphens=False)


LIBRARIES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def says(report: Mapping[str, Any]) -> list[str]:
    """The findings, one after the other, and whether the run was disturbed."""
    told = [f"{number}. {sentence}" for number, sentence in enumerate(sentences(report), 1)]
    if whys := disturbances(report):
        verb = "was" if len(whys) == 1 else "were"
        loads = [report["parts"][why.partition(":")[0]]["noise"]["other_load"] for why in whys]
        told += [
            "",
            f"{len(whys)} of {len(report['parts'])} parts {verb} disturbed by other work on the core (up to "
            f"{max(loads):.0%} of its time): ratios, taken round by round, hold better than times.",
        ]
    return told


def made_by(report: Mapping[str, Any], part: str) -> str:
    """Where a block's numbers are from, in a sentence."""
    machine, entry = report["machine"], report["parts"][part]
    bits = [name for name in ("avx512_bf16", "avx512f", "avx2") if name in machine["instruction_sets"]]
    versions = ", ".join(
        f"{shown} {machine['packages'][name].partition('+')[0]}"
        for name, shown in (("torch", "PyTorch"), ("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"))
        if name in machine["packages"]
    )
    disturbed = "; the machine was busy with other work" if entry["noise"]["disturbed"] else ""
    return (
        f"`{entry['command']}` on {machine['cpu']}{' with ' + bits[0] if bits else ''}, "
        f"{machine['threads']} thread{'s' * (machine['threads'] != 1)} ({versions}), "
        f"{entry['began'][:10]}{disturbed}."
    )


def whole_chains(report: Mapping[str, Any]) -> list[str]:
    """The table of latents to files, a row a system and a column a library."""
    rows = [row for row in report["parts"]["throughput"]["result"]["rows"] if row["stage"] == "end to end"]
    return [*markdown_table(speeds(rows), 1), "", made_by(report, "throughput")]


def stages(report: Mapping[str, Any]) -> list[str]:
    """The table of every stage."""
    result = report["parts"]["throughput"]["result"]
    lines: list[list[str]] = []
    for stage in ("generator", "upscaler", "network", "end to end"):
        rows = [row for row in result["rows"] if row["stage"] == stage]
        head, *body = speeds(rows, [row["way"] for row in result["rows"]])
        lines = lines or [head]
        lines += [[f"{stage}, {name}", *cells] for name, *cells in body]
    picture = "![images a second](throughput.png)"
    return [picture, "", *markdown_table(lines, 1), "", made_by(report, "throughput")]


def speeds(rows: list[Row], ways: list[str] | None = None) -> list[list[str]]:
    """Images a second: a row a system, a column a way, and the best to the naive chain."""
    every = [way for way in dict.fromkeys(ways or [row["way"] for row in rows]) if _is_column(way)]
    table = [["images/s", "eager PyTorch", *map(_way, every), "best to plain eager vanilla"]]
    for system in dict.fromkeys(row["system"] for row in rows):
        own = {row["way"]: row for row in rows if row["system"] == system}
        eager = own.get("naive") or own.get("eager")
        cells = [own.get(way) for way in every]
        ratios = [row["ratio_to_naive"] for row in own.values() if row["ratio_to_naive"]]
        speeds_ = ["" if row is None else rate(row["images_per_second"]) for row in (eager, *cells)]
        named = system if system in ("vanilla", "separable") else f"the shipped model ({system})"
        table.append([named, *speeds_, factor(max(ratios)) if ratios else ""])
    return table


def _is_column(way: str) -> bool:
    return way.split()[0] in LIBRARIES


def _way(way: str) -> str:
    backend, precision = way.split()
    return LIBRARIES[backend] + ("" if precision == "fp32" else f", {precision}")


def steps(report: Mapping[str, Any]) -> list[str]:
    """The table of training steps."""
    rows = report["parts"]["training"]["result"]["rows"]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    table = [["images/s", *names]]
    for side in dict.fromkeys(row["resolution"] for row in rows):
        own = {row["contender"]: row for row in rows if row["resolution"] == side}
        table.append([f"{side}²", *(_step(own.get(name)) for name in names)])
    lead = "The committed report's machine, [as a picture](training.png), too:"
    return [lead, "", *markdown_table(table, 1), "", made_by(report, "training")]


def _step(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{rate(row['images_per_second'])} ({factor(row['ratio_to_vanilla'])})"


def versus(report: Mapping[str, Any]) -> list[str]:
    """The opponent's table."""
    table: Lines = opponent_lines(report["parts"]["opponent"]["result"])
    return [*markdown_table(table, 3), "", made_by(report, "opponent")]


def costs(report: Mapping[str, Any]) -> list[str]:
    """What separable costs in quality."""
    result = report["parts"]["quality-curves"]["result"]
    answers = [f"- {answer}" for answer in quality_report.answers(result)]
    table = markdown_table(quality_report.lines(result), 2)
    picture = "![quality over images and time](quality-curves.svg)"
    lead = "The committed report's, of short trainings:"
    return [lead, "", *table, "", *answers, "", picture, "", made_by(report, "quality-curves")]


def growth(report: Mapping[str, Any]) -> list[str]:
    """What growing and separable save of a training to the last resolution."""
    shown = growing(report["parts"]["growing"]["result"])
    lead = "In the committed report, with steps that are timed and extended by multiply-adds:"
    return [lead, "", *(f"- {answer}" for answer in shown.answers), "", made_by(report, "growing")]


# Name -> the part that it is of ("" for the whole report), and its lines.
BLOCKS: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "findings": ("", says),
    "end-to-end": ("throughput", whole_chains),
    "throughput": ("throughput", stages),
    "training": ("training", steps),
    "opponent": ("opponent", versus),
    "quality-curves": ("quality-curves", costs),
    "growing": ("growing", growth),
}
