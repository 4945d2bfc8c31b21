"""The schedule of progressive growing (paper 2, section A.1) as a pure function of images shown.

The first resolution trains alone; every further one fades in, then trains on:
stable 4, fade 8, stable 8, fade 16, ... Phases are rounded up to whole steps.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from pgsr.errors import PgsrError

from .tables import Override, ScheduleConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the networks do not change shape."""

    resolution: int
    fading: bool
    batch: int
    start: int  # images shown before it
    images: int  # images shown in it
    steps_before: int  # steps before it
    resolution_start: int  # images shown before its resolution came in

    @property
    def end(self) -> int:
        return self.start + self.images

    @property
    def name(self) -> str:
        return f"{'fade' if self.fading else 'stable'} {self.resolution}"


@dataclass(frozen=True)
class Stage:
    """Where training stands."""

    phase: Phase
    images_shown: int
    step: int  # steps made so far
    alpha: float  # 0 = the old resolution, 1 = the new one

    @property
    def resolution(self) -> int:
        return self.phase.resolution

    @property
    def batch(self) -> int:
        return self.phase.batch

    @property
    def images_at_resolution(self) -> int:
        """Images shown since this resolution came in."""
        return self.images_shown - self.phase.resolution_start

    @property
    def begins_phase(self) -> bool:
        return self.images_shown == self.phase.start


@dataclass(frozen=True)
class Schedule:
    """All phases in order; `at` is the whole interface of the loop."""

    phases: tuple[Phase, ...]
    images_per_step: int  # of one phase's batch: critic_steps

    @property
    def total_images(self) -> int:
        return self.phases[-1].end

    def steps(self, phase: Phase) -> int:
        return phase.images // (phase.batch * self.images_per_step)

    def at(self, images_shown: int) -> Stage:
        """The stage of the step that begins with `images_shown` images shown.

        alpha rises with every image: the k-th step of a fade of n images shows the networks
        alpha = (images shown in the fade, this step's included) / n, so a fade's last step has 1.
        """
        starts = [phase.start for phase in self.phases]
        phase = self.phases[bisect.bisect_right(starts, images_shown) - 1]
        within = images_shown - phase.start
        shown_a_step = phase.batch * self.images_per_step
        alpha = min(1.0, (within + shown_a_step) / phase.images) if phase.fading else 1.0
        step = phase.steps_before + within // shown_a_step
        return Stage(phase=phase, images_shown=images_shown, step=step, alpha=alpha)


def build(config: ScheduleConfig, critic_steps: int = 1, pictures: int | None = None) -> Schedule:
    """The schedule that a recipe describes, on a data set of so many pictures.

    Raises PgsrError if it shows no images, or counts epochs of a set whose size is not known.
    """
    default_fade = _images("fade", config.fade_images, config.fade_epochs, pictures)
    default_stable = _images("stable", config.stable_images, config.stable_epochs, pictures)
    phases: list[Phase] = []
    for resolution in config.resolutions:
        own = config.at.get(str(resolution), Override())
        batch = own.batch or config.batch
        fade = _images("fade", own.fade_images, own.fade_epochs, pictures, default_fade)
        stable = _images("stable", own.stable_images, own.stable_epochs, pictures, default_stable)
        if phases:
            _append(phases, resolution, True, batch, fade, critic_steps)
        _append(phases, resolution, False, batch, stable, critic_steps)
    if not phases:
        raise PgsrError("the schedule shows no images: fade_images and stable_images are 0 everywhere")
    return Schedule(phases=tuple(phases), images_per_step=critic_steps)


def _images(
    name: str, images: int | None, epochs: float | None, pictures: int | None, default: int = 0
) -> int:
    """Returns the images of a phase: by epochs if they are given, else by images, else the default."""
    if not epochs:
        return default if images is None else images
    if pictures is None:
        raise PgsrError(f"schedule.{name}_epochs counts passes over the data: name it with --data")
    return round(epochs * pictures)


def _append(
    phases: list[Phase], resolution: int, fading: bool, batch: int, images: int, critic_steps: int
) -> None:
    shown_a_step = batch * critic_steps
    steps = -(-images // shown_a_step)
    if steps == 0:
        return
    start, steps_before, came_in = 0, 0, 0
    if phases:
        last = phases[-1]
        start = last.end
        steps_before = last.steps_before + last.images // (last.batch * critic_steps)
        came_in = last.resolution_start if last.resolution == resolution else start
    phases.append(Phase(resolution, fading, batch, start, steps * shown_a_step, steps_before, came_in))
