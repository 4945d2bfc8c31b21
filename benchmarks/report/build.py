"""A report in a folder: each part's JSON as it comes, then report.json, report.html and report.md.

A part whose JSON is there is not measured again; after every part the page is written anew. So whoever stops
a report loses no more than the part that was under way, and of conv not even that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pgsr import __version__
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, write_text

from ..harness.noise import Watch
from ..harness.provenance import provenance
from ..harness.roof import survey
from .page import page
from .parts import PARTS
from .settings import Settings
from .words import markdown

SCHEMA = 1  # of report.json: benchmarks/report/report.schema.json
Report = Callable[[str], None]


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """Measures what is missing, writes everything, and returns report.json's data.

    Raises PgsrError if the folder holds a report of other settings or of another machine, or a part cannot be
    measured or written.
    """
    names = wanted(settings)
    for name in () if settings.parts else PARTS:
        if why := lacking(name, settings):
            report(f"{name}: left out, it {why}")
    folder = make_folder(settings.out / "parts")
    head = _head(settings)
    kept = _require_same(settings.out / "parts" / "report.json", head)
    parts = found(folder)
    for name in names:
        if name in parts:
            report(f"{name}: it is in {folder / f'{name}.json'}")
            continue
        parts[name] = measured(name, settings, folder, report)
        write_text(folder / f"{name}.json", json.dumps(parts[name], indent=1) + "\n")
        write(settings.out, {**kept, "parts": parts})
    return write(settings.out, {**kept, "parts": parts})


def wanted(settings: Settings) -> list[str]:
    """The parts to measure, in the page's order. Raises PgsrError for one that is not there or lacks its
    data."""
    for name in settings.parts:
        check_choice("--part", name, tuple(PARTS))
        if why := lacking(name, settings):
            raise PgsrError(f"--part {name} {why}")
    return [
        name
        for name in PARTS
        if (name in settings.parts or not settings.parts) and not lacking(name, settings)
    ]


def lacking(name: str, settings: Settings) -> str:
    """Why a part cannot be measured, or nothing."""
    part = PARTS[name]
    if part.needs_data and settings.data is None:
        return "needs photographs: name some with --data"
    absent = [module for module in part.needs if find_spec(module) is None]
    return f"needs {', '.join(absent)}: pip install 'pgsr[{part.extra}]'" if absent else ""


def measured(name: str, settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    """A part's JSON: what it found, what made it, and whether it was disturbed."""
    began = provenance()
    with Watch() as watch:
        result = PARTS[name].measure(settings, folder, lambda text: report(f"{name}: {text}"))
    return {
        "command": f"pgsr-bench report --part {name}{settings.words} --out REPORT_DIR",
        "began": began["began"],
        "commit": began["commit"],
        "clock_mhz": began["clock_mhz"],
        "noise": {**watch.as_dict(result.get("controls", ())), **result.get("noise", {})},
        "result": json.loads(json.dumps(result, default=str)),  # keys are strings, as they are in the file
    }


def _head(settings: Settings) -> dict[str, Any]:
    machine, _ = survey(settings.threads)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "length": settings.length,
        "data": None if settings.data is None else settings.data.name,
        "held_out": None if settings.held_out is None else settings.held_out.name,
        "machine": machine.as_dict(),
        "provenance": provenance(),
    }


def _require_same(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The head that the folder's parts were measured under, or this one. Raises PgsrError if they differ."""
    if not path.is_file():
        write_text(path, json.dumps(head, indent=1) + "\n")
        return head
    kept = read(path)
    for what, theirs, ours in (
        ("length", kept.get("length"), head["length"]),
        ("data", kept.get("data"), head["data"]),
        ("held_out", kept.get("held_out"), head["held_out"]),
        *(
            (key, kept.get("machine", {}).get(key), head["machine"][key])
            for key in ("cpu", "threads", "packages")
        ),
    ):
        if theirs != ours:
            raise PgsrError(f"{path.parent.parent} holds a report of another {what}: name another --out")
    return kept


def found(folder: Path) -> dict[str, Any]:
    """The parts that are there, in the page's order."""
    return {name: read(folder / f"{name}.json") for name in PARTS if (folder / f"{name}.json").is_file()}


def read(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises PgsrError if it is none."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise PgsrError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise PgsrError(f"{path} is no JSON: remove it, and the same command measures it again") from None
    if not isinstance(data, dict):
        raise PgsrError(f"{path} is no report: it holds no object")
    return data


def write(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """report.json, .html and .md. Raises PgsrError if they cannot be written."""
    ordered = {**report, "parts": {name: report["parts"][name] for name in PARTS if name in report["parts"]}}
    write_text(out / "report.json", json.dumps(ordered, indent=1) + "\n")
    write_text(out / "report.html", page(ordered))
    write_text(out / "report.md", markdown(ordered))
    return ordered
