"""What separable convolutions cost in quality: with equal images, equal time and equal parameters.

    pgsr-bench quality-curves --data faces.zip --held-out others.zip --out report

Three generators, each with a critic of its kind, from several seeds: vanilla, separable with as many maps,
and separable with so many maps that both networks together have vanilla's parameters. All see as many images;
one that is cheaper an image goes on until it has taken vanilla's time. Scores are those of the averaged
generator, over images shown and over hours. Hours are images times the seconds of an image, which are timed
apart, in turns and by the processor's clock: trainings one after the other would each meet another machine.
Each run is a folder in OUT, which the same command goes on with.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgsr.errors import PgsrError
from pgsr.files import make_folder
from pgsr.machine import processor_name
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.networks.progan import resolutions_up_to
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.features import FeatureSet, frechet_distance, precision_recall, torchmetrics_ready
from pgsr.trainer.metrics.swd import Descriptors, distance
from pgsr.trainer.run_folder import evaluate
from pgsr.trainer.run_folder.cost import noise_trainer, stand_at
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.recipe import Recipe
from pgsr.trainer.step.schedule import build as build_schedule
from pgsr.trainer.step.trainer import Trainer

from ..harness.noise import Watch
from ..harness.resume import Kept
from ..harness.runs import opened
from ..harness.stretches import Look, train_looking
from ..harness.timing import Contender, measure
from ..quality.feature_network import Settings as NetworkSettings
from ..quality.feature_network import open_network

Report = Callable[[str], None]
Pixels = NDArray[np.uint8]  # [N, R, R, 3]

RECIPE = "faces-64"  # what is made smaller
BATCH = 16
HOUR = 3600.0
LOOKS = "quality.jsonl"  # in a run's folder
LONGEST = 4.0  # times vanilla's images that a cheaper network is trained at most
VANILLA, SEPARABLE, WIDE = "vanilla", "separable", "separable, wide"
QUICK = {"resolution": 16, "images": 960, "maps": 8, "seeds": 2, "looks": 10, "scored": 64, "rounds": 1}
# Shares of a run's images: fading in and standing at each resolution but the last, which has what is left.
SHARE = 0.1
FEWEST = 20 * BATCH  # images of a run


@dataclass(frozen=True)
class Settings:
    """What is trained. Raises PgsrError for values out of range."""

    data: Path
    out: Path
    held_out: Path | None = None  # photographs that scores are against; None: `data`
    features: NetworkSettings | None = None  # for Fréchet distance, precision and recall; None: SWD alone
    resolution: int = 32
    images: int = 100_000  # shown to each
    maps: int = 32  # of vanilla and of the narrow separable network, at every resolution
    seeds: int = 3
    looks: int = 20  # stretches of `images`; there is a score after each at the last resolution
    scored: int = 2048  # images of either set
    rounds: int = 5  # of the timed steps
    overrides: tuple[str, ...] = ()  # "key=value", of all runs
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.resolution < 16 or self.resolution not in resolutions_up_to(64):
            raise PgsrError(f"--resolution {self.resolution} is not 16, 32 or 64")
        if self.images < FEWEST:
            raise PgsrError(f"--images {self.images} is below {FEWEST}")
        for name, least in (("maps", 4), ("seeds", 1), ("looks", 2), ("scored", 16), ("rounds", 1)):
            if getattr(self, name) < least:
                raise PgsrError(f"--{name} is {getattr(self, name)}, but must be at least {least}")


@dataclass(frozen=True)
class Kind:
    """A generator and its critic."""

    name: str
    convolution: str
    maps: int
    parameters: int  # of both networks


# ----------------------------------------------------------------------------
# The recipes.


def recipe_of(settings: Settings, convolution: str, maps: int, seed: int, images: int) -> Recipe:
    """The recipe with so many maps at every resolution, shown so many images."""
    side, share = settings.resolution, _rounded(SHARE * settings.images)
    changes: dict[str, object] = {
        "seed": seed,
        "schedule.resolution": side,
        "schedule.batch": BATCH,
        "run.precision": "float32",  # so that processors with and without bfloat16 train the same
    }
    for network in ("generator", "discriminator"):
        changes[f"{network}.resolution"] = side
        changes[f"{network}.convolution"] = convolution
        changes[f"{network}.feature_max"] = maps
        changes[f"{network}.feature_base"] = maps * side
    below = resolutions_up_to(side)[:-1]
    for r in below:
        changes[f"schedule.at.{r}.fade_images"] = share if r > 4 else 0
        changes[f"schedule.at.{r}.stable_images"] = share
    changes[f"schedule.at.{side}.fade_images"] = share
    changes[f"schedule.at.{side}.stable_images"] = images - share * 2 * len(below)
    for name in ("log_images", "checkpoint_images", "sample_images", "stability_images"):
        changes[f"run.{name}"] = 10**9  # at the end of each stretch, and no more
    return config.load(RECIPE, [*[f"{k}={v}" for k, v in changes.items()], *settings.overrides])


def _rounded(images: float) -> int:
    """To whole batches, at least one."""
    return max(1, round(images / BATCH)) * BATCH


def parameters(recipe: Recipe) -> int:
    """Weights and biases of both networks, counted on tensors without contents."""
    with torch.device("meta"):
        both = (build(GENERATORS, recipe.generator), build(DISCRIMINATORS, recipe.discriminator))
    return sum(p.numel() for network in both for p in network.parameters())


def kinds_of(settings: Settings) -> list[Kind]:
    """The three; the last has the number of maps that comes nearest to the first one's parameters."""

    def kind(name: str, convolution: str, maps: int) -> Kind:
        recipe = recipe_of(settings, convolution, maps, 0, settings.images)
        return Kind(name, convolution, maps, parameters(recipe))

    vanilla = kind(VANILLA, "vanilla", settings.maps)
    step = max(1, settings.maps // 8)
    widths = [kind(WIDE, "separable", settings.maps + i * step) for i in range(1, 24)]
    wide = min(widths, key=lambda other: abs(other.parameters - vanilla.parameters))
    return [vanilla, kind(SEPARABLE, "separable", settings.maps), wide]


# ----------------------------------------------------------------------------
# The clock.


def seconds_an_image(
    kinds: Sequence[Kind], settings: Settings, device: torch.device, kept: Kept, report: Report
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Any]]:
    """Median, least and most seconds of a real image that is shown, by kind and resolution; and the noise
    while the largest resolution was timed. Trainings have none: weights do not depend on a clock.

    A call is as many steps as it takes from one penalty to the next. On a CPU it is the processor's time over
    the threads, which others that run beside it do not lengthen as they do the clock's on the wall.
    """
    rows: dict[int, dict[str, Any]] = {}
    for side in resolutions_up_to(settings.resolution):
        key = f"clock {side}"
        rows[side] = kept.get(key) or kept.add(key, _timed(kinds, settings, side, device, report))
    seconds = {
        kind.name: {str(side): row["seconds"][kind.name] for side, row in rows.items()} for kind in kinds
    }
    return seconds, rows[settings.resolution]["noise"]


