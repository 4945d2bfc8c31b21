"""Scores of pictures by the features that a network finds in them: FID, KID, the inception score, precision
and recall. The network is the user's; here are only its outputs.

    real, fake = Found(), Found()
    real.add(features, logits)                  # [N, D] and [N, classes] or None, batch by batch
    values = scores(real, fake, seed=0)         # {"FID": (3.1, None), "KID": (0.01, 0.002), ...}
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError, missing_package

NEIGHBOURS = 3  # Kynkäänniemi et al. (2019), section 3
DENSITY_NEIGHBOURS = 5  # Naeem et al. (2020)
ROWS = 1024  # of a matrix of distances held at once
SPLITS = 10  # of the inception score (Salimans et al. 2016)
SUBSETS, SUBSET = 100, 1000  # of KID (Bińkowski et al. 2018)

Value = tuple[float, float | None]  # and its deviation


@dataclass
class FeatureSet:
    """What a network said of a set of pictures."""

    features: list[Tensor] = field(default_factory=list)  # [*, D] each
    logits: list[Tensor] = field(default_factory=list)  # [*, classes] each; none if the network has none

    def add(self, features: Tensor, logits: Tensor | None) -> None:
        self.features.append(features)
        if logits is not None:
            self.logits.append(logits)

    def __len__(self) -> int:
        return sum(map(len, self.features))


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics expects the network: the features are found already."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def scores(real: FeatureSet, fake: FeatureSet, seed: int, distance: str = "FID") -> dict[str, Value]:
    """Scores `fake` by its features: the Fréchet distance (under the name `distance`), KID, precision and
    recall, density and coverage, and the inception score if there are logits.

    Raises PgsrError if there are too few pictures, or torchmetrics is not installed.
    """
    few = min(len(real), len(fake))
    if few < max(NEIGHBOURS + 1, SPLITS):
        raise PgsrError(f"scores by features need {SPLITS} images of either set at least, not {few}")
    a, b = torch.cat(real.features).double(), torch.cat(fake.features).double()
    if not torch.isfinite(a).all() or not torch.isfinite(b).all():
        raise PgsrError("the feature network gave numbers that are not finite: is its input range right?")
    result: dict[str, Value] = {}
    with torchmetrics_ready(seed):
        result[distance] = (frechet_distance(a, b), None)
        result["KID"] = kernel_distance(a, b)
        if fake.logits:
            result["IS"] = inception_score(torch.cat(fake.logits).double())
    names = ("precision", "recall", "density", "coverage")
    values = (*precision_recall(a, b), *density_coverage(a, b))
    return result | {name: (value, None) for name, value in zip(names, values, strict=True)}


@contextmanager
def torchmetrics_ready(seed: int) -> Iterator[None]:
    """Makes torchmetrics' draws a function of the seed and silences its warnings, inside the block alone."""
    try:
        import torchmetrics.image  # noqa: F401
    except ImportError as error:
        raise missing_package("FID, KID and the inception score", "bench", error) from error
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features")
        torch.manual_seed(seed)
        yield


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """FID (Heusel et al. 2017) of features float64 [N, D] and [M, D]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_AsTheyAre(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, fake: Tensor) -> Value:
    """KID (Bińkowski et al. 2018): mean and deviation over 100 random subsets of 1000, or of all if fewer."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET, len(real), len(fake))
    metric = KernelInceptionDistance(_AsTheyAre(real.shape[1]), subsets=SUBSETS, subset_size=size)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, deviation = metric.compute()
    return float(mean), float(deviation)


def inception_score(logits: Tensor) -> Value:
    """IS (Salimans et al. 2016) of logits [N, classes]: mean and deviation over ten splits."""
    from torchmetrics.image.inception import InceptionScore

    metric = InceptionScore(_AsTheyAre(logits.shape[1]), splits=SPLITS)
    metric.update(logits)
    mean, deviation = metric.compute()
    return float(mean), float(deviation)


# ----------------------------------------------------------------------------
# Precision and recall (Kynkäänniemi et al. 2019), which torchmetrics does not have.


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of `fake` [M, D] that lies within the real manifold, and of `real` [N, D] within the other's.

    A manifold is the union of balls around its points that just reach the k-th nearest other (equation 1).
    """
    return _share_within(real, fake, neighbours), _share_within(fake, real, neighbours)


def density_coverage(real: Tensor, fake: Tensor, neighbours: int = DENSITY_NEIGHBOURS) -> tuple[float, float]:
    """Naeem et al. (2020), equations 4 and 5, of features [N, D] and [M, D].

    Density counts in how many real balls a generated point lies, over the number expected. Coverage is the
    share of real points whose ball holds a generated one. A real outlier, whose ball is large, spoils
    precision and recall but not these.
    """
    radii = _radii(real, neighbours)
    held, covered = 0.0, []
    for part, radius in zip(real.split(ROWS), radii.split(ROWS), strict=True):
        inside = torch.cdist(part, fake) <= radius[:, None]  # [rows, M]
        held += float(inside.sum())
        covered.append(inside.any(dim=1))
    return held / (neighbours * len(fake)), float(torch.cat(covered).double().mean())


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """The distance of each point to its k-th nearest other: [N]."""
    return torch.cat(
        [
            torch.cdist(part, points).kthvalue(neighbours + 1).values  # the nearest is the point itself
            for part in points.split(ROWS)
        ]
    )


def _share_within(manifold: Tensor, points: Tensor, neighbours: int) -> float:
    radii = _radii(manifold, neighbours)
    inside = [(torch.cdist(part, manifold) <= radii).any(dim=1) for part in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())
