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
from ..curves.convolutions import Settings as ConvolutionsSettings
from ..curves.growing import Settings as GrowingSettings
from ..curves.quality import Settings as QualityCurvesSettings
from ..layers.settings import Settings as LayerSettings
from ..opponent.measure import END_TO_END
from ..opponent.measure import Settings as OpponentSettings
from ..quality.feature_network import LITE0, wished
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
    opponent: OpponentSettings
    # Fields of the settings of commands that train: those know their data when they are made.
    convolutions: Mapping[str, Any]
    growing: Mapping[str, Any]
    quality_curves: Mapping[str, Any]


FEATURE_SIDE = 64  # pixels that the small images of quality-curves are enlarged to for features
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
        OpponentSettings(TINY_WIDTHS, precisions=("fp32",), images=2, batch=2, rounds=1),
        {"resolution": 8, "images": 16, "maps": 4},
        {
            **{"resolution": 16, "images": 1000, "maps": 16, "evaluations": 2, "swd_images": 16},
            **{"final": 64, "final_maps": 16},
        },
        {"resolution": 16, "images": 320, "maps": 4, "seeds": 2, "looks": 4, "scored": 16, "rounds": 1},
    ),
    "quick": Length(
        QUICK,
        LayerSettings(batch=2, runs=3, rounds=3),
        {"large_batch": 2, "images": 4, "shipped_images": 64, "rounds": 3},
        TrainingSettings((4, 16), 16, {}, 3, ("lazy-penalty",), call_seconds=0.5),
        RewriteSettings((64,), (64,), 4, 3, each=True, int8=False),
        ResampleSettings(pictures=4, rounds=5),
        1024,
        OpponentSettings(images=8, rounds=3, stages=(END_TO_END,)),
        {"images": 80, "maps": 64},
        {
            **{"images": 5000, "maps": 16, "rates": 10.0, "evaluations": 8, "swd_images": 256},
            **{"final": 1024, "final_maps": 512},
        },
        {"images": 30_000, "looks": 6, "scored": 1024},
    ),
    "full": Length(
        ConvSettings(),
        LayerSettings(),
        {},
        TrainingSettings((4, 8, 16, 32, 64), 16, {64: 4}, 5, ("plain-malloc", "lazy-penalty")),
        RewriteSettings(),
        ResampleSettings(),
        16384,
        OpponentSettings(),
        {"images": 160},
        {"rates": 10.0},
        {},
    ),
}


@dataclass(frozen=True)
class Settings:
    """The command line. Raises PgsrError for values out of range."""

    out: Path
    length: str = "full"  # of LENGTHS
    parts: tuple[str, ...] = ()  # none: all
    data: Path | None = None  # photographs, for the parts that train or judge
    held_out: Path | None = None  # others, that quality-curves scores against
    features: Path = Path("auto")  # the network that quality-curves judges by, as pgsr-bench quality takes it
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
            opponent=replace(length.opponent, threads=self.threads),
        )

    def throughput(self) -> ThroughputSettings:
        """Raises PgsrError as pgsr-bench throughput does."""
        return ThroughputSettings(threads=self.threads, **self.amounts.throughput)

    def convolutions(self, folder: Path) -> ConvolutionsSettings:
        """Of runs in a folder. Raises PgsrError as pgsr-bench convolutions does."""
        return ConvolutionsSettings(self._photographs, folder, device="cpu", **self.amounts.convolutions)

    def growing(self, folder: Path) -> GrowingSettings:
        """Likewise."""
        return GrowingSettings(self._photographs, folder, device="cpu", **self.amounts.growing)

    def quality_curves(self, folder: Path) -> QualityCurvesSettings:
        """Likewise; unless told by lite0's features, of small images, where they are installed."""
        side = FEATURE_SIDE if self.features in (Path("auto"), LITE0) else None
        features = wished(self.features, side, "bicubic", "auto")
        return QualityCurvesSettings(
            self._photographs,
            folder,
            self.held_out,
            features,
            device="cpu",
            **self.amounts.quality_curves,
        )

    @property
    def _photographs(self) -> Path:
        assert self.data is not None  # build.wanted has looked
        return self.data

    @property
    def words(self) -> str:
        """The options that decide what is measured, for commands."""
        quick = " --quick" if self.length == "quick" else ""
        data = "" if self.data is None else f" --data {self.data.name}"
        held_out = "" if self.held_out is None else f" --held-out {self.held_out.name}"
        features = "" if str(self.features) == "auto" else f" --features {self.features.name}"
        return f"{quick}{data}{held_out}{features} --threads {self.threads}"
