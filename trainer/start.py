"""What pgsr-train does: from a recipe's name and options to a finished or stopped run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pgsr import checkpoint as checkpoints
from pgsr.cli import emit
from pgsr.errors import PgsrError
from pgsr.lock import is_held

from .data.listing import tell
from .loop import StopRequest, train
from .run_folder.dry_run import dry_run
from .run_folder.run import Run, provenance
from .step import recipe as config
from .step.allocator import keep_freed_memory
from .step.batches import batches_for
from .step.parallel import ALONE, Ranks, local_device, ranks_of_run, use_gpu
from .step.precision import chosen_precision, measured_worthwhile
from .step.schedule import Schedule
from .step.schedule import build as build_schedule
from .step.state import load_weights
from .step.trainer import Trainer, device_name


@dataclass(frozen=True)
class Options:
    """The command line, as it was given."""

    recipe_name: str | None  # None: the run's own, of one that is resumed
    data: Path | None
    out: Path | None
    resume: bool
    other_data: bool
    start_from: Path | None
    settings: tuple[str, ...]
    device: str
    minutes: float | None
    on_nan: str
    dry_run: bool
    verbose: bool
    as_json: bool


def chosen_device(wish: str) -> torch.device:
    """auto, cpu or cuda[:N]; a GPU that is named becomes the current one, as events and streams expect.

    Raises PgsrError for a device that is not there.
    """
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise PgsrError(f"--device {wish!r} is not auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise PgsrError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
        use_gpu(device)
    return device


def list_recipes() -> str:
    """A table of the recipes that come with the package: name, where in the papers, what it is."""
    recipes = [config.load(name) for name in config.recipe_names()]
    names = max(len(r.name) for r in recipes) + 2
    sources = max(len(r.source) for r in recipes) + 2
    return "\n".join(f"{r.name:<{names}}{r.source:<{sources}}{r.about}" for r in recipes)


def _start_from(path: Path, run: Run) -> None:
    """Takes the averaged generator of a checkpoint or run as the start of both generators."""
    checkpoint = checkpoints.load(checkpoints.newest(path))
    state = run.trainer.state
    weights = {f"generator.{k}": v for k, v in checkpoint.under("generator_ema.").items()}
    load_weights(state.generator, weights, "generator")
    state.generator_ema.load_state_dict(state.generator.state_dict())


def checkpoint_to_resume(recipe: config.Recipe, folder: Path) -> Path | None:
    """A run's newest checkpoint; None if it was stopped before its first, so that it begins again.

    Raises PgsrError if there is no folder, or it holds something else, or a run of another recipe.
    """
    if checkpoints.files_of(folder):
        return checkpoints.newest(folder)
    config_file = folder / "config.json"
    if config_file.is_file():
        if config.of_run(folder).as_dict() != recipe.as_dict():
            raise PgsrError(f"{folder} holds another recipe and no checkpoint: begin again without --resume")
    elif not folder.is_dir() or any(not p.name.endswith(".tmp") for p in folder.iterdir()):
        raise PgsrError(f"{folder} holds no checkpoint to resume from")
    print(f"note: {folder} holds no checkpoint yet: beginning again", file=sys.stderr)
    return None


def open_run(
    recipe: config.Recipe, data: Path, folder: Path, device: torch.device, ranks: Ranks = ALONE
) -> Run:
    """A run in a folder, standing before its first step. Raises PgsrError if the data do not fit."""
    keep_freed_memory()
    critic_steps = recipe.objective.critic_steps
    if not recipe.schedule.counts_epochs:
        check_phases(build_schedule(recipe.schedule, critic_steps), ranks)  # before anything is decoded
    batches = batches_for(recipe, data, device, ranks)
    schedule = build_schedule(recipe.schedule, critic_steps, batches.count)
    check_phases(schedule, ranks)
    precision = _precision(recipe, folder, device, ranks)
    with _enough_memory(recipe):
        trainer = Trainer(recipe, schedule, batches, device, ranks, precision)
    check_statistics(trainer)
    return Run(folder, trainer, provenance(trainer))


@contextmanager
def _enough_memory(recipe: config.Recipe) -> Iterator[None]:
    """Raises PgsrError if networks are too large for the machine, or for any."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if not any(word in words for word in ("memory", "allocat", "overflow", "storage size")):
            raise
        raise PgsrError(
            f"the networks of {recipe.name} do not fit into memory: lower feature_max or latent_size"
        ) from error


