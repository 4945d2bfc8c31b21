"""A count of modes as text, Markdown and one picture of samples."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from pgsr import checkpoint as checkpoints
from pgsr import images
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.digits import SIDE

from ..harness.report import aligned, markdown_table, png, write_report_files
from .measure import CRITICS, SHOWN, Settings, generated, reals

HEADINGS = {
    "gan": "GAN",
    "unrolled": "+ unrolling",
    "wgan-gp": "WGAN-GP",
    "norm": "+ our norm",
    "stddev": "+ mb stddev",
    "progression": "+ progression",
}  # as in Table 4 of paper 2
LEFT = 2  # columns of words
COMMAND = "pgsr-bench modes --data DIGITS.zip --images N --seeds N --out REPORT_DIR"


def write_report(result: Mapping[str, Any], settings: Settings) -> None:
    """modes.json, .md and .png in the folder. Raises PgsrError if they cannot be written."""
    write_report_files(settings.out, "modes", result, markdown(result), picture(settings))


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Table 4 with our rows and the paper's."""
    systems = result["settings"]["systems"]
    entries = {(entry["critic"], entry["system"]): entry for entry in result["summary"]}
    lines = [["critic", "measure", *[HEADINGS[system] for system in systems]]]
    for critic in CRITICS:
        for name, words, places in (("modes", "modes", 1), ("kl", "KL", 2)):
            for prefix, whose in (("", "ours"), ("paper_", "paper 2")):
                values = [entries[critic, system][prefix + name] for system in systems]
                cells = [plus_minus(value, places) for value in values]
                lines.append([critic.replace("k", "K/"), f"{words}, {whose}", *cells])
    return lines


def plus_minus(value: tuple[float, float | None] | None, places: int) -> str:
    """Formats a mean and its deviation, if there is one."""
    if value is None:
        return "?"
    mean, deviation = value
    return f"{mean:.{places}f}" + ("" if deviation is None else f" ± {deviation:.{places}f}")


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns what the table's figures are of."""
    settings, classifier, real = result["settings"], result["classifier"], result["real"]
    parameters: dict[str, list[str]] = {critic: [] for critic in CRITICS}
    for entry in result["summary"]:
        parameters[entry["critic"]].append(f"{entry['critic_parameters']:,}")
    return [
        f"{settings['images']:,} images shown a run, seeds 0 to {settings['seeds'] - 1}: mean ± standard "
        f"deviation; {settings['generated']:,} images counted a run",
        f"digits: {result['digits']['count']:,}; classifier: {classifier['error_rate']:.2%} wrong of "
        f"{classifier['held_out']:,} held out (paper 2: 0.4%)",
        f"stacked real digits, counted likewise: {real['modes']} modes, KL {real['kl']:.3f}",
        *[f"parameters of the {k.replace('k', 'K/')} critics: {', '.join(v)}" for k, v in parameters.items()],
        *[f"with {setting}" for setting in settings["overrides"]],
        "KL(histogram || uniform) in nats; one mode alone has 6.91. ?: lost in the copy of the paper at hand",
        "The paper does not say how long it trained; PacGAN's repetition showed 64 million images.",
    ]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    return "\n".join([aligned(table(result), LEFT), "", *legend(result)])


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    rows = [f"{HEADINGS[s]} {k.replace('k', 'K/')}" for s in result["settings"]["systems"] for k in CRITICS]
    return "\n".join(
        [
            f"# Modes covered, {result['date']} (paper 2, appendix E, Table 4)",
            "",
            *markdown_table(table(result), LEFT),
            "",
            *[f"- {line}" for line in legend(result)],
            "",
            f"![samples](modes.png) Rows: real digits; {'; '.join(rows)}: the first {SHOWN} of seed 0.",
            "",
            f"Made by `{COMMAND}`; every run's count is in `modes.json`.",
            "",
        ]
    )


def picture(settings: Settings) -> bytes:
    """A PNG with a row of real stacked digits, then one of seed 0 of each system and critic."""
    rows = [next(iter(reals(load_photographs(settings.data, SIDE), SHOWN)))]
    for system in settings.systems:
        for critic in CRITICS:
            path = checkpoints.newest(settings.out / "runs" / f"{system}-{critic}-seed0")
            rows += islice(generated(path, SHOWN, 0, torch.device("cpu")), 1)
    pixels = images.to_uint8(torch.cat(rows).numpy()).repeat(2, axis=1).repeat(2, axis=2)
    return png(Image.fromarray(np.ascontiguousarray(images.sheet(pixels, columns=SHOWN))))
