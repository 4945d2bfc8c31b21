"""Figure 2 of paper 1: how long a ProGAN trains with separable convolutions (blue) and vanilla ones (red).

    pgsr-bench convolutions --data faces.zip --out report

Trains the recipes progan-64-separable and progan-64-vanilla with short phases, one after the other, and
draws their clocks over the images shown; then what an image costs at each resolution; then the time that the
paper's own phases would take at these speeds. Each is a run folder in OUT, which the same command goes on
with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsr.errors import PgsrError
from pgsr.files import make_folder
from pgsr.machine import processor_name, usable_cores
from pgsr.networks.progan import resolutions_up_to
from pgsr.trainer.run_folder.plot import Curve, curve_of, new_figure
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.recipe import Recipe
from pgsr.trainer.step.schedule import build as build_schedule

from ..harness.report import aligned, plain_page, png, times, write_report_files
from ..harness.runs import finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Callable[[str], None]

COLOURS = {"separable": "#1f4fd8", "vanilla": "#d62728"}  # blue and red, as in the figure
QUICK = {"resolution": 16, "images": 320, "maps": 16}
HOUR = 3600.0
LOGS = 10  # lines of metrics.jsonl a phase


@dataclass(frozen=True)
class Settings:
    """What is trained. Raises PgsrError for values out of range."""

    data: Path
    out: Path
    resolution: int = 64  # the paper's last
    images: int = 800  # of each phase; the recipes have 800,000
    maps: int = 512  # at most
    overrides: tuple[str, ...] = ()  # "key=value", of both recipes
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution not in resolutions_up_to(64):
            raise PgsrError(f"--resolution {self.resolution} is not 8, 16, 32 or 64")
        if self.images < 16:
            raise PgsrError(f"--images {self.images} is below 16, a batch")


def reduced(convolution: str, settings: Settings) -> Recipe:
    """Loads a recipe of the figure with the settings' sizes."""
    side = settings.resolution
    changes: dict[str, object] = {
        "schedule.resolution": side,
        "schedule.fade_images": settings.images,
        "schedule.stable_images": settings.images,
        "run.log_images": max(1, settings.images // LOGS),
        "run.sample_images": 10**9,  # at the end of phases alone: the clock is to be the steps'
        "run.checkpoint_images": max(1, settings.images),
        "run.stability_images": 10**9,
    }
    for network in ("generator", "discriminator"):
        changes[f"{network}.resolution"] = side
        changes[f"{network}.feature_max"] = settings.maps
        changes[f"{network}.feature_base"] = 32 * settings.maps  # all maps up to 32 x 32, as with 512
    settled = [f"{key}={value}" for key, value in changes.items()]
    return config.load(f"progan-64-{convolution}", [*settled, *settings.overrides])


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """Both runs, finished, and what they took. Raises PgsrError if training is stopped or a folder is of
    another run."""
    device = chosen_device(settings.device)
    make_folder(settings.out)
    rows: dict[str, dict[int, float]] = {}
    for convolution in COLOURS:
        finish(folder(settings, convolution), reduced(convolution, settings), settings.data, device, report)
        rows[convolution] = seconds_an_image(curve_of(folder(settings, convolution)))
        report(f"{convolution}: {curve_of(folder(settings, convolution)).hours[-1] * HOUR:.0f} s")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": processor_name() if device.type == "cpu" else str(device),
        "cores": usable_cores(),
        "settings": {
            "resolution": settings.resolution,
            "images": settings.images,
            "maps": settings.maps,
            "overrides": list(settings.overrides),
        },
        "seconds_an_image": {k: {str(side): s for side, s in row.items()} for k, row in rows.items()},
        "paper_hours": {k: {str(side): h for side, h in paper_hours(k, rows[k]).items()} for k in rows},
    }


def folder(settings: Settings, convolution: str) -> Path:
    """Returns the run folder of a convolution."""
    return settings.out / convolution


def seconds_an_image(curve: Curve) -> dict[int, float]:
    """What a real image that is shown costs at each resolution, fades among them, by the run's clock."""
    ends = {
        line["resolution"]: (line["images_shown"], h)
        for line, h in zip(curve.lines, curve.hours, strict=True)
    }
    result, shown, hours = {}, 0, 0.0
    for side, (images, at) in ends.items():
        result[side] = (at - hours) * HOUR / (images - shown)
        shown, hours = images, at
    return result


