"""The report as Markdown, and two reports beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError

from ..harness.report import aligned, markdown_table
from .findings import control_words, disturbances, facts, keys, sentences
from .parts import PARTS
from .shown import Measure

LONGEST_TABLE = 60  # lines, in Markdown; longer ones are in the page and in JSON


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report without its figures."""
    lines = [f"# What separable convolutions buy: {report['machine']['cpu']}", ""]
    lines += [f"- **{key.number}** {key.says}" for key in keys(report)]
    lines += ["", *(f"{number}. {sentence}" for number, sentence in enumerate(sentences(report), 1))]
    lines += ["", *(f"> Disturbed: {why}" for why in disturbances(report)), ""]
    lines += ["Figures are in [report.html](report.html), every number in [report.json](report.json).", ""]
    for name, part in report["parts"].items():
        shown = PARTS[name].show(part["result"])
        lines += [f"## {PARTS[name].title}", "", PARTS[name].question, ""]
        lines += [*(f"- {answer}" for answer in shown.answers), ""]
        for table in shown.tables:
            if len(table.lines) <= LONGEST_TABLE:
                lines += [f"### {table.caption}", "", *markdown_table(table.lines, table.left), ""]
        lines += [f"Made by `{part['command']}`; {control_words(part['noise'])}.", ""]
    lines += ["## Machine", "", *(f"- {name}: {value}" for name, value in facts(report)), ""]
    return "\n".join(lines)


# ----------------------------------------------------------------------------
# Two reports.


def measures(report: Mapping[str, Any]) -> dict[tuple[str, str], Measure]:
    """Every number of a report that can be compared, by part and name."""
    return {
        (name, measure.name): measure
        for name, part in report["parts"].items()
        if name in PARTS
        for measure in PARTS[name].measures(part["result"])
    }


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What both hold, the second to the first; `clear` where the difference is larger than both spreads.

    Spreads add up as independent errors do: by the root of their squares.
    """
    old, new = measures(first), measures(second)
    rows = []
    for key in [key for key in old if key in new]:
        a, b = old[key], new[key]
        spread = ((a.high - a.low) ** 2 + (b.high - b.low) ** 2) ** 0.5 / 2
        rows.append(
            {
                "part": key[0],
                "name": key[1],
                "first": a.value,
                "second": b.value,
                "ratio": b.value / a.value if a.value else None,
                "spread": spread,
                "clear": abs(b.value - a.value) > spread,
            }
        )
    return rows


def comparison(
    paths: tuple[Path, Path], reports: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> dict[str, Any]:
    """Two reports compared. Raises PgsrError if a file is no report or they share no number."""
    for path, report in zip(paths, reports, strict=True):
        if report.get("schema") != 1 or not isinstance(report.get("parts"), dict):
            raise PgsrError(f"{path} is no report of pgsr-bench report, or of another version's")
    try:
        rows = compared(*reports)
    except (KeyError, TypeError, AttributeError) as error:
        raise PgsrError(f"{paths[0]} or {paths[1]} is damaged: {error!r} is not as the schema says") from None
    if not rows:
        raise PgsrError(f"{paths[0]} and {paths[1]} have no measured number in common")
    conditions = [_different(what, *reports) for what in ("cpu", "threads", "packages")]
    return {
        "first": str(paths[0]),
        "second": str(paths[1]),
        "rows": rows,
        "notes": [note for note in conditions if note]
        + [
            f"{path} was disturbed: {why}"
            for path, r in zip(paths, reports, strict=True)
            for why in disturbances(r)
        ],
    }


def _different(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    a, b = first["machine"][what], second["machine"][what]
    return "" if a == b else f"other {what}: {a}; {b}"


def comparison_text(result: Mapping[str, Any]) -> str:
    """Every pair, those that differ clearly marked."""
    lines = [["", "part", "what", "first", "second", "ratio", "spread"]]
    for row in result["rows"]:
        mark = "" if not row["clear"] else "▲" if row["second"] > row["first"] else "▼"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        numbers = [f"{row[side]:.3g}" for side in ("first", "second")]
        lines.append([mark, row["part"], row["name"], *numbers, ratio, f"±{row['spread']:.2g}"])
    clear = sum(row["clear"] for row in result["rows"])
    return "\n".join(
        [
            aligned(lines, 3),
            "",
            f"{clear} of {len(result['rows'])} numbers differ by more than their spread (▲ the second is "
            "larger, ▼ smaller)",
            *result["notes"],
        ]
    )
