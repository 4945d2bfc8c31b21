"""What a report is made of: its parts, at one of three lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.machine import usable_cores

from ..conv.measure import QUICK
from ..conv.measure import Settings as ConvSettings
from ..layers.settings import Settings as LayerSettings
from ..resample.measure import Settings as ResampleSettings
from ..rewrites.measure import Settings as RewriteSettings
from ..throughput.settings import Settings as ThroughputSettings
from ..throughput.systems import Widths
from ..training.measure import Settings as TrainingSettings


@dataclass(frozen=True)
class Length:
    """How much each part measures."""

    conv: ConvSettings
    layers: LayerSettings  # of roofline, predicted and waterfall
    throughput: Mapping[str, Any]  # ThroughputSettings' fields: it looks at the device when it is made
    training: TrainingSettings
    rewrites: RewriteSettings
    resample: ResampleSettings
    quality_images: int


TINY_WIDTHS = Widths(8, 16, 64, 8, 2, 1, 8)

LENGTHS = {
    # For tests: everything once, at sizes that say nothing.
    "tiny": Length(
        ConvSettings((8, 16), (4, 8), rounds=2, call_seconds=1e-4, precisions=("fp32",)),
        LayerSettings(TINY_WIDTHS, 2, runs=1, rounds=2, precisions=("fp32",)),
        {"widths": TINY_WIDTHS, "batch": 2, "large_batch": 2, "images": 2, "shipped_images": 2, "rounds": 1},
        TrainingSettings((4,), 4, {}, 1, (), 8, 64, 8, call_seconds=0.01),
        RewriteSettings(
            (8,), (8,), 2, 1, each=True, int8=False, latent_size=8, feature_base=64, feature_max=8
        ),
        ResampleSettings(from_size=64, to_size=16, pictures=2, rounds=1),
        64,
    ),
    "quick": Length(
        QUICK,
        LayerSettings(batch=2, runs=3, rounds=3),
        {"large_batch": 2, "images": 4, "shipped_images": 64, "rounds": 3},
        TrainingSettings((4, 16), 16, {}, 3, ("lazy-penalty",), call_seconds=0.5),
        RewriteSettings((64,), (64,), 4, 3, each=True, int8=False),
        ResampleSettings(pictures=4, rounds=5),
        1024,
    ),
    "full": Length(
        ConvSettings(),
        LayerSettings(),
        {},
        TrainingSettings((4, 8, 16, 32, 64), 16, {64: 4}, 5, ("plain-malloc", "lazy-penalty")),
        RewriteSettings(),
        ResampleSettings(),
        16384,
    ),
}


@dataclass(frozen=True)
class Settings:
    """The command line. Raises PgsrError for values out of range."""

    out: Path
    length: str = "full"  # of LENGTHS
    parts: tuple[str, ...] = ()  # none: all
    data: Path | None = None  # photographs, for quality and resample
    threads: int = 0  # 0: one a usable core

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise PgsrError(f"--threads is {self.threads}, but must be at least 0")
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    @property
    def amounts(self) -> Length:
        """How much each part measures, on the wanted threads."""
        length = LENGTHS[self.length]
        return replace(
            length,
            conv=replace(length.conv, threads=self.threads),
            layers=replace(length.layers, threads=self.threads),
            training=replace(length.training, threads=self.threads),
            rewrites=replace(length.rewrites, threads=self.threads),
            resample=replace(length.resample, data=self.data),
        )

    def throughput(self) -> ThroughputSettings:
        """Raises PgsrError as pgsr-bench throughput does."""
        return ThroughputSettings(threads=self.threads, **self.amounts.throughput)

    @property
    def words(self) -> str:
        """The options that decide what is measured, for commands."""
        quick = " --quick" if self.length == "quick" else ""
        data = "" if self.data is None else f" --data {self.data.name}"
        return f"{quick}{data} --threads {self.threads}"