def paper_hours(convolution: str, seconds: Mapping[int, float]) -> dict[int, float]:
    """Hours until each resolution is trained if every phase has the recipe's own 800,000 images."""
    recipe = config.load(f"progan-64-{convolution}")
    result: dict[int, float] = {}
    total = 0.0
    for phase in build_schedule(recipe.schedule, recipe.objective.critic_steps).phases:
        if phase.resolution in seconds:
            total += seconds[phase.resolution] * phase.images / HOUR
            result[phase.resolution] = total
    return result


# ----------------------------------------------------------------------------
# The table and the picture.


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells, headings first."""
    cost, hours = result["seconds_an_image"], result["paper_hours"]
    heads = ["resolution", *[f"{k}, s / 1000 images" for k in COLOURS], "ratio"]
    table = [[*heads, *[f"{k}, h of the paper's phases" for k in COLOURS], "ratio"]]
    for side in cost["vanilla"]:
        costs, totals = ([x[k][side] for k in COLOURS] for x in (cost, hours))
        table.append(
            [
                f"{side} x {side}",
                *[f"{1000 * value:.1f}" for value in costs],
                times(costs[1] / costs[0]),
                *[f"{value:.1f}" for value in totals],
                times(totals[1] / totals[0]),
            ]
        )
    return table


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns how the numbers were made."""
    settings = result["settings"]
    return [
        f"{result['device']}, {result['cores']} usable core(s); batch 16, at most {settings['maps']} maps, "
        f"{settings['images']:,} images a phase, the runs one after the other",
        "ratio: vanilla over separable; the paper says about 2x at 64 x 64, on a GPU of Google Colaboratory",
        "the paper's phases: 800,000 images each, fading and stable, at the speeds that were measured here",
        *[f"both with {setting}" for setting in settings["overrides"]],
    ]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    return "\n".join([aligned(lines(result), 1), "", *legend(result)])


def write_report(result: Mapping[str, Any], settings: Settings) -> None:
    """convolutions.json, .md and .png in the folder. Raises PgsrError if they cannot be written."""
    title = f"Training time by resolution, both convolutions (paper 1, Figure 2), {result['date']}"
    page = plain_page(title, [(lines(result), 1)], legend(result), ("training time", "convolutions.png"))
    curves = {k: curve_of(folder(settings, k)) for k in COLOURS}
    write_report_files(settings.out, "convolutions", result, page, png(picture(result, curves), 110))


def picture(result: Mapping[str, Any], curves: Mapping[str, Curve]) -> Figure:
    """The figure: clocks over images, the cost of an image, the paper's phases at these speeds."""
    figure = new_figure(15, 4.6)
    clock, cost, whole = figure.subplots(1, 3)
    for name, colour in COLOURS.items():
        curve = curves[name]
        shown = [0, *[line["images_shown"] for line in curve.lines]]
        clock.plot(shown, [0.0, *[60 * h for h in curve.hours]], color=colour, label=name)
        by_side = result["seconds_an_image"][name]
        sides = [int(side) for side in by_side]
        cost.plot(sides, [1000 * value for value in by_side.values()], color=colour, marker="o")
        whole.plot(
            sides, [hours / 24 for hours in result["paper_hours"][name].values()], color=colour, marker="o"
        )
    _mark_resolutions(clock, curves["vanilla"])
    clock.set_title("training time of these runs")
    clock.set_xlabel("real images shown")
    clock.set_ylabel("minutes")
    clock.legend(loc="upper left")
    cost.set_title("seconds for 1000 images")
    for axes in (cost, whole):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sides, [f"{side}²" for side in sides])
    cost.set_yscale("log")
    cost.yaxis.set_major_formatter("{x:g}")
    cost.yaxis.set_minor_formatter("{x:g}")
    for side, value in result["seconds_an_image"]["vanilla"].items():
        ratio = value / result["seconds_an_image"]["separable"][side]
        cost.annotate(
            times(ratio), (int(side), 1000 * value), (0, 6), textcoords="offset points", ha="center"
        )
    whole.set_title("days of training, 800,000 images a phase")
    for axes in (cost, whole):
        axes.set_xlabel("resolution")
        axes.margins(x=0.1, y=0.12)
    figure.suptitle(f"Paper 1, Figure 2, on {result['device']}", fontsize=10)
    return figure


def _mark_resolutions(axes: Axes, curve: Curve) -> None:
    """Dashes where a resolution comes in, with its name."""
    starts: dict[int, int] = {}
    before = 0
    for line in curve.lines:
        starts.setdefault(line["resolution"], before)
        before = line["images_shown"]
    for side, images in starts.items():
        axes.axvline(images, color="0.8", linewidth=0.8, linestyle="--", zorder=0)
        across = axes.get_xaxis_transform()  # x in images, y as a share of the panel
        axes.text(images, 0.03, f" {side}²", transform=across, fontsize=8, color="0.4")
