"""Finds the training photographs nearest to generated faces (paper 2, Figure 10), to see copies.

pgsr-bench neighbours --data faces.zip --out report

Only a crop in the middle is compared, "to exclude image background and focus the search on matching facial
features" (paper 2, Figure 10). The paper compares activations of five layers of VGG: --features FILE, VGG19's
weights. Those are not for everyone to have, so EfficientNet-Lite0's four scales are the default; with
--features pixels it is the mean absolute difference of values, 0 to 255. Where a recipe mirrors its
photographs, their mirror images count as photographs too.

A distance means little alone. So as many photographs are asked for their own nearest other photograph: faces
that were copied would be much nearer to their neighbours than photographs are to theirs.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing, write_text
from pgsr.images import sheet, to_uint8
from pgsr.runtime import Synthesizer
from pgsr.runtime.backends import open_runner
from pgsr.runtime.synthesizer import check_window
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.start import chosen_device

from .activations import CHUNK_BYTES, Comparison, Pixels, comparison

FRAME = (255, 40, 40)  # around the crop, on the sheet's last picture


@dataclass(frozen=True)
class Settings:
    """What is compared. Raises PgsrError for values out of range."""

    data: Path  # the photographs
    model: Path | None = None  # a bundle; None is the shipped one
    count: int = 8  # faces
    start: int = 0
    seed: int = 0
    rows: int = 5  # neighbours of each
    crop: float = 0.625  # of each side, in the middle
    features: str = "lite0"  # whose activations are compared: lite0, VGG19's weights file, or pixels alone
    truncation: float = 1.0
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        check_window(self.seed, self.count, self.start)
        if self.rows < 1:
            raise PgsrError(f"--rows {self.rows} is below 1: give the number of neighbours to show")
        if not 0.0 < self.crop <= 1.0:
            raise PgsrError(f"--crop {self.crop} is not above 0 and at most 1")


@dataclass(frozen=True)
class Nearest:
    """The neighbours of N pictures, nearest first."""

    indices: NDArray[np.int64]  # [N, rows]
    distances: NDArray[np.float64]  # [N, rows]
    mirrored: NDArray[np.bool_]  # [N, rows], whether it is the photograph's mirror image


def nearest(
    compare: Comparison, queries: Pixels, photographs: Pixels, rows: int, mirror: bool, skip: list[int]
) -> Nearest:
    """Finds the photographs nearest to each query, leaving out photograph skip[i] (-1: none).

    Reads the photographs once, a few at a time; memory does not grow with their number.
    """
    n = len(queries)
    # A photograph's mirror image is as far from a query as the photograph from the query's mirror image.
    every_query = np.concatenate([queries, queries[:, :, ::-1]]) if mirror else queries
    to_queries = compare(every_query)
    indices = np.full((n, rows), -1)
    distances = np.full((n, rows), np.inf)
    mirrored = np.zeros((n, rows), dtype=bool)
    step = max(1, CHUNK_BYTES // queries[0].size)
    for start in range(0, len(photographs), step):
        part = np.ascontiguousarray(photographs[start : start + step])
        candidates = to_queries(part).reshape(-1, n, len(part))
        for i in range(n):
            best = candidates[:, i].min(axis=0)  # [len(part)]
            if start <= skip[i] < start + len(part):
                best[skip[i] - start] = np.inf
            _merge(indices[i], distances[i], mirrored[i], start, best, candidates[:, i].argmin(axis=0) == 1)
    return Nearest(indices, distances, mirrored)


def _merge(
    indices: NDArray[np.int64],
    distances: NDArray[np.float64],
    mirrored: NDArray[np.bool_],
    start: int,
    candidates: NDArray[np.float64],
    flipped: NDArray[np.bool_],
) -> None:
    """Puts the nearest of a chunk, whose first photograph is number `start`, among those of one query."""
    if candidates.min() >= distances[-1]:
        return
    numbers = np.concatenate([indices, start + np.arange(len(candidates))])
    apart = np.concatenate([distances, candidates])
    mirror_flags = np.concatenate([mirrored, flipped])
    order = np.argsort(apart, kind="stable")[: len(indices)]
    indices[:], distances[:], mirrored[:] = numbers[order], apart[order], mirror_flags[order]


# ----------------------------------------------------------------------------
# The measurement.


def run(settings: Settings) -> tuple[dict[str, Any], Pixels]:
    """The report, and the sheet as a picture.

    Raises PgsrError if model, photographs or feature network cannot be used.
    """
    compare = comparison(settings.features, chosen_device(settings.device))
    faces, mirror = _faces(settings)
    photographs = load_photographs(settings.data, faces.shape[1])
    began = time.perf_counter()
    count = min(settings.count, len(photographs))
    rows_shown = draws.permutation(settings.seed, "order", 0, len(photographs))[:count]
    controls = np.stack([photographs.pixels[i] for i in rows_shown])
    box = middle(faces.shape[1], settings.crop)
    queries = np.concatenate([faces, controls])[:, box, box]
    skip = [-1] * len(faces) + rows_shown.tolist()
    rows = min(settings.rows, len(photographs) - 1)
    neighbours = nearest(compare, queries, photographs.pixels[:, box, box], rows, mirror, skip)
    ours, theirs = neighbours.distances[: len(faces), 0], neighbours.distances[len(faces) :, 0]
    report = {
        "data": str(settings.data),
        "photographs": len(photographs),
        "fingerprint": photographs.fingerprint,
        "model": settings.model.name if settings.model else "shipped",
        "seed": settings.seed,
        "truncation": settings.truncation,
        "crop": [box.start, box.stop],
        "mirrored_too": mirror,
        "features": compare.name,
        "features_sha256": compare.sha256,
        "faces": [_entry(neighbours, i, index=settings.start + i) for i in range(len(faces))],
        "nearest_to_faces": round(float(np.median(ours)), 3),
        "nearest_to_photographs": round(float(np.median(theirs)), 3),
        "variety": round(variety(faces), 3),
        "seconds": round(time.perf_counter() - began, 2),
    }
    return report, _sheet(faces, photographs.pixels, neighbours, box)


def _faces(settings: Settings) -> tuple[Pixels, bool]:
    """The generator's images at its own resolution, and whether it was trained with mirror images."""
    with Synthesizer(
        settings.model,
        settings.device,
        threads=settings.threads,
        truncation=settings.truncation,
    ) as synthesizer:
        bundle = synthesizer.bundle
        indices = range(settings.start, settings.start + settings.count)
        latents = synthesizer.truncated(draws.latents(settings.seed, indices, bundle.latent_size))
    with open_runner(bundle, settings.device, graph="generator", threads=settings.threads) as generator:
        images = [generator.run(latents[i : i + 16]) for i in range(0, len(latents), 16)]
    recipe = bundle.provenance.get("generator", {}).get("recipe", {})
    return to_uint8(np.concatenate(images)), bool(recipe.get("data", {}).get("mirror", False))


