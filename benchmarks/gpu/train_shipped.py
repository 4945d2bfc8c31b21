"""Goes on with a training for some minutes and leaves small flat files behind.

python -m pgsr.benchmarks.gpu.train_shipped --data faces64.zip --checkpoint LAST.safetensors \
    --out piece --minutes 8
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgsr.cli import PATH, Command, emit, json_option, packages, version_option
from pgsr.errors import PgsrError
from pgsr.files import make_folder, replacing, write_text

if TYPE_CHECKING:
    from pgsr.trainer.run_folder.run import Run
    from pgsr.trainer.step.trainer import Trainer

LARGEST_BYTES = 16 * 2**20  # of a file that comes back easily; a larger one is noted


@dataclass(frozen=True)
class TrainingStretch:
    """A stretch of a training."""

    recipe: str  # a name, or a .toml file
    settings: Sequence[str]  # key=value on top of it
    data: Path
    checkpoint: Path | None  # to go on from; None begins anew
    device: str  # auto, cpu or cuda[:N]
    minutes: float  # of training; loading the data comes before


def train_piece(piece: TrainingStretch, out: Path) -> dict[str, Any]:
    """Trains in a folder that is thrown away, and leaves in `out` the newest checkpoint, metrics.jsonl,
    the newest samples and summary.json.

    Raises PgsrError if recipe, data and checkpoint do not fit, or `out` cannot be written.
    """
    make_folder(out)
    with tempfile.TemporaryDirectory(prefix="pgsr-piece-") as scratch:
        run = _prepared(piece, Path(scratch))
        summary = _trained(run, piece.minutes)
        files = _keep(run.folder, out)
    for path in files:
        if path.stat().st_size > LARGEST_BYTES:
            print(f"note: {path} has {path.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)
    summary["files"] = [path.name for path in files]
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _prepared(piece: TrainingStretch, folder: Path) -> Run:
    """A run in a new folder, standing where the checkpoint stood."""
    from pgsr.trainer.start import chosen_device, open_run
    from pgsr.trainer.step import recipe as config

    run = open_run(config.load(piece.recipe, piece.settings), piece.data, folder, chosen_device(piece.device))
    if piece.checkpoint is not None:
        # An archive that was made again has another fingerprint; that is noted, not refused.
        run.resume(piece.checkpoint, other_data=True)
    return run


def _trained(run: Run, minutes: float) -> dict[str, Any]:
    """Trains until the minutes or the schedule are over; what is worth knowing of it."""
    from pgsr.trainer.loop import StopRequest, train
    from pgsr.trainer.start import beginning

    trainer = run.trainer
    before = trainer.state.images_shown
    print(beginning(trainer), file=sys.stderr)
    began = time.monotonic()
    with StopRequest(minutes) as stop:
        finished = train(run, stop)
    seconds = time.monotonic() - began
    images_shown = trainer.state.images_shown
    if not images_shown:
        raise PgsrError(f"not one step in {minutes} minutes: give it more")
    run.write_samples()  # of where it stopped, between two sheets that were due
    return {
        "recipe": trainer.recipe.name,
        **trainer.chosen,
        "batch": trainer.stage().batch,
        "images_shown_before": before,
        "images_shown": images_shown,
        "finished": finished,
        "seconds": seconds,
        "images_per_second": (images_shown - before) / seconds,
        "peak_memory_bytes": _peak_memory_bytes(trainer),
    }


def _keep(folder: Path, out: Path) -> list[Path]:
    """Copies what is worth keeping of a run's folder into `out`."""
    newest = [max((folder / name).iterdir()) for name in ("checkpoints", "samples")]
    metrics = folder / "metrics.jsonl"
    files = []
    for source in [*newest, *([metrics] if metrics.is_file() else [])]:
        with replacing(out / source.name) as temporary:
            shutil.copyfile(source, temporary)
        files.append(out / source.name)
    return files


def _peak_memory_bytes(trainer: Trainer) -> int:
    """Returns the peak memory of the GPU's tensors; on a CPU, of the whole process."""
    import resource

    import torch

    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


@click.command(cls=Command)
@click.option("--data", required=True, type=PATH, help="Folder or zip of photographs.")
@click.option("--checkpoint", type=PATH, help="Where to go on [default: begin anew].")
@click.option("--out", required=True, type=PATH, help="Folder for what is kept.")
@click.option("--minutes", type=float, default=8.0, show_default=True, help="Of training.")
@click.option("--recipe", default="faces-64-large", show_default=True, help="A name, or a .toml file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="schedule.batch=64")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@json_option
@version_option
def main(
    data: Path,
    checkpoint: Path | None,
    out: Path,
    minutes: float,
    recipe: str,
    settings: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Train RECIPE for some minutes from a checkpoint, and keep the newest of everything."""
    with packages("training", "train"):
        summary = train_piece(TrainingStretch(recipe, settings, data, checkpoint, device, minutes), out)
    text = (
        f"{out}: {summary['images_shown']} images shown, {summary['images_per_second']:.1f} images/s on "
        f"{summary['device']}, {summary['peak_memory_bytes'] / 2**20:.0f} MiB at most"
    )
    emit(summary, text, as_json)


if __name__ == "__main__":
    main()
