"""pgsr-bench sr-matrix: paper 3 over again. Objectives times architectures, each cell a run of pgsr-train.

Every cell trains on the same pictures for as many iterations of the generator; the last pictures of the set
are held out, and measured on while a cell trains. A cell is a run folder: a finished one is not trained
again, one that was stopped goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pgsr import checkpoint as checkpoints
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, write_text
from pgsr.images import to_uint8
from pgsr.trainer import config, record
from pgsr.trainer.batches import middle_boxes
from pgsr.trainer.data import load_photographs
from pgsr.trainer.folder import Run
from pgsr.trainer.loop import Trainer, single_form
from pgsr.trainer.run import StopRequest, train
from pgsr.trainer.start import chosen_device, open_run
from pgsr.trainer.watch import Diverged

Report = Callable[[str], None]  # is told what is going on
Pixels = NDArray[np.uint8]  # [N, H, W, 3]

# ----------------------------------------------------------------------------
# The cells.

OBJECTIVES = {"gan": "GAN", "wgan": "WGAN", "wgan-gp": "WGAN-GP"}
ARCHITECTURES = {
    "resnet": (),
    "dcgan": ("generator.kind=dcgan-sr",),
    "mlp": ("generator.kind=mlp-sr", "discriminator.kind=mlp"),
}
TITLES = {"resnet": "ResNet", "dcgan": "DCGAN", "mlp": "MLP"}
PLAIN = ("generator.batch_norm=false", "discriminator.norm=none")
TANH = ("generator.activation=tanh", "discriminator.activation=tanh")


@dataclass(frozen=True)
class Cell:
    """One combination: a recipe and what it does differently."""

    name: str
    title: str
    objective: str
    recipe: str
    settings: tuple[str, ...] = ()
    figures: tuple[int, ...] = ()  # of paper 3, where its pictures stand


def _cells() -> dict[str, Cell]:
    found: list[Cell] = []

    def add(prefix: str, title: str, objective: str, settings: tuple[str, ...], *figures: int) -> None:
        found.append(
            Cell(
                f"{prefix}-{objective}",
                f"{title}, {OBJECTIVES[objective]}",
                objective,
                f"sr-{objective}",
                settings,
                figures,
            )
        )

    for architecture, settings in ARCHITECTURES.items():
        for objective in OBJECTIVES:
            resnet = architecture == "resnet"
            figures = ((1, 4) if objective != "wgan-gp" else (1,)) if resnet else (3,)
            add(architecture, TITLES[architecture], objective, settings, *figures)
    for objective in OBJECTIVES:
        add("resnet-plain", "ResNet, no batch norm", objective, PLAIN, 3)
    for objective in OBJECTIVES:
        settings = (*ARCHITECTURES["dcgan"], *PLAIN, *TANH)
        add("dcgan-tanh", "DCGAN, tanh, no batch norm", objective, settings, 3)
    for gamma in (0.5, 0.0):
        for objective in ("gan", "wgan"):
            weights = (f"objective.adversarial_weight={1 - gamma}", f"objective.pixel_weight={gamma}")
            add(f"resnet-gamma-{gamma:g}", f"ResNet, gamma {gamma:g}", objective, weights, 4)
    for objective in ("gan", "wgan-gp"):
        recipe, title = f"dcgan-64-{objective}", f"noise, DCGAN, {OBJECTIVES[objective]}"
        found.append(Cell(f"noise-{objective}", title, objective, recipe, (), (5,)))
    return {cell.name: cell for cell in found}


CELLS = _cells()


@dataclass(frozen=True)
class Settings:
    """How the cells are trained. Raises PgsrError for values out of range."""

    data: Path
    out: Path
    images: int = 80_000  # that the generator of a cell trains on; its critic sees `critic_steps` as many
    batch: int = 16
    features: int = 64  # width of the networks; the sources of the paper have 64
    held_out: int = 64
    evaluations: int = 20  # looks at the held-out pictures while a cell trains
    cells: tuple[str, ...] = tuple(CELLS)
    overrides: tuple[str, ...] = ()  # "key=value", of every recipe
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in self.cells:
            check_choice("--cells", name, CELLS)
        for name, least in {"images": 1, "batch": 2, "features": 1, "held_out": 2, "evaluations": 3}.items():
            if getattr(self, name) < least:
                raise PgsrError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, but must be at least {least}"
                )


def recipe_of(cell: Cell, settings: Settings) -> config.Recipe:
    """A cell's recipe: the package's, with the cell's settings, the matrix's and the user's on top."""
    critic_steps = config.load(cell.recipe, settings.overrides).objective.critic_steps
    never = 2**62
    wanted = {
        "name": f"sr-matrix-{cell.name}",
        "generator.features": settings.features,
        "discriminator.features": settings.features,
        "schedule.batch": settings.batch,
        "schedule.stable_images": settings.images * critic_steps,
        "data.held_out": settings.held_out,
        "run.log_images": 1,  # every iteration, for figure 2
        "run.sample_images": never,
        "run.checkpoint_images": never,
        "run.keep_checkpoints": 1,
        "run.stability_images": never,
    }
    common = (f"{key}={json.dumps(value)}" for key, value in wanted.items())
    return config.load(cell.recipe, (*cell.settings, *common, *settings.overrides))


