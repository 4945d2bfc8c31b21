"""What is exported: the averaged generators of runs and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pgsr.checkpoint import load, newest
from pgsr.errors import PgsrError
from pgsr.networks import GENERATORS, build


@dataclass(frozen=True)
class Source:
    """A trained generator or upscaler and where it is from."""

    network: nn.Module  # in eval mode, float32
    kind: str  # "generator" (latents in) or "upscaler" (images in)
    latent_size: int  # of a generator; 0 of an upscaler
    resolution: int  # of a generator's images: the highest that is fully grown in; 0 of an upscaler
    scale: int  # of an upscaler; 1 of a generator
    provenance: dict[str, Any]


def read_source(path: Path) -> Source:
    """The newest checkpoint of a run folder, or one checkpoint file.

    Raises PgsrError if there is none, it is damaged, or its weights do not fit its recipe.
    """
    checkpoint = load(newest(path))
    options = checkpoint.config["generator"]
    network = build(GENERATORS, options)
    try:
        network.load_state_dict(checkpoint.under("generator_ema."))
    except RuntimeError as error:
        raise PgsrError(f"the weights of {path} do not fit its recipe: {error}") from error
    draws_faces = "latent_size" in options
    return Source(
        network=network.eval().requires_grad_(False),
        kind="generator" if draws_faces else "upscaler",
        latent_size=options.get("latent_size", 0),
        resolution=checkpoint.progress["grown_resolution"] if draws_faces else 0,
        scale=options.get("scale", 1),
        provenance={
            "recipe": checkpoint.config,
            "images_shown": checkpoint.progress["images_shown"],
            **checkpoint.provenance,
        },
    )
