"""Quality while training: the averaged generator's sliced Wasserstein distance from the photographs, every
run.evaluate_images images, and the checkpoint at which it was least.

Everything drawn here is a function of the seed under a purpose of its own, and nothing of the trainer's state
is touched: weights are those of a run that never looked. What is best is read from metrics.jsonl, so a
resumed run needs no memory of it either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgsr import draws, images
from pgsr.errors import PgsrError
from pgsr.files import replacing

from ..metrics.swd import distance_between, pyramid_levels
from ..step.batches import LatentBatches
from ..step.trainer import Trainer

AVERAGE = "swd/average"
BEST = "best.safetensors"  # in the run's folder, a link to a checkpoint
BATCH = 16
CONDITIONS = ("resolution", "alpha", "swd_images")  # of a distance, in a line of metrics.jsonl
NOISE = 2**63  # the draw that seeds what networks draw inside; those below are latents


def check(trainer: Trainer) -> None:
    """Raises PgsrError if the recipe asks for what cannot be measured."""
    if not trainer.recipe.run.evaluate_images:
        return
    if trainer.batches.paired:
        raise PgsrError(
            "run.evaluate_images (--eval-every) is for generators that begin with latents; an upscaler is "
            "measured by pgsr-bench quality once it is exported"
        )
    pyramid_levels(trainer.recipe.schedule.resolution)


def measure(trainer: Trainer) -> dict[str, float]:
    """SWD x 1000 of each level, their average, and of how many images, for metrics.jsonl.

    The generator is taken as it is grown now, the photographs at its resolution and not faded.
    """
    stage = trainer.schedule.at(max(0, trainer.state.images_shown - 1))
    count = min(trainer.recipe.run.swd_images, trainer.batches.count)
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(draws.raw(trainer.recipe.seed, "evaluation", NOISE, 1)[0]) & (2**63 - 1))
        distance = distance_between(
            _reals(trainer, count),
            generated(trainer, count),
            stage.resolution,
            trainer.recipe.seed,
            trainer.device,
        )
    levels = {f"swd/{side}": value for side, value in distance.levels.items()}
    return {**levels, AVERAGE: distance.average, "swd_images": count}


Pixels = NDArray[np.uint8]  # [N, R, R, 3]


def _latent_batches(trainer: Trainer) -> LatentBatches:
    """The trainer's batches, which `check` has found to begin with latents."""
    assert isinstance(trainer.batches, LatentBatches)
    return trainer.batches


def _reals(trainer: Trainer, count: int) -> Iterator[Pixels]:
    """The first photographs of the first epoch, as they are trained on."""
    stage = replace(trainer.schedule.at(max(0, trainer.state.images_shown - 1)), alpha=1.0)
    for start in range(0, count, BATCH):
        reals = _latent_batches(trainer).reals(stage, range(start, min(start + BATCH, count)))
        yield images.to_uint8(reals.float().cpu().numpy())


def generated(trainer: Trainer, count: int) -> Iterator[Pixels]:
    """Images of the averaged generator as it is grown now, of latents (and labels) for looking alone.

    Raises PgsrError if the generator does not begin with latents.
    """
    if trainer.batches.paired:
        raise PgsrError(f"{trainer.recipe.name} makes no images from latents, so there is no set to measure")
    stage = trainer.schedule.at(max(0, trainer.state.images_shown - 1))
    generate = trainer.state.generator_ema.at(stage.resolution, stage.alpha)
    for start in range(0, count, BATCH):
        inputs = _latent_batches(trainer).evaluation(range(start, min(start + BATCH, count)))
        with torch.no_grad():
            yield images.to_uint8(generate(inputs).float().cpu().numpy())


# ----------------------------------------------------------------------------
# The best checkpoint.


def best(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line of metrics.jsonl with the least average distance, of those that compare with the last one: of
    the same resolution, fading in or not, and number of images. None if nothing was measured."""
    lines = [line for line in records if {AVERAGE, *CONDITIONS} <= line.keys()]
    alike = [line for line in lines if _conditions(line) == _conditions(lines[-1])]
    return min(alike, key=lambda line: line[AVERAGE], default=None)


def _conditions(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["resolution"], line["alpha"] >= 1.0, line["swd_images"]


def point_at(run: Path, images_shown: int | None) -> None:
    """Lets RUN/best.safetensors be the checkpoint of that many images, or none where there is none of it."""
    link, target = run / BEST, Path("checkpoints") / f"{images_shown or 0:09d}.safetensors"
    if link.exists() and not link.is_symlink():
        return  # the user's own
    if images_shown is None or not (run / target).exists():
        link.unlink(missing_ok=True)
    elif not link.is_symlink() or os.readlink(link) != str(target):
        with replacing(link) as temporary:
            temporary.symlink_to(target)
