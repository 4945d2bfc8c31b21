"""pgsr-train: a recipe and photographs in, a run folder out.

pgsr-train progan-faces-64 --data faces.zip --out runs/faces
pgsr-train progan-faces-64 --data faces.zip --out runs/faces --resume
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import torch

from pgsr.checkpoint import load as load_checkpoint
from pgsr.cli import Command, emit, json_option, version_option
from pgsr.errors import PgsrError

from . import config
from .loop import load_weights, make_trainer
from .memory import keep_freed_memory
from .run import Run, StopRequest, checkpoint_files, latest_checkpoint, provenance, train
from .schedule import Schedule
from .schedule import build as build_schedule


def chosen_device(wish: str) -> torch.device:
    """auto, cpu or cuda[:N]. Raises PgsrError for a device that is not there."""
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise PgsrError(f"--device {wish!r} is not auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PgsrError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    return device


def schedule_table(schedule: Schedule) -> str:
    """The phases as text (pgsr-train --dry-run)."""
    lines = [f"{'phase':<14}{'alpha':<10}{'batch':>6}{'images':>12}{'steps':>10}{'shown at end':>14}"]
    for phase in schedule.phases:
        alpha = "0 to 1" if phase.fading else "1"
        steps = phase.images // (phase.batch * schedule.images_per_step)
        lines.append(
            f"{phase.name:<14}{alpha:<10}{phase.batch:>6}{phase.images:>12,}{steps:>10,}{phase.end:>14,}"
        )
    return "\n".join(lines)


def _list_recipes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value:
        return
    for name in config.recipe_names():
        click.echo(f"{name:<28}{config.load(name).about}")
    ctx.exit()


def _start_from(path: Path, run: Run) -> None:
    """Takes the averaged generator of a checkpoint or run as the start of both generators."""
    checkpoint = load_checkpoint(latest_checkpoint(path) if path.is_dir() else path)
    state = run.trainer.state
    weights = {f"generator.{k}": v for k, v in checkpoint.under("generator_ema.").items()}
    load_weights(state.generator, weights, "generator")
    state.generator_ema.load_state_dict(state.generator.state_dict())


@click.command(cls=Command)
@click.argument("recipe_name", metavar="RECIPE")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder, zip or pgsr-data archive of photographs."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint, exactly.")
@click.option("--other-data", is_flag=True, help="Let --resume go on with data of another fingerprint.")
@click.option(
    "--start-from", type=click.Path(path_type=Path), help="A run or checkpoint to take the generator from."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="schedule.batch=8")
@click.option("--seed", type=int, help="Short for --set seed=N.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N]")
@click.option("--minutes", type=float, help="Stop cleanly after this time; --resume goes on.")
@click.option("--dry-run", is_flag=True, help="Print the schedule and the resolved recipe; train nothing.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_recipes)
@json_option
@version_option
def main(
    recipe_name: str,
    data: Path | None,
    out: Path | None,
    resume: bool,
    other_data: bool,
    start_from: Path | None,
    settings: tuple[str, ...],
    seed: int | None,
    device: str,
    minutes: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train RECIPE (a name from --list, or a .toml file) on photographs."""
    if seed is not None:
        settings = (*settings, f"seed={seed}")
    recipe = config.load(recipe_name, settings)
    schedule = build_schedule(recipe.schedule, recipe.objective.critic_steps)
    if dry_run:
        text = schedule_table(schedule) + "\n" + json.dumps(recipe.as_dict(), indent=1)
        emit({"recipe": recipe.as_dict(), "total_images": schedule.total_images}, text, as_json)
        return
    if data is None or out is None:
        raise PgsrError("name the photographs with --data and the run's folder with --out")
    if not resume and checkpoint_files(out):
        raise PgsrError(f"{out} already holds a run: add --resume to go on with it, or name another --out")
    keep_freed_memory()
    trainer = make_trainer(recipe, schedule, data, chosen_device(device))
    run = Run(out, trainer, provenance(trainer))
    if resume:
        run.resume(latest_checkpoint(out), other_data)
    elif start_from is not None:
        _start_from(start_from, run)
    print(f"training {recipe.name} on {trainer.device} in {str(trainer.precision)[6:]}", file=sys.stderr)
    with StopRequest(minutes) as stop:
        finished = train(run, stop)
    shown = trainer.state.images_shown
    result = {"run": str(out), "images_shown": shown, "finished": finished}
    text = f"{out}: {shown} images shown"
    if not finished:
        again = [a for a in sys.argv[1:] if a != "--resume"] + ["--resume"] * (shown > 0)
        text += f"; to go on: {shlex.join(['pgsr-train', *again])}"
    emit(result, text, as_json)
