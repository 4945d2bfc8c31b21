"""pgsr-bench sr-matrix: paper 3 over again. Objectives times architectures, each cell a run of pgsr-train.

Every cell trains on the same pictures for as many iterations of the generator; the last pictures of the set
are held out, and measured on while a cell trains. A cell is a run folder: a finished one is not trained
again, one that was stopped goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pgsr.errors import PgsrError
from pgsr.files import make_folder, write_text
from pgsr.trainer.loop import train
from pgsr.trainer.run_folder import metrics_log as record
from pgsr.trainer.run_folder.run import Run
from pgsr.trainer.run_folder.watch import Diverged
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import with_fitting_boxes

from ..harness.runs import StopAt, opened, require_same
from .cells import CELLS, Cell, Settings, recipe_of
from .scores import Pixels, TestSet, Trained, generated, held_out, measured

Report = Callable[[str], None]  # gets a line on what is going on


def run(settings: Settings, report: Report) -> tuple[list[Trained], TestSet]:
    """Trains what is not trained yet. Raises PgsrError if asked to stop, or a cell cannot be trained."""
    device = chosen_device(settings.device)
    make_folder(settings.out)
    recipe = with_fitting_boxes(config.load("sr-gan", settings.overrides), settings.data)
    test_set = held_out(recipe, settings, device)
    cells = []
    for i, name in enumerate(settings.cells, 1):
        report(f"{name} ({i} of {len(settings.cells)})")
        cells.append(run_cell(CELLS[name], settings, test_set, device))
    return cells, test_set


def run_cell(cell: Cell, settings: Settings, test_set: TestSet, device: torch.device) -> Trained:
    """A cell's folder, trained to the end if it was not."""
    folder, recipe = settings.out / cell.name, recipe_of(cell, settings)
    require_same(folder, recipe)
    record_file = folder / "done.json"
    if not record_file.is_file():
        _train_cell(folder, recipe, settings, test_set, device)
    ending = json.loads(record_file.read_text())
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


def _train_cell(
    folder: Path, recipe: config.Recipe, settings: Settings, test_set: TestSet, device: torch.device
) -> None:
    began, diverged = time.monotonic(), ""
    run = opened(folder, recipe, settings.data, device)
    looks = folder / "heldout.jsonl"
    record.forget_after(looks, run.trainer.state.images_shown, 0.0)
    try:
        pictures = _train_in_stretches(run, looks, test_set, settings.evaluations)
        np.save(folder / "pictures.npy", pictures)
    except PgsrError as error:
        if not isinstance(error.__context__, Diverged):
            raise
        diverged = str(error.__context__)
    ending = {"seconds": round(time.monotonic() - began, 1), "diverged": diverged}
    write_text(folder / "done.json", json.dumps(ending) + "\n")


def _train_in_stretches(run: Run, looks: Path, test_set: TestSet, evaluations: int) -> Pixels:
    """Trains to the end with a look at the held-out pictures after each stretch; the last look's pictures."""
    trainer = run.trainer
    total, paired = trainer.schedule.total_images, trainer.batches.paired
    inputs = test_set.inputs if paired else trainer.batches.preview(len(test_set.inputs))
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
        pictures = generated(trainer, inputs)
        record.append(
            looks,
            {
                "images_shown": trainer.state.images_shown,
                **measured(pictures, test_set, trainer.batches.paired),
            },
        )
    return pictures
