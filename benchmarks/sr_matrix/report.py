"""The sr-matrix as JSON, Markdown and the figures of paper 3."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pgsr.files import write_bytes, write_text
from pgsr.images import sheet

from ..harness.report import aligned, markdown_table, png
from .cells import OBJECTIVES, Settings
from .scores import Pixels, TestSet, Trained, claims, row_of

if TYPE_CHECKING:
    pass


SHOWN = 8  # pictures in a row
WINDOW = 100  # iterations of the moving average (figure 2)
COLOURS = {"gan": "#2a6fb5", "wgan": "#d1812c", "wgan-gp": "#3a8f4d"}
HEADINGS = (
    "cell",
    "verdict",
    "PSNR dB",
    "to bicubic",
    "fallen by",
    "variety",
    "critic with PSNR",
    "critic with L1",
    "seconds",
)
LEFT = 2

NOTES = (
    "PSNR is of the averaged generator on the pictures held out; fallen by: from the best look to the last.",
    "variety: the standard deviation between outputs over that of all their values, as a share of what it is "
    "for labels. Under 0.5 counts as collapsed; failed: PSNR below that of one flat colour a picture.",
    "critic with PSNR, with L1: Spearman's correlation over the looks, of |critic loss| (without penalty, "
    "averaged since the look before) with PSNR and with equation 7's L1. Claim 1 wants -1 and +1.",
    "Every cell has as many generator iterations; a WGAN critic sees `critic_steps` times the images.",
)


def result_of(cells: Sequence[Trained], test_set: TestSet, settings: Settings) -> dict[str, Any]:
    """Gathers everything as JSON data."""
    baselines = test_set.baselines()
    rows = [row_of(trained, baselines) for trained in cells]
    return {
        "benchmark": "sr-matrix",
        "settings": {k: str(v) if k in ("data", "out") else v for k, v in vars(settings).items()},
        "baselines_psnr_db": baselines,
        "rows": rows,
        "claims": claims(rows),
        "notes": list(NOTES),
    }


def write_report(
    result: dict[str, Any], cells: Sequence[Trained], test_set: TestSet, settings: Settings
) -> None:
    """report.json, report.md and a PNG for each figure that has a cell, beside the run folders."""
    out = settings.out
    write_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    write_text(out / "report.md", markdown(result))
    curves = [t for t in cells if 1 in t.cell.figures and t.log]
    if curves:
        write_bytes(out / "figure2.png", training_curves(curves))
    for number in (1, 3, 4):
        figure_cells = [t for t in cells if number in t.cell.figures and t.pictures is not None]
        if figure_cells:
            write_bytes(out / f"figure{number}.png", comparison(figure_cells, test_set))
    noise = [t for t in cells if 5 in t.cell.figures and t.pictures is not None]
    if noise:
        write_bytes(out / "figure5.png", noise_sheets(noise))


# ----------------------------------------------------------------------------
# Words.


def _number(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def lines(result: dict[str, Any]) -> list[list[str]]:
    """Makes the table of cells."""
    return [
        list(HEADINGS),
        *(
            [
                row["cell"],
                row["verdict"],
                _number(row.get("psnr_db")),
                _number(row.get("to_bicubic_db"), 2, "+"),
                _number(row.get("fallen_db")),
                _number(row.get("variety")),
                _number(row.get("critic_with_psnr"), 2, "+"),
                _number(row.get("critic_with_l1"), 2, "+"),
                _number(row["seconds"], 0),
            ]
            for row in result["rows"]
        ),
    ]


def claim_lines(result: dict[str, Any]) -> list[list[str]]:
    """A row for each objective: the three claims."""
    head = ["objective", "failed", "cells", "critic with PSNR", "critic with L1", "PSNR dB", "fallen by"]
    rows = [
        [
            OBJECTIVES[objective],
            ", ".join(claim["failed"]) or "none",
            str(claim["cells"]),
            _number(claim["critic_with_psnr"], 2, "+"),
            _number(claim["critic_with_l1"], 2, "+"),
            _number(claim["psnr_db"]),
            _number(claim["fallen_db"]),
        ]
        for objective, claim in result["claims"].items()
    ]
    return [head, *rows]


def baseline_line(result: dict[str, Any]) -> str:
    """Tells what bicubic enlargement reaches on the same pictures."""
    baselines = result["baselines_psnr_db"]
    return f"bicubic {baselines['bicubic']:.2f} dB, one flat colour a picture {baselines['flat']:.2f} dB"


def text(result: dict[str, Any]) -> str:
    """Returns what the command prints."""
    tables = (aligned(lines(result), LEFT), aligned(claim_lines(result), LEFT))
    return "\n\n".join([*tables, baseline_line(result)])


def markdown(result: dict[str, Any]) -> str:
    """The report as a page."""
    settings = result["settings"]
    return "\n".join(
        [
            "# Super-resolution by objective and architecture (paper 3)",
            "",
            f"{settings['images']:,} images for each generator in batches of {settings['batch']}, width "
            f"{settings['features']} (64 in the paper's sources), {settings['held_out']} pictures held out; "
            f"{baseline_line(result)}.",
            "",
            *markdown_table(lines(result), LEFT),
            "",
            "By objective, means over its cells:",
            "",
            *markdown_table(claim_lines(result), LEFT),
            "",
            *[f"- {note}" for note in result["notes"]],
            "",
            "Made by `pgsr-bench sr-matrix`; all numbers are in `report.json`.",
            "",
        ]
    )


# ----------------------------------------------------------------------------
# Figures.


def moving_average(values: Sequence[float], window: int = WINDOW) -> np.ndarray[Any, Any]:
    """The mean of each value and up to `window - 1` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: np.ndarray[Any, Any] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def curve(trained: Trained, key: str) -> list[float]:
    """A term of every iteration; the critic's with its penalty (equation 6)."""
    if key != "loss/critic":
        return [line[key] for line in trained.log]
    return [line[key] + line.get("loss/gradient penalty", 0.0) for line in trained.log]


