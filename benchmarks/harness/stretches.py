"""Training in stretches, with a look at the networks after each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.trainer.loop import train
from pgsr.trainer.run_folder import metrics_log
from pgsr.trainer.run_folder.run import Run
from pgsr.trainer.step.trainer import Trainer

from .runs import StopAt

Look = dict[str, Any]


def train_looking(
    run: Run, file: str, stretches: int, look: Callable[[Trainer], dict[str, float]]
) -> list[Look]:
    """Trains a run to its end, wherever it stands, and returns what each look found: after every stretch,
    with the images shown and the seconds of training until then.

    Looks are lines of a file in the run's folder; those that are there are not made again. Raises PgsrError
    if training is stopped.
    """
    trainer, path = run.trainer, run.folder / file
    total = trainer.schedule.total_images
    stretch = -(-total // stretches)
    while True:
        shown = trainer.state.images_shown
        if shown and shown not in _shown(path):
            where = {"images_shown": shown, "seconds": run.seconds_before()}
            metrics_log.append(path, {**where, **look(trainer)})
        if shown >= total:
            return [found for found in metrics_log.read(path) if found["images_shown"] <= total]
        goal = min(total, (shown // stretch + 1) * stretch)
        with StopAt(trainer, goal) as stop:
            if not train(run, stop) and trainer.state.images_shown < goal:
                raise PgsrError(f"stopped in {run.folder}: the same command goes on")


def _shown(path: Path) -> set[int]:
    return {found["images_shown"] for found in metrics_log.read(path)}