def _timed(
    kinds: Sequence[Kind], settings: Settings, side: int, device: torch.device, report: Report
) -> dict[str, Any]:
    """Seconds of an image of each kind at a resolution, and what else ran meanwhile."""
    report(f"timing steps at {side} x {side}")
    contenders = []
    for kind in kinds:
        recipe = recipe_of(settings, kind.convolution, kind.maps, 0, settings.images)
        schedule = build_schedule(recipe.schedule, recipe.objective.critic_steps)
        trainer = noise_trainer(recipe, schedule, device)
        steps = recipe.objective.penalty_every
        contenders.append(Contender(kind.name, steps * BATCH, _steps(trainer, side, steps, device)))
    on_cpu = device.type == "cpu"
    threads = torch.get_num_threads()
    clock = (lambda: time.process_time() / threads) if on_cpu else time.perf_counter
    with Watch() as watch:
        timings = measure(contenders, settings.rounds, clock)
    rows = {}
    for name, timing in timings.items():
        each = [seconds / timing.images for seconds in timing.seconds]
        rows[name] = {"median": statistics.median(each), "low": min(each), "high": max(each)}
    return {"seconds": rows, "noise": watch.as_dict()}


def _steps(trainer: Trainer, side: int, steps: int, device: torch.device) -> Callable[[], None]:
    def call() -> None:
        stand_at(trainer, side, BATCH, True)
        for _ in range(steps):
            trainer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def hours_at(shown: int, recipe: Recipe, seconds: Mapping[str, Mapping[str, float]]) -> float:
    """Hours until so many images are shown."""
    total = 0.0
    for phase in build_schedule(recipe.schedule, recipe.objective.critic_steps).phases:
        images = min(phase.images, max(0, shown - phase.start))
        total += images * seconds[str(phase.resolution)]["median"] / HOUR
    return total


