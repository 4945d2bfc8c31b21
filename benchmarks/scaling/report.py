"""The cost model and the simulation as text, Markdown, and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from pgsr.files import make_folder, write_text

from ..harness.report import Row, aligned, machine_lines, markdown_table, rate
from ..harness.svg import HEAD, WIDTH, Log, Panel, bar, dot, line, path, stylesheet
from ..harness.svg import text as label
from ..report.page import table as html_table
from ..report.shown import Table
from . import costs
from .simulate import DAY, WHERE

WORDS = {
    "computing": "computing",
    "slow": "stragglers",
    "sending": "sending",
    "storage": "storage",
    "repeated": "in vain",
    "waiting": "waiting",
    "starting": "starting",
    "down": "down",
}
BREAKING = {  # in a sentence
    "slow": "stragglers take",
    "sending": "sending what has been made takes",
    "storage": "waiting for the storage takes",
    "repeated": "shards that were made in vain take",
    "waiting": "waiting for the driver and the last shards takes",
    "starting": "starting takes",
    "down": "nodes that are down take",
}
COLOURS = {"computing": "separable", "sending": "loss", "storage": "vanilla"}


def title(result: Row) -> str:
    """Returns what the page is about."""
    settings = result["settings"]
    faces = "A billion" if settings["faces"] == 10**9 else f"{settings['faces']:,}"
    return f"{faces} faces on {min(settings['nodes']):,} to {max(settings['nodes']):,} nodes"


def _hours(seconds: float) -> str:
    return f"{seconds / DAY:.1f} d" if seconds >= 2 * DAY else f"{seconds / 3600:.2f} h"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


# ----------------------------------------------------------------------------
# Tables.


def tables(result: Row) -> list[Table]:
    """All numbers, under their headings."""
    made = [_precisions(result), _formats(result)]
    made += [_simulated(result, run) for run in result["simulated"]]
    made.append(_sweeps(result))
    return [*made, _check(result)] if result["check"] else made


def _precisions(result: Row) -> Table:
    faces = result["settings"]["faces"]
    lines = [["precision", "faces/s of a core", "faces a core-hour", f"core-hours of {faces:,} faces"]]
    for row in result["precisions"]:
        hour = row["rate"] * 3600
        lines.append([row["precision"], rate(row["rate"]), f"{hour:,.0f}", f"{faces / hour:,.0f}"])
    gpu = result["settings"]["gpu_rate"]
    if gpu:
        hour = gpu * 3600
        lines.append(["a GPU (--gpu-rate)", rate(gpu), f"{hour:,.0f}", f"{faces / hour:,.0f}"])
    return Table("What a core makes, into a tar of PNG", lines, folded=False)


def _formats(result: Row) -> Table:
    settings = result["settings"]
    head = [
        "format",
        "faces/s of a core",
        "bytes a face",
        "in all",
        "a shard",
        "shards",
        "requests that write",
    ]
    full = f"nodes that fill {settings['storage']:g} GB/s"
    lines = [[*head, "a file a face", full]]
    for row in result["formats"]:
        stored = row["storage"]
        cells = [row["format"], rate(row["rate"]), f"{row['bytes']:,.0f}", _size(stored["bytes"])]
        cells += [_size(stored["shard_bytes"]), f"{stored['shards']:,}", f"{stored['puts']:,}"]
        lines.append([*cells, f"{stored['puts_of_files']:,}", f"{row['nodes_that_fill']:.0f}"])
    return Table(f"{settings['faces']:,} faces in an object store", lines, folded=False)


def _simulated(result: Row, run: Row) -> Table:
    lines = [["nodes", "makespan", "efficiency", "failures", "expected", "begun again", "begun twice"]]
    lines[0] += [WORDS[where] for where in WHERE[1:]]
    for point in run["points"]:
        cells = [f"{point['nodes']:,}", _hours(point["makespan"]), f"{point['efficiency']:.1%}"]
        cells += [f"{point['failures']:,}", f"{point['expected_failures']:.1f}", f"{point['repeated']:,}"]
        cells += [f"{point['reissued']:,}", *(f"{point['shares'][where]:.1%}" for where in WHERE[1:])]
        lines.append(cells)
    return Table(f"Simulated, {run['format']}", lines, left=0, folded=False)


def _sweeps(result: Row) -> Table:
    nodes = max(result["settings"]["nodes"])
    lines = [
        ["what is different", "makespan", "efficiency", "begun again", "begun twice", "waiting", "in vain"]
    ]
    for row in result["sweeps"]:
        cells = [row["what"], _hours(row["makespan"]), f"{row['efficiency']:.1%}", f"{row['repeated']:,}"]
        shares = (f"{row['shares'][where]:.1%}" for where in ("waiting", "repeated"))
        lines.append([*cells, f"{row['reissued']:,}", *shares])
    return Table(f"What matters once the storage does not, on {nodes:,} nodes", lines, folded=False)


def _check(result: Row) -> Table:
    lines = [
        ["workers", "killed", "shards", "measured s", "simulated s", "ratio", "begun again", "simulated"]
    ]
    for row in result["check"]:
        cells = [str(row[name]) for name in ("workers", "killed", "shards")]
        cells += [f"{row['seconds']:.1f}", f"{row['simulated']:.1f}", f"{row['ratio']:.2f}"]
        lines.append([*cells, str(row["repeated"]), str(row["simulated_repeated"])])
    return Table("Real runs on this machine, and the simulation of each", lines, left=0, folded=False)


def answers(result: Row) -> list[str]:
    """What breaks first, in words."""
    told, settings = [], result["settings"]
    node = settings["workers"] * result["formats"][0]["rate"]
    files_break = costs.PUTS_A_SECOND / node
    in_shards = files_break * settings["shard"] / _parts(result)
    told.append(
        f"A file a face breaks first: {costs.PUTS_A_SECOND:,} writes a second, which S3 promises for a "
        f"prefix, are {files_break:.1f} nodes of {settings['workers']} cores. In shards of "
        f"{settings['shard']:,} they are {in_shards:,.0f} nodes."
    )
    for run in result["simulated"]:
        told.append(f"{run['format']}: {'; '.join(_broken(run)) or 'nothing takes a tenth of the time'}.")
    return told


def _broken(run: Row) -> list[str]:
    """What takes more than a tenth of the time, and from how many nodes on."""
    least = run["points"][0]["nodes"]
    where = (f"from {b['nodes']:,} nodes on" if b["nodes"] > least else "everywhere" for b in run["breaks"])
    return [
        f"{place}, {BREAKING[b['what']]} {b['share']:.0%} of the time"
        for place, b in zip(where, run["breaks"], strict=True)
    ]


def _parts(result: Row) -> float:
    stored = result["formats"][0]["storage"]
    return float(stored["puts"] / stored["shards"])


# ----------------------------------------------------------------------------
# Figures.

PLOT = 190  # units high


def speed_panel(run: Row) -> Panel:
    """Makespan over nodes, both logarithmic; the straight line is as fast as arithmetic allows."""
    points = run["points"]
    times = [point["makespan"] / 3600 for point in points]
    ideal = [point["makespan"] * point["efficiency"] / 3600 for point in points]
    across = Log(points[0]["nodes"], max(points[-1]["nodes"], points[0]["nodes"] * 2), 34, WIDTH - 40)
    up = Log(min(*ideal, *times) * 0.8, max(*ideal, *times) * 1.2, HEAD + PLOT, HEAD + 6)
    parts = [_across(points, across)]
    for hours in up.ticks():
        parts += [
            line(34, up(hours), WIDTH - 10, up(hours)),
            label(0, up(hours) + 4, f"{hours:g} h", "quiet"),
        ]
    places = [across(point["nodes"]) for point in points]
    parts.append(path([(x, up(y)) for x, y in zip(places, ideal, strict=True)], "underroof"))
    parts.append(path([(x, up(y)) for x, y in zip(places, times, strict=True)], "separable"))
    for x, y, point in zip(places, times, points, strict=True):
        parts.append(dot(x, up(y), 3.5, "separable", f"{point['nodes']} nodes: {_hours(point['makespan'])}"))
    name = f"{run['format']}: time over nodes"
    return Panel(name, "dashed: if nothing but arithmetic took time", "".join(parts), HEAD + PLOT + 22)


def share_panel(run: Row) -> Panel:
    """Where the workers' seconds go, a bar a number of nodes."""
    parts, y = [], float(HEAD)
    room = WIDTH - 90
    for point in run["points"]:
        x = 44.0
        parts.append(label(36, y + 10, f"{point['nodes']:,}", "axis", "end"))
        for where in WHERE:
            width = room * point["shares"][where]
            said = f"{point['nodes']} nodes: {WORDS[where]} {point['shares'][where]:.1%}"
            parts.append(bar(x, y, width, 12, COLOURS.get(where, "ink"), said))
            x += width
        parts.append(label(x + 5, y + 10, f"{point['efficiency']:.0%}", "small"))
        y += 18
    x = 44.0
    for kind, name in (*((COLOURS[where], WORDS[where]) for where in COLOURS), ("ink", "all else")):
        parts += [bar(x, y + 4, 9, 9, kind), label(x + 13, y + 12, name, "small")]
        x += 74
    subtitle = "the workers' time by number of nodes; at the end, the share that computes"
    return Panel(f"{run['format']}: where time goes", subtitle, "".join(parts), y + 20)


