"""What `pgsr-bench throughput` compares: one pair of networks in eager PyTorch and as exported graphs."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgsr import __version__, bundle, draws
from pgsr.bundle import Bundle, Graph
from pgsr.export.bundle_builder import Choice, Plan, convert, in_int8, multiply_adds, plans
from pgsr.export.graphs import Chain
from pgsr.export.lowering import Grown
from pgsr.export.source import Source
from pgsr.files import make_folder, write_bytes
from pgsr.networks import GENERATORS, build

from ..harness.arithmetic import Saving, equation_3
from ..references import inference as plain

CONVOLUTIONS = ("vanilla", "separable")
STAGES = ("generator", "upscaler", "chain")
CALIBRATION = 4  # inputs that int8's scales are found on


@dataclass(frozen=True)
class Widths:
    """The networks' sizes; the defaults are those of the papers, to 64 x 64 and four times that."""

    resolution: int = 64  # of the generator's images
    latent_size: int = 512
    feature_base: int = 16384
    feature_max: int = 512
    scale: int = 4  # of the upscaler
    sr_blocks: int = 16
    sr_features: int = 64

    def generator(self, convolution: str) -> dict[str, Any]:
        return {
            "kind": "progan",
            "resolution": self.resolution,
            "latent_size": self.latent_size,
            "feature_base": self.feature_base,
            "feature_max": self.feature_max,
            "convolution": convolution,
        }

    def upscaler(self, convolution: str) -> dict[str, Any]:
        return {
            "kind": "srresnet",
            "scale": self.scale,
            "features": self.sr_features,
            "blocks": self.sr_blocks,
            "convolution": convolution,
        }


@dataclass(frozen=True)
class System:
    """A generator and an upscaler of one convolution, both ways; the eager ones on a device."""

    convolution: str
    generator: nn.Module  # eager
    upscaler: nn.Module  # eager
    bundle: Bundle  # the same weights, exported
    multiply_adds: Mapping[str, int]  # of the networks as written, by stage; the graphs' are in the bundle

    def eager(self, stage: str, x: Tensor) -> Any:
        """Returns what the stage makes of its input in float32: from the CPU and back to it, as the runtime
        does."""
        x = x.to(plain.device_of(self.generator))
        with torch.no_grad():
            if stage == "generator":
                return self.generator(x).cpu().numpy()
            if stage == "upscaler":
                return self.upscaler(x).cpu().numpy()
            return plain.to_pixels(self.upscaler(self.generator(x)))


def new_system(
    widths: Widths,
    convolution: str,
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    device: str = "cpu",
    target: str = Choice.target,
) -> System:
    """Networks with random weights, exported into `folder` by the functions that pgsr-export uses, with the
    rewrites that it makes for a target."""
    generator = build(GENERATORS, widths.generator(convolution), seed=0).eval().requires_grad_(False)
    upscaler = build(GENERATORS, widths.upscaler(convolution), seed=1).eval().requires_grad_(False)
    todo = plans(
        {
            "generator": Source(generator, "generator", widths.latent_size, widths.resolution, 1, {}),
            "upscaler": Source(upscaler, "upscaler", 0, 0, widths.scale, {}),
        }
    )
    counts = {p.name: multiply_adds(Chain(list(p.networks), "fp32", False), example(widths, p)) for p in todo}
    exported = _export(widths, todo, make_folder(folder), precisions, Choice(target))
    if convolution == "vanilla":
        eager: tuple[nn.Module, nn.Module] = plain_networks(widths, generator, upscaler)
    else:
        eager = Grown(generator, widths.resolution), upscaler
    return System(convolution, eager[0].to(device), eager[1].to(device), exported, counts)


@functools.cache
def exported_system(widths: Widths, convolution: str, precisions: tuple[str, ...]) -> System:
    """The same on the CPU, for all measurements of a process: in a folder that goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="pgsr-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return new_system(widths, convolution, folder / convolution, precisions)


def example(widths: Widths, plan: Plan, count: int = 1) -> Tensor:
    """Inputs of a graph."""
    return inputs(widths, "upscaler" if plan.input.name == "images" else "generator", count)


def inputs(widths: Widths, stage: str, count: int) -> Tensor:
    """Latents [count, L], or images [count, 3, R, R] for the upscaler."""
    if stage != "upscaler":
        return torch.from_numpy(draws.latents(0, range(count), widths.latent_size))
    noise = draws.latents(0, range(count), 3 * widths.resolution**2)
    return torch.from_numpy(noise).view(count, 3, widths.resolution, widths.resolution).clamp(-1, 1)


def _export(
    widths: Widths, todo: list[Plan], folder: Path, precisions: Sequence[str], choice: Choice
) -> Bundle:
    bundle.write(
        Bundle(
            folder=folder,
            name=folder.name,
            version=__version__,
            latent_size=widths.latent_size,
            resolution=widths.resolution,
            scale=widths.scale,
            graphs=tuple(_write_graph(widths, plan, p, folder, choice) for p in precisions for plan in todo),
            licence="random weights",
        )
    )
    return bundle.read(folder)


def _write_graph(widths: Widths, plan: Plan, precision: str, folder: Path, choice: Choice) -> Graph:
    graph = convert(plan, precision, example(widths, plan, 2), choice)
    if precision == "int8":
        graph, _ = in_int8(graph, example(widths, plan, CALIBRATION).numpy(), True, "")
    write_bytes(folder / graph.graph.file, graph.model, durable=False)
    return graph.graph


# ----------------------------------------------------------------------------
# The naive reference.


def plain_networks(
    widths: Widths, generator: nn.Module, upscaler: nn.Module
) -> tuple[plain.PlainGenerator, plain.PlainUpscaler]:
    """The plain networks with the weights of vanilla ones."""
    small = plain.PlainGenerator(
        widths.resolution, widths.latent_size, widths.feature_base, widths.feature_max
    )
    small.load_state_dict(plain.generator_weights(generator.state_dict()))
    large = plain.PlainUpscaler(widths.scale, widths.sr_features, widths.sr_blocks)
    large.load_state_dict(plain.upscaler_weights(upscaler.state_dict()))
    return small.eval().requires_grad_(False), large.eval().requires_grad_(False)


def predicted(widths: Widths, vanilla: System) -> dict[str, Saving]:
    """Equation 3 of paper 1 for each stage."""
    generator = equation_3(vanilla.generator, inputs(widths, "generator", 1))
    upscaler = equation_3(vanilla.upscaler, inputs(widths, "upscaler", 1))
    return {"generator": generator, "upscaler": upscaler, "chain": generator + upscaler}
