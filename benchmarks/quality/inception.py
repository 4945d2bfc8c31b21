"""Scores of training runs by features, as paper 2's Table 3 reports inception scores: the best that a run
reaches while it trains, and the mean and deviation of that over several runs, each from its own seed.

    pgsr-bench inception --data cifar10.zip --features inception.pt --out report
    pgsr-bench inception --recipe msg-cifar10 --data cifar10.zip --features lite0 --out report   # paper 4

Each run is trained in stretches; after each, once it has its last resolution, the averaged generator makes
50,000 images. The same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgsr.errors import PgsrError
from pgsr.files import make_folder
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics import features
from pgsr.trainer.metrics.features import FeatureSet, Value, torchmetrics_ready
from pgsr.trainer.run_folder import evaluate
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.recipe import Recipe
from pgsr.trainer.step.trainer import Trainer

from ..harness.report import aligned, plain_page, write_report_files
from ..harness.runs import opened
from ..harness.stretches import Look, train_looking
from .feature_network import Network, open_network
from .feature_network import Settings as NetworkSettings

Report = Callable[[str], None]

LOOKS = "scores.jsonl"  # in a run's folder
BATCH = 16
PAPER = {  # of Inception, 50,000 images
    "progan-cifar10": "paper 2, Table 3: 8.80 ± 0.05 (best run), 8.56 ± 0.06 (of ten runs)",
    "msg-cifar10": "paper 4, Table 1: 7.63",
    "msg-flowers-256": "paper 4, Table 1: 3.56",
}


@dataclass(frozen=True)
class Settings:
    """What is trained and scored. Raises PgsrError for values out of range."""

    data: Path
    out: Path
    features: NetworkSettings
    recipe: str = "progan-cifar10"
    runs: int = 10
    evaluations: int = 20  # of a run
    images: int = 50_000  # scored each time
    overrides: tuple[str, ...] = ()  # "key=value", of every run
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("runs", "evaluations"):
            if getattr(self, name) < 1:
                raise PgsrError(f"--{name} is {getattr(self, name)}, but must be at least 1")
        if self.images < features.SPLITS:
            raise PgsrError(f"--images {self.images} is below {features.SPLITS}, the splits of the score")


def recipe_of(settings: Settings, seed: int) -> Recipe:
    """Loads the recipe with a seed."""
    return config.load(settings.recipe, [*settings.overrides, f"seed={seed}"])


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """Every run finished and scored. Raises PgsrError if training is stopped, a folder is another run's, or
    the network cannot be used."""
    device = chosen_device(settings.device)
    network = open_network(settings.features, device)
    side = recipe_of(settings, 0).schedule.resolution
    reals, photographs = _photographs(settings, side, network)
    make_folder(settings.out)
    rows = []
    for seed in range(settings.runs):
        training = opened(settings.out / f"seed{seed}", recipe_of(settings, seed), settings.data, device)
        looks = train_looking(
            training, LOOKS, settings.evaluations, lambda trainer: scored(trainer, settings, network, reals)
        )
        row = {"seed": seed, "best": bests(looks, network.distance), "looks": looks}
        report(f"seed {seed}: {row['best']}")
        rows.append(row)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "recipe": settings.recipe,
        "settings": {
            "runs": settings.runs,
            "evaluations": settings.evaluations,
            "images": settings.images,
            "overrides": list(settings.overrides),
            "photographs": len(reals),
            **network.conditions,
        },
        "photographs": photographs,
        "runs": rows,
        "summary": summary(rows),
    }


def _photographs(settings: Settings, side: int, network: Network) -> tuple[torch.Tensor, dict[str, Value]]:
    """The features of as many photographs as images, float64 [N, D], and their own inception score."""
    photographs = load_photographs(settings.data, side)
    count = min(settings.images, len(photographs))
    found = FeatureSet()
    for start in range(0, count, BATCH):
        found.add(*network(np.array(photographs.pixels[start : min(start + BATCH, count)])))
    if count < features.SPLITS:
        raise PgsrError(f"{settings.data} has {count} pictures: scores need {features.SPLITS} at least")
    scores: dict[str, Value] = {}
    if found.logits:
        with torchmetrics_ready(0):
            scores["IS"] = features.inception_score(torch.cat(found.logits).double())
    return torch.cat(found.features).double(), scores


def scored(trainer: Trainer, settings: Settings, network: Network, reals: torch.Tensor) -> dict[str, float]:
    """Scores of the averaged generator's images; none before the last resolution."""
    stage = trainer.schedule.at(trainer.state.images_shown - 1)
    if stage.resolution < trainer.recipe.schedule.resolution:
        return {}
    found = FeatureSet()
    for pixels in evaluate.generated(trainer, settings.images):
        found.add(*network(pixels))
    with torchmetrics_ready(trainer.recipe.seed):
        distance = features.frechet_distance(reals, torch.cat(found.features).double())
        scores = {network.distance: distance}
        if found.logits:
            mean, deviation = features.inception_score(torch.cat(found.logits).double())
            scores |= {"IS": mean, "IS deviation": deviation or 0.0}
    return scores


