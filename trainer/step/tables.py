"""The tables of a recipe: frozen dataclasses, each of which refuses what it cannot mean.

Raises PgsrError at construction, naming the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from pgsr.errors import PgsrError, check_choice
from pgsr.networks import DISCRIMINATORS, resolved

from ..data.cache import FILTERS as REDUCERS
from ..data.cache import REDUCED_BY
from .degradation import FILTERS, STORED
from .objectives import OBJECTIVES, ObjectiveConfig
from .precision import PRECISIONS
from .residency import WISHES

LARGEST = 2**62  # a whole number; only the seed may be larger
LARGEST_SIDE = 2**13  # pixels of a photograph that is trained on
MOST_BLUR = 16  # pixels of a super-resolution input
MOST_NOISE = 2  # from black to white
MOST_QUALITY = 95  # of JPEG: above it Pillow's files grow and pictures hardly change
MOST_AT_ONCE = 2**16  # images that networks look at in one step or sheet


@dataclass(frozen=True)
class Override:
    """What one resolution does differently; absent values are the schedule's own."""

    fade_images: int | None = None
    stable_images: int | None = None
    fade_epochs: float | None = None
    stable_epochs: float | None = None
    batch: int | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """How many images are shown where (paper 2, section A.1). See pgsr.trainer.step.schedule."""

    resolution: int  # of the finished network; crop size for super-resolution
    start_resolution: int = 4  # equal to `resolution`: not progressive
    fade_images: int = 800_000  # real images shown while a resolution fades in
    stable_images: int = 800_000  # and after that
    fade_epochs: float = 0.0  # if not 0, takes the place of fade_images: passes over the data
    stable_epochs: float = 0.0
    batch: int = 16
    at: Mapping[str, Override] = field(default_factory=dict)  # by resolution

    def __post_init__(self) -> None:
        if self.start_resolution > self.resolution:
            raise PgsrError("schedule.start_resolution is above schedule.resolution")
        if self.start_resolution < 1 or self.resolutions[-1] != self.resolution:
            raise PgsrError(
                f"schedule.start_resolution is {self.start_resolution}, "
                f"which does not double to {self.resolution}"
            )
        reachable = [str(self.start_resolution << k) for k in range(9)]  # also beyond `resolution`
        for name in self.at:
            if name not in reachable:
                raise PgsrError(f"schedule.at.{name}: not one of {', '.join(reachable)}")
        for path, part in {"schedule": self, **{f"schedule.at.{k}": v for k, v in self.at.items()}}.items():
            for name, least, most in (
                ("fade_images", 0, LARGEST),
                ("stable_images", 0, LARGEST),
                ("batch", 1, MOST_AT_ONCE),
            ):
                value = getattr(part, name)
                if value is not None and not least <= value <= most:
                    bound = f"at least {least}" if value < least else f"at most {most}"
                    raise PgsrError(f"{path}.{name} is {value}, but must be {bound}")
            for name in ("fade_epochs", "stable_epochs"):
                value = getattr(part, name)
                if value is not None and not 0 <= value < float("inf"):
                    raise PgsrError(f"{path}.{name} is {value}, but must be at least 0")

    @property
    def counts_epochs(self) -> bool:
        """Returns whether only the data tell how long it is."""
        own = any(part.fade_epochs or part.stable_epochs for part in self.at.values())
        return bool(own or self.fade_epochs or self.stable_epochs)

    @property
    def resolutions(self) -> list[int]:
        """Returns what is trained, in order: every one twice the one before."""
        result = [self.start_resolution]
        while 2 * result[-1] <= self.resolution:
            result.append(2 * result[-1])
        return result


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam's settings (paper 2, section A.1: 0.001, 0, 0.99, 1e-8), or RMSprop's."""

    kind: str = "adam"  # or "rmsprop"
    learning_rate: float = 0.001
    beta1: float = 0.0  # Adam's alone
    beta2: float = 0.99  # of the mean of squares: Adam's beta 2, RMSprop's alpha
    epsilon: float = 1e-8
    learning_rate_from: Mapping[str, float] = field(default_factory=dict)  # by images shown
    reset_on_growth: bool = True  # forget the moments when a fade or a resolution begins
    cosine_from: int = 0  # images shown where the rate begins to fall by a half cosine
    cosine_to: int = 0  # and where it has fallen to cosine_floor of itself; 0: it does not fall
    cosine_floor: float = 0.05

    def __post_init__(self) -> None:
        check_choice("optimizer.kind", self.kind, ("adam", "rmsprop"))
        for name, beyond in (("learning_rate", inf), ("beta1", 1), ("beta2", 1), ("epsilon", inf)):
            if not 0 <= getattr(self, name) < beyond:
                raise PgsrError(
                    f"optimizer.{name} is {getattr(self, name)}, but must be at least 0 and below {beyond}"
                )
        for name in self.learning_rate_from:
            if not re.fullmatch("[0-9]{1,15}", name):
                raise PgsrError(f"optimizer.learning_rate_from.{name}: keys are numbers of images shown")
        if self.cosine_to and self.cosine_to <= self.cosine_from:
            raise PgsrError(
                f"optimizer.cosine_to is {self.cosine_to}, but must be above cosine_from ({self.cosine_from})"
            )


@dataclass(frozen=True)
class AveragingConfig:
    """The generator's exponential running average (paper 2, section A.1)."""

    decay: float = 0.999  # a step
    half_life_images: float = 0.0  # if not 0, replaces `decay` and holds at any batch size
    rampup: float = 0.0  # if not 0, no half-life above this share of the images shown at a resolution