# ----------------------------------------------------------------------------
# What is measured on the pictures that are held out.


@dataclass(frozen=True)
class HeldOut:
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


def held_out(recipe: config.Recipe, settings: Settings, device: torch.device) -> HeldOut:
    """The last pictures of the data set, as training would box and reduce them."""
    photographs = load_photographs(settings.data, recipe.data.resolution or recipe.data.box)
    pixels = torch.from_numpy(np.array(photographs.pixels[-settings.held_out :]))
    labels = middle_boxes(pixels, recipe, device)
    inputs = F.avg_pool2d(labels, 4)
    side = labels.shape[-1]
    small = to_uint8(inputs.cpu().numpy())
    grown = [Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in small]
    flat = inputs.mean(dim=(2, 3), keepdim=True).expand_as(labels)
    return HeldOut(
        to_uint8(labels.cpu().numpy()),
        inputs,
        np.stack([np.asarray(p) for p in grown]),
        to_uint8(flat.cpu().numpy()),
    )


def psnr(made: Pixels, wanted: Pixels) -> float:
    """Mean over the pictures of each one's PSNR in dB."""
    squares = (made.astype(np.float64) - wanted.astype(np.float64)) ** 2
    errors = np.maximum(squares.reshape(len(made), -1).mean(axis=1), 1e-12)
    return float(np.mean(10 * np.log10(255.0**2 / errors)))


def variety(pictures: Pixels) -> float:
    """How much of all that varies does so from picture to picture: the standard deviation between pictures,
    the mean over all places, over that of all values. 0 where all pictures are the same."""
    values = pictures.astype(np.float64)
    return float(values.std(axis=0).mean() / max(values.std(), 1e-12))


@torch.no_grad()
def generated(trainer: Trainer, inputs: Tensor) -> Pixels:
    """The averaged generator's pictures of inputs."""
    generate = single_form(
        trainer.state.generator_ema, trainer.schedule.at(max(0, trainer.state.images_shown - 1))
    )
    return to_uint8(torch.cat([generate(part) for part in inputs.split(16)]).float().cpu().numpy())


