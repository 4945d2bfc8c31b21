"""What is measured of paper 3's cells: on pictures held out, and as answers to the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pgsr.images import to_uint8
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import residency as training
from pgsr.trainer.step.pixels import middle_boxes
from pgsr.trainer.step.trainer import Trainer

from .cells import OBJECTIVES, Cell, Settings

Pixels = NDArray[np.uint8]  # [N, H, W, 3]

# ----------------------------------------------------------------------------
# The pictures that are held out.


@dataclass(frozen=True)
class TestSet:
    """The held-out pictures and what the cells are compared with."""

    labels: Pixels  # [N, 64, 64, 3]
    inputs: Tensor  # [N, 3, 16, 16] in [-1, 1], on the device
    bicubic: Pixels  # of the inputs
    flat: Pixels  # one colour a picture, the input's mean: what knows nothing else

    def baselines(self) -> dict[str, float]:
        return {"bicubic": psnr(self.bicubic, self.labels), "flat": psnr(self.flat, self.labels)}

    @property
    def small(self) -> Pixels:
        return to_uint8(self.inputs.cpu().numpy())


def held_out(recipe: config.Recipe, settings: Settings, device: torch.device) -> TestSet:
    """The last pictures of the data set, as training would box and reduce them."""
    photographs = load_photographs(
        settings.data, recipe.data.resolution or recipe.data.box, recipe.data.reduce, recipe.data.width
    )
    last = torch.from_numpy(np.array(photographs.pixels[-settings.held_out :]))
    labels = middle_boxes(training.Pixels(last.to(device), device), len(last), recipe)
    inputs = F.avg_pool2d(labels, 4)
    side = labels.shape[-1]
    small = to_uint8(inputs.cpu().numpy())
    grown = [Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in small]
    flat = inputs.mean(dim=(2, 3), keepdim=True).expand_as(labels)
    return TestSet(
        to_uint8(labels.cpu().numpy()),
        inputs,
        np.stack([np.asarray(p) for p in grown]),
        to_uint8(flat.cpu().numpy()),
    )


def psnr(pictures: Pixels, targets: Pixels) -> float:
    """Mean over the pictures of each one's PSNR in dB."""
    squares = (pictures.astype(np.float64) - targets.astype(np.float64)) ** 2
    errors = np.maximum(squares.reshape(len(pictures), -1).mean(axis=1), 1e-12)
    return float(np.mean(10 * np.log10(255.0**2 / errors)))


def variety(pictures: Pixels) -> float:
    """Returns how much of all that varies does so from picture to picture: the standard deviation between
    pictures, the mean over all places, over that of all values. 0 where all pictures are the same."""
    values = pictures.astype(np.float64)
    return float(values.std(axis=0).mean() / max(values.std(), 1e-12))


@torch.no_grad()
def generated(trainer: Trainer, inputs: Tensor) -> Pixels:
    """The averaged generator's pictures of inputs."""
    stage = trainer.schedule.at(max(0, trainer.state.images_shown - 1))
    generate = trainer.state.generator_ema.at(stage.resolution, stage.alpha)
    return to_uint8(torch.cat([generate(part) for part in inputs.split(16)]).float().cpu().numpy())


def measured(pictures: Pixels, test_set: TestSet, paired: bool) -> dict[str, float]:
    """PSNR and L1 (equation 7) against the held-out pictures, and the variety as a share of theirs."""
    numbers = {"variety": variety(pictures) / variety(test_set.labels)}
    if paired:
        tall = torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 127.5 - 1
        reduced = F.avg_pool2d(tall, tall.shape[-1] // test_set.inputs.shape[-1])
        numbers["l1"] = F.l1_loss(reduced, test_set.inputs.cpu().double()).item()
        numbers["psnr_db"] = psnr(pictures, test_set.labels)
    return numbers


@dataclass
class Trained:
    """A cell after training: what was logged, measured and drawn."""

    cell: Cell
    critic_steps: int
    log: list[dict[str, Any]] = field(default_factory=list)  # metrics.jsonl
    looks: list[dict[str, Any]] = field(default_factory=list)  # heldout.jsonl
    pictures: Pixels | None = None
    seconds: float = 0.0
    diverged: str = ""


# ----------------------------------------------------------------------------
# The paper's claims, in numbers.


def verdict(trained: Trained, baselines: Mapping[str, float]) -> str:
    """Returns what became of a cell. Half the labels' variety is taken for a collapse."""
    if trained.diverged:
        return "diverged"
    last = trained.looks[-1]
    if last["variety"] < 0.5:
        return "collapsed"
    if "psnr_db" not in last:
        return "varied"
    if last["psnr_db"] < baselines["flat"]:
        return "failed"
    return "above bicubic" if last["psnr_db"] >= baselines["bicubic"] else "below bicubic"


FAILURES = ("diverged", "collapsed", "failed")


def critic_at_looks(trained: Trained) -> list[float]:
    """|critic loss|, without its penalty, averaged over the iterations before each look."""
    means, start = [], 0
    for look in trained.looks:
        within = [
            abs(line["loss/critic"])
            for line in trained.log
            if start < line["images_shown"] <= look["images_shown"] and "loss/critic" in line
        ]
        means.append(float(np.mean(within)) if within else float("nan"))
        start = look["images_shown"]
    return means


def rank_correlation(a: list[float], b: list[float]) -> float | None:
    """Spearman's; None where one side does not vary or there are fewer than three pairs."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if np.isfinite(x) and np.isfinite(y)]
    if len(pairs) < 3:
        return None
    ranks = [np.argsort(np.argsort(side)).astype(float) for side in zip(*pairs, strict=True)]
    if any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def row_of(trained: Trained, baselines: Mapping[str, float]) -> dict[str, Any]:
    """A cell in numbers."""
    row: dict[str, Any] = {
        "cell": trained.cell.name,
        "title": trained.cell.title,
        "objective": trained.cell.objective,
        "verdict": verdict(trained, baselines),
        "iterations": len(trained.log),
        "critic_steps": trained.critic_steps,
        "seconds": trained.seconds,
        "diverged": trained.diverged,
    }
    looks = trained.looks
    if looks:
        row["variety"] = looks[-1]["variety"]
    if looks and "psnr_db" in looks[-1]:
        quality = [look["psnr_db"] for look in looks]
        critic = critic_at_looks(trained)
        row |= {
            "psnr_db": quality[-1],
            "l1": looks[-1]["l1"],
            "to_bicubic_db": quality[-1] - baselines["bicubic"],
            "fallen_db": max(quality) - quality[-1],
            "critic_with_psnr": rank_correlation(critic, quality),
            "critic_with_l1": rank_correlation(critic, [look["l1"] for look in looks]),
        }
    return row


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The three claims of paper 3, section 5, by objective."""
    result: dict[str, Any] = {}
    for objective in OBJECTIVES:
        own = [row for row in rows if row["objective"] == objective]
        paired = [row for row in own if "psnr_db" in row]
        if not own:
            continue
        result[objective] = {
            "cells": len(own),
            "critic_with_psnr": _mean(row["critic_with_psnr"] for row in paired),
            "critic_with_l1": _mean(row["critic_with_l1"] for row in paired),
            "failed": [row["cell"] for row in own if row["verdict"] in FAILURES],
            "above_bicubic": sum(row["verdict"] == "above bicubic" for row in own),
            "psnr_db": _mean(row["psnr_db"] for row in paired),
            "fallen_db": _mean(row["fallen_db"] for row in paired),
            "collapsed": [row["cell"] for row in own if row["verdict"] == "collapsed"],
        }
    return result


def _mean(values: Any) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
