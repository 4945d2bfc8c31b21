"""Runs that a measurement needs: trained to the end, gone on with, or found there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgsr import checkpoint as checkpoints
from pgsr.errors import PgsrError
from pgsr.trainer.loop import StopRequest, train
from pgsr.trainer.run_folder.run import Run
from pgsr.trainer.start import open_run
from pgsr.trainer.step.recipe import Recipe, of_run
from pgsr.trainer.step.trainer import Trainer

WORDS = ("name", "about", "source", "run")  # of a recipe, which decide no weights; but the precision does


class StopAt(StopRequest):
    """A stop once so many images are shown."""

    def __init__(self, trainer: Trainer, images_shown: int) -> None:
        super().__init__(None)
        self.trainer, self.images_shown = trainer, images_shown

    @property
    def due(self) -> bool:
        return super().due or self.trainer.state.images_shown >= self.images_shown


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Returns what decides a run's weights as far as it has come: all but its length and what it writes."""
    tables = {name: value for name, value in recipe.as_dict().items() if name not in WORDS}
    schedule = {name: value for name, value in tables["schedule"].items() if name != "stable_images"}
    return {**tables, "schedule": schedule, "precision": recipe.run.precision}


def require_same(folder: Path, recipe: Recipe) -> None:
    """Raises PgsrError if a folder holds a run of a recipe that trains other weights.

    A recipe that was written before an option existed is read with that option's default.
    """
    if not (folder / "config.json").is_file():
        return
    try:
        same = decisive(of_run(folder)) == decisive(recipe)
    except PgsrError:
        same = False
    if not same:
        raise PgsrError(f"{folder} is a run of other settings: give those again, or name another --out")


def opened(folder: Path, recipe: Recipe, data: Path, device: torch.device) -> Run:
    """A run in a folder, standing before its next step. Raises PgsrError if the folder holds another run."""
    require_same(folder, recipe)
    run = open_run(recipe, data, folder, device)
    if checkpoints.files_of(folder):
        newest = checkpoints.newest(folder)
        if checkpoints.load_description(newest).provenance["data"] != run.provenance["data"]:
            raise PgsrError(f"{folder} is a run of other data: give those again, or name another --out")
        run.resume(newest)
    return run


def finish(
    folder: Path,
    recipe: Recipe,
    data: Path,
    device: torch.device,
    report: Callable[[str], None] = lambda line: None,  # called before anything is trained
) -> Run:
    """A run trained to its end, wherever it stood.

    Raises PgsrError if the folder holds another run or one of more images, or training is stopped.
    """
    run = opened(folder, recipe, data, device)
    shown, total = run.trainer.state.images_shown, run.trainer.schedule.total_images
    if shown > total:
        raise PgsrError(f"{folder} is a run of {shown} images, more than {total}: name another --out")
    if shown < total:
        report(f"{folder.name}: training from {shown} to {total} images")
        with StopRequest(None) as stop:
            if not train(run, stop):
                raise PgsrError(f"stopped in {folder}: the same command goes on")
    return run