def measured(made: Pixels, held: HeldOut, paired: bool) -> dict[str, float]:
    """PSNR and L1 (equation 7) against the held-out pictures, and the variety as a share of theirs."""
    numbers = {"variety": variety(made) / variety(held.labels)}
    if paired:
        tall = torch.from_numpy(made).permute(0, 3, 1, 2).double() / 127.5 - 1
        reduced = F.avg_pool2d(tall, tall.shape[-1] // held.inputs.shape[-1])
        numbers["l1"] = F.l1_loss(reduced, held.inputs.cpu().double()).item()
        numbers["psnr_db"] = psnr(made, held.labels)
    return numbers


# ----------------------------------------------------------------------------
# Training.


class StopAt(StopRequest):
    """A stop once so many images are shown."""

    def __init__(self, trainer: Trainer, images_shown: int) -> None:
        super().__init__(None)
        self.trainer, self.images_shown = trainer, images_shown

    @property
    def due(self) -> bool:
        return super().due or self.trainer.state.images_shown >= self.images_shown


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


def run(settings: Settings, report: Report) -> tuple[list[Trained], HeldOut]:
    """Trains what is not trained yet. Raises PgsrError if asked to stop, or a cell cannot be trained."""
    device = chosen_device(settings.device)
    make_folder(settings.out)
    held = held_out(config.load("sr-gan", settings.overrides), settings, device)
    cells = []
    for i, name in enumerate(settings.cells, 1):
        report(f"{name} ({i} of {len(settings.cells)})")
        cells.append(run_cell(CELLS[name], settings, held, device))
    return cells, held


def run_cell(cell: Cell, settings: Settings, held: HeldOut, device: torch.device) -> Trained:
    """A cell's folder, trained to the end if it was not."""
    folder, recipe = settings.out / cell.name, recipe_of(cell, settings)
    _require_same(folder, recipe)
    done = folder / "done.json"
    if not done.is_file():
        _train_cell(folder, recipe, settings, held, device)
    ending = json.loads(done.read_text())
    pictures = folder / "pictures.npy"
    return Trained(
        cell,
        recipe.objective.critic_steps,
        record.read(folder / "metrics.jsonl"),
        record.read(folder / "heldout.jsonl"),
        np.load(pictures) if pictures.is_file() else None,
        ending["seconds"],
        ending["diverged"],
    )


def _require_same(folder: Path, recipe: config.Recipe) -> None:
    """Raises PgsrError if the folder holds a recipe that trains otherwise; new settings have defaults."""
    written = folder / "config.json"
    if not written.is_file():
        return
    try:
        same = _deciding(config.from_dict(json.loads(written.read_text()))) == _deciding(recipe)
    except (ValueError, PgsrError):
        same = False
    if not same:
        raise PgsrError(f"{folder} was trained with other settings: name another --out")


def _deciding(recipe: config.Recipe) -> dict[str, Any]:
    """What of a recipe decides the weights."""
    words = ("name", "about", "source", "run")
    return {key: value for key, value in recipe.as_dict().items() if key not in words}


def _train_cell(
    folder: Path, recipe: config.Recipe, settings: Settings, held: HeldOut, device: torch.device
) -> None:
    began, diverged = time.monotonic(), ""
    run = open_run(recipe, settings.data, folder, device)
    if checkpoints.files_of(folder):
        run.resume(checkpoints.newest(folder))
    looks = folder / "heldout.jsonl"
    record.forget_after(looks, run.trainer.state.images_shown, 0.0)
    try:
        pictures = _train_in_stretches(run, looks, held, settings.evaluations)
        np.save(folder / "pictures.npy", pictures)
    except PgsrError as error:
        if not isinstance(error.__context__, Diverged):
            raise
        diverged = str(error.__context__)
    ending = {"seconds": round(time.monotonic() - began, 1), "diverged": diverged}
    write_text(folder / "done.json", json.dumps(ending) + "\n")


def _train_in_stretches(run: Run, looks: Path, held: HeldOut, evaluations: int) -> Pixels:
    """Trains to the end with a look at the held-out pictures after each stretch; the last look's pictures."""
    trainer = run.trainer
    total, paired = trainer.schedule.total_images, trainer.batches.paired
    inputs = held.inputs if paired else trainer.batches.preview(len(held.inputs))
    for k in range(1, evaluations + 1):
        target = total * k // evaluations
        if trainer.state.images_shown >= target and k < evaluations:
            continue
        with StopAt(trainer, target) as stop:
            train(run, stop)
        if stop.signalled:
            raise PgsrError(
                f"stopped at {trainer.state.images_shown} images of {run.folder}: run it again to go on"
            )
        made = generated(trainer, inputs)
        record.append(
            looks,
            {"images_shown": trainer.state.images_shown, **measured(made, held, trainer.batches.paired)},
        )
    return made


# ----------------------------------------------------------------------------
# The paper's claims, in numbers.


def verdict(trained: Trained, baselines: Mapping[str, float]) -> str:
    """What became of a cell. Half the labels' variety is taken for a collapse."""
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
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
