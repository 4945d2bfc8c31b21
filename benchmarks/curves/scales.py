"""Figure 3 of paper 4: what a trained generator makes of the same latents at each of its resolutions.

    pgsr-bench scales runs/faces --out report

A ProGAN's images at a lower resolution are of layers that were left behind: they need not agree in colour and
brightness with the largest ones, which an MSG-GAN's (figure 1 of the paper) do. How far they are apart is
measured: of each picture, the root-mean-square difference from the largest one reduced to its size, and of
their mean colours alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from pgsr import draws, images
from pgsr.errors import PgsrError
from pgsr.export.lowering import Grown
from pgsr.export.source import read_source
from pgsr.files import make_folder, replacing, write_text
from pgsr.runtime.synthesizer import check_window
from pgsr.trainer.start import chosen_device

from ..harness.report import aligned

Pixels = NDArray[np.uint8]  # [N, R, R, 3]

LEAST_SIDE = 64  # pixels, on the sheet


@dataclass(frozen=True)
class Settings:
    """What is drawn. Raises PgsrError for values out of range."""

    run: Path  # a run's folder or a checkpoint
    count: int = 8  # latents, a column each
    start: int = 0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_window(self.seed, self.count, self.start)
        if not self.count:
            raise PgsrError("--count is 0: ask for an image at least")


def run(settings: Settings) -> tuple[dict[str, Any], Pixels]:
    """The report, and the sheet: a row a resolution, the largest above.

    Raises PgsrError if there is no generator of several resolutions.
    """
    source = read_source(settings.run)
    sides = [side for side in source.generator.resolutions if side <= source.resolution]
    if len(sides) < 2:
        raise PgsrError(f"{settings.run} holds no generator of several resolutions")
    device = chosen_device(settings.device)
    indices = range(settings.start, settings.start + settings.count)
    latents = torch.from_numpy(draws.latents(settings.seed, indices, source.latent_size)).to(device)
    made = {}
    for side in reversed(sides):
        with torch.no_grad():
            made[side] = Grown(source.generator, side).to(device)(latents).float().cpu()
    report = {
        "run": str(settings.run),
        "seed": settings.seed,
        "start": settings.start,
        "count": settings.count,
        "resolutions": [{"resolution": side, **apart(made[side], made[sides[-1]])} for side in made],
    }
    return report, sheet(made)


def apart(pictures: torch.Tensor, largest: torch.Tensor) -> dict[str, float]:
    """How far [N, 3, R, R] are from larger ones reduced to R x R, in grey levels of 255."""
    reduced = F.avg_pool2d(largest.clamp(-1, 1), largest.shape[-1] // pictures.shape[-1])
    difference = (pictures.clamp(-1, 1) - reduced) * 127.5
    return {
        "difference": difference.square().mean().sqrt().item(),
        "colour_difference": difference.mean((2, 3)).square().mean().sqrt().item(),
    }


def sheet(made: Mapping[int, torch.Tensor]) -> Pixels:
    """All resolutions below each other, enlarged by replication to the largest, or to 64 x 64 if that is
    less."""
    shown = max(LEAST_SIDE, *made)
    rows = [F.interpolate(part, scale_factor=float(shown // side)) for side, part in made.items()]
    return images.sheet(images.to_uint8(torch.cat(rows).numpy()), columns=len(rows[0]))


def text(report: Mapping[str, Any]) -> str:
    """Returns what the command prints."""
    lines = [["resolution", "difference", "of mean colours"]]
    for row in report["resolutions"]:
        lines.append([str(row["resolution"]), f"{row['difference']:.1f}", f"{row['colour_difference']:.1f}"])
    what = "from the largest images reduced to this size, root mean square, in levels of 255"
    return f"{aligned(lines, 0)}\n\n{what}"


def write_report(report: Mapping[str, Any], picture: Pixels, folder: Path) -> None:
    """scales.json and scales.png. Raises PgsrError if they cannot be written."""
    make_folder(folder)
    write_text(folder / "scales.json", json.dumps(report, indent=1) + "\n")
    with replacing(folder / "scales.png") as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
