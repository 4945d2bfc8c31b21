"""What is exported: the averaged generators of runs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgsr.checkpoint import Checkpoint, load, newest
from pgsr.errors import PgsrError
from pgsr.networks import GENERATORS, build
from pgsr.networks.interfaces import Generator
from pgsr.networks.progan import ProGANGenerator


@dataclass(frozen=True)
class Source:
    """A trained generator or upscaler and where it is from."""

    network: nn.Module  # in eval mode, float32
    kind: str  # "generator" (latents in) or "upscaler" (images in)
    latent_size: int  # of a generator; 0 of an upscaler
    resolution: int  # of a generator's images: the highest that is fully grown in; 0 of an upscaler
    scale: int  # of an upscaler; 1 of a generator
    provenance: dict[str, Any]
    input_size: int = 0  # side of the images an upscaler takes; 0: any
    multiple: int = 1  # of an upscaler: what the sides of the images that it sees have to be divisible by
    least: int = 1  # and how long they have to be: smaller ones are padded in the graph
    notes: tuple[str, ...] = ()  # sentences for the user

    @property
    def generator(self) -> Generator:
        """The network of a source whose kind is "generator"."""
        assert isinstance(self.network, Generator)
        return self.network


class OneLabel(Generator):
    """A generator conditioned on labels, as one of a single label: latents alone go in."""

    label: Tensor

    def __init__(self, generator: ProGANGenerator, label: int) -> None:
        super().__init__()
        self.generator, self.resolutions = generator, generator.resolutions
        self.register_buffer("label", torch.eye(generator.labels)[label])

    def forward(self, latents: Tensor, resolution: int | None = None) -> Tensor:
        labels = self.label.to(latents.dtype).expand(latents.shape[0], -1)
        return self.generator(torch.cat([latents, labels], dim=1), resolution)

    def at(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The generator at one resolution; it is exported only where that is fully grown."""
        assert alpha == 1.0
        return partial(self, resolution=resolution)


def read_source(path: Path, label: int | None = None) -> Source:
    """The newest checkpoint of a run folder, or one checkpoint file.

    `label` is for a generator conditioned on labels: the one it shall draw.
    Raises PgsrError if there is none, it is damaged, or its weights or the label do not fit its recipe.
    """
    path = newest(path)
    checkpoint = load(path)
    network, options = _network(checkpoint, path)
    draws_faces = "latent_size" in options
    labels = options.get("labels", 0)
    if draws_faces:
        network = with_one_label(network, labels, label, path)
    return Source(
        network=network.eval().requires_grad_(False),
        kind="generator" if draws_faces else "upscaler",
        latent_size=options.get("latent_size", 0),
        resolution=_count(checkpoint, "grown_resolution", path) if draws_faces else 0,
        scale=options.get("scale", 1),
        provenance={
            "recipe": checkpoint.config,
            "images_shown": _count(checkpoint, "images_shown", path),
            **({"label": label} if labels else {}),
            **checkpoint.provenance,
        },
        input_size=options.get("input_size", 0),
    )


def _network(checkpoint: Checkpoint, path: Path) -> tuple[Generator, dict[str, Any]]:
    """A checkpoint's averaged generator and its options. Raises PgsrError for options that make no network,
    and weights that are not its own."""
    options = checkpoint.config.get("generator")
    if not isinstance(options, dict):
        raise PgsrError(f"{path} does not say what its generator is: it was not written by pgsr-train")
    weights = checkpoint.under("generator_ema.")
    with torch.device("meta"):  # without memory, which a few numbers may ask for without end
        _load(_built(options, path), weights, path, assign=True)
    network = _built(options, path)
    _load(network, weights, path)
    return network, options


def _built(options: Mapping[str, Any], path: Path) -> Generator:
    try:
        return build(GENERATORS, options)
    except PgsrError as error:
        raise PgsrError(f"{path}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        raise PgsrError(f"{path}: its options make no network ({error})") from error


def _load(network: Generator, weights: Mapping[str, Tensor], path: Path, assign: bool = False) -> None:
    try:
        network.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise PgsrError(f"the weights of {path} do not fit its recipe: {text}") from error


def _count(checkpoint: Checkpoint, name: str, path: Path) -> int:
    value = checkpoint.progress.get(name)
    if type(value) is not int or value < 0:
        raise PgsrError(f"{path} does not say its {name}: it was not written by pgsr-train")
    return value


def with_one_label(network: Generator, labels: int, label: int | None, path: Path) -> Generator:
    """Conditions a generator on one of its labels; one without labels stays itself.

    Raises PgsrError for a label that is needed and not given, or given and not there.
    """
    if not labels:
        if label is not None:
            raise PgsrError(f"--label {label}: {path} was trained without labels")
        return network
    assert isinstance(network, ProGANGenerator)
    return OneLabel(network, checked_label(label, labels, str(path)))


def checked_label(label: int | None, labels: int, what: str) -> int:
    """Raises PgsrError for a label that is not given, or that there is not."""
    if label is None:
        raise PgsrError(f"{what} draws pictures of {labels} labels: name one with --label, 0 to {labels - 1}")
    if not 0 <= label < labels:
        raise PgsrError(f"--label {label}: {what} draws pictures of {labels} labels, 0 to {labels - 1}")
    return label


def at_resolution(sources: list[Source], resolution: int) -> list[Source]:
    """The sources, the generator among them at one of its lower resolutions.

    Raises PgsrError if there is no generator or it does not make images of that size.
    """
    generators = [source for source in sources if source.kind == "generator"]
    if not generators:
        raise PgsrError("--resolution is a generator's, and none is named")
    for source in generators:
        grown = [r for r in source.generator.resolutions or [source.resolution] if r <= source.resolution]
        if resolution not in grown:
            raise PgsrError(f"--resolution {resolution}: the generator has {', '.join(map(str, grown))}")
    return [replace(s, resolution=resolution) if s.kind == "generator" else s for s in sources]
