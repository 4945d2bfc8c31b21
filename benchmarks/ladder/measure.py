"""Table 1 and figure 3 of paper 2 at a size that fits the machine: every rung of its ladder of training
configurations trained, a sheet of each on one picture, and in one table their sliced Wasserstein distances
and the MS-SSIM among their images.

    pgsr-bench ladder --data faces.zip --resolution 32 --images 100000 --out report

The recipes ladder-a ... ladder-h are the paper's. Here their networks end at a lower resolution and have
fewer maps, and all counts of images shrink alike; everything else is the recipe's own. A short run does not
get far at their rates, so --rates multiplies all of them: the equalized weights of (f) to (h) are larger than
the others and need rates as much larger, so one rate for all would compare nothing. Each rung is a run folder
in OUT, which the same command goes on with, or passes over once it is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pgsr import draws, images
from pgsr.errors import PgsrError, check_choice
from pgsr.export.lowering import Grown
from pgsr.export.source import read_source
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.similarity import PAIRS, PairSimilarity
from pgsr.trainer.metrics.swd import Descriptors, distance
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.recipe import Recipe
from pgsr.trainer.step.schedule import build as build_schedule

from ..harness.report import aligned, plain_page, png, write_report_files
from ..harness.runs import finish

RUNGS = {
    "a": "(a) Gulrajani et al. (2017)",
    "b": "(b) + progressive growing",
    "c": "(c) + small minibatch",
    "d": "(d) + revised training parameters",
    "e-star": "(e*) + minibatch discrimination",
    "e": "(e) minibatch stddev",
    "f": "(f) + equalized learning rate",
    "g": "(g) + pixelwise normalization",
    "h": "(h) converged",
}

# The paper's, 128 x 128, CelebA (Table 1): SWD, averaged over the four levels, and MS-SSIM.
PAPER = {
    "a": (9.28, 0.2854),
    "b": (4.28, 0.2838),
    "c": (46.23, 0.4065),
    "d": (8.07, 0.3027),
    "e-star": (9.84, 0.3057),
    "e": (7.04, 0.2950),
    "f": (4.39, 0.2902),
    "g": (3.56, 0.2845),
    "h": (2.96, 0.2828),
}

PAPER_IMAGES = 10_000_000  # what (a) to (g) are shown (section 6.1)
PAPER_MAPS = 512
BATCH = 64  # images generated at once


@dataclass(frozen=True)
class Settings:
    """The command line, as it was given."""

    data: Path
    out: Path
    resolution: int  # of the finished networks, at most the paper's 128
    images: int  # real images shown to rungs (a) to (g); (h) sees half as many again
    maps: int  # at most, where the paper has 512
    rungs: tuple[str, ...]
    rates: float  # times the recipes' learning rates
    swd_images: int  # of either set, at most as many as there are photographs; 0: no distances
    overrides: tuple[str, ...]  # "key=value", for every rung
    device: str

    def __post_init__(self) -> None:
        for rung in self.rungs:
            check_choice("--rung", rung, RUNGS)
        if self.resolution not in (16, 32, 64, 128):
            raise PgsrError(f"--resolution {self.resolution} is not 16, 32, 64 or 128")
        if not 0 < self.rates < float("inf"):
            raise PgsrError(f"--rates {self.rates} is not above 0")
        if self.images < 1000:
            raise PgsrError(f"--images {self.images}: a rung needs at least 1000")


# ----------------------------------------------------------------------------
# Recipes made smaller.


def reduced(rung: str, settings: Settings) -> Recipe:
    """A rung's recipe with fewer images, lower resolution and fewer maps."""
    name = f"ladder-{rung}"
    return config.load(name, [*_reductions(config.load(name), settings), *settings.overrides])


