"""What is exported: the averaged generators of runs and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pgsr.checkpoint import Checkpoint, load
from pgsr.errors import PgsrError
from pgsr.networks import GENERATORS, build


@dataclass(frozen=True)
class Source:
    """A trained generator or upscaler and where it is from."""

    network: nn.Module  # in eval mode, float32
    kind: str  # "generator" (latents in) or "upscaler" (images in)
    resolution: int  # of a generator's images: the highest that is fully grown in; else 0
    provenance: dict[str, Any]


def read_source(path: Path) -> Source:
    """The newest checkpoint of a run folder, or one checkpoint file.

    Raises PgsrError if there is none, it is damaged, or its weights do not fit its recipe.
    """
    checkpoint = load(_checkpoint_file(path))
    options = checkpoint.config["generator"]
    network = build(GENERATORS, options)
    try:
        network.load_state_dict(checkpoint.under("generator_ema."))
    except RuntimeError as error:
        raise PgsrError(f"the weights of {path} do not fit its recipe: {error}") from error
    kind = "generator" if "latent_size" in options else "upscaler"
    return Source(
        network=network.eval().requires_grad_(False),
        kind=kind,
        resolution=_grown_resolution(checkpoint) if kind == "generator" else 0,
        provenance={
            "recipe": checkpoint.config,
            "images_shown": checkpoint.progress["images_shown"],
            **checkpoint.provenance,
        },
    )


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted((path / "checkpoints").glob("*.safetensors"))
    if not files:
        raise PgsrError(f"{path} holds no checkpoint: train it first, or name a .safetensors file")
    return files[-1]


def _grown_resolution(checkpoint: Checkpoint) -> int:
    """The highest resolution whose fade has ended, so that the graph needs no old branch."""
    return int(checkpoint.progress["grown_resolution"])
