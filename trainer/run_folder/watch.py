"""What is watched while training: losses averaged over the ranks, divergence, and how much the fixed
samples change from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.networks.pixels import to_pixels

from ..metrics.swd import COARSEST
from ..step.schedule import Stage
from ..step.trainer import Trainer

STABILITY_SAMPLES = 36  # paper 4, Figure 2


# ----------------------------------------------------------------------------
# When.


@dataclass(frozen=True)
class Due:
    """What a step ends with."""

    log: bool = False
    samples: bool = False
    checkpoint: bool = False
    stability: bool = False
    evaluation: bool = False


def due_after(trainer: Trainer, stage: Stage) -> Due:
    """Returns what is due after the step that begins at a stage."""
    run = trainer.recipe.run
    after = stage.images_shown + stage.batch * trainer.schedule.images_per_step
    ended = after == stage.phase.end

    def crossed(every: int) -> bool:
        return after // every > stage.images_shown // every

    stability = not trainer.batches.paired and crossed(run.stability_images or trainer.batches.count)
    evaluation = bool(
        run.evaluate_images and stage.resolution >= COARSEST and (crossed(run.evaluate_images) or ended)
    )
    return Due(
        log=crossed(run.log_images) or ended or stability or evaluation,
        samples=crossed(run.sample_images) or ended,
        checkpoint=crossed(run.checkpoint_images) or ended or evaluation,  # the best is to be kept
        stability=stability,
        evaluation=evaluation,
    )


# ----------------------------------------------------------------------------
# Losses.


def averaged(trainer: Trainer, terms: Mapping[str, Tensor], stage: Stage) -> dict[str, float]:
    """The terms of a step as numbers, "loss/..." and "watch/...", over all ranks' shares of the batch;
    every rank must ask."""
    ranks = trainer.ranks
    weight = len(ranks.share(0, stage.batch)) / stage.batch
    stacked = torch.stack([term.double().reshape(()) for term in terms.values()])
    names = [name if "/" in name else f"loss/{name}" for name in terms]
    return dict(zip(names, ranks.sum(stacked * weight).tolist(), strict=True))


class Diverged(PgsrError):
    """Training has left the numbers that it can come back from."""

    def __init__(self, what: str, stage: Stage) -> None:
        super().__init__(
            f"{what} at step {stage.step}, {stage.phase.name} ({stage.images_shown} images shown)"
        )
        self.what, self.stage = what, stage


def check_losses(values: Mapping[str, float], stage: Stage, explosion: float) -> None:
    """Raises Diverged for a loss that is not finite or, if `explosion` is not 0, larger than that."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"the {_in_words(name)} is {value}", stage)
        if explosion and name.startswith("loss/") and abs(value) > explosion:
            raise Diverged(
                f"the {_in_words(name)} is {value:.3g}, beyond run.explosion ({explosion:g})", stage
            )


def _in_words(name: str) -> str:
    sort, _, term = name.partition("/")
    return f"{term} loss" if sort == "loss" else term


def check_tensors(trainer: Trainer, tensors: Mapping[str, Tensor], stage: Stage) -> None:
    """Raises Diverged on every rank if a number of any rank's state is not finite."""
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if trainer.ranks.any(bool(broken)):
        raise Diverged(f"{broken[0] if broken else 'the state of another process'} is not finite", stage)


# ----------------------------------------------------------------------------
# Stability.


class Stability:
    """How far the samples of fixed latents move from one epoch to the next, at each resolution (paper 4,
    Figure 2): the mean squared change of a pixel in [-1, 1], and the L2 distance of the two grids as the
    paper draws it, which grows with the number of pixels.

    The samples are the training generator's, as the figure's are: the average would hide what is
    watched. They are kept as uint8, in checkpoints too, so that a resumed run goes on exactly.
    """

    def __init__(self) -> None:
        self.last: Tensor | None = None  # uint8 [36, 3, H, W]

    def measure(self, trainer: Trainer, stage: Stage) -> dict[str, float]:
        """Measures how far the samples moved; nothing at first and when the resolution is new."""
        before, self.last = self.last, _samples(trainer, stage)
        if before is None or before.shape != self.last.shape:
            return {}
        change = (self.last.float() - before.to(self.last.device).float()) / 127.5
        return {
            f"stability/{stage.resolution}": change.square().mean().item(),
            f"stability L2/{stage.resolution}": change.norm().item(),
        }


def _samples(trainer: Trainer, stage: Stage) -> Tensor:
    generate = trainer.state.generator.at(stage.resolution, stage.alpha)
    with torch.no_grad():
        parts = [generate(part) for part in trainer.batches.preview(STABILITY_SAMPLES).split(12)]
    return to_pixels(torch.cat(parts)).permute(0, 3, 1, 2)  # [36, 3, H, W], as checkpoints hold it
