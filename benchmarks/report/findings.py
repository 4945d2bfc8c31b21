"""What a whole report says in five sentences and four numbers, all of them from its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..curves.quality import SEPARABLE, VANILLA, WIDE
from ..curves.quality_report import main_score, plus_minus
from ..harness.report import Row, listed, machine_lines
from ..harness.svg import factor
from .panels import layer_name, way_name


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


# ----------------------------------------------------------------------------
# Sentences.

MOST = 5


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What the measurements say, at most five sentences of the parts that are there: what is left of the
    saving, where it does not pay, training, quality, and who else could have it."""
    parts = {name: part["result"] for name, part in report["parts"].items()}
    result = []
    for name, tell in TELLERS.items():
        if name in parts and (told := tell(parts[name])):
            result.append(told)
    if "conv" in parts:
        result.insert(min(1, len(result)), does_not_pay(parts["conv"], parts.get("predicted")))
    return result[:MOST]


def left_of_it(result: Row) -> str:
    """How much of the saving in multiply-adds arrives in files, best and worst."""
    accounts = result["accounts"]
    if not accounts:
        return ""
    ends = {_way(account): account["ratios"]["files_seconds"] for account in accounts}
    best, least = (choose(ends, key=lambda way: ends[way]) for choose in (max, min))
    written = accounts[0]["ratios"]["written"]
    return (
        f"Separable networks need {factor(written)} fewer multiply-adds, and make {factor(ends[best])} as "
        f"many files a second with {best}, {factor(ends[least])} with {least}; what takes most of the rest "
        f"is {largest_loss(accounts, result['labels'])}."
    )


def _way(row: Row) -> str:
    """Names a way without a comma, for sentences that list some."""
    return way_name(row).replace(", ", " ")


def largest_loss(accounts: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The step at which most accounts lose most, in the waterfall's words."""
    worst = Counter(_worst_step(account["ratios"], list(labels)) for account in accounts)
    (key, times), *_ = worst.most_common()
    where = "" if times == len(accounts) else f" in {times} of {len(accounts)} ways"
    return f"“{labels[key]}”{where}"


def _worst_step(ratios: Mapping[str, float], keys: Sequence[str]) -> str:
    return max(pairwise(keys), key=lambda pair: ratios[pair[0]] / ratios[pair[1]])[1]


def does_not_pay(conv: Row, predicted: Row | None) -> str:
    """Widths below which a single separable convolution is slower somewhere, by way; layers that lose."""
    by_way: dict[str, list[int | None]] = {}
    for row in conv["pays_from"]:
        by_way.setdefault(_way(row), []).append(row["everywhere"])
    least = min(conv["settings"]["channels"])
    below = {
        way: None if None in widths else max(w for w in widths if w is not None)
        for way, widths in by_way.items()
    }
    by_width: dict[int | None, list[str]] = {}
    for way, width in below.items():
        if width != least:
            by_width.setdefault(width, []).append(way)
    parts = [
        f"below {width} maps with {listed(by_width[width])}" for width in sorted(w for w in by_width if w)
    ]
    if None in by_width:
        parts.append(f"at no width at every resolution with {listed(by_width[None])}")
    always = [way for way, width in below.items() if width == least]
    if not parts:
        told = f"A separable convolution paid at every width measured, from {least} maps on"
    else:
        told = f"It does not pay everywhere: a single separable convolution may be slower {'; '.join(parts)}"
        told += f", but pays from {least} maps on with {listed(always)}" if always else ""
    return f"{told}{_slow_layers(predicted)}."


def _slow_layers(predicted: Row | None) -> str:
    if predicted is None:
        return ""
    rows = predicted["rows"]
    slow = [row for row in rows if row["speedup"]["median"] < 1]
    if not slow:
        return "; of the networks' own layers none is slower"
    worst = min(slow, key=lambda row: row["speedup"]["median"])
    verb = "is" if len(slow) == 1 else "are"
    return (
        f"; of the networks' own layers {len(slow)} of {len(rows)} {verb} slower, most the "
        f"{worst['network']}'s {layer_name(worst)} with {_way(worst)} ({factor(worst['speedup']['median'])})"
    )


def training_steps(result: Row) -> str:
    """The least and the most that a separable step gains."""
    ours = [row for row in result["rows"] if row["contender"] == "ours separable"]
    plain = [row for row in result["rows"] if row["contender"] == "reference separable"]
    gains = [row["ratio_to_vanilla"] for row in ours]
    written = [row["ratio_to_vanilla"] for row in plain]
    sides = listed([f"{row['resolution']}²" for row in ours])
    return (
        f"A separable training step is {factor(min(gains))} to {factor(max(gains))} as fast as a plain "
        f"vanilla one (at {sides}); written plainly, {factor(min(written))} to {factor(max(written))}."
    )


def quality(result: Row) -> str:
    """Equal images, equal time, equal parameters, in one sentence."""
    score = main_score(result)
    found = {(row["kind"], row["axis"]): row for row in result["comparisons"] if row["score"] == score}
    cases = [
        ("equal images", found[SEPARABLE, "images"]),
        ("equal time", found[SEPARABLE, "hours"]),
        ("equal parameters and images", found[WIDE, "images"]),
        ("equal parameters and time", found[WIDE, "hours"]),
    ]
    theirs = cases[0][1]["vanilla"]  # its last look is both its images and its time
    told = [f"{plus_minus(row['separable'])} with {case} ({better(row)})" for case, row in cases]
    return (
        f"In {score}, lower is better, vanilla comes to {plus_minus(theirs)}, and separable to "
        f"{'; '.join(told)}."
    )


def better(row: Row) -> str:
    """A verdict in a word or two."""
    return {"unclear": "no clear difference", VANILLA: "vanilla is better"}.get(
        row["better"], "separable is better"
    )


def opponent(result: Row) -> str:
    """What ours is to an afternoon's work, end to end."""
    told = []
    for convolution in dict.fromkeys(row["convolution"] for row in result["rows"]):
        own = [
            row for row in result["rows"] if (row["convolution"], row["stage"]) == (convolution, "end to end")
        ]
        if own:
            ratios = listed([f"{factor(row['ratio'])} in {row['precision']}" for row in own])
            told.append(f"{convolution} {ratios}")
    return f"Against a plain export of the same networks, end to end: {'; '.join(told)}." if told else ""


TELLERS = {
    "waterfall": left_of_it,
    "training": training_steps,
    "quality-curves": quality,
    "opponent": opponent,
}


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
