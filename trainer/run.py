"""A run folder: config.json, checkpoints/, samples/, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pgsr import __version__, images
from pgsr.checkpoint import Checkpoint, files_of, load, save
from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing, write_text

from .config import Recipe
from .loop import Trainer
from .schedule import Stage
from .state import restore, state_tensors

# ----------------------------------------------------------------------------
# Stopping on request.


class StopRequest:
    """Turns Ctrl-C and SIGTERM, or the end of a time budget, into a clean stop after the step at hand."""

    def __init__(self, minutes: float | None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self.signalled = False

    def __enter__(self) -> StopRequest:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    @property
    def due(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)


# ----------------------------------------------------------------------------
# What a run writes.


@dataclass
class Run:
    """Writes what a trainer does into its folder."""

    folder: Path
    trainer: Trainer
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("checkpoints", "samples"):
            make_folder(self.folder / name)
        self.metrics = self.folder / "metrics.jsonl"
        self.events: SummaryWriter | None = None

    def begin(self) -> None:
        """Writes config.json; on resume, forgets what was logged after the checkpoint."""
        shown = self.trainer.state.images_shown
        write_text(self.folder / "config.json", json.dumps(self.trainer.recipe.as_dict(), indent=1) + "\n")
        if self.metrics.is_file():
            kept = [line for line in self.metrics.read_text().splitlines() if _shown_in(line) <= shown]
            write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        self.events = SummaryWriter(self.folder / "tensorboard", purge_step=shown)

    def log(self, stage: Stage, terms: Mapping[str, float], images_per_second: float) -> None:
        shown = self.trainer.state.images_shown
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            raise PgsrError(
                f"{bad[0]} loss is not finite at {shown} images, {stage.phase.name}: the last good "
                f"checkpoint is in {self.folder / 'checkpoints'}; lower the learning rate and resume"
            )
        record = {
            "images_shown": shown,
            "step": stage.step,
            "resolution": stage.resolution,
            "alpha": stage.alpha,
            "batch": stage.batch,
            "images_per_second": round(images_per_second, 2),
            **{f"loss/{name}": value for name, value in terms.items()},
        }
        with open(self.metrics, "a") as file:
            file.write(json.dumps(record) + "\n")
        assert self.events is not None
        for name, value in record.items():
            if name != "images_shown":
                self.events.add_scalar(name if "/" in name else f"run/{name}", value, shown)

    def write_samples(self) -> None:
        """The averaged generator's fixed samples as one sheet, and in TensorBoard."""
        count = self.trainer.recipe.run.sample_grid
        pixels = images.to_uint8(self.trainer.preview(count).float().cpu().numpy())
        page = images.sheet(pixels, columns=max(1, int(count**0.5)))
        shown = self.trainer.state.images_shown
        with replacing(self.folder / "samples" / f"{shown:09d}.png") as temporary:
            Image.fromarray(page).save(temporary, "PNG")
        assert self.events is not None
        self.events.add_image("samples", page, shown, dataformats="HWC")

    def write_checkpoint(self) -> Path:
        """Writes a checkpoint of now and removes the ones no longer kept."""
        state, recipe = self.trainer.state, self.trainer.recipe
        path = self.folder / "checkpoints" / f"{state.images_shown:09d}.safetensors"
        tensors = state_tensors(state)
        broken = [n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
        if broken:
            raise PgsrError(
                f"{broken[0]} is not finite at {state.images_shown} images: no checkpoint written"
            )
        last = self.trainer.schedule.at(max(0, state.images_shown - 1))
        progress = {
            "images_shown": state.images_shown,
            "step": self.trainer.stage().step,
            "grown_resolution": last.resolution if last.alpha >= 1.0 else last.resolution // 2,
        }
        save(path, Checkpoint(tensors, recipe.as_dict(), progress, self.provenance))
        self._prune(recipe)
        return path

    def _prune(self, recipe: Recipe) -> None:
        milestones = {phase.end for phase in self.trainer.schedule.phases}
        passing = [p for p in files_of(self.folder) if int(p.stem) not in milestones]
        for path in passing[: -recipe.run.keep_checkpoints]:
            path.unlink()

    def resume(self, path: Path, other_data: bool = False) -> None:
        """Puts a checkpoint's state into the trainer.

        Raises PgsrError if it does not fit the recipe, or was trained on other data and that is not allowed.
        """
        checkpoint = load(path)
        if not other_data and checkpoint.provenance["data"] != self.provenance["data"]:
            trained_on = checkpoint.provenance["data"]["fingerprint"][:16]
            raise PgsrError(f"{path} was trained on other data (fingerprint {trained_on}); add --other-data")
        recipe = self.trainer.recipe.as_dict()
        for key in ("generator", "discriminator", "seed", "schedule", "objective", "data"):
            if checkpoint.config[key] != recipe[key]:
                print(f"note: {key} differs from the checkpoint's", file=sys.stderr)
        restore(self.trainer.state, checkpoint.tensors, checkpoint.progress["images_shown"])


def _shown_in(line: str) -> float:
    try:
        return float(json.loads(line)["images_shown"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut in half by a crash


def provenance(trainer: Trainer) -> dict[str, Any]:
    """What made these weights: no path and no name of this machine."""
    batches = trainer.batches
    return {
        "version": __version__,
        "torch": str(torch.__version__),
        "data": {"fingerprint": batches.fingerprint, "pictures": batches.count},
    }


# ----------------------------------------------------------------------------
# The outer loop: steps, and what is due between them.


def train(run: Run, stop: StopRequest) -> bool:
    """Trains until the schedule ends (True) or a stop is due (False); both leave a checkpoint."""
    trainer, every = run.trainer, run.trainer.recipe.run
    total = trainer.schedule.total_images
    run.begin()
    recent: deque[tuple[float, int]] = deque([(time.monotonic(), trainer.state.images_shown)], maxlen=20)
    bar = tqdm(total=total, initial=trainer.state.images_shown, unit="img", file=sys.stderr, mininterval=1.0)
    with bar:
        while trainer.state.images_shown < total and not stop.due:
            stage, before = trainer.stage(), trainer.state.images_shown
            terms = trainer.step()
            shown = trainer.state.images_shown
            bar.update(shown - before)
            ended = shown == stage.phase.end
            if _crossed(before, shown, every.log_images) or ended:
                values = {name: float(term) for name, term in terms.items()}
                recent.append((time.monotonic(), shown))
                rate = (shown - recent[0][1]) / (recent[-1][0] - recent[0][0])
                run.log(stage, values, rate)
                bar.set_postfix_str(f"{stage.phase.name} alpha {stage.alpha:.2f}")
            if _crossed(before, shown, every.sample_images) or ended:
                run.write_samples()
            if _crossed(before, shown, every.checkpoint_images) or ended:
                run.write_checkpoint()
    shown = trainer.state.images_shown
    if not (run.folder / "checkpoints" / f"{shown:09d}.safetensors").is_file() and shown:
        run.write_checkpoint()
    assert run.events is not None
    run.events.close()
    return shown >= total


def _crossed(before: int, after: int, every: int) -> bool:
    return after // every > before // every