def _reductions(full: Recipe, settings: Settings) -> list[str]:
    side, share = settings.resolution, settings.images / PAPER_IMAGES
    schedule = full.schedule
    total = build_schedule(schedule, full.objective.critic_steps).total_images
    grows = schedule.start_resolution < schedule.resolution
    fade, stable = round(share * schedule.fade_images), round(share * schedule.stable_images)
    below = side.bit_length() - 3 if grows else 0  # resolutions from 4 x 4 up to half of `side`
    changes: dict[str, object] = {
        "schedule.resolution": side,
        "schedule.start_resolution": 4 if grows else side,
        "schedule.fade_images": fade,
        "schedule.stable_images": stable,
        f"schedule.at.{side}.stable_images": round(share * total) - below * (fade + stable),
        "averaging.rampup": 0.05,  # a short run's average must not show its beginning
        "run.log_images": max(1, settings.images // 100),
        "run.sample_images": settings.images,
        "run.checkpoint_images": max(1, settings.images // 5),
        "run.stability_images": settings.images,
        "run.explosion": 0.0,  # a rung that breaks down is a result too
    }
    for network, options in (("generator", full.generator), ("discriminator", full.discriminator)):
        changes[f"{network}.resolution"] = side
        changes[f"{network}.feature_max"] = settings.maps
        changes[f"{network}.feature_base"] = options["feature_base"] * settings.maps // PAPER_MAPS
    for name, optimizer in (("generator", full.generator_optimizer), ("critic", full.critic_optimizer)):
        changes[f"{name}_optimizer.learning_rate"] = round(settings.rates * optimizer.learning_rate, 12)
    return [f"{key}={value}" for key, value in changes.items()]


# ----------------------------------------------------------------------------
# Training and drawing.


def trained(rung: str, recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Trains a rung to its end, wherever it stands. Raises PgsrError if it is stopped or another's folder."""
    device = chosen_device(settings.device)
    schedule = finish(settings.out / f"ladder-{rung}", recipe, settings.data, device).trainer.schedule
    last = schedule.at(schedule.total_images - 1)
    return {"images": schedule.total_images, "generator_steps": last.step + 1}


def faces(folder: Path, count: int, device: torch.device) -> Iterator[NDArray[np.uint8]]:
    """The averaged generator's images of indices 0, 1, ...: uint8 [N, R, R, 3], a batch at a time."""
    source = read_source(folder)
    network = Grown(source.generator, source.resolution).to(device)
    for start in range(0, count, BATCH):
        latents = draws.latents(0, range(start, min(start + BATCH, count)), source.latent_size)
        with torch.no_grad():
            batch_images = network(torch.from_numpy(latents).to(device))
        yield images.to_uint8(batch_images.float().cpu().numpy())


def in_batches(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yields the pictures, uint8 [N, R, R, 3], a batch at a time."""
    for start in range(0, len(pixels), BATCH):
        yield pixels[start : start + BATCH]


def run(settings: Settings, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every rung finished, and what there is to report of it."""
    recipes = {rung: reduced(rung, settings) for rung in settings.rungs}
    device = chosen_device(settings.device)
    rows = []
    for rung, recipe in recipes.items():
        tell(f"{RUNGS[rung]}: {recipe.schedule.start_resolution} to {recipe.schedule.resolution}")
        rows.append({"rung": rung, "name": RUNGS[rung], **trained(rung, recipe, settings)})
    count, side = 0, settings.resolution
    floor = None
    if settings.swd_images:
        pixels = load_photographs(settings.data, side).pixels
        count, half = (min(settings.swd_images, most) for most in (len(pixels), len(pixels) // 2))
        if half < 2:
            raise PgsrError(f"{settings.data} has {len(pixels)} pictures: two halves need at least 4")
        others = measured(in_batches(pixels[half : 2 * half]), pixels[:half], side, device)
        floor = {**others, "images": half}
        for row in rows:
            pictures = faces(settings.out / f"ladder-{row['rung']}", count, device)
            row |= measured(pictures, pixels[:count], side, device)
            tell(f"{row['name']}: average distance {row['swd']['average']:.1f}, MS-SSIM {row['ms_ssim']:.4f}")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "settings": {
            "resolution": side,
            "images": settings.images,
            "maps": settings.maps,
            "rates": settings.rates,
            "swd_images": count,
            "overrides": list(settings.overrides),
        },
        "photographs": floor,
        "rows": rows,
    }


def measured(
    pictures: Iterable[NDArray[np.uint8]], reals: NDArray[np.uint8], side: int, device: torch.device
) -> dict[str, Any]:
    """SWD x 1000 of pictures, in batches, and as many photographs, by level; MS-SSIM among the pictures."""
    real, fake = (Descriptors(side, 0, device) for _ in range(2))
    similar = PairSimilarity(len(reals), PAIRS, device)
    for batch in in_batches(reals):
        real.add(batch)
    for batch in pictures:
        fake.add(batch)
        similar.add(batch)
    swd = distance(real, fake)
    levels = {**{str(level): value for level, value in swd.levels.items()}, "average": swd.average}
    return {"swd": levels, "ms_ssim": similar.mean}


# ----------------------------------------------------------------------------
# The table.


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells, headings first."""
    floor = result["photographs"]
    levels = [] if floor is None else list(floor["swd"])
    heads = ["configuration", "images", "steps of G", *[f"SWD {level}" for level in levels]]
    heads += ["MS-SSIM"] * (floor is not None)
    body = []
    for row in result["rows"]:
        swd, ms_ssim = PAPER[row["rung"]]
        counts = [f"{row['images']:,}", f"{row['generator_steps']:,}"]
        body.append([row["name"], *counts, *_scores(row, levels), f"{swd:.2f}", f"{ms_ssim:.4f}"])
    if floor is not None:
        body.append(["photographs, other ones", "", "", *_scores(floor, levels), "", ""])
    return [[*heads, "paper's SWD, 128x128", "paper's MS-SSIM"], *body]


def _scores(row: Mapping[str, Any], levels: Sequence[str]) -> list[str]:
    """The cells of what was measured; none if nothing was."""
    return [*[f"{row['swd'][level]:.2f}" for level in levels], f"{row['ms_ssim']:.4f}"] if levels else []


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns what the columns are."""
    settings = result["settings"]
    count = settings["swd_images"]
    return [
        f"{settings['resolution']}x{settings['resolution']}, at most {settings['maps']} maps, "
        f"{settings['images']:,} real images shown, learning rates times {settings['rates']:g}; "
        "the paper: 128x128, 512 maps, 10,000,000",
        *(_of_how_many(count, result["photographs"]["images"]) if count else []),
        "paper: its averages over four levels, CelebA; distances of other sizes and counts do not compare",
        *[f"all rungs with {setting}" for setting in settings["overrides"]],
    ]


def _of_how_many(count: int, half: int) -> list[str]:
    pairs = min(PAIRS, count * (count - 1) // 2)
    text = f"SWD: sliced Wasserstein distance x 1000, {count:,} images of either set"
    if half < count:
        text += f"; photographs, {half:,} and as many other ones: distances of fewer are larger"
    return [text, f"MS-SSIM: among the generated images, {pairs:,} pairs: the lower, the more they vary"]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    return "\n".join([aligned(lines(result), 1), "", *legend(result)])


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """ladder.json, .md and .png in a folder. Raises PgsrError if they cannot be written."""
    title = f"The ladder of paper 2's Table 1, {result['date']}"
    page = plain_page(title, [(lines(result), 1)], legend(result), ("samples of each", "ladder.png"))
    strips = [(row["name"], _strip(folder / f"ladder-{row['rung']}")) for row in result["rows"]]
    write_report_files(folder, "ladder", result, page, png(stacked(strips)))


# ----------------------------------------------------------------------------
# The picture: a strip of uncurated images a rung, like figure 3.

COLUMNS, ROWS = 12, 2
LEAST_SIDE = 64  # pixels: smaller images are enlarged by replication
HEADING = 22  # pixels above a strip


def _strip(folder: Path) -> NDArray[np.uint8]:
    pictures = next(faces(folder, COLUMNS * ROWS, torch.device("cpu")))
    factor = max(1, LEAST_SIDE // pictures.shape[1])
    return images.sheet(pictures.repeat(factor, axis=1).repeat(factor, axis=2), COLUMNS)


def stacked(strips: Sequence[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """Strips below each other, each under its name."""
    heights = [HEADING + strip.shape[0] for _, strip in strips]
    page = Image.new("RGB", (max(strip.shape[1] for _, strip in strips), sum(heights)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for i, (name, strip) in enumerate(strips):
        top = sum(heights[:i])
        pen.text((4, top + 4), name, fill="black", font=font)
        page.paste(Image.fromarray(strip), (0, top + HEADING))
    return page
