"""Table 2 of paper 1 for an exported model: SWD, MS-SSIM and, with a feature network, the inception score,
FID, KID, precision and recall, of the generator's images and of the upscaled ones.

    pgsr-bench quality --data faces.zip --large-data large.zip --out report

Generated images are compared with all photographs, at most as many as the paper takes. Beside them stand
photographs against other photographs, one half against the other, the floor that nothing beats at that number
of images, and the generator's images enlarged by bicubic and Lanczos filters, the least that an upscaler must
beat. And how near the upscaler comes to photographs that were reduced: PSNR and SSIM of Y, border shaved.

Every set comes in batches and is measured as it comes; what grows with the number of images are the patches
of the two sets that are compared (75 KB an image and level) and the feature network's outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgsr import __version__, bundle
from pgsr.bundle import Bundle
from pgsr.files import sha256
from pgsr.trainer.metrics import features, swd
from pgsr.trainer.metrics.features import FeatureSet
from pgsr.trainer.metrics.score import Score
from pgsr.trainer.metrics.similarity import PairSimilarity
from pgsr.trainer.start import chosen_device

from .feature_network import Network, open_network
from .looking import NAMES, PLAIN, Batch, Look, Seen, asked, looking
from .sets import (
    Chain,
    Counts,
    Photos,
    Pixels,
    Settings,
    chain_of,
    holds,
    open_photos,
    trained_filter,
)

Report = Callable[[str], None]

SHOWN = 48  # pictures of each set kept for the report's sheets


# ----------------------------------------------------------------------------
# Measuring a set as it comes.


@dataclass
class Measured:
    """A column of the table."""

    key: str
    name: str
    scores: list[Score]
    examples: Pixels  # its first pictures
    seconds: float = 0.0

    def score(self, name: str) -> Score | None:
        return next((score for score in self.scores if score.name == name), None)


@dataclass
class Reference:
    """The photographs that sets are compared with: the first of them, so many by score."""

    photos: Photos
    counts: Counts
    device: torch.device
    pairs: int
    network: Network | None
    look: Look
    descriptors: swd.Descriptors = field(init=False)
    feature_set: FeatureSet = field(init=False)

    def __post_init__(self) -> None:
        reals = self._seen("photographs", self.photos.first(self.counts.most), self.counts.features)
        self.descriptors, _, self.feature_set, _ = self._looked_at(reals, False)

    @property
    def conditions(self) -> dict[str, Any]:
        return {"images": self.counts.swd, **self.photos.conditions}

    def of_half(self) -> Reference:
        """The half of the photographs that the others are compared with; this one if that is no smaller."""
        if self.photos.half == self.counts:
            return self
        return replace(self, counts=self.photos.half)

    def measure(
        self,
        key: str,
        name: str,
        batches: Iterable[Batch],
        features_of: int,
        form: str | None = None,  # of looking.Looker; None: the key
        near: dict[str, list[Tensor]] | None = None,
    ) -> Measured:
        """The scores of a set, the first `features_of` of it by features. How near each picture comes to what
        it was is added to `near`."""
        began = time.perf_counter()
        seen = self._seen(form or key, batches, features_of)
        descriptors, similar, feature_set, examples = self._looked_at(seen, True, near)
        conditions = self.conditions
        apart = swd.distance(self.descriptors, descriptors)
        del descriptors
        scores = [Score(f"SWD {side}", value, conditions) for side, value in apart.levels.items()]
        scores.append(Score("SWD average", apart.average, conditions))
        assert similar is not None
        scores.append(Score("MS-SSIM", similar.mean, {**conditions, "pairs": similar.pairs}))
        if self.network is not None:
            by_network = {**conditions, "images": len(feature_set), **self.network.conditions}
            if len(self.feature_set) != len(feature_set):
                by_network["photographs looked at"] = len(self.feature_set)
            found = features.scores(self.feature_set, feature_set, conditions["seed"], self.network.distance)
            for metric, (value, deviation) in found.items():
                scores.append(Score(metric, value, by_network, deviation))
        return Measured(key, name, scores, examples, round(time.perf_counter() - began, 2))

    def _seen(self, form: str, batches: Iterable[Batch], features_of: int) -> Iterator[Seen]:
        features_of = 0 if self.network is None else features_of
        return self.look(asked(form, batches, max(self.counts.swd, SHOWN), features_of))

    def _looked_at(
        self, every: Iterable[Seen], pairs: bool, near: dict[str, list[Tensor]] | None = None
    ) -> tuple[swd.Descriptors, PairSimilarity | None, FeatureSet, Pixels]:
        """One pass over a set: its patches, its variety, what the network finds, its first pictures."""
        conditions, count = self.conditions, self.counts.swd
        descriptors = swd.Descriptors(conditions["resolution"], conditions["seed"], self.device)
        similar = PairSimilarity(count, self.pairs, self.device) if pairs else None
        feature_set = FeatureSet()
        examples: list[Pixels] = []
        for seen in every:
            pixels = np.array(seen.pixels)
            compared = pixels[: count - descriptors.count]
            if len(compared):
                descriptors.add(compared)
                if similar is not None:
                    similar.add(compared)
            if seen.features is not None:
                feature_set.add(seen.features, seen.logits)
            if sum(map(len, examples)) < SHOWN:
                examples.append(pixels)
            if near is not None:
                for score, values in seen.near.items():
                    near.setdefault(score, []).append(values)
        return descriptors, similar, feature_set, np.concatenate(examples)[:SHOWN]


# ----------------------------------------------------------------------------
# The upscaler against photographs.


def restore(reference: Reference, scale: int, settings: Settings, report: Report) -> list[Measured]:
    """The photographs that are not the reference, reduced, then enlarged by each: scored as sets, and by how
    near each picture comes to what it was."""
    photos = reference.photos
    conditions = {**reference.conditions, "reduced by": settings.reduce, "border": scale}
    columns = []
    for key in ("upscaler", *PLAIN):
        near: dict[str, list[Tensor]] = {}
        name = f"{NAMES[key]} of reduced photographs"
        found = reference.measure(
            key, NAMES[key], photos.others(), photos.half.features, f"restored {key}", near
        )
        column = _reported(found, name, report)
        column.scores = [
            replace(s, conditions={**s.conditions, "reduced by": settings.reduce}) for s in column.scores
        ]
        for metric, parts in near.items():
            every = torch.cat(parts).double()
            own = {"features": sha256(settings.lpips)} if metric == "LPIPS" and settings.lpips else {}
            column.scores.append(
                Score(metric, float(every.mean()), {**conditions, **own}, float(every.std()))
            )
        columns.append(column)
    return columns


# ----------------------------------------------------------------------------
# The measurement.


@dataclass
class Quality:
    """All that the report shows."""

    settings: Settings
    model: Bundle
    small: list[Measured]  # at the generator's resolution: the generator, photographs
    large: list[Measured]  # upscaled: chain, plain filters, photographs; none without an upscaler
    restored: list[Measured]  # photographs reduced and enlarged: upscaler, plain filters
    notes: list[str]
    seconds: float


def run(settings: Settings, report: Report) -> Quality:
    """Measures everything. Raises PgsrError if model, photographs or networks cannot be used."""
    began = time.perf_counter()
    device = chosen_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = bundle.read(bundle.shipped() if settings.model is None else settings.model)
    network = None if settings.features is None else open_network(settings.features, device)
    notes = (
        []
        if network
        else [
            "no IS, FID and the like: name a feature network with --features, or pip install 'pgsr[features]'"
        ]
    )
    chain = chain_of(model, settings)
    with looking(settings, network) as look:
        photos = open_photos(settings.data, model.resolution, settings, trained_filter(model))
        _note_count(photos, settings, notes)

        def reference_of(photos: Photos) -> Reference:
            return Reference(photos, photos.whole, device, settings.pairs, network, look)

        reference = reference_of(photos)
        report(f"{photos.whole.most} photographs of {model.resolution}x{model.resolution} looked at")
        made = Made(photos, settings)
        batches = chain.batches(made.images, "generator")
        small = _measured(reference, {"generator": ("generator", batches)}, made, report)
        small.append(_floor(reference.of_half(), report))
        del reference
        large, restored = _upscaled(chain, reference_of, settings, notes, report)
    seconds = round(time.perf_counter() - began, 1)
    return Quality(settings, model, small, large, restored, notes, seconds)


@dataclass(frozen=True)
class Made:
    """How many images are generated: by features as many as were asked for, however few photographs there
    are; a distance of sets needs as many as there are of those."""

    photos: Photos
    settings: Settings

    @property
    def features(self) -> int:
        return self.settings.counts().features

    @property
    def images(self) -> int:
        return max(self.photos.whole.swd, self.features)


def _measured(
    reference: Reference, sets: dict[str, tuple[str, Iterable[Batch]]], made: Made, report: Report
) -> list[Measured]:
    return [
        _reported(reference.measure(key, name, batches, made.features), name, report)
        for key, (name, batches) in sets.items()
    ]


def _floor(reference: Reference, report: Report) -> Measured:
    """One half of the photographs against the other."""
    photos = reference.photos
    found = reference.measure("photographs", "photographs", photos.others(), photos.half.features)
    return _reported(found, "photographs", report)


def _reported(column: Measured, name: str, report: Report) -> Measured:
    average = column.score("SWD average")
    assert average is not None
    report(f"{name}: SWD average {average.value:.2f} ({column.seconds:.0f} s)")
    return column


def _upscaled(
    chain: Chain,
    reference_of: Callable[[Photos], Reference],
    settings: Settings,
    notes: list[str],
    report: Report,
) -> tuple[list[Measured], list[Measured]]:
    """The large sets, if the bundle has an upscaler and there are photographs to compare with."""
    side = chain.size
    source = settings.large_data or settings.data
    if chain.scale == 1:
        notes.append("the bundle has no upscaler")
        return [], []
    if settings.large_data is None and not holds(source, side):
        notes.append(f"the photographs are smaller than {side}x{side}: name larger ones with --large-data")
        return [], []
    photos = open_photos(source, side, settings, trained_filter(chain.bundle))
    _note_count(photos, settings, notes)
    reference, made = reference_of(photos), Made(photos, settings)
    report(f"{photos.whole.most} photographs of {side}x{side} looked at")
    sets: dict[str, tuple[str, Iterable[Batch]]]
    sets = {"upscaler": ("upscaler", chain.batches(made.images, "chain"))}
    for name in PLAIN:
        sets[name] = (NAMES[name], chain.batches(made.images, "generator"))
    large = _measured(reference, sets, made, report)
    half = reference.of_half()
    large.append(_floor(half, report))
    return large, restore(half, chain.scale, settings, report)


def _note_count(photos: Photos, settings: Settings, notes: list[str]) -> None:
    wanted, side = settings.counts(), photos.conditions["resolution"]
    if photos.whole.swd < wanted.swd:
        notes.append(
            f"SWD and MS-SSIM of {photos.whole.swd} images of {side}x{side}, not {wanted.swd}: as many as "
            "there are photographs"
        )
    if photos.half.swd < photos.whole.swd:
        notes.append(
            f"the floor of {side}x{side}, and photographs enlarged again: {photos.half.swd} against "
            f"{photos.half.swd} others, half of the photographs; distances of fewer images are larger"
        )


# ----------------------------------------------------------------------------
# As data.


def as_dict(quality: Quality) -> dict[str, Any]:
    """Plain JSON: every score with how it was made."""
    settings = quality.settings
    groups = {"generator": quality.small, "upscaled": quality.large, "restored": quality.restored}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"pgsr": __version__, "torch": str(torch.__version__)},
        "model": {
            "name": quality.model.name,
            "graphs": {g.name: g.sha256 for g in quality.model.graphs if g.precision == settings.precision},
            "precision": settings.precision,
            "resolution": quality.model.resolution,
            "scale": quality.model.scale,
        },
        "sets": {
            group: {c.key: {"name": c.name, "scores": [s.as_dict() for s in c.scores]} for c in columns}
            for group, columns in groups.items()
        },
        "beaten": beaten(quality),
        "notes": quality.notes,
        "seconds": quality.seconds,
    }


def beaten(quality: Quality) -> dict[str, bool]:
    """Returns whether the upscaler is better than each plain filter, by each score that tells."""
    result = {}
    for what, group in (("generated", quality.large), ("photographs", quality.restored)):
        ours = next((c for c in group if c.key == "upscaler"), None)
        for name, rises in (
            ("SWD average", False),
            ("FID", False),
            ("FD", False),
            ("PSNR Y", True),
            ("SSIM Y", True),
            ("LPIPS", False),
        ):
            for plain in (c for c in group if c.key in PLAIN):
                mine, theirs = (None if c is None else c.score(name) for c in (ours, plain))
                if mine is not None and theirs is not None:
                    better = mine.value > theirs.value if rises else mine.value < theirs.value
                    result[f"{what}, {name}, {plain.name}"] = better
    return result
