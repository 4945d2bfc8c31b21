"""What truncation costs and gains: a model's faces at several PSI, scored and side by side.

    pgsr-bench truncation --data faces.zip --psi 0.7,0.8,0.9,1 --out report

Truncation turns latents toward the typical one (pgsr/truncation.py): single faces get better, the set gets
narrower. Precision should rise and recall fall; the distances of sets hold both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgsr import bundle
from pgsr.files import make_folder, replacing, write_text
from pgsr.images import sheet
from pgsr.trainer.start import chosen_device
from pgsr.truncation import check_truncation

from ..harness.report import aligned, markdown_table
from ..ladder.measure import stacked
from .feature_network import open_network
from .looking import asked, looking
from .measure import Measured, Reference
from .neighbours import variety
from .sets import Pixels, Settings, chain_of, open_photos, trained_filter

Report = Callable[[str], None]

PLACES = {  # the scores of the table, with decimal places
    "SWD average": 1,
    "FD": 2,
    "FID": 2,
    "precision": 3,
    "recall": 3,
    "density": 3,
    "coverage": 3,
    "variety": 1,
}
SHOWN = 8  # faces of each PSI, on the sheet


def run(
    settings: Settings, psis: Sequence[float], report: Report
) -> tuple[dict[str, Any], dict[float, Pixels]]:
    """The report, and the first faces of each PSI.

    Raises PgsrError if PSI, model, photographs or networks cannot be used.
    """
    for psi in psis:
        check_truncation(psi)
    began, device = time.perf_counter(), chosen_device(settings.device)
    model = bundle.read(bundle.shipped() if settings.model is None else settings.model)
    network = None if settings.features is None else open_network(settings.features, device)
    chain = chain_of(model, settings)
    photos = open_photos(settings.data, model.resolution, settings, trained_filter(model))
    rows, faces_of = [], {}
    with looking(settings, network) as look:
        reference = Reference(photos, photos.whole, device, settings.pairs, network, look)
        half = reference.of_half()
        floor = half.measure("photographs", "photographs", photos.others(), photos.half.features)
        del half
    for psi in psis:
        with looking(replace(settings, truncation=psi), network) as look:
            reference.look = look
            batches = chain.batches(photos.whole.most, "generator")
            found = reference.measure("generator", "generator", batches, photos.whole.features)
            form = "upscaler" if chain.scale > 1 else "generator"
            (shown,) = look(asked(form, [range(SHOWN)], SHOWN, 0))
        faces_of[psi] = shown.pixels
        rows.append({"psi": psi, **_scores(found)})
        report(f"PSI {psi:g}: SWD average {rows[-1]['SWD average']:.1f}")
    return {
        "model": model.name,
        "default": model.truncation,
        "photographs": photos.conditions["photographs"],
        "images": photos.whole.swd,
        "features": None if network is None else network.conditions["features"],
        "rows": rows,
        "photographs against others": _scores(floor),
        "seconds": round(time.perf_counter() - began, 1),
    }, faces_of


def _scores(found: Measured) -> dict[str, float]:
    """What the table holds; variety is the mean root-mean-square difference of two pictures, 0 to 255."""
    scores = {score.name: score.value for score in found.scores if score.name in PLACES}
    return {**scores, "variety": variety(found.examples)}


# ----------------------------------------------------------------------------
# The report.


def table(report: dict[str, Any]) -> list[list[str]]:
    """A row for each PSI, and one for photographs against other photographs."""
    floor = report["photographs against others"]
    names = [name for name in PLACES if name in floor]
    rows = [(f"{row['psi']:g}", row) for row in report["rows"]]
    return [
        ["PSI", *names],
        *[
            [head, *[f"{row[name]:.{PLACES[name]}f}" for name in names]]
            for head, row in [*rows, ("photographs", floor)]
        ],
    ]


def legend(report: dict[str, Any]) -> str:
    """Returns how the numbers were made."""
    network = report["features"]
    by = "" if network is None else f"; network sha256 {network[:16]}"
    return (
        f"model {report['model']}, which truncates to {report['default']:g} unless told; "
        f"{report['images']:,} images of each PSI against as many photographs, "
        f"those against each other by halves{by}"
    )


def text(report: dict[str, Any]) -> str:
    """The table, and how it was made."""
    return f"{aligned(table(report), 1)}\n{legend(report)}"


def write_report(report: dict[str, Any], faces: dict[float, Pixels], folder: Path) -> None:
    """truncation.json, .md and .png, a row of faces for each PSI.

    Raises PgsrError if they cannot be written.
    """
    make_folder(folder)
    write_text(folder / "truncation.json", json.dumps(report, indent=1) + "\n")
    write_text(
        folder / "truncation.md", "\n".join([*markdown_table(table(report), 1), "", legend(report), ""])
    )
    with replacing(folder / "truncation.png") as temporary:
        stacked([(f"PSI {psi:g}", sheet(row, len(row))) for psi, row in faces.items()]).save(temporary, "PNG")
