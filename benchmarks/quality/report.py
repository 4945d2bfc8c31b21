"""A quality measurement as text, Markdown, plots and sheets; and two of them compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing, write_bytes, write_text
from pgsr.images import sheet
from pgsr.trainer.metrics.score import Score, difference, from_dict

from ..harness.report import aligned, markdown_table, png
from ..ladder.measure import stacked
from .measure import Measured, Quality, as_dict, beaten
from .sets import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PAPER = {  # paper 1, Table 2: Progressive GAN, SRGAN
    "SWD average": ("240.65", "381.86"),
    "MS-SSIM": ("0.1592", "0.1698"),
    "IS": ("2.127 ± 0.263", "2.138 ± 0.130"),
}
PLACES = {"SWD": 2, "MS-SSIM": 4, "IS": 3, "FID": 2, "FD": 3, "KID": 5, "PSNR Y": 2, "SSIM Y": 4, "LPIPS": 4}
COMMAND = "pgsr-bench quality --model BUNDLE --data ZIP --large-data ZIP --out REPORT_DIR"
COLOURS = {
    "generator": "#2a6fb5",
    "upscaler": "#2a6fb5",
    "bicubic": "#8fb58f",
    "lanczos": "#c9a227",
    "photographs": "#b3b8c0",
}


def write_report(quality: Quality, folder: Path) -> None:
    """quality.json, .md, .png and the sheets, which show photographs: mind their terms.

    Raises PgsrError if they cannot be written.
    """
    make_folder(folder)
    write_text(folder / "quality.json", json.dumps(as_dict(quality), indent=1) + "\n")
    write_bytes(folder / "quality.png", picture(quality))
    pictures = sheets(quality)
    for name, strips in pictures.items():
        with replacing(folder / f"{name}.png") as temporary:
            stacked(strips).save(temporary, "PNG")
    write_text(folder / "quality.md", markdown(quality, list(pictures)))


# ----------------------------------------------------------------------------
# Words.


def cell(score: Score | None) -> str:
    """Formats a score with its deviation; a dash where there is none."""
    if score is None:
        return "-"
    places = PLACES.get(score.name.split(" ")[0] if score.name.startswith("SWD") else score.name, 3)
    tail = "" if score.deviation is None else f" ± {score.deviation:.{places}f}"
    return f"{score.value:.{places}f}{tail}"


def metrics(columns: Iterable[Measured]) -> list[str]:
    """The names of all scores, SWD's levels from the finest to the coarsest first."""
    names = list(dict.fromkeys(score.name for column in columns for score in column.scores))
    levels = [name for name in names if name.startswith("SWD ") and name != "SWD average"]
    first = [*sorted(levels, key=lambda name: -int(name.split()[1])), "SWD average"]
    return [*first, *[name for name in names if not name.startswith("SWD ")]]


def table(quality: Quality) -> list[list[str]]:
    """Paper 1's Table 2: a row a metric, a column a set, and the paper's own numbers at the end."""
    rows = _rows([*quality.small, *quality.large])
    paper = [["paper 1: ProGAN", "paper 1: SRGAN"], *[list(PAPER.get(row[0], ("", ""))) for row in rows[1:]]]
    return [[*row, *own] for row, own in zip(rows, paper, strict=True)]


def restored_table(quality: Quality) -> list[list[str]]:
    """Tabulates photographs that were reduced and enlarged again, beside the floor."""
    return _rows([*quality.restored, *[c for c in quality.large if c.key == "photographs"]])


def _rows(columns: Sequence[Measured]) -> list[list[str]]:
    heads = ["metric", *[f"{c.name} {c.scores[0].conditions['resolution']}" for c in columns]]
    return [heads, *[[name, *[cell(c.score(name)) for c in columns]] for name in metrics(columns)]]


