"""What a whole report says in a few sentences and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..harness.report import machine_lines
from ..harness.svg import factor
from .panels import way_name


@dataclass(frozen=True)
class Key:
    """A number that stands large at the head of the page."""

    number: str
    says: str
    kind: str = "ink"  # its colour


def keys(report: Mapping[str, Any]) -> list[Key]:
    """At most four, of the parts that are there."""
    parts = {name: part["result"] for name, part in report["parts"].items()}
    result = []
    if parts.get("waterfall", {}).get("accounts"):
        accounts = parts["waterfall"]["accounts"]
        best = max(accounts, key=lambda account: account["ratios"]["files_seconds"])
        written = best["ratios"]["written"]
        result.append(Key(factor(written), "fewer multiply-adds in the whole chain"))
        left = best["ratios"]["files_seconds"]
        says = f"as fast from latents to files, at best ({way_name(best)})"
        result.append(Key(factor(left), says, "separable" if left > 1 else "vanilla"))
    if "training" in parts:
        rows = parts["training"]["rows"]
        ours = [row for row in rows if row["contender"] == "ours separable"]  # no variant
        best = max(ours, key=lambda row: row["ratio_to_vanilla"])
        says = f"as fast a training step as plain vanilla, at {best['resolution']}²"
        result.append(Key(factor(best["ratio_to_vanilla"]), says, "separable"))
    if "conv" in parts:
        rows = parts["conv"]["rows"]
        losing = sum(row["speedup"]["median"] < 1 for row in rows)
        says = f"of {len(rows)} single convolutions are slower as separable ones"
        result.append(Key(f"{losing / len(rows):.0%}", says, "vanilla"))
    return result[:4]


def disturbances(report: Mapping[str, Any]) -> list[str]:
    """Which parts were disturbed, and by what."""
    return [
        f"{name}: {'; '.join(part['noise']['why'])}"
        for name, part in report["parts"].items()
        if part["noise"]["disturbed"]
    ]


def control_words(noise: Mapping[str, Any]) -> str:
    """What a part's control pair and the load said, in a sentence."""
    control = noise["control"]
    pair = (
        "no control pair"
        if control is None
        else f"control pair {control['median']:.3f} (quartiles {control['low']:.3f} to {control['high']:.3f})"
    )
    verdict = "disturbed" if noise["disturbed"] else "undisturbed"
    return f"{verdict}; {pair}; other processes {noise['other_load']:.0%}; {noise['seconds']:,.0f} s"


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine and how it was measured, as names and values."""
    machine, origin = report["machine"], report["provenance"]
    mhz = origin["clock_mhz"]
    return [
        ("Processor", f"{machine['cpu']}{f', {mhz:,.0f} MHz as measuring began' if mhz else ''}"),
        ("Cores and threads", f"{machine['cores']} usable, {machine['threads']} of arithmetic"),
        ("Memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB"),
        ("Vector instructions", ", ".join(machine["instruction_sets"]) or "unknown"),
        ("System", machine_lines(machine)[1].partition(";")[0]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine["packages"].items())),
        ("Commit", origin["commit"] or "an installed package"),
        ("Command", origin["command"]),
        ("Begun", origin["began"]),
        ("Clock", origin["clock"]),
        ("All processor flags", " ".join(origin["flags"]) or "unknown"),
    ]