def _across(points: Sequence[Row], scale: Log) -> str:
    bottom = HEAD + PLOT
    marks = [label(scale(p["nodes"]), bottom + 14, f"{p['nodes']:,}", "quiet", "middle") for p in points[::3]]
    return "".join([*marks, line(34, bottom, WIDTH - 10, bottom, "rule")])


# ----------------------------------------------------------------------------
# Files.


def text(result: Row) -> str:
    """For a terminal."""
    parts = [*answers(result)]
    for item in tables(result):
        parts += ["", item.caption, aligned(item.lines, item.left)]
    return "\n".join([*parts, "", *notes(result)])


def notes(result: Row) -> list[str]:
    """What was assumed, and where it was measured."""
    s = result["settings"]
    return [
        f"Nodes of {s['workers']} cores, a worker each; a storage of {s['storage']:g} GB/s for all, links of "
        f"{s['link']:g} Gbit/s; a node fails once in {s['mtbf_days']:g} days, and is back after 10 minutes; "
        f"nodes differ by 5%, one shard of a hundred takes four times as long; seed {s['seed']}.",
        *machine_lines(result["machine"]),
    ]


def markdown(result: Row) -> str:
    """For a page."""
    lines = [f"# {title(result)}", "", *(f"- {answer}" for answer in answers(result))]
    for item in tables(result):
        lines += ["", f"## {item.caption}", "", *markdown_table(item.lines, item.left)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(result)), ""])


