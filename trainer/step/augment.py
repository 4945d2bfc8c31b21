"""Augmentation of what critics see, so that few photographs train a critic without being learnt by heart.

Real and generated images go through the same random transforms before every critic. `diffaugment` (Zhao et
al. 2020) always applies them; `ada` (Karras et al. 2020) applies each with a probability p that follows how
sure the critic is of photographs, r = E[sign D(x)]: above the target p rises, below it falls.
Every number is a function of (seed, purpose, images shown).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.errors import PgsrError, check_choice

SHIFT = 1 / 8  # of a side, either way, by which an image is moved (Zhao et al. 2020)
CUTOUT = 1 / 2  # of a side: what a square of grey covers
SMOOTHING = 0.99  # of r from step to step: about the last hundred batches count

Uniforms = NDArray[np.float64]  # [N, k] in [0, 1)


def adjust_color(images: Tensor, u: Uniforms) -> Tensor:
    """Brightness, saturation and contrast of each image by three numbers: [N, C, H, W] -> [N, C, H, W]."""
    brightness, saturation, contrast = (
        torch.from_numpy(column.copy()).to(images).view(-1, 1, 1, 1) for column in u.T
    )
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2.0 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, u: Uniforms) -> Tensor:
    """Each image moved by whole pixels along both axes, zeros moving in: [N, C, H, W] -> [N, C, H, W]."""
    side = images.shape[-1]
    most = int(side * SHIFT + 0.5)
    starts = (u * (2 * most + 1)).astype(int)
    padded = F.pad(images, (most, most, most, most))
    parts = [
        x[:, top : top + side, left : left + side] for x, (top, left) in zip(padded, starts, strict=True)
    ]
    return torch.stack(parts)


def cut_out(images: Tensor, u: Uniforms) -> Tensor:
    """Each image with a square of zeros somewhere, partly beyond its border: [N, C, H, W] -> [N, C, H, W]."""
    side = images.shape[-1]
    size = int(side * CUTOUT + 0.5)
    mask = np.ones((len(images), 1, side, side), dtype=np.float32)
    for one, (y, x) in zip(mask, u, strict=True):
        top, left = (int(v * (side + 1 - size % 2)) - size // 2 for v in (y, x))
        one[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0.0
    return images * torch.from_numpy(mask).to(images)


@dataclass(frozen=True)
class Transform:
    """A change of images and how many uniform numbers an image it takes."""

    apply: Callable[[Tensor, Uniforms], Tensor]
    numbers: int


TRANSFORMS: dict[str, Transform] = {
    "color": Transform(adjust_color, 3),
    "translation": Transform(translate, 2),
    "cutout": Transform(cut_out, 2),
}


@dataclass(frozen=True)
class AugmentConfig:
    """The [augment] table of a recipe."""

    kind: str = "none"  # "diffaugment" or "ada"
    policy: str = "color,translation,cutout"  # names in TRANSFORMS, in the order they are applied
    target: float = 0.6  # of r, for ada (Karras et al. 2020, section 3.1)
    adjust_images: int = 500_000  # in which p can go from 0 to 1, for ada

    def __post_init__(self) -> None:
        check_choice("augment.kind", self.kind, ("none", "diffaugment", "ada"))
        for name in self.transforms:
            check_choice("augment.policy", name, TRANSFORMS)
        if not 0 <= self.target <= 1:
            raise PgsrError(f"augment.target is {self.target}, but must be from 0 to 1")
        if self.adjust_images < 1:
            raise PgsrError(f"augment.adjust_images is {self.adjust_images}, but must be at least 1")

    @property
    def transforms(self) -> list[str]:
        return [name.strip() for name in self.policy.split(",") if name.strip()]

    def initial_state(self) -> dict[str, float]:
        """Returns what is carried from step to step: the probability, and the running r for ada."""
        return {"probability": 0.0, "sign": 0.0} if self.kind == "ada" else {}

    def next_state(self, state: dict[str, Tensor], sign: Tensor, batch: int) -> dict[str, Tensor]:
        """The state after a step whose real scores had the mean sign `sign` (Karras et al. 2020, 3.1)."""
        if self.kind != "ada":
            return {}
        running = SMOOTHING * state["sign"] + (1.0 - SMOOTHING) * sign
        step = (running - self.target).sign() * (batch / self.adjust_images)
        return {"probability": (state["probability"] + step).clamp(0.0, 1.0), "sign": running}


def augment(
    images: Tensor,
    config: AugmentConfig,
    state: dict[str, Tensor],
    seed: int,
    purpose: str,  # of pgsr.draws
    positions: Sequence[int],  # images shown before each
) -> Tensor:
    """The images as critics see them: [N, C, H, W] -> [N, C, H, W], differentiable once."""
    if config.kind == "none":
        return images
    transforms = [TRANSFORMS[name] for name in config.transforms]
    u = draws.uniform_rows(seed, purpose, positions, sum(1 + t.numbers for t in transforms))
    first = 0
    for transform in transforms:
        gate, own = u[:, first], u[:, first + 1 : first + 1 + transform.numbers]
        first += 1 + transform.numbers
        changed = transform.apply(images, own)
        if config.kind == "ada":
            applied = torch.from_numpy(gate.copy()).to(images) < state["probability"].to(images)
            changed = torch.where(applied.view(-1, 1, 1, 1), changed, images)
        images = changed
    return images
