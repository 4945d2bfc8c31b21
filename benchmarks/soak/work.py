"""What pgsr-bench soak watches, each in a process of its own.

    python -m pgsr.benchmarks.soak.work generate FOLDER

It works until its standard input ends, and writes a line for each piece of work, with how many there were.
Every piece must give what the first gave: the same bytes of faces, the same weights of a run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from pathlib import Path

import click

from pgsr.cli import PATH
from pgsr.errors import PgsrError

FACES = 96  # of a job
BUNDLE_ROUNDS = 8  # jobs of an opened bundle

RECIPE = """
about = "for pgsr-bench soak: 4 x 4, a fade, 8 x 8; a checkpoint and a line of the log after every step"
[generator]
kind = "progan"
resolution = 8
latent_size = 4
feature_max = 4
[discriminator]
kind = "progan"
resolution = 8
feature_max = 4
[schedule]
resolution = 8
batch = 4
fade_images = 400
stable_images = 400
[objective]
gradient_penalty = 10.0
[averaging]
half_life_images = 50.0
[run]
log_images = 1
sample_images = 200
checkpoint_images = 1
sample_grid = 4
precision = "float32"
"""
PICTURES = 40
MINUTES = 0.0003  # of training between two resumes: a few steps


# ----------------------------------------------------------------------------
# Faces.


def generated(folder: Path, model: Path | None) -> Iterator[int]:
    """Makes the same faces in turn to a folder, a tar, a zip and a stream, with a bundle that is opened anew
    for every eight; gives back how many so far."""
    from pgsr.runtime.generate.job import STDOUT, Job
    from pgsr.runtime.generate.write import generate
    from pgsr.runtime.memory import share_arenas
    from pgsr.runtime.synthesizer import Synthesizer

    share_arenas()  # as pgsr-generate does
    outs = [folder / "faces", folder / "faces.tar", folder / "faces.zip", STDOUT]
    first: dict[Path, str] = {}
    made = 0
    while True:
        with Synthesizer(model, device="cpu", batch=16) as synthesizer:
            for out in islice(cycle(outs), BUNDLE_ROUNDS):
                with open(os.devnull, "wb", buffering=0) as null:
                    generate(synthesizer, Job(out, count=FACES), stream=null)
                if out != STDOUT:
                    digest = digest_of(out)
                    if first.setdefault(out, digest) != digest:
                        raise PgsrError(f"{out} holds other bytes than the first time")
                    remove(out)
                if left := os.listdir(folder):
                    raise PgsrError(f"{folder} still holds {', '.join(left)}")
                made += FACES
                yield made


def digest_of(path: Path) -> str:
    """Names and contents of a file or of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


# ----------------------------------------------------------------------------
# Training that is stopped and resumed.


def resumed(folder: Path, model: Path | None) -> Iterator[int]:
    """Resumes a tiny training again and again; when a run is finished its weights must be those of one that
    was never stopped, and the next begins. Gives back how many resumes so far."""
    from pgsr.trainer.data.cli import prepare
    from pgsr.trainer.data.recoding import Settings

    archive, recipe = folder / "drawn.zip", folder / "soak.toml"
    prepare([], archive, Settings((8,), "lanczos", "png", 95), drawn=PICTURES)
    recipe.write_text(RECIPE)
    trained(recipe, archive, folder / "whole")
    expected = weights_of(folder / "whole")
    resumes = 0
    for number in count():
        run, finished = folder / f"run-{number}", False
        while not finished:
            again = run.exists()
            finished = trained(recipe, archive, run, *["--resume"] * again, "--minutes", str(MINUTES))
            resumes += again
            yield resumes
        if weights_of(run) != expected:
            raise PgsrError(f"{run} has other weights than a run that was never stopped")
        shutil.rmtree(run)


def trained(recipe: Path, archive: Path, run: Path, *options: str) -> bool:
    """pgsr-train, in this process; whether the run is finished."""
    from pgsr.checkpoint import files_of
    from pgsr.trainer.cli import main

    arguments = [recipe, "--data", archive, "--out", run, "--device", "cpu", *options]
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        if stop.code:
            raise PgsrError(f"pgsr-train ended with {stop.code}") from None
    return any(int(path.stem) >= TOTAL for path in files_of(run))


TOTAL = 3 * 400  # images of the recipe: 4 x 4, the fade, 8 x 8


def weights_of(run: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, as bytes."""
    from pgsr.checkpoint import load, newest

    return {name: tensor.numpy().tobytes() for name, tensor in load(newest(run)).tensors.items()}


# ----------------------------------------------------------------------------

WORK: dict[str, Callable[[Path, Path | None], Iterator[int]]] = {"generate": generated, "resume": resumed}


def _wait_for_the_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


@click.command()
@click.argument("what", type=click.Choice(sorted(WORK)))
@click.argument("folder", type=PATH)
@click.option("--model", type=PATH)
def main(what: str, folder: Path, model: Path | None) -> None:
    """Work in FOLDER until the standard input ends."""
    with open(os.dup(1), "w", buffering=1) as counts, open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)  # what the commands say is not asked for
        ended = threading.Event()
        threading.Thread(target=_wait_for_the_end, args=(ended,), daemon=True).start()
        try:
            for done in WORK[what](folder, model):
                counts.write(f"{done}\n")
                if ended.is_set():
                    break
        except PgsrError as error:
            counts.write(f"error: {error}\n")
            sys.exit(1)


if __name__ == "__main__":
    main()