def legend(quality: Quality) -> list[str]:
    """Returns how the numbers were made."""
    lines = [
        f"model {quality.model.name}, {quality.settings.precision}, seed {quality.settings.seed}, "
        f"truncation {quality.settings.truncation:g}; "
        "photographs: one half of them against the other, the floor at that number of images"
    ]
    for group in (quality.small, quality.large):
        if group:
            lines.append(_conditions(group[0]))
    network, floor = (
        next((score.conditions for score in column.scores if "features" in score.conditions), None)
        for column in (quality.small[0], quality.small[-1])
    )
    if network is not None and floor is not None:
        against = network.get("photographs looked at", network["images"])
        lines.append(
            f"scores by features: {network['images']:,} images against {against:,} photographs "
            f"(photographs: {floor['images']:,} against as many); network sha256 "
            f"{network['features'][:16]}, images resized {network['feature resize']}, range "
            f"{network['feature range']}"
        )
    if any(score.name == "FD" for score in quality.small[0].scores):
        lines.append(
            "that network is not Inception: its IS and FD are not to be compared with published ones"
        )
    if quality.restored:
        conditions = quality.restored[0].scores[-1].conditions
        lines.append(
            f"restored: the other photographs reduced by {conditions['reduced by']} and enlarged again; PSNR "
            f"and SSIM of Y, border of {conditions['border']} pixels shaved, mean ± deviation over pictures"
        )
    lines += _verdicts(beaten(quality))
    lines.append("paper 1 does not say how many images it took nor how it scaled SWD: do not compare with it")
    return [*lines, *quality.notes, f"{quality.seconds:.0f} s"]


def _verdicts(won: Mapping[str, bool]) -> list[str]:
    """A line for what the upscaler wins and one for what it loses."""
    lines = []
    for outcome, verb in ((True, "beats"), (False, "does not beat")):
        rivals: dict[str, list[str]] = {}
        for name, value in won.items():
            what, metric, plain = name.split(", ")
            if value == outcome:
                rivals.setdefault(f"{metric} ({what})", []).append(plain)
        parts = [f"{' or '.join(plains)} by {metric}" for metric, plains in rivals.items()]
        if parts:
            lines.append(f"the upscaler {verb} {'; '.join(parts)}")
    return lines


def _conditions(column: Measured) -> str:
    conditions = column.scores[0].conditions
    similar = column.score("MS-SSIM")
    pairs = "" if similar is None else f"; MS-SSIM over {similar.conditions['pairs']:,} pairs"
    resize = (
        conditions["resize"] if conditions["resize"] == "as stored" else f"resized by {conditions['resize']}"
    )
    return (
        f"{conditions['resolution']}x{conditions['resolution']}: SWD x 1000 of {conditions['images']:,} "
        f"images against as many photographs, these {resize} (fingerprint {conditions['photographs']}){pairs}"
    )


def text(quality: Quality) -> str:
    """Returns what the command prints."""
    lines = [aligned(table(quality), 1), ""]
    if quality.restored:
        lines += ["restored:", aligned(restored_table(quality), 1), ""]
    return "\n".join([*lines, *legend(quality)])


SHEETS = {
    "faces": "generated images, uncurated, above photographs",
    "upscaled": "the same generated images enlarged by each, above photographs",
    "restored": "photographs, reduced and enlarged by each, above the originals",
}


def markdown(quality: Quality, pictures: Sequence[str]) -> str:
    """The report as a page."""
    lines = [
        f"# Quality of {quality.model.name} (paper 1, Table 2)",
        "",
        *markdown_table(table(quality), 1),
        "",
    ]
    if quality.restored:
        lines += [
            "Photographs, reduced and enlarged again:",
            "",
            *markdown_table(restored_table(quality), 1),
            "",
        ]
    lines += [*[f"- {line}" for line in legend(quality)], "", "![SWD of each level](quality.png)", ""]
    for name in pictures:
        lines += [f"## {SHEETS[name].capitalize()}", "", f"![{SHEETS[name]}]({name}.png)", ""]
    return "\n".join([*lines, f"Made by `{COMMAND}`; how every number was made is in `quality.json`.", ""])


# ----------------------------------------------------------------------------
# Pictures.