def check_phases(schedule: Schedule, ranks: Ranks) -> None:
    """Raises PgsrError if a batch of any phase, however late, cannot be shared by the processes."""
    for phase in schedule.phases:
        ranks.share(phase.start, phase.batch)


def check_statistics(trainer: Trainer) -> None:
    """Raises PgsrError if a phase shows one image at a time to a critic that looks across a batch."""
    if not any(layer.group > 1 for layer in trainer.statistics):
        return
    for phase in trainer.schedule.phases:
        if phase.batch == 1:
            raise PgsrError(
                f"{phase.name} has a batch of 1, of which there is no minibatch standard deviation: set "
                f"schedule.at.{phase.resolution}.batch to at least 2, or discriminator.stddev_group to 1"
            )


def _precision(recipe: config.Recipe, folder: Path, device: torch.device, ranks: Ranks) -> torch.dtype:
    """The precision of all ranks. One that was measured before in this folder on such a device is kept, so
    that a run goes on in it."""
    before = config.chosen_by(folder)

    def half_is_worthwhile() -> bool:
        if before.get("device") == device_name(device) and before.get("precision") in ("float16", "float32"):
            return bool(before["precision"] == "float16")
        return measured_worthwhile(device)

    return ranks.agreed(chosen_precision(recipe.run.precision, device, half_is_worthwhile))


def start(options: Options) -> None:
    """Runs the command. Raises PgsrError for anything the user can mend."""
    recipe = _recipe(options)
    if options.dry_run:
        emit(*dry_run(recipe, options.data, chosen_device(options.device)), options.as_json)
        return
    data, out = options.data, options.out
    if data is None or out is None:
        raise PgsrError("name the photographs with --data and the run's folder with --out")
    if is_held(out):
        raise PgsrError(f"another process is training in {out}: stop it first")
    if not options.resume and checkpoints.files_of(out):
        raise PgsrError(f"{out} already holds a run: add --resume to go on with it, or name another --out")
    resume_from = checkpoint_to_resume(recipe, out) if options.resume else None
    device = local_device(chosen_device(options.device))
    with ranks_of_run(device) as ranks:
        result, text = _train(recipe, data, out, device, ranks, resume_from, options)
        if ranks.rank == 0:
            emit(result, text, options.as_json)


def _recipe(options: Options) -> config.Recipe:
    if options.recipe_name is not None:
        return config.load(options.recipe_name, options.settings)
    if options.out is None:
        raise PgsrError("name a recipe, or the run's folder with --out and --resume")
    return config.of_run(options.out, options.settings)


def _train(
    recipe: config.Recipe,
    data: Path,
    out: Path,
    device: torch.device,
    ranks: Ranks,
    resume_from: Path | None,
    options: Options,
) -> tuple[dict[str, object], str]:
    """Trains until the end or a stop; what to tell the user."""
    run = open_run(recipe, data, out, device, ranks)
    trainer = run.trainer
    if resume_from is not None:
        run.resume(resume_from, options.other_data)
    elif options.start_from is not None:
        _start_from(options.start_from, run)
    if ranks.rank == 0:
        tell(data, trainer.batches.count, trainer.batches.left_out, options.verbose)
        for path, photographs in trainer.batches.others.items():
            tell(path, len(photographs), photographs.left_out, options.verbose)
        print(beginning(trainer), file=sys.stderr)
    with StopRequest(options.minutes) as stop:
        finished = train(run, stop, options.on_nan)
    images_shown = trainer.state.images_shown
    result = {"run": str(out), "images_shown": images_shown, "finished": finished}
    text = f"{out}: {images_shown} images shown"
    if not finished:
        text += f"; to go on: {_command_to_go_on(ranks, images_shown)}"
    return result, text


def beginning(trainer: Trainer) -> str:
    """Returns what is said of a training as it begins."""
    text = f"training {trainer.recipe.name} on {trainer.device} in {trainer.chosen['precision']}"
    return f"{text}, {trainer.batches.residency}" if trainer.device.type == "cuda" else text


def _command_to_go_on(ranks: Ranks, images_shown: int) -> str:
    """Returns this command again, as it was started, with --resume where there is something to resume."""
    command = ["pgsr-train"]
    if ranks.count > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", str(ranks.count))
        command = ["torchrun", "--nproc-per-node", here, "-m", "pgsr.trainer"]
    again = [a for a in sys.argv[1:] if a != "--resume"] + ["--resume"] * (images_shown > 0)
    return shlex.join([*command, *again])