# ----------------------------------------------------------------------------
# The two ways of Table 3.


def bests(looks: Sequence[Look], distance: str) -> dict[str, Look]:
    """The look at which each score of a run was best: IS the highest, the distance the least."""
    return {
        name: _best(name, measured)
        for name in ("IS", distance)
        if (measured := [look for look in looks if name in look])
    }


def _best(name: str, looks: Sequence[Look]) -> Look:
    values = [look[name] for look in looks]
    return looks[values.index(max(values) if name == "IS" else min(values))]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each score: the best run's, with the deviation over its splits, and mean and deviation of the best
    of every run (of a sample; None of one run)."""
    result = {}
    for name in rows[0]["best"]:
        looks = [row["best"][name] for row in rows]
        values = [look[name] for look in looks]
        best = _best(name, looks)
        result[name] = {
            "best": best[name],
            "best_deviation": best.get(f"{name} deviation"),
            "mean": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
    return result


def plus_minus(mean: float, deviation: float | None) -> str:
    """Formats a value and its deviation, if there is one."""
    return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells, headings first."""
    runs = len(result["runs"])
    table = [["score", "best run", f"mean of the best of {runs} run(s)", "photographs"]]
    for name, row in result["summary"].items():
        photographs = result["photographs"].get(name)
        table.append(
            [
                name,
                plus_minus(row["best"], row["best_deviation"]),
                plus_minus(row["mean"], row["deviation"]),
                plus_minus(*photographs) if photographs else "-",
            ]
        )
    return table


def legend(result: Mapping[str, Any]) -> list[str]:
    """Returns how the numbers were made."""
    settings = result["settings"]
    paper = PAPER.get(result["recipe"])
    return [
        f"{result['recipe']}, seeds 0 to {settings['runs'] - 1}; {settings['evaluations']} looks at each (at "
        f"its last resolution), each at {settings['images']:,} images of the averaged generator",
        "best run: ± over ten splits of its images; mean: ± over the runs",
        f"network sha256 {settings['features'][:16]}, images resized {settings['feature resize']}, range "
        f"{settings['feature range']}; {settings['photographs']:,} photographs",
        *([f"{paper}, by Inception: scores of another network do not compare"] if paper else []),
        *[f"all runs with {setting}" for setting in settings["overrides"]],
    ]


def text(result: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    return "\n".join([aligned(lines(result), 1), "", *legend(result)])


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """inception.json and .md in a folder. Raises PgsrError if they cannot be written."""
    title = f"Scores of {result['recipe']} by features (paper 2, Table 3), {result['date']}"
    write_report_files(folder, "inception", result, plain_page(title, [(lines(result), 1)], legend(result)))
