"""Figure 4 of paper 2: what growing progressively does to training, against time.

    pgsr-bench growing --data faces.zip --out report

(a) and (b) are the sliced Wasserstein distance of each level over the clock, for the configuration of
Gulrajani et al. without growing (ladder-a) and with it (ladder-b), made smaller as `pgsr-bench ladder` does.
What is not grown yet is enlarged by replication, as the original code's generator does, so that every level
has a curve from the beginning. (c) is images over time up to 1024 x 1024, by steps that are timed here and,
beyond what fits, by their multiply-adds. Each run is a folder in OUT, which the same command goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.files import make_folder
from pgsr.machine import processor_name, usable_cores
from pgsr.networks.progan import resolutions_up_to
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.swd import distance_between
from pgsr.trainer.run_folder import evaluate
from pgsr.trainer.run_folder.estimate import estimate
from pgsr.trainer.run_folder.plot import curve_of, new_figure
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.schedule import Phase
from pgsr.trainer.step.schedule import build as build_schedule
from pgsr.trainer.step.trainer import Trainer

from ..harness.report import aligned, plain_page, png, times, write_report_files
from ..harness.runs import opened
from ..harness.stretches import train_looking
from ..ladder import measure as ladder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Callable[[str], None]

RUNS = {"a": "(a) not progressive", "b": "(b) progressive"}
QUICK = {
    "resolution": 16,
    "images": 2560,
    "maps": 16,
    "final": 64,
    "final_maps": 16,
    "swd_images": 64,
    "evaluations": 4,
}
HOUR = 3600.0
NOT_LEVELS = ("images_shown", "seconds", "swd/average")  # of a look
PAPER_IMAGES, PAPER_SPEEDUP = 6_400_000, 5.4  # section 6.2: 96 hours against about 520
ASSUMPTION = (
    "(c): an image costs, at each resolution, what a step there takes over its batch; a fade costs what its "
    "resolution does; without growing every image costs what it does at the last resolution"
)


@dataclass(frozen=True)
class Settings:
    """What is trained. Raises PgsrError for values out of range."""

    data: Path
    out: Path
    resolution: int = 32  # of (a) and (b), at most the paper's 128
    images: int = 100_000  # shown to each; 10M there
    maps: int = 64  # at most; 512 there
    rates: float = 1.0  # times the recipes' learning rates
    evaluations: int = 20  # of the distance, in each run
    swd_images: int = 1024  # of either set
    final: int = 1024  # the last resolution of (c)
    final_maps: int = 512  # at most, of (c)
    overrides: tuple[str, ...] = ()  # "key=value", of both runs
    device: str = "auto"

    def __post_init__(self) -> None:
        resolutions_up_to(self.final)
        if self.final < 8:
            raise PgsrError(f"--final {self.final} is not 8, 16, ..., 1024")
        if self.evaluations < 1 or self.swd_images < 2:
            raise PgsrError("--evaluations must be at least 1 and --swd-images at least 2")
        _ = self.ladder  # which checks the rest

    @property
    def ladder(self) -> ladder.Settings:
        """The settings of `pgsr-bench ladder` that train the same."""
        return ladder.Settings(
            data=self.data,
            out=self.out,
            resolution=self.resolution,
            images=self.images,
            maps=self.maps,
            rungs=tuple(RUNS),
            rates=self.rates,
            swd_images=0,
            overrides=self.overrides,
            device=self.device,
        )


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """Both runs, finished, and the times of (c). Raises PgsrError if training is stopped or a folder is of
    another run."""
    device = chosen_device(settings.device)
    make_folder(settings.out)
    runs = {}
    for rung, name in RUNS.items():
        recipe = ladder.reduced(rung, settings.ladder)
        training = opened(settings.out / f"ladder-{rung}", recipe, settings.data, device)
        looks = train_looking(
            training, LOOKS, settings.evaluations, lambda trainer: distances(trainer, settings)
        )
        best = min(looks, key=lambda look: look["swd/average"])
        runs[rung] = {"name": name, "best": best, "looks": looks}
        report(f"{name}: {looks[-1]['seconds']:.0f} s, least average distance {best['swd/average']:.1f}")
    report(f"timing steps up to {settings.final} x {settings.final}")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": processor_name() if device.type == "cpu" else str(device),
        "cores": usable_cores(),
        "settings": {
            "resolution": settings.resolution,
            "images": settings.images,
            "maps": settings.maps,
            "rates": settings.rates,
            "swd_images": settings.swd_images,
            "final": settings.final,
            "final_maps": settings.final_maps,
            "overrides": list(settings.overrides),
        },
        "runs": runs,
        "throughput": throughput(settings.final, settings.final_maps, device),
    }


# ----------------------------------------------------------------------------
# (a) and (b): training in stretches, with a look at the distances after each.

LOOKS = "distances.jsonl"  # in a run's folder


def distances(trainer: Trainer, settings: Settings) -> dict[str, float]:
    """SWD of each level of the final resolution between photographs and as many images of the averaged
    generator as it is grown now, enlarged by replication."""
    side = settings.resolution
    photographs = load_photographs(settings.data, side).pixels
    count = min(settings.swd_images, len(photographs))

    def fakes() -> Iterator[NDArray[np.uint8]]:
        for pixels in evaluate.generated(trainer, count):
            factor = side // pixels.shape[1]
            yield pixels.repeat(factor, axis=1).repeat(factor, axis=2)

    found = distance_between(ladder.in_batches(photographs[:count]), fakes(), side, 0, trainer.device)
    return {**{f"swd/{level}": value for level, value in found.levels.items()}, "swd/average": found.average}


# ----------------------------------------------------------------------------
# (c): images over time, of the recipe progan-1024.


def throughput(final: int, maps: int, device: torch.device, convolution: str = "vanilla") -> dict[str, Any]:
    """What images cost at each resolution of progan-1024 up to `final`, and when so many are shown."""
    sizes = [f"{part}.resolution={final}" for part in ("generator", "discriminator", "schedule")]
    for network in ("generator", "discriminator"):
        sizes += [f"{network}.feature_max={maps}", f"{network}.feature_base={32 * maps}"]
        sizes.append(f"{network}.convolution={convolution}")
    recipe = config.load("progan-1024", sizes)
    schedule = build_schedule(recipe.schedule, recipe.objective.critic_steps)
    cost = estimate(recipe, schedule, device)
    an_image = {
        phase.resolution: cost.seconds_a_step[phase.resolution] / phase.batch for phase in schedule.phases
    }
    grown = hours_at_ends(schedule.phases, an_image)
    marks = [n for n in (PAPER_IMAGES, schedule.total_images) if n <= schedule.total_images]
    return {
        "seconds_an_image": {str(side): value for side, value in an_image.items()},
        "phases": [
            {"name": phase.name, "images": phase.end, "hours": hours}
            for phase, hours in zip(schedule.phases, grown, strict=True)
        ],
        "speedup": [speedup(images, schedule.phases, an_image) for images in dict.fromkeys(marks)],
        "how": cost.how,
    }


def hours_at_ends(phases: Sequence[Phase], an_image: Mapping[int, float]) -> list[float]:
    """Hours until the end of each phase, at so many seconds an image."""
    result, total = [], 0.0
    for phase in phases:
        total += phase.images * an_image[phase.resolution] / HOUR
        result.append(total)
    return result


def speedup(images: int, phases: Sequence[Phase], an_image: Mapping[int, float]) -> dict[str, Any]:
    """Hours until `images` are shown, with growing and without, and their ratio."""
    parts = [(phase, min(phase.images, max(0, images - phase.start))) for phase in phases]
    grown = sum(n * an_image[phase.resolution] for phase, n in parts) / HOUR
    plain = images * an_image[phases[-1].resolution] / HOUR
    reached = [phase for phase, n in parts if n][-1]
    return {"images": images, "phase": reached.name, "grown": grown, "plain": plain, "ratio": plain / grown}


# ----------------------------------------------------------------------------
# The tables and the picture.


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of (a) and (b), headings first."""
    table = [["run", "images", "hours", "least SWD, average", "reached after, h"]]
    for row in result["runs"].values():
        last, best = row["looks"][-1], row["best"]
        cells = (
            f"{last['images_shown']:,}",
            f"{last['seconds'] / HOUR:.3f}",
            f"{best['swd/average']:.2f}",
            f"{best['seconds'] / HOUR:.3f}",
        )
        table.append([row["name"], *cells])
    return table


