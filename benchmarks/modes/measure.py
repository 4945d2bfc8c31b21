"""pgsr-bench modes: how many of 1000 modes a small GAN covers (paper 2, appendix E, Table 4).


An image is three random digits in red, green and blue. A classifier trained here reads 25,600 generated
images as numbers 0 to 999; counted are the numbers that occur, and how far their histogram is from a
uniform one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgsr import checkpoint as checkpoints
from pgsr import draws
from pgsr.errors import PgsrError, check_choice
from pgsr.files import make_folder, write_text
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.trainer.data.cache import Photographs, load_photographs
from pgsr.trainer.metrics import digits
from pgsr.trainer.metrics.digits import Trained, classify
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.pixels import stack_cuts, stacked
from pgsr.trainer.step.residency import Pixels

from ..harness.runs import finish

Report = Callable[[str], None]  # gets a line on what is going on

MODES = 1000
SYSTEMS = ("gan", "unrolled", "wgan-gp", "norm", "stddev", "progression")  # columns of Table 4
CRITICS = ("k4", "k2")  # its rows
CLASSIFIER_SEED = 0
BATCH = 512  # images generated at once
SHOWN = 16  # samples of each system in the picture

# Table 4 of paper 2: mean and standard deviation over 8 runs. None where the text at hand lost the value.
Value = tuple[float, float] | None
PAPER: dict[tuple[str, str], dict[str, Value]] = {
    ("gan", "k4"): {"modes": (30.6, 20.7), "kl": (5.99, 0.04)},
    ("gan", "k2"): {"modes": (628.0, 140.9), "kl": (2.58, 0.75)},
    ("unrolled", "k4"): {"modes": (372.2, 20.7), "kl": (4.66, 0.46)},
    ("unrolled", "k2"): {"modes": (817.4, 39.9), "kl": (1.43, 0.12)},
    ("wgan-gp", "k4"): {"modes": (640.1, 136.3), "kl": (1.97, 0.70)},
    ("wgan-gp", "k2"): {"modes": (772.4, 146.5), "kl": (1.35, 0.55)},
    ("norm", "k4"): {"modes": (856.7, 50.4), "kl": (1.10, 0.19)},
    ("norm", "k2"): {"modes": (886.6, 58.5), "kl": (0.98, 0.33)},
    ("stddev", "k4"): {"modes": (881.3, 39.2), "kl": None},
    ("stddev", "k2"): {"modes": None, "kl": (0.89, 0.21)},
    ("progression", "k4"): {"modes": (859.5, 36.2), "kl": (1.05, 0.09)},
    ("progression", "k2"): {"modes": (919.8, 35.1), "kl": (0.82, 0.13)},
}


@dataclass(frozen=True)
class Settings:
    """What is trained and counted. Raises PgsrError for values out of range."""

    data: Path  # an archive of labelled digits
    out: Path
    images: int  # shown in each training
    seeds: int = 8
    systems: tuple[str, ...] = SYSTEMS
    generated: int = 25_600  # images that are counted
    overrides: tuple[str, ...] = ()  # "key=value", of every recipe
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("images", "seeds", "generated"):
            if getattr(self, name) < 1:
                raise PgsrError(f"--{name} is {getattr(self, name)}, but must be at least 1")
        for system in self.systems:
            check_choice("--system", system, SYSTEMS)
        if not self.systems:
            raise PgsrError("--system names none")


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """Trains what is not trained yet, counts, and gives the whole result as JSON data.

    Raises PgsrError if the data do not fit, the folder holds other runs, or it was stopped.
    """
    device = chosen_device(settings.device)
    photographs = load_photographs(settings.data, digits.SIDE)
    make_folder(settings.out)
    classifier = the_classifier(photographs, settings.out / "classifier.safetensors", report)
    rows = []
    for seed in range(settings.seeds):
        for system in settings.systems:
            for critic in CRITICS:
                folder = train_one(settings, system, critic, seed, device, report)
                row = count_one(settings, folder, classifier, device)
                rows.append({"system": system, "critic": critic, "seed": seed, **row})
                report(f"{folder.name}: {row['modes']} modes, KL {row['kl']:.2f}")
    return {
        "benchmark": "modes",
        "date": datetime.now(UTC).date().isoformat(),
        "settings": {**asdict(settings), "data": settings.data.name, "out": settings.out.name},
        "digits": {"count": len(photographs), "fingerprint": photographs.fingerprint},
        "classifier": {
            name: getattr(classifier, name) for name in ("error_rate", "held_out", "trained_on", "seed")
        },
        "real": real_row(photographs, classifier, settings.generated),
        "rows": rows,
        "summary": summary(rows, settings),
    }


# ----------------------------------------------------------------------------
# Counting.


def histogram(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how often each digit triple occurs, read as a number of 0 to 999: [N, 3] -> [1000]."""
    return np.bincount(numbers @ np.array([100, 10, 1]), minlength=MODES).astype(np.int64)


def covered(counts: NDArray[np.int64]) -> int:
    """Modes that occur at all."""
    return int((counts > 0).sum())


def divergence(counts: NDArray[np.int64]) -> float:
    """KL(histogram || uniform) in nats, sum p log(p / (1 / modes)): 0 is best, one mode alone log(1000)."""
    share = counts[counts > 0] / counts.sum()
    return float((share * np.log(share * len(counts))).sum())


