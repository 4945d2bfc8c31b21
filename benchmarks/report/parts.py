"""The parts of a report, as a table: what each asks, how it is measured, what it shows, what two are
compared by.

To add one: its four functions and a line of PARTS, in the order in which the page has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..conv import measure as conv
from ..curves import convolutions, growing
from ..curves import quality as quality_curves
from ..harness.report import Row
from ..layers import predicted, roofline, waterfall
from ..opponent import measure as opponent
from ..quality import measure as quality
from ..quality.sets import Settings as QualitySettings
from ..resample import measure as resample
from ..rewrites import measure as rewrites
from ..throughput import measure as throughput
from ..training import measure as training
from . import show, trainings
from .settings import Settings
from .shown import Measure, Shown

Report = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A part of a report."""

    title: str
    question: str
    measure: Callable[[Settings, Path, Report], dict[str, Any]]  # the folder is for what it keeps on the way
    show: Callable[[Row], Shown]
    measures: Callable[[Row], list[Measure]]
    needs_data: bool = False  # photographs, without which it is left out
    needs: tuple[str, ...] = ()  # modules, without which it is left out
    extra: str = ""  # that installs them


def _conv(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    return conv.run(settings.amounts.conv, report, folder / "conv.rows.jsonl")


def _roofline(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    return roofline.run(settings.amounts.layers, report)


def _predicted(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    return predicted.run(settings.amounts.layers, report)


def _waterfall(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    return waterfall.run(settings.amounts.layers, report)


def _throughput(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    return throughput.run(settings.throughput(), report)


def _training(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    return training.run(settings.amounts.training, report)


def _opponent(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    """Every row has a control pair of its own; together they are the part's."""
    result = opponent.run(settings.amounts.opponent, report)
    return {**result, "controls": [row["control"] for row in result["rows"]]}


def _convolutions(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    with throughput.torch_threads(settings.threads):
        return convolutions.run(settings.convolutions(folder / "convolutions"), report)


def _growing(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    """With what separable convolutions change of its third panel."""
    own = settings.growing(folder / "growing")
    with throughput.torch_threads(settings.threads):
        result = growing.run(own, report)
        report("timing separable steps")
        separable = growing.throughput(own.final, own.final_maps, torch.device("cpu"), "separable")
    return {**result, "separable_throughput": separable}


def _quality_curves(settings: Settings, folder: Path, report: Report) -> dict[str, Any]:
    with throughput.torch_threads(settings.threads):
        return quality_curves.run(settings.quality_curves(folder / "quality-curves"), report)


def _rewrites(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    return rewrites.run(settings.amounts.rewrites, report)


def _resample(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    result, _originals = resample.run(settings.amounts.resample, report)
    return result


def _quality(settings: Settings, _folder: Path, report: Report) -> dict[str, Any]:
    assert settings.data is not None
    wanted = QualitySettings(settings.data, images=settings.amounts.quality_images, pairs=1000)
    return quality.as_dict(quality.run(replace(wanted, threads=settings.threads), report))


PARTS = {
    "waterfall": Part(
        "Where does the saving go?",
        "From latents to files: how much of the saving in multiply-adds is left, and what takes the rest.",
        _waterfall,
        show.waterfall,
        show.waterfall_measures,
    ),
    "predicted": Part(
        "Predicted and measured, layer by layer",
        "Equation (3) of the depthwise paper beside what each layer gains.",
        _predicted,
        show.predicted,
        show.predicted_measures,
    ),
    "roofline": Part(
        "Under the roof",
        "Every layer of generator, upscaler and critic against what the machine can do.",
        _roofline,
        show.roofline,
        show.roofline_measures,
    ),
    "conv": Part(
        "One convolution at a time",
        "From which width on does separable pay?",
        _conv,
        show.conv,
        show.conv_measures,
    ),
    "throughput": Part(
        "Whole networks",
        "Images a second of every stage, with every library.",
        _throughput,
        show.throughput,
        show.throughput_measures,
    ),
    "opponent": Part(
        "A second opponent",
        "The same networks beside what a good engineer writes in an afternoon.",
        _opponent,
        show.opponent,
        show.opponent_measures,
        needs=("openvino", "nncf", "cv2"),
        extra="opponent",
    ),
    "training": Part(
        "Training steps",
        "What separable convolutions save where second derivatives are taken, too.",
        _training,
        show.training,
        show.training_measures,
    ),
    "convolutions": Part(
        "Training by resolution",
        "What a whole training takes with either convolution (paper 1, Figure 2).",
        _convolutions,
        trainings.convolutions,
        trainings.convolutions_measures,
        needs_data=True,
    ),
    "growing": Part(
        "Growing or not, to 1024²",
        "What growing progressively saves (paper 2, Figure 4), and what separable saves on top.",
        _growing,
        trainings.growing,
        trainings.growing_measures,
        needs_data=True,
    ),
    "rewrites": Part(
        "Rewrites",
        "What each exact rewrite of the exporter is worth.",
        _rewrites,
        show.rewrites,
        show.rewrites_measures,
    ),
    "resample": Part(
        "Ways to reduce a picture",
        "The filters that training pictures are made with.",
        _resample,
        show.resample,
        show.resample_measures,
    ),
    "quality": Part(
        "The model that ships",
        "How near to photographs its faces are.",
        _quality,
        show.quality,
        show.quality_measures,
        needs_data=True,
    ),
    "quality-curves": Part(
        "What it costs in quality",
        "Trained with equal images, equal time and equal parameters.",
        _quality_curves,
        trainings.quality_curves,
        trainings.quality_curves_measures,
        needs_data=True,
    ),
}
