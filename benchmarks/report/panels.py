"""The report's figures, but for the heat map, which is conv's own. One colour is vanilla's and one
separable's in all of them; what is said of a mark stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..conv.backends import LIBRARIES
from ..harness.report import Row
from ..harness.roof import roof_of
from ..harness.svg import (
    HEAD,
    WIDTH,
    Log,
    Panel,
    bar,
    dot,
    factor,
    line,
    path,
    short,
    tag,
    text,
)


def way_name(row: Row) -> str:
    """Returns a library and a precision as a person says them."""
    library = LIBRARIES.get(row["backend"])
    return f"{library.name if library else row['backend']}, {row['precision']}"


# ----------------------------------------------------------------------------
# Bars.


@dataclass(frozen=True)
class Bar:
    """One value."""

    kind: str  # its colour: vanilla, separable, other, ink
    value: float
    label: str  # at its end
    said: str = ""  # to a pointer


BAR_HEIGHT, ROW_GAP, LABEL_HEIGHT = 9, 9, 14
LETTER = 6.4  # units of a label, at most


def bars(title: str, subtitle: str, rows: Sequence[tuple[str, Sequence[Bar]]]) -> Panel:
    """Rows of bars from zero, each row's name above them, values at their ends."""
    most = max((b.value for _, marks in rows for b in marks), default=1.0) or 1.0
    longest = max((len(b.label) for _, marks in rows for b in marks), default=0)
    room = WIDTH - max(62.0, 5 + LETTER * longest)
    parts, y = [], float(HEAD)
    for name, marks in rows:
        parts.append(text(0, y + 10, name, "axis"))
        y += LABEL_HEIGHT
        for mark in marks:
            width = max(1.0, room * mark.value / most)
            parts.append(bar(0, y, width, BAR_HEIGHT, mark.kind, mark.said))
            parts.append(text(width + 5, y + BAR_HEIGHT - 0.5, mark.label, "small"))
            y += BAR_HEIGHT + 2
        y += ROW_GAP
    return Panel(title, subtitle, "".join(parts), y)


# ----------------------------------------------------------------------------
# The waterfall.

STEP = 29


def waterfall(account: Row, labels: Mapping[str, str], equation_3: float) -> Panel:
    """From the ratio of multiply-adds down to that of files, factor by factor, on a logarithmic scale."""
    ratios = account["ratios"]
    keys = steps_of(account, labels)
    highest = max(*ratios.values(), equation_3, 2.0) * 1.05
    lowest = min(*ratios.values(), 1.0) * (1.0 if min(ratios.values()) >= 1 else 0.95)
    scale = Log(lowest, highest, 0, WIDTH - 46)
    parts: list[str] = []
    bottom = HEAD + STEP * (len(keys) + 1)
    for value in [v for v in (1, 2, 4, 8, 16) if lowest <= v <= highest]:
        parts.append(line(scale(value), HEAD, scale(value), bottom))
        parts.append(
            text(scale(value), bottom + 13, f"{value}×", "quiet", "middle" if value > 1 else "start")
        )
    previous = ratios[keys[0]]
    parts += _whole(HEAD, labels[keys[0]], scale, previous, "ink")
    for i, key in enumerate(keys[1:], 1):
        parts += _fall(HEAD + i * STEP, labels[key], scale, previous, ratios[key])
        previous = ratios[key]
    said = "what is left, end to end"
    parts += _whole(HEAD + len(keys) * STEP, said, scale, previous, "separable")
    subtitle = f"{factor(ratios[keys[0]])} fewer multiply-adds (equation 3: {factor(equation_3)})"
    title = f"{way_name(account)}: {factor(previous)} end to end"
    return Panel(title, subtitle, "".join(parts), bottom + 18)


def steps_of(account: Row, labels: Mapping[str, str]) -> list[str]:
    """The steps of an account in their order; without precisions, where all layers compute in one."""
    ratios = account["ratios"]
    same = abs(ratios["arithmetic_seconds"] / ratios["multiply_adds"] - 1) < 0.005
    return [key for key in labels if not (same and key == "arithmetic_seconds")]


def _whole(y: float, label: str, scale: Log, value: float, kind: str) -> list[str]:
    start, end = scale(1), scale(value)
    return [
        text(0, y + 11, label),
        bar(start, y + 15, end - start, 10, kind, f"{label}: {value:.2f}×"),
        text(max(start, end) + 5, y + 24, factor(value), "value"),
    ]


