"""The outer loop: steps, and what is due between them."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import FrameType

from torch import Tensor
from tqdm import tqdm

from .run_folder import evaluate
from .run_folder.run import Run
from .run_folder.watch import Diverged, Due, averaged, check_losses, due_after
from .step.parallel import named_failures
from .step.schedule import Stage

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
# Speed, and the bar.


class Progress:
    """Images a second over the last twenty times it was asked, how long training has taken, and the bar on
    stderr."""

    def __init__(self, run: Run) -> None:
        self.trainer = run.trainer
        self.began = time.monotonic() - run.seconds_before()  # as if the run had never been stopped
        self.bar = tqdm(
            total=self.trainer.schedule.total_images,
            unit="img",
            file=sys.stderr,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,  # not a log of a thousand bars
            disable=not run.writes,
        )
        self.restart()

    def restart(self) -> None:
        """Begins anew from the images shown now."""
        images_shown = self.trainer.state.images_shown
        self.recent: deque[tuple[float, int]] = deque([(time.monotonic(), images_shown)], maxlen=20)
        self.bar.initial = self.bar.n = self.bar.last_print_n = images_shown
        self.bar.refresh()

    def images_per_second(self) -> float:
        self.recent.append((time.monotonic(), self.trainer.state.images_shown))
        (began, first), (now, last) = self.recent[0], self.recent[-1]
        return round((last - first) / (now - began), 2)

    def seconds(self) -> float:
        """Of training up to now, all sessions of the run together; looks at quality do not count."""
        return round(time.monotonic() - self.began, 3)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time spent inside the block out of the training's speed and clock."""
        began = time.monotonic()
        yield
        spent = time.monotonic() - began
        self.began += spent
        self.recent = deque([(then + spent, images_shown) for then, images_shown in self.recent], maxlen=20)

    def advance(self) -> None:
        self.bar.update(self.trainer.state.images_shown - self.bar.n)


# ----------------------------------------------------------------------------
# The loop.


def train(run: Run, stop: StopRequest, on_nan: str = "stop") -> bool:
    """Trains until the schedule ends (True) or a stop is due (False); both leave a checkpoint.

    Raises Diverged where training breaks down, unless `on_nan` is "rollback": then it goes back to the
    last checkpoint and on with half the learning rate. Raises PgsrError if the folder cannot be written or
    another process of the run is gone.
    """
    evaluate.check(run.trainer)
    with run.writing():
        progress = Progress(run)
        if on_nan == "rollback" and not run.trainer.state.images_shown:
            run.write_checkpoint()
        with progress.bar:
            while True:
                try:
                    return _steps(run, stop, progress)
                except Diverged as cause:
                    if on_nan != "rollback":
                        raise run.stopped_by(cause) from None
                    message = run.roll_back(cause)
                    progress.restart()
                    if run.writes:
                        progress.bar.write(f"rollback: {message}", file=sys.stderr)


def _steps(run: Run, stop: StopRequest, progress: Progress) -> bool:
    trainer = run.trainer
    terms: dict[str, Tensor] = {}
    due = Due()
    total = trainer.schedule.total_images
    while trainer.state.images_shown < total and not trainer.ranks.any(stop.due):
        stage = trainer.stage()
        due = due_after(trainer, stage)
        with named_failures():
            terms = trainer.step(watch=due.log)
        progress.advance()
        _write_what_is_due(run, due, stage, terms, progress)
    if terms and not due.checkpoint:
        _write_what_is_due(run, Due(checkpoint=True), stage, terms, progress)
    return trainer.state.images_shown >= total


def _write_what_is_due(
    run: Run, due: Due, stage: Stage, terms: Mapping[str, Tensor], progress: Progress
) -> None:
    """Losses are looked at only here, since that waits for the device, and always before a checkpoint."""
    trainer = run.trainer
    if due.log or due.checkpoint:
        values = averaged(trainer, terms, stage)
        check_losses(values, stage, trainer.recipe.run.explosion)
    if due.log:
        if due.stability and run.writes:
            values |= run.stability.measure(trainer, stage)
        if due.evaluation:  # by every rank alike: one alone would keep the others waiting too long
            with progress.paused():
                values |= evaluate.measure(trainer)
        pace = {"images_per_second": progress.images_per_second(), "seconds": progress.seconds()}
        run.log(stage, {**pace, **values})
        progress.bar.set_postfix_str(f"{stage.phase.name} alpha {stage.alpha:.2f}")
    if due.samples:
        run.write_samples()
    if due.checkpoint:
        run.write_checkpoint()
