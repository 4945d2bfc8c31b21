"""The report as one HTML page: style and figures inside, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ..harness.svg import stylesheet
from .findings import control_words, disturbances, facts, keys, sentences
from .parts import PARTS
from .shown import Figure, Table

TITLE = "What separable convolutions buy"


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    css = stylesheet() + files(__package__).joinpath("page.css").read_text()
    sections = [section(name, part) for name, part in report["parts"].items()]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(TITLE)}: {escape(report['machine']['cpu'])}</title>",
            f"<style>\n{css}</style>",
            "</head>",
            "<body>",
            header(report),
            contents(report),
            "<main>",
            *sections,
            "</main>",
            footer(report),
            "</body>",
            "</html>",
            "",
        ]
    )


def header(report: Mapping[str, Any]) -> str:
    """Title, legend of the two colours, key numbers, and whether the run was disturbed."""
    machine = report["machine"]
    where = f"{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    numbers = "".join(
        f'<div><dt class="{key.kind}">{escape(key.number)}</dt><dd>{escape(key.says)}</dd></div>'
        for key in keys(report)
    )
    return (
        '<header id="top"><p class="kicker">pgsr-bench report · '
        f"{escape(report['provenance']['began'][:10])}</p>"
        f"<h1>{escape(TITLE)}</h1>"
        f'<p class="lead">Measured on {escape(where)}. '
        '<span class="vanilla">Vanilla</span> is one 3×3 convolution; <span '
        'class="separable">separable</span> is '
        "a depthwise 3×3 and a pointwise 1×1 in its place.</p>"
        f'<dl class="keys">{numbers}</dl>{_findings(report)}{_disturbed(report)}</header>'
    )


def _findings(report: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(report))
    return f'<ol class="findings">{items}</ol>' if items else ""


def _disturbed(report: Mapping[str, Any]) -> str:
    whys = disturbances(report)
    if not whys:
        return '<p class="verdict">No part was disturbed: equals came out equal, and nothing else ran.</p>'
    items = "".join(f"<li>{escape(why)}</li>" for why in whys)
    count = f"{len(whys)} of {len(report['parts'])} parts"
    return (
        f'<details class="verdict disturbed"><summary>This run was disturbed: {count}. Ratios hold better '
        f"than times.</summary><ul>{items}</ul></details>"
    )


def contents(report: Mapping[str, Any]) -> str:
    """The table of contents."""
    links = [(name, PARTS[name].title) for name in report["parts"]] + [("machine", "Machine and method")]
    items = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in links)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def section(name: str, part: Mapping[str, Any]) -> str:
    """One part: its question, answers, figures, numbers, and where they are from."""
    shown, entry = PARTS[name].show(part["result"]), PARTS[name]
    first, *more = shown.answers or [""]
    answers = f'<p class="answer">{escape(first)}</p>'
    if more:
        answers += '<ul class="answers">' + "".join(f"<li>{escape(text)}</li>" for text in more) + "</ul>"
    noise = part["noise"]
    warning = (
        f'<p class="disturbed">Disturbed: {escape("; ".join(noise["why"]))}.</p>' if noise["why"] else ""
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in shown.notes)
    return (
        f'<section id="{name}"><h2>{escape(entry.title)}</h2>'
        f'<p class="question">{escape(entry.question)}</p>{answers}{warning}'
        + "".join(figure(item, name, part) for item in shown.figures)
        + f'<div id="{name}-numbers">'
        + "".join(map(table, shown.tables))
        + "</div>"
        + (f"<details><summary>How it was measured</summary><ul>{notes}</ul></details>" if notes else "")
        + ("" if shown.figures else f'<p class="origin">{origin(name, part)}</p>')
        + f'<p class="origin">{escape(control_words(noise))}; begun {escape(part["began"])}'
        f"{escape(' at ' + part['commit']) if part['commit'] else ''}</p>"
        "</section>"
    )


def figure(item: Figure, name: str, part: Mapping[str, Any]) -> str:
    """Panels under their caption, with the command that made them and a link to their numbers."""
    drawn = "".join(f'<div class="panel">{panel.svg()}</div>' for panel in item.panels)
    return (
        f'<figure><figcaption>{escape(item.caption)}</figcaption><div class="panels">{drawn}</div>'
        f'<p class="origin">{origin(name, part)}</p></figure>'
    )


def origin(name: str, part: Mapping[str, Any]) -> str:
    """The command and the numbers."""
    return (
        f'<code>{escape(part["command"])}</code> · <a href="#{name}-numbers">numbers</a> · '
        f'<a href="report.json">report.json</a>, parts.{name}'
    )


def table(item: Table) -> str:
    """A table that scrolls in its own box where it is too wide, folded if it is long."""
    head, *rows = item.lines

    def row(cells: Sequence[str], kind: str) -> str:
        parts = [
            f"<{kind}{'' if i < item.left else ' class=n'}>{escape(cell)}</{kind}>"
            for i, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    grid = f"<table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>"
    whole = f'<div class="scroll" tabindex="0">{grid}</div>'
    caption = escape(item.caption)
    if item.folded:
        return f"<details><summary>{caption} ({len(rows)} rows)</summary>{whole}</details>"
    return f"<h3>{caption}</h3>{whole}"


def footer(report: Mapping[str, Any]) -> str:
    """The machine, and how noise is handled."""
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts(report))
    return (
        '<footer><section id="machine"><h2>Machine and method</h2>'
        f'<dl class="facts">{rows}</dl>'
        "<p>Contenders are warmed up and then take turns, round by round, so that what disturbs the "
        "machine disturbs all alike. Figures are medians with the quartiles of the rounds, ratios are "
        "taken round by round. Where there is a control pair, two equal contenders run among the others; "
        "a part is called disturbed if their ratio is further from one than its own spread, or if other "
        "processes took more than 5% of the cores that this one may use.</p>"
        '<p>All numbers: <a href="report.json">report.json</a>, described by '
        "<code>benchmarks/report/report.schema.json</code>. Two reports: "
        "<code>pgsr-bench report --compare A.json B.json</code>.</p>"
        '<p><a href="#top">To the top</a></p></section></footer>'
    )