@dataclass(frozen=True)
class DataConfig:
    """How photographs become training images."""

    mirror: bool = True
    resolution: int = 0  # side of the stored photographs; 0: the schedule's resolution
    width: int = 0  # of photographs that are higher than wide, whose height is `resolution`; 0: squares
    reduce: str = REDUCED_BY  # the filter by which larger ones are reduced to it (paper 1, Table 1)
    # Super-resolution: what makes inputs worse, each crop by shares of its own (degradation.py).
    filters: Sequence[str] = (STORED,)  # one of which reduces a crop
    blur: float = 0.0  # the most, as a Gaussian's standard deviation in pixels of the input
    noise: float = 0.0  # the most, as a standard deviation
    coarse_noise: float = 0.0  # the same, of blocks of 2 x 2
    jpeg: Sequence[int] = ()  # the least and the most quality of JPEG, last of all; empty: none
    generated: str = ""  # pictures of a generator, as large as the inputs: some crops are of them
    generated_share: float = 0.5  # of the crops
    box: int = 0  # if not 0, side of a random box of each photograph, reduced by averaging to what is trained
    held_out: int = 0  # so many photographs, the last ones, are not trained on
    stacked: bool = False  # each image is red of one picture, green of another, blue of a third

    def __post_init__(self) -> None:
        if not self.filters:
            raise PgsrError(f"data.filters is empty: name some of {', '.join(FILTERS)}")
        check_choice("data.reduce", self.reduce, REDUCERS)
        for name in self.filters:
            check_choice("data.filters", name, FILTERS)
        bounds = {
            **dict.fromkeys(("resolution", "width", "box"), LARGEST_SIDE),
            **{"held_out": LARGEST, "blur": MOST_BLUR},
            **dict.fromkeys(("noise", "coarse_noise"), MOST_NOISE),
            "generated_share": 1,
        }
        for name, most in bounds.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                bound = "at least 0" if value < 0 else f"at most {most}"
                raise PgsrError(f"data.{name} is {value}, but must be {bound}")
        if self.box and self.resolution and self.box > self.resolution:
            raise PgsrError(
                f"data.box is {self.box}, but photographs are {self.resolution} (data.resolution)"
            )
        if self.width and not self.box <= self.width < self.resolution:
            raise PgsrError(
                f"data.width is {self.width}, but must be at least data.box ({self.box}) and below "
                f"data.resolution ({self.resolution})"
            )
        if self.width and not self.box:
            raise PgsrError("data.width is for random boxes of photographs: set data.box as well")
        if self.jpeg and not (len(self.jpeg) == 2 and 1 <= self.jpeg[0] <= self.jpeg[1] <= MOST_QUALITY):
            raise PgsrError(
                f"data.jpeg is {list(self.jpeg)}, but must be the least and the most quality, from 1 to "
                f"{MOST_QUALITY}"
            )
        for name in ("generated", "jpeg", "stacked"):
            if getattr(self, name) and self.box:
                raise PgsrError(f"data.{name} and data.box exclude each other")


@dataclass(frozen=True)
class RunConfig:
    """How often what is written; all counted in real images shown."""

    log_images: int = 2_000
    sample_images: int = 20_000
    checkpoint_images: int = 20_000
    keep_checkpoints: int = 3  # beside the last of each phase
    sample_grid: int = 64  # fixed latents in a sample sheet
    stability_images: int = 0  # between two looks at how far fixed samples moved; 0: an epoch of the data
    evaluate_images: int = 0  # between two looks at the sliced Wasserstein distance; 0: none
    swd_images: int = 2_000  # of either set then, at most as many as there are photographs
    explosion: float = 1e6  # a loss beyond it has diverged; 0: none has. WGAN's scores reach thousands
    precision: str = "auto"  # a name in PRECISIONS; auto: bfloat16 where the device has it
    residency: str = "auto"  # of the photographs: "device", "host"; auto: on the GPU where they fit easily

    def __post_init__(self) -> None:
        check_choice("run.precision", self.precision, ("auto", *PRECISIONS))
        check_choice("run.residency", self.residency, WISHES)
        counts = ("log_images", "sample_images", "checkpoint_images", "keep_checkpoints", "sample_grid")
        for name in (*counts, "swd_images"):
            if getattr(self, name) < 1:
                raise PgsrError(f"run.{name} is {getattr(self, name)}, but must be at least 1")
        if self.sample_grid > MOST_AT_ONCE:
            raise PgsrError(f"run.sample_grid is {self.sample_grid}, but must be at most {MOST_AT_ONCE}")
        for name in ("stability_images", "evaluate_images", "explosion"):
            if not getattr(self, name) >= 0:
                raise PgsrError(f"run.{name} is {getattr(self, name)}, but must be at least 0")


@dataclass(frozen=True)
class CriticConfig:
    """A further critic beside the discriminator: an entry of [[critics]]."""

    network: Mapping[str, Any]  # {"kind": ..., options of that network}
    weight: float = 1.0  # of its term in the generator's loss
    from_resolution: int = 0  # the first that it looks at
    adversarial: str = "logistic"  # a name in OBJECTIVES
    r1: float = 0.0  # gamma of R1
    penalty_every: int = 1  # steps between penalties, each then as many times as strong

    def __post_init__(self) -> None:
        check_choice("critics.adversarial", self.adversarial, OBJECTIVES)
        object.__setattr__(self, "network", resolved(DISCRIMINATORS, self.network))

    def objective(self) -> ObjectiveConfig:
        """The critic's own objective, in the form that the discriminator's has."""
        return ObjectiveConfig(
            adversarial=self.adversarial,
            adversarial_weight=self.weight,
            r1=self.r1,
            penalty_every=self.penalty_every,
        )