def images_for(hours: float, settings: Settings, kind: Kind, seconds: Mapping[str, Any]) -> int:
    """Images that a kind is shown: as many as all, or what these hours allow if that is more."""
    recipe = recipe_of(settings, kind.convolution, kind.maps, 0, settings.images)
    left = hours - hours_at(settings.images, recipe, seconds)
    more = left * HOUR / float(seconds[str(settings.resolution)]["median"])
    if more < BATCH:
        return settings.images
    return settings.images + _rounded(min(more, (LONGEST - 1) * settings.images))


# ----------------------------------------------------------------------------
# Scores.


class Scorer:
    """Photographs to score against, and their features, which are found once."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        """Raises PgsrError if the photographs or the network cannot be read, or are too few."""
        self.settings, self.device = settings, device
        self.photographs = load_photographs(settings.held_out or settings.data, settings.resolution)
        self.count = min(settings.scored, len(self.photographs))
        self.network = None if settings.features is None else open_network(settings.features, device)
        self.reals, self.features = self._described(self._batches(self.photographs.pixels))

    def _batches(self, pixels: Pixels) -> list[Pixels]:
        order = np.random.default_rng(0).permutation(len(pixels))[: self.count]
        return [np.array(pixels[order[i : i + BATCH]]) for i in range(0, self.count, BATCH)]

    def _described(self, batches: Sequence[Pixels]) -> tuple[Descriptors, torch.Tensor | None]:
        swd, found = Descriptors(self.settings.resolution, 0, self.device), FeatureSet()
        for pixels in batches:
            swd.add(pixels)
            if self.network is not None:
                found.add(*self.network(pixels))
        return swd, torch.cat(found.features).double() if found.features else None

    def scores(self, batches: Sequence[Pixels]) -> dict[str, float]:
        """SWD x 1000, averaged over levels; Fréchet distance, precision and recall if there is a network."""
        swd, features = self._described(batches)
        result = {"SWD": distance(self.reals, swd).average}
        if self.network is None or features is None or self.features is None:
            return result
        with torchmetrics_ready(0):
            result[self.network.distance] = frechet_distance(self.features, features)
        precision, recall = precision_recall(self.features, features)
        return result | {"precision": precision, "recall": recall}

    def photographs_themselves(self) -> dict[str, float] | None:
        """What as many photographs of those trained on score; None if they are the same ones."""
        if self.settings.held_out is None:
            return None
        pixels = load_photographs(self.settings.data, self.settings.resolution).pixels
        return self.scores(self._batches(pixels)) if len(pixels) >= self.count else None

    def look(self, trainer: Trainer) -> dict[str, float]:
        """Scores of the averaged generator's images; none before the last resolution."""
        stage = trainer.schedule.at(trainer.state.images_shown - 1)
        if stage.resolution < self.settings.resolution:
            return {}
        return self.scores(list(evaluate.generated(trainer, self.count)))


