"""A run folder: config.json, checkpoints/, samples/, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgsr import __version__, images
from pgsr.checkpoint import Checkpoint, files_of, load, newest, save
from pgsr.errors import PgsrError
from pgsr.files import cannot_write, make_folder, remove_leftovers, replacing, write_text
from pgsr.lock import holding_lock

from ..step.content_loss import content_provenance
from ..step.recipe import CHOSEN, from_dict
from ..step.schedule import Stage
from ..step.state import restore, state_tensors
from ..step.trainer import Trainer
from . import evaluate
from . import metrics_log as records
from .previews import scale_sheet
from .tensorboard import Events
from .watch import Diverged, Stability, check_tensors

# Tables of a recipe whose change makes another training of it.
DECISIVE = ("generator", "discriminator", "critics", "seed", "schedule", "objective", "data", "augment")
ROLLBACKS = 5  # in a row, before a run that does not get past a point is given up


@dataclass
class Run:
    """Writes what a trainer does into its folder. Of several ranks one writes; a failure is everyone's."""

    folder: Path
    trainer: Trainer
    provenance: dict[str, Any]
    stability: Stability = field(default_factory=Stability)
    rollbacks: int = 0  # to one checkpoint or another, without getting past `diverged_at`
    diverged_at: int = 0  # images shown when a loss last went wrong
    events: Events | None = None  # of the rank that writes, while it does
    best: int | None = (
        None  # images shown where the generator was best (pgsr.trainer.run_folder.evaluate), likewise
    )

    @property
    def writes(self) -> bool:
        return self.trainer.ranks.rank == 0

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _written(self, write: Callable[[], object]) -> None:
        """Lets the rank that writes write; where it cannot, every rank ends with an error."""
        failure: PgsrError | None = None
        if self.writes:
            try:
                write()
            except OSError as error:
                failure = cannot_write(Path(error.filename or self.folder), error)
            except PgsrError as error:
                failure = error
        if self.trainer.ranks.meet(failure is not None, "the process that writes the run's folder"):
            raise failure or PgsrError("the process that writes the run's folder could not go on")

    # ------------------------------------------------------------------------
    # Beginning.

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the folder while a run trains. Raises PgsrError if another process trains in it."""
        with contextlib.ExitStack() as stack:
            self._written(lambda: make_folder(self.folder))
            self._written(lambda: stack.enter_context(holding_lock(self.folder)))
            self._written(self._begin)
            yield

    def _begin(self) -> None:
        config = self.trainer.recipe.as_dict() | {CHOSEN: self.trainer.chosen}
        write_text(self.folder / "config.json", json.dumps(config, indent=1) + "\n")
        for folder in ("checkpoints", "samples"):
            make_folder(self.folder / folder)
            remove_leftovers(self.folder / folder)
        remove_leftovers(self.folder)
        self._forget_later()
        self._prune()
        self.events = Events(self.folder / "tensorboard", self.trainer.state.images_shown + 1)

    def _forget_later(self) -> None:
        """Removes what was logged and drawn after the state at hand."""
        state = self.trainer.state
        records.forget_after(self.metrics, state.images_shown, state.learning_rate_scale)
        for path in (self.folder / "samples").glob("*.png"):
            match = re.fullmatch(r"([0-9]{9,})(-scales)?", path.stem)
            if match and int(match[1]) > state.images_shown:
                path.unlink()
        self._find_best()

    def _find_best(self) -> None:
        line = evaluate.best(records.read(self.metrics))
        self.best = None if line is None else line["images_shown"]

    def seconds_before(self) -> float:
        """How long the run has trained until the state at hand, by what it logged."""
        lines = [line for line in records.read(self.metrics) if "step" in line]
        return records.seconds_of_training(lines, self.trainer.state.images_shown)[-1]

    # ------------------------------------------------------------------------
    # What is written now and then.

    def log(self, stage: Stage, values: Mapping[str, float]) -> None:
        """A line of metrics.jsonl and the same in TensorBoard: of the step that began at a stage."""
        rates = {"generator": self.trainer.state.generator_optimizer}
        if self.trainer.state.critic_optimizer is not None:
            rates["critic"] = self.trainer.state.critic_optimizer
        record = {
            "images_shown": self.trainer.state.images_shown,
            "step": stage.step,
            "resolution": stage.resolution,
            "alpha": stage.alpha,
            "batch": stage.batch,
            **{f"learning_rate/{name}": o.param_groups[0]["lr"] for name, o in rates.items()},
            **values,
        }
        self._written(lambda: self._append(record))

    def _append(self, record: Mapping[str, Any]) -> None:
        records.append(self.metrics, record)
        if evaluate.AVERAGE in record:
            self._find_best()
        assert self.events is not None
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "images_shown"}
        scalars = {k if "/" in k else f"run/{k}": v for k, v in numbers.items()}
        self.events.scalars(scalars, record["images_shown"])

    def write_samples(self) -> None:
        """The averaged generator's fixed samples as one sheet, and in TensorBoard."""
        self._written(self._write_samples)

    def _write_samples(self) -> None:
        count, images_shown = self.trainer.recipe.run.sample_grid, self.trainer.state.images_shown
        pixels = images.to_uint8(self.trainer.preview(count).float().cpu().numpy())
        page = images.sheet(pixels, columns=max(1, int(count**0.5)))
        self._write_picture("samples", f"{images_shown:09d}", page)
        scales = scale_sheet(self.trainer)  # None for generators of one scale
        if scales is not None:
            self._write_picture("scales", f"{images_shown:09d}-scales", scales)

    def _write_picture(self, name: str, stem: str, page: NDArray[np.uint8]) -> None:
        with replacing(self.folder / "samples" / f"{stem}.png") as temporary:
            Image.fromarray(page).save(temporary, "PNG")
        assert self.events is not None
        self.events.image(name, page, self.trainer.state.images_shown)

    def write_checkpoint(self) -> None:
        """Writes a checkpoint of now and removes the ones no longer kept. Raises Diverged, on every rank,
        if a number in it is not finite."""
        state = self.trainer.state
        last = self.trainer.schedule.at(max(0, state.images_shown - 1))
        tensors = state_tensors(state)
        check_tensors(self.trainer, tensors, last)
        if state.images_shown > self.diverged_at:
            self.rollbacks = 0
        if self.stability.last is not None:
            tensors["watch.stability"] = self.stability.last
        progress = {
            "images_shown": state.images_shown,
            "step": self.trainer.stage().step,
            "grown_resolution": last.resolution if last.alpha >= 1.0 else last.resolution // 2,
            "learning_rate_scale": state.learning_rate_scale,
            "rollbacks": self.rollbacks,
            "diverged_at": self.diverged_at,
        }
        checkpoint = Checkpoint(tensors, self.trainer.recipe.as_dict(), progress, self.provenance)
        self._written(lambda: save(self.checkpoint_path, checkpoint))
        self._written(self._prune)

    @property
    def checkpoint_path(self) -> Path:
        """Returns where a checkpoint of now is or would be."""
        return self.folder / "checkpoints" / f"{self.trainer.state.images_shown:09d}.safetensors"

    def _prune(self) -> None:
        milestones = {phase.end for phase in self.trainer.schedule.phases}
        passing = [p for p in files_of(self.folder) if int(p.stem) not in milestones]
        for path in passing[: -self.trainer.recipe.run.keep_checkpoints]:
            if int(path.stem) != self.best:
                path.unlink(missing_ok=True)
        evaluate.point_at(self.folder, self.best)

    # ------------------------------------------------------------------------
    # Going back to a checkpoint.

    def resume(self, path: Path, other_data: bool = False) -> None:
        """Puts a checkpoint's state into the trainer.

        Raises PgsrError if it does not fit the recipe, or was trained on other data and that is not allowed.
        """
        checkpoint = load(path)
        check_progress(path, checkpoint)
        if not other_data and not self._same_data(checkpoint.provenance["data"]):
            trained_on = checkpoint.provenance["data"]["fingerprint"][:16]
            raise PgsrError(f"{path} was trained on other data (fingerprint {trained_on}); add --other-data")
        check_frozen_weights(path, checkpoint.provenance, self.provenance)
        recipe, before = self.trainer.recipe.as_dict(), from_dict(checkpoint.config).as_dict()
        for key in (
            "generator",
            "discriminator",
            "critics",
            "seed",
            "schedule",
            "objective",
            "data",
            "augment",
        ):
            if before[key] != recipe[key] and self.writes:
                print(f"note: {key} differs from the checkpoint's", file=sys.stderr)
        self._restore(checkpoint)

    def _same_data(self, data: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was trained on these photographs, by the fingerprint of now or of pgsr 0.1."""
        older = {**self.provenance["data"], "fingerprint": self.trainer.batches.older_fingerprint}
        return data in (self.provenance["data"], older)

    def _restore(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        scale = progress.get("learning_rate_scale", 1.0)
        restore(self.trainer.state, checkpoint.tensors, progress["images_shown"], scale)
        self.stability.last = checkpoint.tensors.get("watch.stability")
        self.rollbacks, self.diverged_at = progress.get("rollbacks", 0), progress.get("diverged_at", 0)

    def stopped_by(self, cause: Diverged) -> PgsrError:
        """Returns what to tell of a run that breaks off."""
        files = files_of(self.folder)
        if not files:
            return PgsrError(f"{cause}, before the first checkpoint: lower the learning rate and begin again")
        return PgsrError(
            f"{cause}: the last good checkpoint is {files[-1]}; "
            "lower the learning rate and --resume, or add --on-nan rollback"
        )

    def roll_back(self, cause: Diverged) -> str:
        """Puts the newest checkpoint's state back with half its learning rate, and writes that down: in the
        checkpoint itself too, so that a run killed now goes on the same way. Returns what to tell.

        Raises PgsrError if that was tried often enough.
        """
        diverged_at = self.trainer.state.images_shown
        checkpoint = load(newest(self.folder))
        self._restore(checkpoint)
        if self.rollbacks >= ROLLBACKS:
            raise PgsrError(f"{cause}, and {ROLLBACKS} rollbacks did not get past it: change the recipe")
        state = self.trainer.state
        state.learning_rate_scale /= 2.0
        self.rollbacks, self.diverged_at = self.rollbacks + 1, max(self.diverged_at, diverged_at)
        self._written(lambda: self._log_rollback(cause))
        self.write_checkpoint()
        scale = state.learning_rate_scale
        return f"{cause}: back to {state.images_shown} images, with {scale:g} of the learning rate"

    def _log_rollback(self, cause: Diverged) -> None:
        state = self.trainer.state
        self._forget_later()
        assert self.events is not None
        self.events.restart(state.images_shown + 1)
        self._append(
            {
                "images_shown": state.images_shown,
                "rollback": cause.what,
                "diverged_at": cause.stage.images_shown,
                "learning_rate_scale": state.learning_rate_scale,
            }
        )


def provenance(trainer: Trainer) -> dict[str, Any]:
    """Returns what made these weights: no path and no name of this machine."""
    batches = trainer.batches
    critics = {c.name or "discriminator": c.network.frozen_digest for c in trainer.state.critics}
    frozen = {name: digest for name, digest in critics.items() if digest}
    frozen |= content_provenance(trainer.recipe.objective)
    return {
        "version": __version__,
        "torch": str(torch.__version__),
        "data": {"fingerprint": batches.fingerprint, "pictures": batches.count},
        **({"frozen weights": frozen} if frozen else {}),
    }


def check_progress(path: Path, checkpoint: Checkpoint) -> None:
    """Raises PgsrError unless a checkpoint says how far it is and on what it was trained."""
    progress, data = checkpoint.progress, checkpoint.provenance.get("data")
    counts = [progress.get("images_shown"), progress.get("rollbacks", 0), progress.get("diverged_at", 0)]
    scale = progress.get("learning_rate_scale", 1.0)
    if not (
        all(type(count) is int and 0 <= count < 2**53 for count in counts)
        and type(scale) in (int, float)
        and 0 < scale <= 1
        and isinstance(data, dict)
        and isinstance(data.get("fingerprint"), str)
        and isinstance(checkpoint.provenance.get("frozen weights", {}), dict)
    ):
        raise PgsrError(f"{path} does not say how far it was trained, or on what: use another checkpoint")


def check_frozen_weights(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises PgsrError if a feature network is another file than the checkpoint was trained with."""
    trained_with = before.get("frozen weights", {})
    for name, digest in now.get("frozen weights", {}).items():
        if trained_with.get(name, digest) != digest:
            raise PgsrError(
                f"{path} was trained with other frozen weights of {name} (sha256 {trained_with[name][:16]}, "
                f"here {digest[:16]}): install the same file, or begin again"
            )