def _fall(y: float, label: str, scale: Log, before: float, after: float) -> list[str]:
    """A step down in grey, a step up in the colour of separable."""
    kind = "loss" if after <= before else "separable pale"
    change = before / after
    words = (
        "±0"
        if 0.995 < change < 1.005
        else f"÷\N{NO-BREAK SPACE}{change:.2f}"
        if change > 1
        else f"×\N{NO-BREAK SPACE}{1 / change:.2f}"
    )
    return [
        text(0, y + 11, label, "axis"),
        bar(
            scale(after), y + 15, scale(before) - scale(after), 10, kind, f"{label}: {words}, to {after:.2f}×"
        ),
        line(scale(after), y + 15, scale(after), y + STEP + 15, "rule"),
        text(max(scale(before), scale(after)) + 5, y + 24, words, "small"),
    ]


COMPONENTS = (  # what is told, the cost, and what it is more than
    ("arithmetic, at the matrix peak", "arithmetic_seconds", ""),
    ("memory, under the roof", "roof_seconds", "arithmetic_seconds"),
    ("layers below the roof", "layer_seconds", "roof_seconds"),
    ("conversions", "with_conversions_seconds", "layer_seconds"),
    ("everything that is not convolution", "all_seconds", "with_conversions_seconds"),
    ("around the operations", "network_seconds", "all_seconds"),
    ("encoding and files", "files_seconds", "network_seconds"),
)


def amdahl(account: Row) -> Panel:
    """Milliseconds of an image, part by part: what shrinks with separable, and what stays."""
    costs = account["costs"]

    def milliseconds(system: str, more: str, less: str) -> float:
        return float(1e3 * (costs[system][more] - (costs[system][less] if less else 0)))

    rows = []
    for label, more, less in COMPONENTS:
        marks = []
        for system in ("vanilla", "separable"):
            value = milliseconds(system, more, less)
            marks.append(Bar(system, max(0.0, value), f"{value:.1f}", f"{label}, {system}: {value:.2f} ms"))
        rows.append((label, marks))
    whole = [1e3 * costs[system]["files_seconds"] for system in ("vanilla", "separable")]
    subtitle = f"ms an image, of {whole[0]:.0f} (vanilla) and {whole[1]:.0f} (separable)"
    return bars(way_name(account), subtitle, rows)


# ----------------------------------------------------------------------------
# Predicted beside measured.

LAYER_ROW, NAME_WIDTH = 19, 138


def predicted(title: str, rows: Sequence[Row]) -> Panel:
    """Layer by layer: what equation (3) says (ring), what the roof allows (bar), what was measured (disc)."""
    values = [v for row in rows for v in (row["predicted"], row["roof"], *_ends(row["speedup"]))]
    scale = Log(min(0.5, *values) * 0.95, max(16.0, *values) * 1.05, NAME_WIDTH, WIDTH - 34)
    bottom = HEAD + LAYER_ROW * len(rows)
    parts = []
    for value in (0.5, 1, 2, 4, 8, 16):
        parts.append(line(scale(value), HEAD, scale(value), bottom, "rule" if value == 1 else "grid"))
        parts.append(text(scale(value), bottom + 14, f"{value:g}×", "quiet", "middle"))
    for i, row in enumerate(rows):
        parts += _layer(HEAD + (i + 0.5) * LAYER_ROW, row, scale)
    share = [row["speedup"]["median"] / row["predicted"] for row in rows]
    subtitle = f"measured is {min(share):.0%} to {max(share):.0%} of equation (3)"
    return Panel(title, subtitle, "".join(parts), bottom + 18)


def layer_name(row: Row) -> str:
    """A layer of `predicted` in few signs: kernels of 3x3 go without saying."""
    return str(row["layer"]).removesuffix(", 3×3").replace(", ", " ")


def _ends(speedup: Row) -> tuple[float, float, float]:
    return speedup["low"], speedup["median"], speedup["high"]


def _layer(y: float, row: Row, scale: Log) -> list[str]:
    low, median, high = _ends(row["speedup"])
    times = f" ({row['count']} times)" if row["count"] > 1 else ""
    shown = layer_name(row)
    said = (
        f"{shown}{times}: equation (3) {row['predicted']:.1f}×, roof {row['roof']:.1f}×, "
        f"measured {median:.2f}× ({low:.2f} to {high:.2f})"
    )
    name = shown + (f" ({row['count']})" if row["count"] > 1 else "")
    kind = "separable" if median >= 1 else "vanilla"
    return [
        text(NAME_WIDTH - 8, y + 4, name, "small axis", "end"),
        line(scale(median), y, scale(row["predicted"]), y, "grid"),
        line(scale(row["roof"]), y - 5, scale(row["roof"]), y + 5, "whisker"),
        line(scale(low), y, scale(high), y, "whisker"),
        dot(scale(row["predicted"]), y, 3.5, f"hollow {kind}", said),
        dot(scale(median), y, 4.5, kind, said),
        text(WIDTH, y + 4, factor(median), f"small {kind}", "end"),
    ]


# ----------------------------------------------------------------------------
# The roofline.