# ----------------------------------------------------------------------------
# The measurement.


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """All runs, finished and scored.

    Raises PgsrError if training is stopped or a folder is of another run.
    """
    device = chosen_device(settings.device)
    make_folder(settings.out)
    kinds = kinds_of(settings)
    kept = Kept(settings.out / "quality-curves.rows.jsonl", _decisive(settings, kinds, device))
    scorer = Scorer(settings, device)
    seconds, load = seconds_an_image(kinds, settings, device, kept, report)
    vanilla = recipe_of(settings, "vanilla", settings.maps, 0, settings.images)
    hours = hours_at(settings.images, vanilla, seconds[VANILLA])
    images = kept.get("images") or kept.add(
        "images", {kind.name: images_for(hours, settings, kind, seconds[kind.name]) for kind in kinds}
    )
    rows = []
    for seed in range(settings.seeds):  # so that what was finished when it is stopped is of all kinds
        for kind in kinds:
            length = images[kind.name]
            rows.append(_trained(kind, seed, length, settings, seconds[kind.name], scorer, report))
    floor = kept.get("photographs") or kept.add("photographs", {"scores": scorer.photographs_themselves()})
    network = scorer.network
    return {
        "benchmark": "quality-curves",
        "date": datetime.now(UTC).date().isoformat(),
        "device": processor_name() if device.type == "cpu" else str(device),
        "threads": torch.get_num_threads(),
        "settings": {
            "recipe": RECIPE,
            "resolution": settings.resolution,
            "images": settings.images,
            "seeds": settings.seeds,
            "scored": scorer.count,
            "rounds": settings.rounds,
            "held_out": settings.held_out is not None,
            "overrides": list(settings.overrides),
            **({} if network is None else network.conditions),
        },
        "hours": hours,  # of vanilla
        "kinds": [asdict(kind) for kind in kinds],
        "seconds_an_image": seconds,
        "photographs": floor["scores"],
        "runs": rows,
        **compared(rows, settings.images, hours),
        "noise": load,
    }


def _decisive(settings: Settings, kinds: Sequence[Kind], device: torch.device) -> dict[str, Any]:
    """What the kept rows depend on."""
    recipes = [
        recipe_of(settings, kind.convolution, kind.maps, 0, settings.images).as_dict() for kind in kinds
    ]
    return {
        "recipes": json.loads(json.dumps(recipes, default=str)),
        "scored": settings.scored,
        "held_out": None if settings.held_out is None else settings.held_out.name,
        "features": None
        if settings.features is None
        else [str(settings.features.path), settings.features.side],
        "rounds": settings.rounds,
        "device": processor_name() if device.type == "cpu" else str(device),
    }


