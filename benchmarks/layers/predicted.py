"""Equation (3) of paper 1 beside what each layer of the networks really gains, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from torch import nn

from ..conv.cases import CONVOLUTIONS, Case
from ..conv.measure import Settings as Timing
from ..conv.measure import Way as Convolver
from ..conv.measure import compared, timed
from ..harness.noise import Watch
from ..harness.provenance import provenance
from ..harness.roof import Roof, survey
from ..references.inference import PlainGenerator, PlainUpscaler
from ..throughput.measure import torch_threads
from ..throughput.systems import Widths
from .settings import Settings, Way

Report = Callable[[str], None]

NOTES = (
    "Every layer by itself, vanilla and separable in turn, as pgsr-bench conv times them: NHWC where a "
    "library can be told, 8 bits from input to output. Equal layers are timed once and counted as often "
    "as they occur.",
    "Equation (3): separable needs 1/N + 1/k² of the multiplications, with N maps out and kernels of k × k.",
    "The roof is the ratio of the least times: arithmetic at the best matrix product, or bytes at a "
    "copy's speed, whichever is longer, for depthwise and pointwise each.",
)


def run(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole measurement as JSON data."""
    began = provenance()
    report("timing the matrix product and the memory")
    machine, roof = survey(settings.threads)
    layers = layers_of(settings.widths, settings.batch)
    how = Timing(rounds=settings.rounds, threads=settings.threads)
    with Watch() as watch, torch_threads(settings.threads):
        rows = [
            row(way, network, name, case, count, roof, how, report)
            for way in settings.ways(machine)
            for (network, name, case), count in layers.items()
        ]
    return {
        "benchmark": "predicted",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.as_dict(),
        "provenance": began,
        "roof": roof.as_dict(),
        "settings": settings.as_dict(),
        "noise": watch.as_dict([ratio for row in rows for ratio in row["controls"]]),
        "rows": rows,
        "notes": list(NOTES),
    }


Layer = tuple[str, str, Case]  # network, name, convolution


def layers_of(widths: Widths, batch: int) -> dict[Layer, int]:
    """The convolutions of more than one pixel in both networks, in their order, and how often each occurs."""
    counts: dict[Layer, int] = {}
    for network, case in (*_generator(widths, batch), *_upscaler(widths, batch)):
        enlarging = "×2, " if case.form == "up" else ""
        name = f"{case.resolution}², {enlarging}{case.channels}→{case.maps}, {case.kernel}×{case.kernel}"
        counts[network, name, case] = counts.get((network, name, case), 0) + 1
    return counts


def _generator(widths: Widths, batch: int) -> Iterator[tuple[str, Case]]:
    """3x3 layers by resolution: the first of each enlarges."""
    network = PlainGenerator(widths.resolution, widths.latent_size, widths.feature_base, widths.feature_max)
    side = 4
    for i, layer in enumerate(network.convs):
        assert isinstance(layer, nn.Conv2d)
        form = "up" if i % 2 == 1 else "plain"
        side *= 2 if form == "up" else 1
        yield "generator", Case(form, layer.in_channels, side, batch, layer.out_channels)


def _upscaler(widths: Widths, batch: int) -> Iterator[tuple[str, Case]]:
    """9x9, the residual blocks, the layers before each pixel shuffle, 9x9."""
    side = widths.resolution
    for layer in PlainUpscaler(widths.scale, widths.sr_features, widths.sr_blocks).modules():
        if isinstance(layer, nn.PixelShuffle):
            side *= 2
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0]
            yield "upscaler", Case("plain", layer.in_channels, side, batch, layer.out_channels, kernel)


def row(
    way: Way, network: str, name: str, case: Case, count: int, roof: Roof, how: Timing, report: Report
) -> dict[str, Any]:
    """One layer in one way."""
    report(f"{way.name}: {network}, {name}")
    convolver = Convolver(way.backend, "NCHW" if way.backend == "onnxruntime" else "NHWC", way.precision)
    sides = compared(convolver, case, roof, timed(how, convolver, case))
    least = {c: least_seconds(case, c, way.precision, roof) for c in CONVOLUTIONS}
    return {
        **asdict(way),
        "network": network,
        "layer": name,
        "count": count,
        "predicted": case.predicted_speedup,
        "roof": least["vanilla"] / least["separable"],
        **sides,
    }


def least_seconds(case: Case, convolution: str, precision: str, roof: Roof) -> float:
    """Of a batch under the roof; depthwise and pointwise one after the other."""
    if convolution == "vanilla":
        adds = case.batch * case.multiply_adds("vanilla")
        return max(roof.seconds(adds, case.moved_bytes("vanilla", precision), precision))
    pointwise = replace(case, form="plain", kernel=1)
    pointwise_adds = case.batch * pointwise.multiply_adds("vanilla")
    pointwise_bytes = pointwise.moved_bytes("vanilla", precision)
    depthwise_adds = case.batch * case.multiply_adds("separable") - pointwise_adds
    depthwise_bytes = case.moved_bytes("separable", precision) - pointwise_bytes
    return max(roof.seconds(depthwise_adds, depthwise_bytes, precision)) + max(
        roof.seconds(pointwise_adds, pointwise_bytes, precision)
    )