PLOT_HEIGHT, AXIS = 232, 34


def roofline(title: str, precision: str, roof_data: Row, networks: Sequence[Row]) -> Panel:
    """Operations a byte against operations a second: a disc a layer, rings for the critic's."""
    roof = roof_of(roof_data)
    layers = [(network, layer) for network in networks for layer in network["layers"]]
    peak, fastest = roof.peak(precision), max(roof.bandwidths.values())
    xs = [layer["operations_per_byte"] for _, layer in layers]
    ys = [layer["gflops"] for _, layer in layers]
    x = Log(min(0.15, *xs) * 0.8, max(300.0, *xs) * 1.2, AXIS, WIDTH)
    y = Log(min(peak / 100, *ys) * 0.8, max(peak, *ys) * 2.5, HEAD + PLOT_HEIGHT, HEAD)
    parts = _grid(x, y)
    for bandwidth, kind in ((roof.memory_gbs, "roof"), (fastest, "underroof")):
        knee = peak / bandwidth
        start = max(x.low, y.low / bandwidth)
        parts.append(path([(x(start), y(start * bandwidth)), (x(knee), y(peak)), (WIDTH, y(peak))], kind))
    parts.append(text(WIDTH, y(peak) - 5, f"matrix product {peak:.0f} GFLOP/s", "small", "end"))
    parts += _slope_label(x, y, roof.memory_gbs, f"memory {roof.memory_gbs:.0f} GB/s", 13)
    parts += _slope_label(x, y, fastest, f"caches {fastest:.0f} GB/s", -6)
    for network, layer in sorted(layers, key=lambda pair: pair[0]["network"] == "critic"):
        parts.append(_layer_dot(x(layer["operations_per_byte"]), y(layer["gflops"]), network, layer))
    parts.append(text(WIDTH, HEAD + PLOT_HEIGHT + 30, "operations a byte →", "quiet", "end"))
    parts.append(text(0, HEAD + PLOT_HEIGHT + 30, "↑ GFLOP/s", "quiet"))
    return Panel(title, _reached(networks), "".join(parts), HEAD + PLOT_HEIGHT + 36)


def _reached(networks: Sequence[Row]) -> str:
    """How near to the roof all layers together are, for each system."""
    shares = []
    for system in ("vanilla", "separable"):
        own = [network for network in networks if network["system"] == system]
        seconds = sum(network["layer_seconds"] for network in own)
        if seconds:
            shares.append(f"{system} {sum(n['roof_seconds'] for n in own) / seconds:.0%}")
    return f"of the roof, by time: {', '.join(shares)}"


def _grid(x: Log, y: Log) -> list[str]:
    parts = []
    for value in x.ticks():
        parts.append(line(x(value), HEAD, x(value), HEAD + PLOT_HEIGHT))
        parts.append(text(x(value), HEAD + PLOT_HEIGHT + 14, short(value), "quiet", "middle"))
    for value in y.ticks():
        parts.append(line(AXIS, y(value), WIDTH, y(value)))
        parts.append(text(AXIS - 5, y(value) + 4, short(value), "quiet", "end"))
    return parts


def _slope_label(x: Log, y: Log, bandwidth: float, words: str, shift: float) -> list[str]:
    """A label along the slope, near its lower end."""
    start = max(x.low * 1.15, 1.15 * y.low / bandwidth)
    across, up = x(start * 2) - x(start), y(start) - y(start * 2)
    angle = -math.degrees(math.atan2(up, across))
    px, py = x(start), y(start * bandwidth)
    turn = f"rotate({angle:.1f} {px:.1f} {py:.1f}) translate(0 {shift:.0f})"
    return [text(px, py, words, "quiet", transform=turn)]


def _layer_dot(x: float, y: float, network: Row, layer: Row) -> str:
    shape = "×".join(map(str, layer["shape"]))
    said = (
        f"{network['system']} {network['network']}, {layer['what']}, {shape}: {layer['gflops']:.1f} GFLOP/s, "
        f"{layer['share_of_roof']:.0%} of its roof, {1e6 * layer['seconds']:,.0f} µs; {layer['reason']}"
    )
    if network["network"] == "critic":
        return dot(x, y, 3.2, f"hollow {network['system']}", said)
    if network["network"] == "generator":
        return dot(x, y, 3.8, network["system"], said)
    points = f"{x:.1f},{y - 4.4:.1f} {x + 4.4:.1f},{y:.1f} {x:.1f},{y + 4.4:.1f} {x - 4.4:.1f},{y:.1f}"
    return tag("polygon", tag("title", said.replace("<", "&lt;")), points=points, class_=network["system"])


# ----------------------------------------------------------------------------
# Throughput, training, rewrites, resampling.