def _trained(
    kind: Kind,
    seed: int,
    images: int,
    settings: Settings,
    seconds: Mapping[str, Any],
    scorer: Scorer,
    report: Report,
) -> dict[str, Any]:
    """A run's looks, with the hours at each."""
    recipe = recipe_of(settings, kind.convolution, kind.maps, seed, images)
    folder = settings.out / f"{kind.name.replace(', ', '-')}-seed{seed}"
    run = opened(folder, recipe, settings.data, scorer.device)
    stretches = -(-images * settings.looks // settings.images)
    report(f"{folder.name}: {kind.maps} maps, {images:,} images")
    looks = train_looking(run, LOOKS, stretches, scorer.look)
    points = [_point(found, recipe, seconds) for found in looks if "SWD" in found]
    report(f"{folder.name}: {_words(points[-1])}")
    return {"kind": kind.name, "seed": seed, "images": images, "looks": points}


def _point(found: Look, recipe: Recipe, seconds: Mapping[str, Any]) -> dict[str, float]:
    shown = found["images_shown"]
    scores = {name: value for name, value in found.items() if name not in ("images_shown", "seconds")}
    return {"images": shown, "hours": hours_at(shown, recipe, seconds), **scores}


def _words(point: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" for name, value in point.items() if name not in ("images", "hours")
    )


# ----------------------------------------------------------------------------
# Comparisons.

HIGHER_IS_BETTER = ("precision", "recall")
AXES = {"images": "equal images", "hours": "equal time"}


def compared(rows: Sequence[Mapping[str, Any]], images: int, hours: float) -> dict[str, Any]:
    """What separable gains or loses at vanilla's last image and hour, and where the curves cross."""
    names = [name for name in rows[0]["looks"][0] if name not in AXES]
    at = {"images": float(images), "hours": hours}
    scores, crossovers = [], []
    for name in names:
        for axis in AXES:
            values = {kind: _values(rows, kind, name, axis, at[axis]) for kind in (VANILLA, SEPARABLE, WIDE)}
            for kind in (SEPARABLE, WIDE):
                scores.append({"score": name, "axis": axis, "kind": kind, **difference(name, values, kind)})
                crossovers.append(
                    {"score": name, "axis": axis, "kind": kind, **_crossing(rows, kind, name, axis)}
                )
    return {"comparisons": scores, "crossovers": crossovers}


def _looks(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[int, list[dict[str, float]]]:
    return {row["seed"]: row["looks"] for row in rows if row["kind"] == kind}


def at_point(looks: Sequence[Mapping[str, float]], name: str, axis: str, where: float) -> float:
    """A score there, on straight lines between looks; beyond them, the nearest look's."""
    return float(np.interp(where, [look[axis] for look in looks], [look[name] for look in looks]))


def _values(rows: Sequence[Mapping[str, Any]], kind: str, name: str, axis: str, where: float) -> list[float]:
    return [at_point(looks, name, axis, where) for looks in _looks(rows, kind).values()]


def difference(name: str, values: Mapping[str, Sequence[float]], kind: str) -> dict[str, Any]:
    """Means and deviations of two kinds over seeds, and which is better by more than two standard errors."""
    ours, theirs = (summary(values[k]) for k in (kind, VANILLA))
    apart = ours["mean"] - theirs["mean"]
    error = None
    better = "unclear"
    if ours["deviation"] is not None and theirs["deviation"] is not None:
        error = ((ours["deviation"] ** 2 + theirs["deviation"] ** 2) / len(values[kind])) ** 0.5
        if abs(apart) > 2 * error:
            better = kind if (apart > 0) == (name in HIGHER_IS_BETTER) else VANILLA
    return {"separable": ours, "vanilla": theirs, "difference": apart, "error": error, "better": better}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, and deviation of a sample; None of one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "values": list(values)}


def _crossing(rows: Sequence[Mapping[str, Any]], kind: str, name: str, axis: str) -> dict[str, Any]:
    """Where, seed by seed, separable's curve last changes sides with vanilla's; None where it never does."""
    theirs, ours = _looks(rows, VANILLA), _looks(rows, kind)
    found = {seed: last_crossing(ours[seed], theirs[seed], name, axis) for seed in theirs}
    points = [point for point, _ in found.values() if point is not None]
    return {
        "at": [point for point, _ in found.values()],
        "mean": statistics.mean(points) if points else None,
        "deviation": statistics.stdev(points) if len(points) > 1 else None,
        "ahead_at_the_end": sum(ahead for _, ahead in found.values()),
    }


def last_crossing(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], name: str, axis: str
) -> tuple[float | None, bool]:
    """Where two curves last cross, and whether ours is better behind it: within what both cover."""
    low = max(curve[0][axis] for curve in (ours, theirs))
    high = min(curve[-1][axis] for curve in (ours, theirs))
    places = sorted({low, high, *(look[axis] for look in (*ours, *theirs) if low <= look[axis] <= high)})
    sign = 1 if name in HIGHER_IS_BETTER else -1
    gains = [sign * (at_point(ours, name, axis, x) - at_point(theirs, name, axis, x)) for x in places]
    crossing = None
    for (x, a), (y, b) in pairwise(zip(places, gains, strict=True)):
        if (a > 0) != (b > 0):
            crossing = x + (y - x) * a / (a - b)
    return crossing, gains[-1] > 0
