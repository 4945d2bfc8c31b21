"""Makes a smaller copy of a checkpoint, from which training goes on all the same.

python -m pgsr.benchmarks.gpu.slim runs/faces/checkpoints/000240000.safetensors --out state.safetensors

With beta1 = 0, Adam's first moment is the last gradient and is overwritten before it is read, so it is left
out and nothing is lost. The second moment is kept in bfloat16 (`--moments float32` keeps it exact): its
square root, by which steps are divided, is then off by at most 0.2%, and with beta2 = 0.99 that is forgotten
after some hundred steps.

`--average` keeps the averaged generator alone: what pgsr-export and `--start-from` need, and no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages, version_option
from pgsr.errors import PgsrError

if TYPE_CHECKING:
    import torch

    from pgsr.checkpoint import Checkpoint

AVERAGE = "generator_ema."


def slimmed(checkpoint: Checkpoint, moments: torch.dtype) -> Checkpoint:
    """Returns a checkpoint without first moments that are never read, its second moments of a type."""
    tensors = {
        name: tensor.to(moments) if name.endswith("/exp_avg_sq") else tensor
        for name, tensor in checkpoint.tensors.items()
        if not (name.endswith("/exp_avg") and _beta1(checkpoint.config, name) == 0.0)
    }
    return dataclasses.replace(checkpoint, tensors=tensors)


def averaged(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint with the averaged generator alone. Raises PgsrError if it has none."""
    tensors = {name: t for name, t in checkpoint.tensors.items() if name.startswith(AVERAGE)}
    if not tensors:
        raise PgsrError("the checkpoint has no averaged generator")
    return dataclasses.replace(checkpoint, tensors=tensors)


def _beta1(config: Mapping[str, Any], name: str) -> float:
    """Returns Adam's beta1 for the network that `optimizer.NETWORK.…` names."""
    which = "generator_optimizer" if name.startswith("optimizer.generator.") else "critic_optimizer"
    return float(config[which]["beta1"])


@click.command(cls=Command)
@click.argument("checkpoint", type=PATH)
@click.option("--out", required=True, type=PATH, help="The smaller file.")
@click.option(
    "--moments",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Type of Adam's second moments.",
)
@click.option("--average", is_flag=True, help="The averaged generator alone, for pgsr-export.")
@json_option
@version_option
def main(checkpoint: Path, out: Path, moments: str, average: bool, as_json: bool) -> None:
    """Write a smaller copy of CHECKPOINT, from which pgsr-train --resume goes on."""
    with packages("training", "train"):
        import torch

        from pgsr.checkpoint import load, save

        whole = load(checkpoint)
        save(out, averaged(whole) if average else slimmed(whole, getattr(torch, moments)))
    sizes = {"bytes_before": checkpoint.stat().st_size, "bytes": out.stat().st_size}
    text = f"{out}: {sizes['bytes'] / 2**20:.1f} MiB of {sizes['bytes_before'] / 2**20:.1f}"
    emit(sizes, text, as_json)


if __name__ == "__main__":
    main()