COLUMNS = {"faces": 16, "upscaled": 6, "restored": 6}
LEAST_SIDE = 64  # pixels: smaller images are enlarged by replication


def sheets(quality: Quality) -> dict[str, list[tuple[str, Pixels]]]:
    """Strips, each with its name, of each sheet."""
    result = {"faces": [(c.name, _strip(c.examples[:32], COLUMNS["faces"])) for c in quality.small]}
    if quality.large:
        floor = quality.large[-1]
        ways = [*quality.large[1:-1], quality.large[0]]
        result["upscaled"] = [(c.name, _strip(c.examples[:6], COLUMNS["upscaled"])) for c in (*ways, floor)]
        ways = [*quality.restored[1:], quality.restored[0]]
        strips = [(c.name, _strip(c.examples[:6], COLUMNS["restored"])) for c in ways]
        result["restored"] = [*strips, ("originals", _strip(floor.examples[:6], COLUMNS["restored"]))]
    return result


def _strip(pixels: Pixels, columns: int) -> Pixels:
    factor = max(1, LEAST_SIDE // pixels.shape[1])
    return sheet(pixels.repeat(factor, axis=1).repeat(factor, axis=2), columns)


def picture(quality: Quality) -> bytes:
    """A PNG of bars: SWD of each level and set, one panel a resolution."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    groups = [group for group in (quality.small, quality.large) if group]
    widths = [len(metrics(group)) * (1 + len(group)) for group in groups]
    figure = Figure(figsize=(4 + 0.22 * sum(widths), 4), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(groups), width_ratios=widths))
    for axes, group in zip(panels, groups, strict=True):
        _bars(axes, group)
    panels[0].set_ylabel("sliced Wasserstein distance × 1000")
    return png(figure)


def _bars(axes: Axes, group: Sequence[Measured]) -> None:
    names = [name for name in metrics(group) if name.startswith("SWD ")]
    width = 0.8 / len(group)
    for k, column in enumerate(group):
        values = [score.value for name in names if (score := column.score(name)) is not None]
        places = np.arange(len(names)) + (k - (len(group) - 1) / 2) * width
        bars = axes.bar(places, values, width, label=column.name, color=COLOURS[column.key])
        axes.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=7)
    conditions = group[0].scores[0].conditions
    axes.set_xticks(range(len(names)), [name.removeprefix("SWD ") for name in names])
    axes.set_title(
        f"{conditions['resolution']}x{conditions['resolution']}, {conditions['images']:,} images", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


# ----------------------------------------------------------------------------
# Two reports.


def compare(first: Path, second: Path) -> tuple[dict[str, Any], str]:
    """Every score that both reports have, and how much larger the second's is.

    Raises PgsrError if the files are no reports, or a score was made in another way in one of them.
    """
    one, other = (_scores_of(path) for path in (first, second))
    shared = [key for key in one if key in other]
    if not shared:
        raise PgsrError(f"{first} and {second} have no score in common")
    rows: list[dict[str, Any]] = [
        {
            "set": f"{group}, {column}",
            "metric": metric,
            "first": one[group, column, metric].value,
            "second": other[group, column, metric].value,
            "difference": difference(other[group, column, metric], one[group, column, metric]),
        }
        for group, column, metric in shared
    ]
    lines = [["set", "metric", "first", "second", "difference"]]
    for row, key in zip(rows, shared, strict=True):
        change = Score(row["metric"], row["difference"], {})
        values = [cell(Score(s.name, s.value, {})) for s in (one[key], other[key])]
        lines.append([row["set"], row["metric"], *values, cell(change)])
    return {"first": str(first), "second": str(second), "rows": rows}, aligned(lines, 2)


def _scores_of(path: Path) -> dict[tuple[str, str, str], Score]:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        return {
            (group, key, score["name"]): from_dict(score)
            for group, columns in content["sets"].items()
            for key, column in columns.items()
            for score in column["scores"]
        }
    except OSError as error:
        raise PgsrError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PgsrError(f"{path} is not a quality.json: {error!r}") from error
