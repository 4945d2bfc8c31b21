"""A measurement of pgsr-serve as text and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..harness.report import aligned, machine_lines, markdown_table, rate, write_report_files

NAMES = {"pgsr-serve": "pgsr-serve", "plain": "plain FastAPI handler"}
HEADINGS = ["cores", "", "images/s", "of offline", "p50 ms", "p95", "p99", "half load: p50", "p95", "p99"]
LEFT = 2  # columns of words


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows of what was measured, under their headings."""
    lines = [list(HEADINGS)]
    for one in result["results"]:
        offline = one["offline"]["images_per_second"]
        lines.append([str(one["cores"]), "offline, to a folder", rate(offline), "100%", *["-"] * 6])
        for name, words in NAMES.items():
            full, half = one[name]["full"], one[name]["half"]
            share = f"{100 * full['images_per_second'] / offline:.0f}%"
            times = [f"{load[p]:.0f}" for load in (full, half) for p in ("p50", "p95", "p99")]
            lines.append([str(one["cores"]), words, rate(full["images_per_second"]), share, *times])
    return lines


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the table does not say."""
    settings, lines = result["settings"], []
    for one in result["results"]:
        served, plain = one["pgsr-serve"]["full"], one["plain"]["full"]
        faster = served["images_per_second"] / plain["images_per_second"]
        shorter = plain["p99"] / served["p99"]
        lines.append(
            f"{one['cores']} core(s): {faster:.2f} times the plain handler's throughput, p99 {shorter:.2f} "
            f"times as short; clients took {served['client_cores']:.2f} of a core; {served['statuses']}"
        )
    memory = result["memory"]
    if memory:
        first, last = (memory[f"{name}_bytes"] / 2**20 for name in ("first", "last"))
        lines.append(f"memory over {memory['minutes']:g} min of load: {first:.1f} MiB, then {last:.1f} MiB")
    lines.append(
        f"{settings['clients']} clients on loopback, on the same cores; a {settings['format']} a request, "
        f"batches of {settings['batch']}; medians of {settings['rounds']} rounds of {settings['seconds']:g} s"
    )
    return lines


def text(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    return "\n".join([aligned(table(result), LEFT), *notes(result), *machine_lines(result["machine"])])


def markdown(result: Mapping[str, Any]) -> str:
    """For a page."""
    points = [f"- {line}" for line in (*notes(result), *machine_lines(result["machine"]))]
    return "\n".join(["# pgsr-serve under load", "", *markdown_table(table(result), LEFT), "", *points, ""])


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """serve.json and serve.md. Raises PgsrError if they cannot be written."""
    write_report_files(folder, "serve", result, markdown(result))