def speedups(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of (c), headings first."""
    table = [["images shown", "progressive, h", "not progressive, h", "speedup", "phase then"]]
    for row in result["throughput"]["speedup"]:
        cells = (f"{row['images']:,}", f"{row['grown']:,.0f}", f"{row['plain']:,.0f}", times(row["ratio"]))
        table.append([*cells, row["phase"]])
    return table


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns how the numbers were made."""
    settings = result["settings"]
    return [
        f"{result['device']}, {result['cores']} usable core(s)",
        f"(a), (b): the configuration of Gulrajani et al. at {settings['resolution']} x "
        f"{settings['resolution']}, at most {settings['maps']} maps, learning rates times "
        f"{settings['rates']:g}; SWD x 1000 of {settings['swd_images']:,} images, which takes no time here",
        "images that are not grown to that size yet are enlarged by replication, as in the original code",
        ASSUMPTION,
        f"(c): {result['throughput']['how']}",
        f"the paper: {PAPER_IMAGES:,} images in 96 hours, about 520 without growing, {PAPER_SPEEDUP}x, on a "
        "P100; not with 800,000 images a phase, as here: those would have reached 64 x 64 by then",
        *[f"both runs with {setting}" for setting in settings["overrides"]],
    ]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    tables = [aligned(lines(result), 1), "", aligned(speedups(result), 0)]
    return "\n".join([*tables, "", *legend(result)])


def write_report(result: Mapping[str, Any], settings: Settings) -> None:
    """growing.json, .md and .png in the folder. Raises PgsrError if they cannot be written."""
    title = f"Growing progressively, against time (paper 2, Figure 4), {result['date']}"
    shows = ("distance and images over time", "growing.png")
    page = plain_page(title, [(lines(result), 1), (speedups(result), 0)], legend(result), shows)
    doublings = {rung: curve_of(settings.out / f"ladder-{rung}").beginnings() for rung in RUNS}
    write_report_files(settings.out, "growing", result, page, png(picture(result, doublings), 110))


def picture(result: Mapping[str, Any], doublings: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The figure's three panels; `doublings` are images shown and hours where each run doubles its
    resolution."""
    figure = new_figure(16, 4.8)
    first, second, speed = figure.subplots(1, 3)
    every = [look for row in result["runs"].values() for look in row["looks"]]
    hours = max(look["seconds"] for look in every) / HOUR
    unit, words = (1.0, "hours") if hours >= 1.0 else (60.0, "minutes")
    values = [value for look in every for key, value in look.items() if key.startswith("swd/")]
    for axes, (rung, row) in zip((first, second), result["runs"].items(), strict=True):
        _distances(axes, row["looks"], [unit * at for _, at in doublings[rung]], unit)
        axes.set_title(row["name"])
        axes.set_xlabel(f"{words} of training")
        axes.set_xlim(0.0, 1.02 * unit * hours)
        axes.set_ylim(min(values) / 1.1, max(values) * 1.1)
    first.set_ylabel("sliced Wasserstein distance × 1000")
    part = result["throughput"]
    days = [0.0, *[row["hours"] / 24 for row in part["phases"]]]
    millions = [0.0, *[row["images"] / 1e6 for row in part["phases"]]]
    last = list(part["seconds_an_image"].values())[-1]
    final = result["settings"]["final"]
    speed.plot(days, millions, label="progressive")
    speed.plot([0.0, days[-1]], [0.0, days[-1] * 86400 / last / 1e6], label="not progressive")
    speed.set_title(f"(c) images shown, growing to {final} x {final}")
    speed.set_xlabel("days, at the speed of this machine")
    speed.set_ylabel("millions of real images shown")
    speed.legend()
    figure.suptitle(f"Paper 2, Figure 4, on {result['device']}", fontsize=10)
    return figure


def _distances(axes: Axes, looks: Sequence[Mapping[str, float]], doublings: list[float], unit: float) -> None:
    """A curve a level, the coarsest first; dashes where the resolution doubles, a line at the end."""
    times_ = [unit * look["seconds"] / HOUR for look in looks]
    levels = sorted(int(key.removeprefix("swd/")) for key in looks[0] if key not in NOT_LEVELS)
    for level in levels:
        axes.plot(times_, [look[f"swd/{level}"] for look in looks], marker=".", label=str(level))
    for at in doublings:
        axes.axvline(at, color="0.7", linestyle="--", linewidth=0.8, zorder=0)
    axes.axvline(times_[-1], color="0.3", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(title="level", fontsize=8)