def count_modes(batches: Iterable[Tensor], classifier: Trained) -> NDArray[np.int64]:
    """The histogram of images [N, 3, 28, 28] in [-1, 1], given in batches: [1000]."""
    total = np.zeros(MODES, dtype=np.int64)
    for images in batches:
        read = classify(classifier.network, images.float().cpu().flatten(0, 1))
        total += histogram(read.reshape(-1, 3))
    return total


def generated(path: Path, count: int, seed: int, device: torch.device) -> Iterable[Tensor]:
    """Images 0 to count - 1 of a checkpoint's averaged generator, in batches."""
    checkpoint = checkpoints.load(path)
    network = build(GENERATORS, checkpoint.config["generator"])
    network.load_state_dict(checkpoint.under("generator_ema."))
    network.to(device).eval().requires_grad_(False)
    for start in range(0, count, BATCH):
        indices = range(start, min(start + BATCH, count))
        rows = draws.latents(seed, indices, checkpoint.config["generator"]["latent_size"])
        yield network(torch.from_numpy(rows).to(device))


def real_row(photographs: Photographs, classifier: Trained, count: int) -> dict[str, Any]:
    """Counts stacked real digits: what a perfect generator would reach with this classifier."""
    counts = count_modes(reals(photographs, count), classifier)
    return {"modes": covered(counts), "kl": divergence(counts)}


def reals(photographs: Photographs, count: int) -> Iterable[Tensor]:
    """Stacked digits as training sees them, in batches."""
    pixels = Pixels(torch.from_numpy(np.array(photographs.pixels)), torch.device("cpu"))
    for start in range(0, count, BATCH):
        yield stacked(pixels, stack_cuts(pixels, 0, range(start, min(start + BATCH, count))))


# ----------------------------------------------------------------------------
# The classifier and the runs, each made once.


def the_classifier(photographs: Photographs, path: Path, report: Report) -> Trained:
    """Reads the classifier from its file, or trains and writes it. Raises PgsrError if the file is of other
    digits."""
    if not path.is_file():
        trained = digits.train_classifier(photographs, CLASSIFIER_SEED, report=report)
        digits.save_classifier(path, trained)
    trained = digits.load_classifier(path)
    if trained.fingerprint != photographs.fingerprint:
        raise PgsrError(f"{path} was trained on other digits: name another --out")
    report(f"digit classifier: {trained.error_rate:.2%} wrong of {trained.held_out} held out")
    return trained


def recipe_of(settings: Settings, system: str, critic: str, seed: int) -> config.Recipe:
    """Loads the recipe of a system and critic with the settings' changes."""
    own = (f"seed={seed}", *lengths(system, settings.images))
    return config.load(f"mnist-modes-{system}-{critic}", (*settings.overrides, *own))


def lengths(system: str, images: int) -> tuple[str, ...]:
    """The settings that let a run show so many images. One that grows fades twice for 2 of 15 parts of them
    and stays half a part at 7 and at 14, as in paper 2's original code."""
    if system != "progression":
        return (f"schedule.stable_images={images}",)
    fade, stable = 2 * images // 15, images // 30
    last = images - 2 * (fade + stable)
    return (
        f"schedule.fade_images={fade}",
        f"schedule.stable_images={stable}",
        f"schedule.at.28.stable_images={last}",
    )


def train_one(
    settings: Settings,
    system: str,
    critic: str,
    seed: int,
    device: torch.device,
    report: Report,
) -> Path:
    """A finished run's folder: begun, gone on with, or found there.

    Raises PgsrError if it holds another run, or was stopped.
    """
    recipe = recipe_of(settings, system, critic, seed)
    folder = settings.out / "runs" / f"{system}-{critic}-seed{seed}"
    return finish(folder, recipe, settings.data, device, report).folder


def count_one(settings: Settings, folder: Path, classifier: Trained, device: torch.device) -> dict[str, Any]:
    """Modes and divergence of a run's newest checkpoint; counted once, then kept in its folder."""
    path = checkpoints.newest(folder)
    checkpoint = checkpoints.load(path)
    key = {
        "images_shown": checkpoint.progress["images_shown"],
        "generated": settings.generated,
        "classifier_error_rate": classifier.error_rate,
    }
    record_file = folder / "modes.json"
    if record_file.is_file():
        before = json.loads(record_file.read_text())
        if {name: before.get(name) for name in key} == key:
            return row_of(before)
    seed = int(checkpoint.config["seed"])
    counts = count_modes(generated(path, settings.generated, seed, device), classifier)
    result = {**key, "histogram": counts.tolist()}
    write_text(record_file, json.dumps(result) + "\n")
    return row_of(result)


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """Makes the table's row of one run's counts."""
    counts = np.array(result["histogram"], dtype=np.int64)
    return {"images_shown": result["images_shown"], "modes": covered(counts), "kl": divergence(counts)}


def summary(rows: Sequence[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, and the paper's, of each system and critic."""
    result = []
    for critic in CRITICS:
        for system in settings.systems:
            own = [row for row in rows if (row["system"], row["critic"]) == (system, critic)]
            options = recipe_of(settings, system, critic, 0).discriminator
            network = build(DISCRIMINATORS, options)  # grown: what looks at small images has no part any more
            grown = [p for name, p in network.named_parameters() if not name.startswith("from_rgb")]
            parameters = sum(p.numel() for p in grown)
            entry: dict[str, Any] = {"critic": critic, "system": system, "critic_parameters": parameters}
            for name in ("modes", "kl"):
                entry[name] = spread([row[name] for row in own])
                entry[f"paper_{name}"] = PAPER[system, critic][name]
            result.append(entry)
    return result


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample; None of one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
