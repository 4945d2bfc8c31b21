"""What each part says and shows: its JSON -> sentences, figures, tables, and numbers to compare reports
by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from ..conv.report import HEADINGS as CONV_HEADINGS
from ..conv.report import heat_maps, pays_lines
from ..conv.report import rows_of as conv_rows
from ..conv.report import way_name as conv_way
from ..harness.report import Row, listed, rate
from ..harness.svg import factor
from ..opponent.report import NOTES as OPPONENT_NOTES
from ..opponent.report import lines as opponent_lines
from ..resample.report import HEADINGS as RESAMPLE_HEADINGS
from ..resample.report import cells as resample_cells
from ..throughput.report import HEADINGS as THROUGHPUT_HEADINGS
from ..throughput.report import cells as throughput_cells
from ..training.report import HEADINGS as TRAINING_HEADINGS
from ..training.report import cells as training_cells
from . import panels
from .panels import way_name
from .shown import Figure, Measure, Shown, Table

BOTH = ("vanilla", "separable")


def _measured(name: str, spread: Row) -> Measure:
    """By two standard errors of the median."""
    median, half = spread["median"], spread["half_width"]
    return Measure(name, median, median - half, median + half)


# ----------------------------------------------------------------------------
# Where the saving goes.


def waterfall(result: Row) -> Shown:
    """A waterfall and the parts of an image's time, for every way."""
    accounts, labels = result["accounts"], result["labels"]
    if not accounts:
        return Shown(["Nothing here could run the chain."], notes=result["notes"])
    best = max(accounts, key=lambda account: account["ratios"]["files_seconds"])
    least = min(accounts, key=lambda account: account["ratios"]["files_seconds"])
    written = best["ratios"]["written"]
    answers = [
        f"Separable networks need {factor(written)} fewer multiply-adds; from latents to files that leaves "
        f"{factor(best['ratios']['files_seconds'])} with {way_name(best)}, and "
        f"{factor(least['ratios']['files_seconds'])} with {way_name(least)}.",
        *[_largest_loss(account, labels) for account in accounts],
    ]
    lines = [["step", *(way_name(account) for account in accounts)]]
    for key, label in labels.items():
        lines.append([label, *(f"{account['ratios'][key]:.2f}×" for account in accounts)])
    costs = [["ms an image", "system", *(way_name(account) for account in accounts)]]
    for key, label in labels.items():
        for system in BOTH:
            values = [account["costs"][system][key] for account in accounts]
            unit = (lambda v: f"{v / 1e6:,.0f} M") if key in ("written", "multiply_adds") else _milliseconds
            costs.append([f"with {label}", system, *(unit(value) for value in values)])
    return Shown(
        answers,
        [
            Figure(
                "How many times as much vanilla costs as separable, counted over more and more of an "
                "image. Each grey bar is what a step takes away.",
                [panels.waterfall(account, labels, result["equation_3"]) for account in accounts],
            ),
            Figure(
                "Amdahl's account: the same parts in milliseconds. What is as long for both does not shrink.",
                [panels.amdahl(account) for account in accounts],
            ),
        ],
        [
            Table("Vanilla to separable, step by step", lines),
            Table("Costs, each with all before it", costs, 2),
        ],
        result["notes"],
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _largest_loss(account: Row, labels: Row) -> str:
    keys = list(labels)
    ratios = account["ratios"]
    falls = {key: ratios[before] / ratios[key] for before, key in pairwise(keys)}
    worst = max(falls, key=lambda key: falls[key])
    return f"{way_name(account)}: most goes in “{labels[worst]}” (÷\N{NO-BREAK SPACE}{falls[worst]:.2f})."


def waterfall_measures(result: Row) -> list[Measure]:
    """The last ratio of every way."""
    return [_measured(f"end to end, {way_name(a)}", a["end"]) for a in result["accounts"]]


# ----------------------------------------------------------------------------
# Predicted and measured.


NAMED = 4  # layers in a sentence


def predicted(result: Row) -> Shown:
    """Equation (3), the roof and the clock, for every layer in every way."""
    rows = result["rows"]
    by_way = [(way, list(group)) for way, group in groupby(rows, key=way_name)]
    figures: list[Figure] = []
    answers: list[str] = []
    totals: dict[str, float] = {}
    for network in ("generator", "upscaler"):
        shown = [(way, [row for row in group if row["network"] == network]) for way, group in by_way]
        figures.append(
            Figure(
                f"{network.capitalize()}: rings are equation (3), upright strokes what the roof allows, "
                "discs what was measured, with the quartiles of the rounds.",
                [panels.predicted(f"{network}, {way}", group) for way, group in shown if group],
            )
        )
    for way, group in by_way:
        slower = [panels.layer_name(row) for row in group if row["speedup"]["median"] < 1]
        totals[way] = _sum_of(group, "vanilla") / _sum_of(group, "separable")
        words = f"{way}: all layers together {factor(totals[way])}"
        if slower:
            more = [f"{len(slower) - NAMED} more"] if len(slower) > NAMED else []
            words += f"; separable is slower at {listed([*slower[:NAMED], *more])}"
        answers.append(f"{words}.")
    best, least = max(totals, key=lambda way: totals[way]), min(totals, key=lambda way: totals[way])
    promised = [row["predicted"] for row in rows]
    lead = (
        f"Equation (3) promises {factor(min(promised))} to {factor(max(promised))}, by layer; all layers "
        f"together gain {factor(totals[best])} with {best} and {factor(totals[least])} with {least}."
    )
    lines = [
        ["way", "network", "layer", "times", "equation (3)", "roof", "measured", "vanilla µs", "separable µs"]
    ]
    for row in rows:
        lines.append(
            [
                way_name(row),
                row["network"],
                row["layer"],
                str(row["count"]),
                f"{row['predicted']:.2f}×",
                f"{row['roof']:.2f}×",
                panels.spread_words(row["speedup"]),
                *(f"{1e6 * row[side]['seconds']['median']:,.0f}" for side in BOTH),
            ]
        )
    return Shown([lead, *answers], figures, [Table("Every layer", lines, 3)], result["notes"])


def _sum_of(rows: Sequence[Row], side: str) -> float:
    return float(sum(row["count"] * row[side]["seconds"]["median"] for row in rows))


def predicted_measures(result: Row) -> list[Measure]:
    """Every layer's speed-up."""
    return [
        _measured(f"{row['network']} {row['layer']}, {way_name(row)}", row["speedup"])
        for row in result["rows"]
    ]


# ----------------------------------------------------------------------------
# The roofline.


def roofline(result: Row) -> Shown:
    """A roofline for every way, and who loses most to what."""
    by_way: dict[str, list[Row]] = {}
    for network in result["networks"]:
        by_way.setdefault(way_name(network), []).append(network)
    charts = [
        panels.roofline(way, networks[0]["precision"], result["roof"], networks)
        for way, networks in by_way.items()
    ]
    caption = (
        "A mark a layer: discs are the generator's, diamonds the upscaler's, rings the critic's. The line "
        "is the roof: memory on the slope, the matrix product on the level; dashed, the fastest cache."
    )
    answers = [_why(way, networks) for way, networks in by_way.items()]
    ranges = []
    for system in BOTH:
        shares = [_share_of_roof(networks, system) for networks in by_way.values()]
        ranges.append(f"{system} layers at {min(shares):.0%} to {max(shares):.0%}")
    lead = f"Of what the roof allows, by library and precision, {listed(ranges)}."
    return Shown(
        [lead, *answers],
        [Figure(caption, charts)],
        [
            Table("Time above the roof, by reason", _lost_lines(result), 3, folded=False),
            Table("The layers that lose most", _worst_lines(result), 5),
        ],
        result["notes"],
    )


BLAMED = {
    "memory": "memory",
    "small": "small products",
    "conversion": "conversions",
    "kernel": "the library's kernels",
}


def _share_of_roof(networks: Sequence[Row], system: str) -> float:
    own = [network for network in networks if network["system"] == system]
    seconds = sum(network["layer_seconds"] for network in own)
    return float(sum(network["roof_seconds"] for network in own) / seconds)


def _why(way: str, networks: Sequence[Row]) -> str:
    """Each system's largest reason."""
    parts = []
    for system in BOTH:
        own = [network for network in networks if network["system"] == system]
        lost = {reason: sum(n["lost_seconds"][reason] for n in own) for reason in own[0]["lost_seconds"]}
        seconds = sum(network["layer_seconds"] for network in own)
        reason = max((r for r in lost if r != "roof"), key=lambda r: lost[r])
        parts.append(f"{system} {lost[reason] / seconds:.0%} to {BLAMED[reason]}")
    return f"{way}: most of the time above the roof goes, of {listed(parts)}."


def _lost_lines(result: Row) -> list[list[str]]:
    reasons = [reason for reason in result["reasons"] if reason != "roof"]
    lines = [["way", "network", "system", "layers ms", "of roof", *(f"{reason} ms" for reason in reasons)]]
    for network in result["networks"]:
        seconds = network["layer_seconds"]
        lines.append(
            [
                way_name(network),
                network["network"],
                network["system"],
                f"{1e3 * seconds:.2f}",
                f"{network['roof_seconds'] / seconds:.0%}" if seconds else "-",
                *(f"{1e3 * network['lost_seconds'][reason]:.2f}" for reason in reasons),
            ]
        )
    return lines


WORST = 40


def _worst_lines(result: Row) -> list[list[str]]:
    layers = [(network, layer) for network in result["networks"] for layer in network["layers"]]
    layers.sort(key=lambda pair: pair[1]["roof_seconds"] - pair[1]["seconds"])
    head = ["way", "system", "network", "layer", "why", "output", "µs", "least µs", "of roof", "operations/B"]
    lines = [[*head, "GFLOP/s"]]
    for network, layer in layers[:WORST]:
        lines.append(
            [
                way_name(network),
                network["system"],
                network["network"],
                layer["what"],
                layer["reason"],
                "×".join(map(str, layer["shape"])),
                f"{1e6 * layer['seconds']:,.0f}",
                f"{1e6 * layer['roof_seconds']:,.0f}",
                f"{layer['share_of_roof']:.0%}",
                f"{layer['operations_per_byte']:.1f}",
                f"{layer['gflops']:.1f}",
            ]
        )
    return lines


def roofline_measures(result: Row) -> list[Measure]:
    """Peaks and bandwidth: the roof of two machines. They are bests, which have no spread."""
    roof = result["roof"]
    largest = max(roof["bandwidths"], key=int)
    values = {f"matrix product, {name}, GFLOP/s": value for name, value in roof["peaks"].items()}
    values["memory, GB/s"] = roof["bandwidths"][largest]
    return [Measure(name, value, 0.95 * value, 1.05 * value) for name, value in values.items()]


# ----------------------------------------------------------------------------
# One convolution.


def conv(result: Row) -> Shown:
    """The heat map, and from which width on separable pays."""
    maps = heat_maps(result)
    answers = []
    for name, group in groupby(result["pays_from"], key=conv_way):
        forms = {row["form"]: row for row in group}
        parts = [
            f"{_from(row)} ({'3×3' if form == 'plain' else '×2 and 3×3'})" for form, row in forms.items()
        ]
        told = {_from(row) for row in forms.values()}
        answers.append(f"{name}: {told.pop() if len(told) == 1 else listed(parts)}.")
    caption = (
        "How many times as fast separable is. The colour is separable's where it wins and vanilla's where "
        "vanilla does; above the line it wins at all widths. Empty cells were not measured."
    )
    rows = result["rows"]
    wins = [row for row in rows if row["speedup"]["median"] > 1]
    ends = [min(result["settings"]["channels"]), max(result["settings"]["channels"])]
    by_width = listed([f"{_wins_at(rows, width):.0%} at {width} maps" for width in ends])
    lead = f"Separable wins {len(wins)} of {len(rows)} single convolutions: {by_width}."
    return Shown(
        [lead, *answers],
        [Figure(caption, maps)],
        [
            Table("The least number of maps from which on separable is faster", pays_lines(result), 2, False),
            Table("Every convolution", [list(CONV_HEADINGS), *conv_rows(result)], 2),
        ],
        result["notes"],
    )


def _wins_at(rows: Sequence[Row], width: int) -> float:
    own = [row["speedup"]["median"] > 1 for row in rows if row["channels"] == width]
    return float(sum(own)) / max(1, len(own))


def _from(row: Row) -> str:
    if row["everywhere"] is not None:
        return f"from {row['everywhere']} maps on at every resolution"
    never = [f"{side}²" for side, width in row["by_resolution"].items() if width is None]
    return f"never at {listed(never)}"


def conv_measures(result: Row) -> list[Measure]:
    """Every cell's speed-up."""
    return [
        _measured(
            f"{conv_way(row)}, {row['form']}, {row['channels']} maps at {row['resolution']}²", row["speedup"]
        )
        for row in result["rows"]
    ]


# ----------------------------------------------------------------------------
# Whole networks, training, rewrites, quality, resampling.


def throughput(result: Row) -> Shown:
    """Bars of every stage, vanilla and separable beside each other."""
    stages = ("generator", "upscaler", "network", "end to end")
    charts = [panels.throughput(result, stage) for stage in stages]
    model = panels.shipped(result)
    rows = [row for row in result["rows"] if row["ratio_to_naive"]]
    answers = []
    for system in BOTH:
        own = [row for row in rows if row["system"] == system and row["stage"] == "end to end"]
        if own:
            best = max(own, key=lambda row: row["ratio_to_naive"])
            answers.append(
                f"End to end, {system} makes {rate(best['images_per_second'])} images/s with {best['way']}: "
                f"{factor(best['ratio_to_naive'])} the naive vanilla chain."
            )
    settings = result["settings"]
    answers.append(
        f"ProGAN {settings['resolution']}² with {settings['feature_max']} maps, SRResNet "
        f"×{settings['scale']} with {settings['sr_blocks']} blocks of {settings['sr_features']}."
    )
    return Shown(
        answers,
        [Figure("Images a second.", [*charts, *([model] if model else [])])],
        [Table("Every row", [list(THROUGHPUT_HEADINGS), *map(throughput_cells, result["rows"])], 3)],
        result["notes"],
    )


def throughput_measures(result: Row) -> list[Measure]:
    """Images a second of every row, between the least and the most."""
    return [
        Measure(
            f"{row['stage']}, {row['system']}, {row['way']}, images/s",
            row["images_per_second"],
            row["images_per_second_min"],
            row["images_per_second_max"],
        )
        for row in result["rows"]
    ]


def opponent(result: Row) -> Shown:
    """Ours beside an afternoon's, by stage and precision."""
    rows = result["rows"]
    answers = []
    for convolution in dict.fromkeys(row["convolution"] for row in rows):
        own = [r for r in rows if r["convolution"] == convolution and r["stage"] == "end to end"]
        told = [f"{factor(row['ratio'])} in {row['precision']}" for row in own]
        if told:
            answers.append(
                f"From latents to files, {convolution} networks run {listed(told)} as fast as an "
                "afternoon's work."
            )
    close = [row for row in rows if abs(row["ratio"] - 1) <= abs(row["control"] - 1)]
    if close:
        where = listed([f"{r['convolution']} {r['stage']} in {r['precision']}" for r in close])
        answers.append(f"No more than the control pair allows is to be seen of {where}.")
    low = [(row, name) for row in rows for name in row["psnr_db"] if row["psnr_db"][name] < LEAST_DB]
    for row, name in low:
        answers.append(
            f"{row['convolution'].capitalize()} {row['stage']} in {row['precision']}: {name} is only "
            f"{row['psnr_db'][name]:.0f} dB from eager PyTorch's pictures."
        )
    return Shown(
        answers,
        [Figure("Images a second: theirs in grey, ours in colour with the ratio.", panels.opponent(result))],
        [Table("Every row", opponent_lines(result), 3, folded=False)],
        OPPONENT_NOTES,
    )


LEAST_DB = 35.0  # below it pictures are not taken to be the same


def opponent_measures(result: Row) -> list[Measure]:
    """Ratios to the opponent, by how far the control pair is from one."""
    return [
        Measure(
            f"{row['convolution']} {row['stage']} in {row['precision']}, to an afternoon's",
            row["ratio"],
            row["ratio"] * (1 - abs(row["control"] - 1)),
            row["ratio"] * (1 + abs(row["control"] - 1)),
        )
        for row in result["rows"]
    ]


def training(result: Row) -> Shown:
    """Bars of every resolution."""
    rows = result["rows"]
    answers = []
    for side in dict.fromkeys(row["resolution"] for row in rows):
        own = [row for row in rows if row["resolution"] == side]
        reference = next(r for r in own if r["reference"] and r["convolution"] == "separable")
        ours = next(r for r in own if not r["reference"] and r["convolution"] == "separable")
        answers.append(
            f"At {side}² a separable step is {factor(ours['ratio_to_vanilla'])} as fast as a plain vanilla "
            f"one; written plainly, {factor(reference['ratio_to_vanilla'])}."
        )
    sides = dict.fromkeys(row["resolution"] for row in rows)
    return Shown(
        answers,
        [Figure("Images a second of a training step.", [panels.training(result, side) for side in sides])],
        [Table("Every row", [list(TRAINING_HEADINGS), *map(training_cells, rows)], 3)],
        result["notes"],
    )


def training_measures(result: Row) -> list[Measure]:
    """Images a second of every contender."""
    return [
        Measure(
            f"a step at {row['resolution']}², {row['contender']}, images/s",
            row["images_per_second"],
            row["images_per_second_min"],
            row["images_per_second_max"],
        )
        for row in result["rows"]
    ]


def rewrites(result: Row) -> Shown:
    """Bars of every rewrite that was left out or put in."""
    lines = [["graph", "by", "convolution", "images/s", "to eager", "to chosen"]]
    answers = []
    for speeds in result["speeds"]:
        for row in speeds["rows"]:
            lines.append(
                [
                    row["name"],
                    row["backend"],
                    speeds["convolution"],
                    rate(row["images_per_second"]),
                    f"{row['to_eager']:.2f}×",
                    f"{row['to_chosen']:.2f}×",
                ]
            )
        written = [row for row in speeds["rows"] if row["name"] == "as written"]
        for row in written:
            answers.append(
                f"{speeds['convolution'].capitalize()} {speeds['resolution']}² with {row['backend']}: the "
                f"chosen rewrites make it {factor(1 / row['to_chosen'])} as fast as the graph as written."
            )
    return Shown(
        answers,
        [
            Figure(
                "Each rewrite left out of those chosen for a library, or another put in.",
                panels.rewrites(result),
            )
        ],
        [Table("Every graph", lines, 3)],
        [f"{name}: {what}" for name, what in result["rewrites"].items()],
    )


def rewrites_measures(result: Row) -> list[Measure]:
    """Images a second of every graph."""
    return [
        Measure(
            f"{speeds['convolution']} {row['name']}, {row['backend']}, images/s",
            row["images_per_second"],
            row["images_per_second_min"],
            row["images_per_second_max"],
        )
        for speeds in result["speeds"]
        for row in speeds["rows"]
    ]


def quality(result: Row) -> Shown:
    """The scores as tables."""
    tables = []
    for group, columns in result["sets"].items():
        names = list(dict.fromkeys(s["name"] for column in columns.values() for s in column["scores"]))
        if not names:
            continue
        lines = [["score", *(column["name"] for column in columns.values())]]
        for name in names:
            values = [{s["name"]: s["value"] for s in column["scores"]} for column in columns.values()]
            lines.append([name, *(f"{v[name]:.4g}" if name in v else "-" for v in values)])
        tables.append(Table(group.capitalize(), lines, 1, folded=False))
    model = result["model"]
    said = (
        f"{model['name']}, {model['resolution']}² enlarged {model['scale']} times, in {model['precision']}."
    )
    return Shown([said], (), tables, result["notes"])


def quality_measures(result: Row) -> list[Measure]:
    """None: pgsr-bench compare compares scores, and refuses those that were made differently."""
    return []


def resample(result: Row) -> Shown:
    """Time and fidelity of every filter."""
    rows = result["rows"]
    best, fastest = max(rows, key=lambda r: r["psnr_db"]), min(rows, key=lambda r: r["seconds"])
    return Shown(
        [
            f"{best['filter'].capitalize()} keeps most ({best['psnr_db']:.1f} dB), {fastest['filter']} is "
            f"fastest ({1e3 * fastest['seconds']:.2f} ms) and keeps {fastest['psnr_db']:.1f} dB."
        ],
        [
            Figure(
                f"{result['pictures']} pictures, {result['from']} to {result['to']}.", panels.resample(result)
            )
        ],
        [Table("Every filter", [list(RESAMPLE_HEADINGS), *map(resample_cells, rows)], 1)],
    )


def resample_measures(result: Row) -> list[Measure]:
    """Fidelity, which has no noise; times are medians alone."""
    return [
        Measure(f"{row['filter']}, PSNR dB", row["psnr_db"], row["psnr_db"], row["psnr_db"])
        for row in result["rows"]
    ]
