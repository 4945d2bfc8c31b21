"""The filters' table as text and Markdown, and a picture of crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..harness.report import aligned, machine_lines, markdown_table, png, write_report_files
from .measure import PAPER, reduced, zone_plate

HEADINGS = (
    "filter",
    "ms an image",
    "PSNR dB",
    "SSIM",
    "aliasing",
    "loss",
    "paper: ms",
    "paper: quality",
)
PANEL = 224  # pixels a side of a crop on the picture
GAP, TEXT = 8, 24
LARGEST_ZONE_PLATE = 512


def cells(row: Mapping[str, Any]) -> list[str]:
    """Formats one filter's row."""
    return [
        row["filter"],
        f"{1e3 * row['seconds']:.3f}",
        f"{row['psnr_db']:.2f}",
        f"{row['ssim']:.4f}",
        f"{row['aliasing']:.2%}",
        f"{row['loss']:.2%}",
        f"{1e3 * row['paper_seconds']:.3f}",
        f"{row['paper_opinion']} of 5",
    ]


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns what was measured, and how far the paper's opinions agree."""
    agreement = ", ".join(
        f"{label} {result['agreement'][name]:+.2f}"
        for name, label in (("psnr_db", "PSNR"), ("ssim", "SSIM"), ("aliasing", "aliasing"), ("loss", "loss"))
    )
    how = "the same filter" if result["enlarged_by"] == "same" else result["enlarged_by"]
    return [
        f"{result['pictures']} pictures ({result['data']}), {result['from']} to {result['to']}; "
        f"PSNR and SSIM of Y after enlarging again by {how}",
        "aliasing: share of the energy above the small picture's Nyquist frequency folded into it; "
        "loss: share below it that is changed",
        f"rank correlation with the paper's opinions (1: the same order): {agreement}",
        f"medians of {result['rounds']} rounds",
        *machine_lines(result["machine"]),
    ]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    lines = [list(HEADINGS), *[cells(row) for row in result["rows"]]]
    return "\n".join([aligned(lines, 1), "", *legend(result)])


def markdown(result: Mapping[str, Any]) -> str:
    """Writes the report's page."""
    lines = [list(HEADINGS), *[cells(row) for row in result["rows"]]]
    return "\n".join(
        [
            f"# Ways to reduce a picture, {result['date']}",
            "",
            *markdown_table(lines, 1),
            "",
            "![crops](resample.png)",
            "",
            *[f"- {line}" for line in legend(result)],
            "",
            "Made by `pgsr-bench resample --out REPORT_DIR`. Where it shows photographs, mind their terms.",
            "",
        ]
    )


def write_report(result: Mapping[str, Any], originals: Sequence[Image.Image], folder: Path) -> None:
    """resample.json, .md and .png. Raises PgsrError if they cannot be written."""
    drawn = png(picture(originals, result["to"]))
    write_report_files(folder, "resample", result, markdown(result), drawn)


def picture(originals: Sequence[Image.Image], small: int) -> Image.Image:
    """A column a filter. Rows: a zone plate, whole; pictures, whole; the middle of the first, closer."""
    side = originals[0].width
    plate = zone_plate(min(side, LARGEST_ZONE_PLATE))
    rows = [(plate, plate.width // 2, 1.0), *[(p, small, 1.0) for p in originals[:2]]]
    rows.append((originals[0], small, 0.4))
    names = ["original", *PAPER]
    page = Image.new(
        "RGB", (len(names) * (PANEL + GAP) + GAP, len(rows) * (PANEL + GAP) + TEXT + GAP), "white"
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, name in enumerate(names):
        x = GAP + column * (PANEL + GAP)
        pen.text((x, 5), name, fill=(0, 0, 0), font=font)
        for row, (original, to, share) in enumerate(rows):
            image = original if name == "original" else reduced(original, to, name)
            y = TEXT + row * (PANEL + GAP)
            page.paste(closer(image, share, name == "original"), (x, y))
    return page


def closer(image: Image.Image, share: float, smooth: bool) -> Image.Image:
    """The middle share of a picture as a panel; the pixels of reduced ones stay squares."""
    margin = round(image.width * (1 - share) / 2)
    middle = image.crop((margin, margin, image.width - margin, image.height - margin))
    way = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return middle.resize((PANEL, PANEL), way)