def training_curves(cells: Sequence[Trained]) -> bytes:
    """Figure 2: L1, critic's and generator's loss over iterations of the generator."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    panels = {
        "loss/pixel": "L1 loss, times gamma",
        "loss/critic": "discriminator loss",
        "loss/generator": "generator loss",
    }
    figure = Figure(figsize=(13, 3.8), dpi=110, layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for trained in cells:
            colour = COLOURS[trained.cell.objective]
            axes.plot(
                moving_average(curve(trained, key)), color=colour, label=OBJECTIVES[trained.cell.objective]
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("generator iterations")
        axes.spines[["top", "right"]].set_visible(False)
        if key != "loss/pixel":  # a Wasserstein critic's is hundreds of times a cross-entropy
            axes.set_yscale("symlog", linthresh=0.1)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return png(figure)


def comparison(cells: Sequence[Trained], test_set: TestSet) -> bytes:
    """Figures 1, 3 and 4: rows of input, bicubic, label, then each cell's output."""
    side = test_set.labels.shape[1]
    factor = side // test_set.small.shape[1]
    inputs = test_set.small.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = [("input", inputs), ("bicubic", test_set.bicubic), ("label", test_set.labels)]
    rows += [(t.cell.title, t.pictures) for t in cells if t.pictures is not None]
    return _rows([(title, sheet(pictures[:SHOWN], SHOWN)) for title, pictures in rows])


def noise_sheets(cells: Sequence[Trained]) -> bytes:
    """Figure 5: sheets of faces from noise."""
    return _rows([(t.cell.title, sheet(t.pictures, 2 * SHOWN)) for t in cells if t.pictures is not None])


def _rows(rows: Sequence[tuple[str, Pixels]]) -> bytes:
    """Strips of pictures under one another, pixel for pixel, each with its title on the left."""
    from matplotlib.figure import Figure

    dpi, left = 100, 300
    width, height = left + rows[0][1].shape[1], sum(strip.shape[0] for _, strip in rows)
    page = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(left / dpi, height / dpi), dpi=dpi)
    top = 0
    for title, strip in rows:
        page.paste(Image.fromarray(strip), (left, top))
        figure.text(0.97, 1 - (top + strip.shape[0] / 2) / height, title, ha="right", va="center", fontsize=9)
        top += strip.shape[0]
    with Image.open(io.BytesIO(png(figure)), formats=("PNG",)) as titles:
        page.paste(titles.convert("RGB").resize((left, height)), (0, 0))
    return png(page)