def page(result: Mapping[str, Any]) -> str:
    """One HTML page, with nothing from elsewhere."""
    css = stylesheet() + files("pgsr.benchmarks.report").joinpath("page.css").read_text()
    panels = [panel for run in result["simulated"] for panel in (speed_panel(run), share_panel(run))]
    drawn = "".join(f'<div class="panel">{panel.svg()}</div>' for panel in panels)
    first, *more = answers(result)
    told = "".join(f"<li>{escape(answer)}</li>" for answer in more)
    assumed = "".join(f"<li>{escape(note)}</li>" for note in notes(result))
    command = escape(result["provenance"]["command"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title(result))}</title><style>\n{css}</style></head><body>"
        f'<header><p class="kicker">pgsr-bench scaling · {escape(result["provenance"]["began"][:10])}</p>'
        f"<h1>{escape(title(result))}</h1></header><main><section><h2>What breaks first</h2>"
        f'<p class="answer">{escape(first)}</p><ul class="answers">{told}</ul>'
        f'<figure><div class="panels">{drawn}</div><p class="origin"><code>{command}</code></p></figure>'
        f"</section><section><h2>Numbers</h2>{''.join(map(html_table, tables(result)))}</section></main>"
        f"<footer><section><h2>What was assumed</h2><ul>{assumed}</ul></section></footer></body></html>\n"
    )


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """scaling.json, scaling.md and scaling.html. Raises PgsrError if they cannot be written."""
    make_folder(folder)
    write_text(folder / "scaling.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "scaling.md", markdown(result))
    write_text(folder / "scaling.html", page(result))