def middle(side: int, share: float) -> slice:
    """The middle `share` of a side, in whole pixels."""
    margin = min(round(side * (1.0 - share) / 2), (side - 1) // 2)
    return slice(margin, side - margin)


def variety(pictures: Pixels) -> float:
    """The mean over pairs of their root-mean-square difference, 0 to 255."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float64)
    pairs = [
        np.sqrt(np.square(rows[i] - rows[j]).mean())
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
    ]
    return float(np.mean(pairs)) if pairs else 0.0


def _entry(neighbours: Nearest, i: int, index: int) -> dict[str, Any]:
    """One face's neighbours; numbers are positions among the photographs, in the order of their names."""
    return {
        "index": index,
        "neighbours": neighbours.indices[i].tolist(),
        "distances": [round(d, 3) for d in neighbours.distances[i].tolist()],
        "mirrored": neighbours.mirrored[i].tolist(),
    }


# ----------------------------------------------------------------------------
# The report.


def _sheet(faces: Pixels, photographs: Pixels, neighbours: Nearest, box: slice) -> Pixels:
    """Faces in the first row, below each its neighbours, as in the paper; the crop on the last picture."""
    rows = [faces]
    for row in range(neighbours.indices.shape[1]):
        numbers, flips = neighbours.indices[: len(faces), row], neighbours.mirrored[: len(faces), row]
        pictures = [
            photographs[n][:, ::-1] if t else photographs[n] for n, t in zip(numbers, flips, strict=True)
        ]
        rows.append(np.stack(pictures))
    rows[-1][-1] = outlined(rows[-1][-1], box)
    return sheet(np.concatenate(rows), columns=len(faces))


def outlined(picture: NDArray[np.uint8], box: slice) -> NDArray[np.uint8]:
    """The picture with a line around its crop."""
    marked = picture.copy()
    for edge in (box.start, box.stop - 1):
        marked[edge, box] = marked[box, edge] = FRAME
    return marked


def text(report: dict[str, Any]) -> str:
    """Two lines."""
    return (
        f"median distance to the nearest photograph by {report['features']}: "
        f"{report['nearest_to_faces']:.2f} from generated faces, "
        f"{report['nearest_to_photographs']:.2f} from photographs to the nearest other\n"
        f"{len(report['faces'])} faces, {report['photographs']} photographs, {report['seconds']:.1f} s; "
        f"variety of the faces {report['variety']:.1f}"
    )


def write_report(report: dict[str, Any], picture: Pixels, folder: Path) -> None:
    """neighbours.json and neighbours.png, which shows photographs: mind their terms."""
    make_folder(folder)
    write_text(folder / "neighbours.json", json.dumps(report, indent=1) + "\n")
    with replacing(folder / "neighbours.png") as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