def throughput(result: Row, stage: str) -> Panel:
    """Images a second of one stage, by every way; vanilla and separable beside each other."""
    rows = [
        row for row in result["rows"] if row["stage"] == stage and row["system"] in ("vanilla", "separable")
    ]
    names = {"naive": "eager PyTorch", "eager": "eager PyTorch"}
    by_way: dict[str, list[Bar]] = {}
    for row in rows:
        said = f"{row['system']}: {row['images_per_second_min']:.2f} to {row['images_per_second_max']:.2f}"
        mark = Bar(row["system"], row["images_per_second"], _rate(row["images_per_second"]), said)
        by_way.setdefault(names.get(row["way"], row["way"]), []).append(mark)
    gains = [pair[1].value / pair[0].value for pair in by_way.values() if len(pair) == 2]
    subtitle = (
        f"images/s; separable {min(gains):.1f} to {max(gains):.1f} times as many" if gains else "images/s"
    )
    return bars(stage, subtitle, list(by_way.items()))


def shipped(result: Row) -> Panel | None:
    """The model that ships, end to end, by every way."""
    rows = [
        row
        for row in result["rows"]
        if row["stage"] == "end to end" and row["system"] not in ("vanilla", "separable")
    ]
    if not rows:
        return None
    marks = [(r["way"], [Bar("other", r["images_per_second"], _rate(r["images_per_second"]))]) for r in rows]
    return bars(f"the model “{rows[0]['system']}”, end to end", "images/s to PNG files", marks)


def _rate(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def opponent(result: Row) -> list[Panel]:
    """A panel a convolution: theirs and ours, by precision and stage."""
    panels = []
    for convolution in dict.fromkeys(row["convolution"] for row in result["rows"]):
        rows = []
        for row in result["rows"]:
            if row["convolution"] != convolution:
                continue
            theirs, ours = (row["timings"][name]["images_per_second"] for name in ("theirs", "ours"))
            said = f"{row['precision']}, {row['stage']}: {row['ratio']:.2f}×, control {row['control']:.2f}×"
            label = f"{_rate(ours)} ({factor(row['ratio'])})"
            pair = [Bar("other", theirs, _rate(theirs), said), Bar(convolution, ours, label, said)]
            rows.append((f"{row['precision']}, {row['stage']}", pair))
        panels.append(bars(convolution, "images/s; in brackets, to theirs in the same rounds", rows))
    return panels


def training(result: Row, resolution: int) -> Panel:
    """Images a second of a training step, the reference's and ours."""
    rows = [row for row in result["rows"] if row["resolution"] == resolution]
    by_name: dict[str, list[Bar]] = {}
    for row in rows:
        name = row["contender"].replace(f" {row['convolution']}", "")
        label = f"{_rate(row['images_per_second'])} ({factor(row['ratio_to_vanilla'])})"
        by_name.setdefault(name, []).append(Bar(row["convolution"], row["images_per_second"], label))
    best = max(row["ratio_to_vanilla"] for row in rows)
    subtitle = f"images/s (to plain vanilla); batch {rows[0]['batch']}, at best {factor(best)}"
    return bars(f"a step at {resolution}²", subtitle, list(by_name.items()))


def rewrites(result: Row) -> list[Panel]:
    """What each rewrite is worth on each backend: the speed without it, to that with all."""
    panels = []
    for backend in result["backends"]:
        by_rewrite: dict[str, list[Bar]] = {}
        for speeds in result["speeds"]:
            for row in speeds["rows"]:
                if row["backend"] != backend or not row["rewrite"]:
                    continue
                ratio = row["to_chosen"]
                mark = Bar(speeds["convolution"], ratio, factor(ratio), f"{row['name']}: {ratio:.2f}×")
                by_rewrite.setdefault(row["name"], []).append(mark)
        if by_rewrite:
            title = LIBRARIES[backend].name if backend in LIBRARIES else backend
            panels.append(
                bars(title, "speed to that with the chosen rewrites (1.0×)", list(by_rewrite.items()))
            )
    return panels


def resample(result: Row) -> list[Panel]:
    """Milliseconds and PSNR of each filter."""
    rows = result["rows"]
    times = [(r["filter"], [Bar("other", 1e3 * r["seconds"], f"{1e3 * r['seconds']:.2f}")]) for r in rows]
    floor = min(r["psnr_db"] for r in rows) - 1
    quality = [(r["filter"], [Bar("ink", r["psnr_db"] - floor, f"{r['psnr_db']:.1f} dB")]) for r in rows]
    return [
        bars("time", "ms an image", times),
        bars("fidelity", f"PSNR after enlarging again; bars begin at {floor:.1f} dB", quality),
    ]


def spread_words(spread: Mapping[str, Any]) -> str:
    """A median with its quartiles."""
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"
