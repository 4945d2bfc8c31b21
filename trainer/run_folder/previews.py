"""The sample sheet of a generator that makes all scales at once (paper 4, figures 1 and 6)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pgsr import images

from ..step.trainer import Trainer


def scale_sheet(trainer: Trainer, columns: int = 8) -> NDArray[np.uint8] | None:
    """One column a latent, one row a scale, the largest above, all enlarged by replication: [H, W, 3].

    None for a generator of one scale.
    """
    generator = trainer.state.generator_ema
    if not generator.multi_scale:
        return None
    stage = trainer.schedule.at(max(0, trainer.state.images_shown - 1))
    with torch.no_grad():
        scales = generator.training_at(stage.resolution, stage.alpha)(trainer.batches.preview(columns))
    rows = [F.interpolate(scale, size=scales[0].shape[-2:], mode="nearest") for scale in scales]
    pixels = images.to_uint8(torch.cat(rows).float().cpu().numpy())
    return images.sheet(pixels, columns=len(scales[0]))
